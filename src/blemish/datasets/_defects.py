"""The surface of a drawn product, and everything that can go wrong with it.

A defect takes the surface of a good product and returns a changed one; lighting, blur and noise come afterwards (in
`synthetic.py`), so a scratch catches the light and a stain lies under the grain. Lengths are in units of 1/256 of the
image side, whatever its size in pixels.

All arithmetic is in float64: another BLAS or vector unit then rounds differently in the 16th digit, which a pixel of 8
bits does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from ..types import Floats

MaskArray = NDArray[np.bool_]
Integers = NDArray[np.intp]

SMALLEST = 8
"""No defect is fewer pixels across than this."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the points of one picture lie, and where its light comes from."""

    y: Floats
    """`(side, side)` row coordinate of each point, 0 at the top edge to 256 at the bottom edge."""
    x: Floats
    """`(side, side)` column coordinate."""
    pixel: float
    """Side of one pixel of the finished picture, in units."""
    light: float
    """Direction from which the light comes, in radians, 0 along +x."""

    @property
    def side(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Surface:
    """What the camera looks at, before light falls on it."""

    colour: Floats
    """`(side, side, 3)` reflected part of the light, in [0, 1]."""
    relief: Floats
    """`(side, side)` height in units; its slopes are shaded."""
    bare_colour: Floats
    """`colour` as it would be without the pattern, the print or the parts."""
    bare_relief: Floats
    """`relief` likewise."""
    under: Floats
    """`(side, side, 3)` colour that shows where material has broken out."""
    busy: float
    """Contrast of the pattern: a defect has to stand out from it."""
    body: MaskArray | None = None
    """`(side, side)` the product without the background; None: it fills the picture."""
    parts: Floats | None = None
    """`(count, 3)` row, column and radius of the parts or letters that can be missing; None for a texture."""


def noise(rng: Generator, side: int, *, rows: int, columns: int) -> Floats:
    """Smooth random field `(side, side)` of unit deviation, with about `rows` x `columns` bumps."""
    knots = rng.standard_normal((rows + 3, columns + 3))
    # Gathers and sums instead of a matrix product: the same order of additions on every machine, and no thread pool.
    first, weights = _spline(side, columns)
    wide: Floats = np.sum([weights[:, k] * knots.take(first + k, axis=1) for k in range(4)], axis=0)
    first, weights = _spline(side, rows)
    field: Floats = np.sum([weights[:, k, None] * wide.take(first + k, axis=0) for k in range(4)], axis=0)
    # 151 / 315 is the mean of the summed squares of the cubic B-spline weights, once per axis.
    return field * (315 / 151)


@lru_cache(maxsize=64)
def _spline(side: int, cells: int) -> tuple[Integers, Floats]:
    """First knot `(side,)` and cubic B-spline weights `(side, 4)` of every point."""
    position = (np.arange(side) + 0.5) / side * cells
    first = position.astype(np.intp)
    t = position - first
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return first, np.stack(weights, axis=1) / 6


def mix(first: Floats, second: Floats, weight: Floats) -> Floats:
    """Go from `first` (weight 0) to `second` (weight 1); `weight` is `(side, side)`."""
    share = weight[:, :, None] if first.ndim == 3 or second.ndim == 3 else weight
    return first + (second - first) * share


def smoothstep(value: Floats, *, low: float, high: float) -> Floats:
    """Smooth step: 0 up to `low`, 1 from `high` on."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def turned_axes(frame: Frame, *, angle: float, centre: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Coordinates `v` down and `u` along a part that is turned by `angle` around `centre`, both in units."""
    dy, dx = frame.y - centre[0], frame.x - centre[1]
    return dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)


def rectangle(v: Floats, u: Floats, *, half: tuple[float, float], soft: float) -> Floats:
    """1 inside a rectangle of this half height and half width around the origin, 0 outside, `soft` at the edge."""
    return 1 - smoothstep(np.maximum(np.abs(v) - half[0], np.abs(u) - half[1]), low=-soft, high=soft)


def mat(rng: Generator, frame: Frame, *, colour: tuple[float, float, float]) -> Floats:
    """The worn mat `(side, side, 3)` on which an object lies."""
    worn = 0.03 * noise(rng, frame.side, rows=110, columns=110) + 0.05 * noise(rng, frame.side, rows=4, columns=4)
    return np.array(colour) * (1 + rng.normal(0, 0.03)) * (1 + worn)[:, :, None]


def cells(rng: Generator, y: Floats, x: Floats, *, pitch: float) -> tuple[Floats, Floats, Integers]:
    """Irregular cells about `pitch` units wide.

    Returns, for each point, the distance to the nearest seed, by how much the second is farther (0 at the edge of a
    cell), both in pitches, and the number of the cell.
    """
    count = int(256 / pitch) + 12
    own_v, own_u = (rng.uniform(0.08, 0.92, (count, count)) + np.arange(count)[:, None] for _ in "vu")
    seed_v, seed_u = own_v.ravel(), own_u.T.ravel()
    v, u = y / pitch + 6, x / pitch + 6
    home = np.clip(v.astype(np.intp), 1, count - 2) * count + np.clip(u.astype(np.intp), 1, count - 2)
    first, second, number = np.full(v.shape, np.inf), np.full(v.shape, np.inf), home.copy()
    for offset in (i * count + j for i in (-1, 0, 1) for j in (-1, 0, 1)):
        seed = home + offset
        distance = (v - seed_v[seed]) ** 2 + (u - seed_u[seed]) ** 2
        np.copyto(number, seed, where=distance < first)
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    first, second = np.sqrt(first), np.sqrt(second)
    return first, second - first, number


def lettering(
    v: Floats, u: Floats, *, at: tuple[float, float], height: float
) -> tuple[Floats, list[tuple[float, float]]]:
    """Ink `(side, side)` of the printed code BL50, whose upper left corner is `at`, and the centres of its letters."""
    dot = height / 7
    points = np.stack([v - at[0] + dot, u - at[1] + dot]) * (6 / dot) - 0.5
    ink: Floats = ndimage.map_coordinates(_code(), points, order=1)
    return ink, [(at[0] + 3.5 * dot, at[1] + (2.5 + 6 * k) * dot) for k in range(4)]


@lru_cache(maxsize=1)
def _code() -> Floats:
    rows = (
        "####. #.... ##### .###.",
        "#...# #.... #.... #...#",
        "#...# #.... ####. #...#",
        "####. #.... ....# #...#",
        "#...# #.... ....# #...#",
        "#...# #.... #...# #...#",
        "####. ##### .###. .###.",
    )
    dots = np.pad([[float(c == "#") for c in row] for row in rows], 1)
    return smoothstep(ndimage.gaussian_filter(np.kron(dots, np.ones((6, 6))), 1.6), low=0.25, high=0.6)


def defective(rng: Generator, surface: Surface, frame: Frame, *, kind: str, strength: float) -> Surface:
    """Put one defect of a kind on the surface, `strength` times as strong as usual."""
    changed = DEFECTS[kind](rng, surface, frame, strength)
    return replace(changed, colour=np.maximum(changed.colour, 0))


def across(mask: MaskArray) -> int:
    """Longer side of the box around a mask, in pixels; 0 for an empty one."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return int(max(np.ptp(rows), np.ptp(columns)) + 1) if len(rows) else 0


def _scratch(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """A thin curved groove, darker or brighter than its surroundings, that fades towards its ends."""
    length = _span(rng, frame, 40, 110)
    width = max(rng.uniform(0.9, 1.5), 0.6 * frame.pixel)
    distance, along = _curve(rng, surface, frame, length=length, bend=0.5)
    groove = np.exp(-((distance / width) ** 2)) * smoothstep(along * (1 - along), low=-0.02, high=0.12)
    sign = rng.choice([-1.0, 1.0])
    contrast = sign * strength * (rng.uniform(0.2, 0.3) + 1.2 * surface.busy)
    return replace(
        surface,
        colour=surface.colour * (1 + contrast * groove)[:, :, None],
        relief=surface.relief - 0.5 * strength * groove,
    )


def _spot(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """A small stain with an irregular outline, often with a darker rim as it dries."""
    radius = _span(rng, frame, 9, 20) / 2
    inside = _blob(rng, surface, frame, radius=radius, soft=0.35)
    tint = _tint(rng, strength * (rng.uniform(0.22, 0.34) + 1.1 * surface.busy), hue=0.4)
    rim = 0.6 + 0.4 * smoothstep(1 - inside, low=0.1, high=0.7)
    return replace(surface, colour=_soaked(surface, inside * rim, tint))


def _stain(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """A large, soft discolouration of low contrast, a little stronger near its edge, where it dried last."""
    # A stain as large as an object could not be told from an object of another colour.
    radius = _span(rng, frame, 44, 84 if surface.body is None else 60) / 2
    inside = _blob(rng, surface, frame, radius=radius, soft=0.4)
    tint = _tint(rng, strength * (rng.uniform(0.16, 0.22) + 0.5 * surface.busy), hue=1.1)
    patchy = np.clip(0.9 + 0.15 * noise(rng, frame.side, rows=12, columns=12), 0, 2) + 1.2 * inside * (1 - inside)
    return replace(surface, colour=_soaked(surface, inside * patchy, tint))


def _chip(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """Material broken out: what lies below shows, with a rough floor and a rim that catches the light."""
    radius = _span(rng, frame, 12, 30) / 2
    inside = _blob(rng, surface, frame, radius=radius, soft=0.12, rough=0.1)
    floor = surface.under * (1 + 0.08 * noise(rng, frame.side, rows=90, columns=90))[:, :, None]
    depth = strength * rng.uniform(1.2, 2.2)
    return replace(surface, colour=mix(surface.colour, floor, inside), relief=surface.relief - depth * inside)


def _contamination(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """A fibre, or a few specks of dirt: something that lies on the product and throws a small shadow."""
    if rng.random() < 0.6:
        width = max(rng.uniform(0.8, 1.3), 0.6 * frame.pixel)
        distance, _ = _curve(rng, surface, frame, length=_span(rng, frame, 30, 70), bend=2.2)
        dirt = 1 - smoothstep(distance, low=0.5 * width, high=1.6 * width)
    else:
        dirt = _specks(rng, surface, frame)
    colour = _local_colour(surface, dirt) * (1 + _tint(rng, strength * (0.45 + 1.2 * surface.busy), hue=0.5))
    shift = (1.4 * max(1.0, frame.pixel)) * frame.side / 256
    shadow = ndimage.shift(dirt, (-shift * np.sin(frame.light), -shift * np.cos(frame.light)), order=1)
    shaded = surface.colour * (1 - 0.18 * shadow)[:, :, None]
    return replace(surface, colour=mix(shaded, np.clip(colour, 0.03, 0.9), dirt))


def _distortion(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """The pattern is turned, shifted or stretched in one place: the same colours, in the wrong arrangement."""
    (cy, cx), radius = _part(rng, surface, frame, _span(rng, frame, 42, 70) / 2)
    inside = _blob(rng, surface, frame, radius=radius, soft=0.2, centre=(cy, cx))
    # A random pattern looks the same when it is turned; stretched along one direction it does not.
    least, stretch = (0.32, 0.0) if surface.parts is not None else (0.5, 0.62)
    turn = rng.choice([-1.0, 1.0]) * min(strength, 1.6) * rng.uniform(least, 1.8 * least) * inside
    heading = rng.uniform(0, 2 * np.pi)
    to_y, to_x = np.sin(heading), np.cos(heading)
    dy, dx = frame.y - cy, frame.x - cx
    shift = inside * (strength * rng.uniform(1.5, 3.5) - stretch * (dy * to_y + dx * to_x))
    dy, dx = dy + shift * to_y, dx + shift * to_x
    y, x = cy + dy * np.cos(turn) - dx * np.sin(turn), cx + dy * np.sin(turn) + dx * np.cos(turn)
    points = np.stack([y, x]) * (frame.side / 256) - 0.5
    return replace(
        surface,
        colour=np.stack([_sample(surface.colour[:, :, c], points, inside) for c in range(3)], axis=2),
        relief=_sample(surface.relief, points, inside),
    )


def _missing(rng: Generator, surface: Surface, frame: Frame, strength: float) -> Surface:
    """A part, a letter or a piece of the pattern is not there; the neighbours too, where one is too small to see."""
    centre, radius = _part(rng, surface, frame, _span(rng, frame, 32, 56) / 2)
    radius = min(1.15 * radius * max(1.0, strength / 1.4) ** 2, max(radius, 62.0))
    inside = _blob(rng, surface, frame, radius=radius, soft=0.15, centre=centre)
    return replace(
        surface,
        colour=mix(surface.colour, surface.bare_colour, inside),
        relief=mix(surface.relief, surface.bare_relief, inside),
    )


DEFECTS: dict[str, Callable[[Generator, Surface, Frame, float], Surface]] = {
    "scratch": _scratch,
    "spot": _spot,
    "stain": _stain,
    "chip": _chip,
    "contamination": _contamination,
    "distortion": _distortion,
    "missing": _missing,
}
"""Kind of defect, and the function that puts one on a surface."""


def _span(rng: Generator, frame: Frame, low: float, high: float) -> float:
    """A random length in units, never below the smallest defect in pixels."""
    return max(float(rng.uniform(low, high)), 1.15 * SMALLEST * frame.pixel)


def _tint(rng: Generator, contrast: float, *, hue: float) -> Floats:
    """Relative change `(3,)` of the colour channels; `hue` 0 changes brightness only, 1 mostly the colour."""
    change = rng.choice([-1.0, 1.0], p=[0.65, 0.35]) + hue * rng.uniform(-1, 1, 3)
    tint: Floats = contrast * change / np.abs(change).max()
    return tint


def _soaked(surface: Surface, amount: Floats, tint: Floats) -> Floats:
    """Colour of the surface under a dried liquid: it filters the light, and scatters some by itself."""
    return surface.colour + amount[:, :, None] * tint * (0.5 * surface.colour + 0.18)


def _place(rng: Generator, surface: Surface, frame: Frame, *, among: MaskArray | None = None) -> tuple[float, float]:
    """A random point of the product (or of a part of it), not at the very edge of the picture."""
    allowed = (np.abs(frame.y - 128) < 112) & (np.abs(frame.x - 128) < 112)
    for mask in (surface.body, among):
        allowed = allowed if mask is None else allowed & mask
    candidates = np.flatnonzero(allowed)
    index = candidates[int(rng.random() * len(candidates))]
    return float(frame.y.flat[index]), float(frame.x.flat[index])


def _part(rng: Generator, surface: Surface, frame: Frame, radius: float) -> tuple[tuple[float, float], float]:
    """Centre and radius of a random part, or of a random place on a product without parts."""
    if surface.parts is None:
        # Where the pattern is dense: without it, or with it bent, a sparse place would look much the same.
        dense = ndimage.gaussian_filter(np.abs(surface.colour - surface.bare_colour).sum(axis=2), frame.side / 25)
        return _place(rng, surface, frame, among=dense >= np.quantile(dense, 0.6)), radius
    y, x, extent = surface.parts[int(rng.integers(len(surface.parts)))]
    return (float(y), float(x)), max(float(extent), 0.6 * SMALLEST * frame.pixel)


def _blob(
    rng: Generator,
    surface: Surface,
    frame: Frame,
    *,
    radius: float,
    soft: float,
    rough: float = 0.09,
    centre: tuple[float, float] | None = None,
) -> Floats:
    """An irregular disc `(side, side)`: 1 inside, 0 outside, with an edge `soft` radii wide."""
    cy, cx = _place(rng, surface, frame) if centre is None else centre
    waves, phases = rough * rng.standard_normal(6) / (1 + 0.35 * np.arange(6)), rng.uniform(0, 2 * np.pi, 6)
    if centre is not None:
        waves = 0.2 * waves  # a part has to be covered as a whole
    box = window(frame, (cy, cy), (cx, cx), margin=1.6 * radius * (1 + soft))
    dy, dx = frame.y[box] - cy, frame.x[box] - cx
    angle = np.arctan2(dy, dx)
    outline = 1 + sum(waves[k] * np.cos((k + 2) * angle + phases[k]) for k in range(6))
    distance = np.hypot(dy, dx) / (radius * np.clip(outline, 0.7, 1.5))
    disc = np.zeros(frame.y.shape)
    disc[box] = 1 - smoothstep(distance, low=1 - soft, high=1 + soft)
    return disc


def _curve(rng: Generator, surface: Surface, frame: Frame, *, length: float, bend: float) -> tuple[Floats, Floats]:
    """Distance of every point from a random curve in units, and the place along it in [0, 1]; `bend` in radians."""
    count = 20
    place = np.linspace(-1, 1, count)
    heading = rng.uniform(0, 2 * np.pi) + bend * (rng.uniform(-1, 1) * place + rng.uniform(-1, 1) * place**2)
    y, x = np.cumsum(np.sin(heading)), np.cumsum(np.cos(heading))
    cy, cx = _place(rng, surface, frame)
    y, x = cy + (y - y.mean()) * length / count, cx + (x - x.mean()) * length / count
    distance, along = np.full(frame.y.shape, np.inf), np.zeros(frame.y.shape)
    box = window(frame, (y.min(), y.max()), (x.min(), x.max()), margin=10 + 3 * frame.pixel)
    near, part = distance[box], along[box]  # views: what is written here lands above
    py, px = frame.y[box], frame.x[box]
    for k in range(count - 1):
        sy, sx = y[k + 1] - y[k], x[k + 1] - x[k]
        t = np.clip(((py - y[k]) * sy + (px - x[k]) * sx) / (sy * sy + sx * sx), 0, 1)
        d = np.hypot(py - y[k] - t * sy, px - x[k] - t * sx)
        closer = d < near
        near[closer], part[closer] = d[closer], ((k + t) / (count - 1))[closer]
    return distance, along


def window(
    frame: Frame, rows: tuple[float, float], columns: tuple[float, float], *, margin: float
) -> tuple[slice, slice]:
    """The part of a `(side, side)` array that spans these units, and `margin` units around."""
    scale, side = frame.side / 256, frame.side
    (top, bottom), (left, right) = (
        (int(np.clip((low - margin) * scale, 0, side)), int(np.clip((high + margin) * scale, 0, side)))
        for low, high in (rows, columns)
    )
    return slice(top, bottom), slice(left, right)


def _specks(rng: Generator, surface: Surface, frame: Frame) -> Floats:
    """A handful of crumbs around one place."""
    cy, cx = _place(rng, surface, frame)
    spread = _span(rng, frame, 9, 22) / 2
    crumbs = np.zeros(frame.y.shape)
    for dy, dx, size in zip(*rng.standard_normal((2, 7)), rng.uniform(1.2, 2.6, 7), strict=True):
        radius = max(float(size), 0.8 * frame.pixel)
        distance = np.hypot(frame.y - cy - spread * 0.6 * dy, frame.x - cx - spread * 0.6 * dx)
        crumbs = np.maximum(crumbs, 1 - smoothstep(distance, low=0.6 * radius, high=1.3 * radius))
    return crumbs


def _local_colour(surface: Surface, weight: Floats) -> Floats:
    """Mean colour `(3,)` of the surface where `weight` is; dirt differs from that, not from black."""
    share = weight + 1e-12
    colour: Floats = (surface.colour * share[:, :, None]).sum(axis=(0, 1)) / share.sum()
    return colour


def _sample(layer: Floats, points: Floats, inside: Floats) -> Floats:
    """Values of a layer at displaced points, where `inside` is positive; elsewhere the layer itself."""
    moved: Floats = layer.copy()
    where = inside > 0
    moved[where] = ndimage.map_coordinates(layer, points[:, where], order=3, mode="mirror")
    return moved
