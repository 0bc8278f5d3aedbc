"""Drawn products with defects: pictures and pixel masks without a download.

Eight products, drawn from scratch for every seed, in changing light and slightly out of place, as a camera over a
conveyor belt sees them; seven kinds of defects on each. A picture with a defect equals the picture of the same seed
without one, outside the mask.

| texture | | object | |
|---|---|---|---|
| `weave` | canvas of two threads | `washer` | stamped steel ring |
| `brushed` | brushed steel | `capsule` | two-coloured, printed |
| `leather` | grained hide | `board` | circuit board with parts |
| `terrazzo` | stone chips in cement | `cork` | printed stopper before black, where only the sensor's noise varies |

| defect | |
|---|---|
| `scratch` | thin curved groove |
| `spot` | small stain |
| `stain` | large, soft discolouration |
| `chip` | material broken out |
| `contamination` | fibre or specks |
| `distortion` | pattern turned and shifted: same colours, wrong arrangement |
| `missing` | a part, a letter or a piece of the pattern absent |

Brightness, contrast and colour vary more from part to part than a defect changes them, so neither the mean of a picture
nor the difference from the mean picture tells a defect. What tells it is local structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..errors import ArgumentError
from ..files import make_folder, naming
from ..types import Floats
from ._defects import (
    DEFECTS,
    SMALLEST,
    Frame,
    MaskArray,
    Surface,
    across,
    cells,
    defective,
    lettering,
    mat,
    mix,
    noise,
    rectangle,
    smoothstep,
    turned_axes,
    window,
)

_VISIBLE = 4 / 255  # change of a pixel, before sensor noise, from which on the mask counts it
_CLEAR = 9 / 255  # mean change inside the mask from which on a defect is plain to see on an even surface


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture and its ground truth."""

    pixels: NDArray[np.uint8]
    """`(size, size, 3)` RGB."""
    mask: MaskArray
    """`(size, size)`: the pixels that the defect changed; all False without a defect."""


def draw(product: str, *, seed: int, defect: str | None = None, size: int = 256) -> Drawing:
    """Draw one picture of a product, with a defect of a kind or without one.

    The same arguments give the same pixels. `size` is the side in pixels, 64 to 1024. A defect is at least 8 pixels
    across.

    >>> sample = draw("weave", seed=3, defect="scratch", size=64)
    >>> sample.pixels.shape, bool(sample.mask.any())
    ((64, 64, 3), True)
    """
    check_product(product)
    if defect is not None:
        _check("defect", defect, DEFECTS, instead="Leave it out for a good part.")
    _check_number("seed", seed, 0)
    _check_number("size", size, 64, 1024)
    camera = _Camera.point(_stream(product, seed, "camera"), size)
    surface = PRODUCTS[product](_stream(product, seed, "product"), camera.frame)
    clean = camera.look(surface)
    if defect is None:
        return Drawing(camera.expose(clean), np.zeros((size, size), dtype=np.bool_))
    rng = _stream(product, seed, defect)
    image, mask = _spoil(rng, surface, camera, clean, kind=defect)
    return Drawing(camera.expose(image), mask)


def write_dataset(
    folder: str | Path,
    *,
    product: str,
    seed: int = 0,
    n_train: int = 60,
    n_test_normal: int = 20,
    n_per_defect: int = 8,
    size: int = 256,
) -> Path:
    """Write a data set of one product in the layout of MVTec AD into a new or empty folder, and return the folder.

    `train/good/000.png`, `test/good/000.png`, `test/<defect>/000.png` and `ground_truth/<defect>/000_mask.png` (0 and
    255). Picture `i`, in this order, is `draw(product, seed=1_000_000 * seed + i)`: no two show the same part.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError.about(
            "folder", expected="a new or empty folder", got=str(folder), instead="Old and new pictures would mix."
        )
    check_product(product)
    _check_number("seed", seed, 0)
    _check_number("size", size, 64, 1024)
    for name, count in (("n_train", n_train), ("n_test_normal", n_test_normal), ("n_per_defect", n_per_defect)):
        _check_number(name, count, 0, 100_000)
    make_folder(folder)
    part = 1_000_000 * int(seed)
    plan: list[tuple[str, str | None, int]] = [("train/good", None, n_train), ("test/good", None, n_test_normal)]
    for place, defect, count in plan + [(f"test/{kind}", kind, n_per_defect) for kind in DEFECTS]:
        for index in range(count):
            sample = draw(product, seed=part, defect=defect, size=size)
            _save(sample.pixels, folder / place / f"{index:03d}.png")
            if defect:
                _save(sample.mask.astype(np.uint8) * 255, folder / "ground_truth" / defect / f"{index:03d}_mask.png")
            part += 1
    return folder


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    make_folder(path.parent)
    with naming(path):
        Image.fromarray(pixels).save(path, compress_level=2)  # sensor noise does not compress anyway


def check_product(name: object) -> None:
    """Raise `ArgumentError` unless it is a product of the table."""
    _check("product", name, PRODUCTS)


def _check(name: str, value: object, names: Iterable[str], *, instead: str = "") -> None:
    if not isinstance(value, str) or value not in names:
        raise ArgumentError.about(name, expected=f"one of {', '.join(names)}", got=value, instead=instead)


def _check_number(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= (high or value):
        return
    bounds = f"from {low} to {high}" if high else f"of at least {low}"
    raise ArgumentError.about(name, expected=f"a whole number {bounds}", got=value)


def _stream(product: str, seed: int, purpose: str) -> Generator:
    """Separate random numbers for each purpose: a defect must not disturb the part, nor the camera."""
    return np.random.default_rng([crc32(product.encode()), int(seed), crc32(purpose.encode())])


def _spoil(rng: Generator, surface: Surface, camera: _Camera, clean: Floats, *, kind: str) -> tuple[Floats, MaskArray]:
    """Put a defect on the part, again elsewhere and stronger until it shows; image before noise, and mask."""
    strength = float(rng.uniform(0.8, 1.4))
    body = np.ones(clean.shape[:2], dtype=np.bool_) if surface.body is None else camera.shrink(surface.body)
    for attempt in range(12):
        spoilt = camera.look(defective(rng, surface, camera.frame, kind=kind, strength=strength))
        change = np.abs(spoilt - clean)
        whole = _visible(change.max(axis=2))
        mask = whole & body
        on_product = mask.sum() > 0.6 * whole.sum()
        # On a faint pattern, no change of the pattern is strong: settle for less each time.
        if on_product and across(mask) >= SMALLEST and change[mask].mean() > 0.93**attempt * _needed(clean, mask, body):
            break
        strength *= 1.15
    return np.where(mask[:, :, None], spoilt, clean), mask


def _needed(clean: Floats, mask: MaskArray, body: MaskArray) -> float:
    """Mean change from which on a person sees the defect: it has to stand out from its surroundings."""
    margin = len(mask) // 32
    rows, columns = np.nonzero(mask)
    box = tuple(slice(max(0, at.min() - margin), at.max() + margin + 1) for at in (rows, columns))
    around = clean[box].mean(axis=2)[body[box]]
    contrast = 1.48 * np.median(np.abs(around - np.median(around)))  # of the pattern, without the few parts on it
    extent = np.sqrt(mask.mean()) * 256  # side of a square of the same area, in units
    return float(max(_CLEAR, min(0.9, 12 / extent) * contrast))


def _visible(change: Floats) -> MaskArray:
    """The pixels that differ, with pinholes filled, where two different patterns happen to agree."""
    seen: MaskArray = change > _VISIBLE
    if not seen.any():
        return seen
    reach = max(1, round(len(seen) / 256))
    rows, columns = ndimage.find_objects(seen.astype(np.int8))[0]
    inner = np.pad(seen[rows, columns], reach + 1)
    inner = ndimage.binary_closing(inner, iterations=reach)
    holes, _ = ndimage.label(~inner)
    inner |= (np.bincount(holes.ravel()) < (len(seen) / 40) ** 2)[holes]
    parts, _ = ndimage.label(inner)
    inner &= (np.bincount(parts.ravel()) >= 4)[parts]  # a few stray pixels are no part of a defect
    mask = np.zeros_like(seen)
    mask[rows, columns] = inner[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
    return mask


@dataclass(frozen=True, slots=True)
class _Camera:
    """The light on a part, the lens and the sensor."""

    frame: Frame
    gain: Floats
    """`(side, side, 3)` light on every point."""
    depth: float
    """How strongly slopes are shaded."""
    blur: float
    """Deviation of the lens blur in points."""
    grain: Floats
    """`(size, size, 3)` sensor noise of unit deviation."""
    fold: int
    """Points per pixel along one side: small pictures are drawn larger, and binned."""

    @classmethod
    def point(cls, rng: Generator, size: int) -> _Camera:
        """Set up camera and light; exposure, gradient, a broad reflex and the colour of the lamp change every time."""
        fold = -(-128 // size)
        side = fold * size
        axis = (np.arange(side) + 0.5) * (256 / side)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        light = float(rng.normal(-2.2, 0.5))
        exposure, tilt, reflex = rng.uniform(0.75, 1.25), rng.uniform(0.05, 0.3), rng.uniform(0, 0.3)
        cy, cx, width = rng.uniform(20, 236), rng.uniform(20, 236), rng.uniform(40, 90)
        dy, dx = (y - 128) / 128, (x - 128) / 128
        field = 1 + tilt * (dy * np.sin(light) + dx * np.cos(light)) - 0.08 * (dy**2 + dx**2)
        spot_y, spot_x = np.exp(-((axis - cy) ** 2) / (2 * width**2)), np.exp(-((axis - cx) ** 2) / (2 * width**2))
        field += reflex * spot_y[:, None] * spot_x
        lamp = 1 + rng.normal(0, 0.01, 3)
        grain = rng.standard_normal((size, size, 1)) + 0.4 * rng.standard_normal((size, size, 3))
        return cls(
            frame=Frame(y=y, x=x, pixel=256 / size, light=light),
            gain=exposure * field[:, :, None] * lamp,
            depth=float(rng.uniform(0.3, 0.45)),
            blur=float(rng.uniform(0.5, 0.8)) * side / 256,
            grain=grain,
            fold=fold,
        )

    def look(self, surface: Surface) -> Floats:
        """Light and image the surface: `(size, size, 3)`, about [0, 1], without noise."""
        rise_y, rise_x = np.gradient(surface.relief, 256 / self.frame.side)
        slope = rise_y * np.sin(self.frame.light) + rise_x * np.cos(self.frame.light)
        lit = surface.colour * self.gain * np.clip(1 - self.depth * slope, 0.45, 1.7)[:, :, None]
        # The sensor saturates: what differs beyond white does not differ in the picture.
        return self._bin(np.clip(ndimage.gaussian_filter(lit, (self.blur, self.blur, 0), truncate=3), 0, 1))

    def shrink(self, body: MaskArray) -> MaskArray:
        """The product in pixels of the finished picture."""
        return self._bin(body[:, :, None].astype(np.float64))[:, :, 0] > 0.5

    def expose(self, image: Floats) -> NDArray[np.uint8]:
        """Add the noise of the sensor and round to 8 bits."""
        noisy = image + (0.006 + 0.012 * np.sqrt(image)) * self.grain
        return np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)

    def _bin(self, image: Floats) -> Floats:
        if self.fold == 1:
            return image
        size = len(image) // self.fold
        binned: Floats = image.reshape(size, self.fold, size, self.fold, -1).mean(axis=(1, 3))
        return binned


def _weave(rng: Generator, frame: Frame) -> Surface:
    """Canvas: two sets of threads that pass over and under each other, each of its own width and tone."""
    pitch = 8.5 * (1 + rng.normal(0, 0.02))
    u, v = turned_axes(frame, angle=rng.normal(0, 0.02), centre=rng.uniform(0, 2 * pitch, 2))
    u = u / pitch + 100 + 0.16 * noise(rng, frame.side, rows=5, columns=9)
    v = v / pitch + 100 + 0.16 * noise(rng, frame.side, rows=9, columns=5)
    (warp, warp_tone), (weft, weft_tone) = _threads(rng, u, v, odd=0), _threads(rng, v, u, odd=1)
    hue = 1 + rng.normal(0, 0.015, 3)
    fuzz = 1 + 0.07 * rng.standard_normal(u.shape)
    blue = np.array([0.36, 0.45, 0.56]) * hue * (warp_tone * ndimage.uniform_filter1d(fuzz, 4, axis=0))[:, :, None]
    cream = np.array([0.68, 0.63, 0.54]) * hue * (weft_tone * ndimage.uniform_filter1d(fuzz, 4, axis=1))[:, :, None]
    top = smoothstep(warp - weft, low=-0.05, high=0.05)
    kept = np.floor(u) % 2 != 0  # where the pattern is missing, every second thread is pulled out
    height, sparse = np.maximum(warp, weft), np.maximum(warp * kept, weft)
    return Surface(
        colour=mix(cream, blue, top) * (0.45 + 0.6 * height)[:, :, None],
        relief=1.6 * height,
        bare_colour=mix(cream, blue, top * kept) * (0.45 + 0.6 * sparse)[:, :, None],
        bare_relief=1.6 * sparse,
        under=np.full((*u.shape, 3), 0.26) * hue,
        busy=0.2,
    )


def _threads(rng: Generator, u: Floats, v: Floats, *, odd: int) -> tuple[Floats, Floats]:
    """Height in [0, 1] and tone of parallel threads that are numbered along `u` and wave along `v`."""
    number = np.floor(u)
    index = number.astype(np.intp) % 256
    width, tone = rng.uniform(0.82, 1.0, 256), 1 + rng.normal(0, 0.05, 256)
    round_ = np.sqrt(np.clip(1 - ((u - number - 0.5) / (0.5 * width[index])) ** 2, 0, 1))
    wave = np.sin(np.pi * v) * np.where((index + odd) % 2 == 0, 1.0, -1.0)
    return round_ * (0.55 + 0.45 * wave), tone[index]


def _brushed(rng: Generator, frame: Frame) -> Surface:
    """Brushed steel: fine streaks of many lengths along one direction, and a sheen across them."""
    side = frame.side
    streaks = 0.5 * noise(rng, side, rows=230, columns=3) + 0.5 * noise(rng, side, rows=150, columns=8)
    streaks += 0.45 * noise(rng, side, rows=250, columns=26) + 0.25 * noise(rng, side, rows=40, columns=2)
    bent = frame.y + rng.normal(0, 0.05) * (frame.x - 128) + rng.normal(0, 4) * ((frame.x - 128) / 128) ** 2
    points = np.stack([bent, frame.x]) * (side / 256) - 0.5
    streaks = ndimage.map_coordinates(streaks, points, order=1, mode="mirror")
    sheen = np.exp(-(((frame.x + 0.2 * frame.y - rng.uniform(60, 240)) / rng.uniform(40, 80)) ** 2))
    steel = np.array([0.50, 0.51, 0.53]) * (1 + rng.normal(0, 0.01, 3))
    plain = (1 + rng.uniform(0.1, 0.35) * sheen)[:, :, None] * steel
    return Surface(
        colour=plain * (1 + rng.uniform(0.075, 0.1) * streaks)[:, :, None],
        relief=0.12 * streaks,
        bare_colour=plain,
        bare_relief=np.zeros_like(streaks),
        under=np.full((*streaks.shape, 3), 0.4),
        busy=0.08,
    )


def _leather(rng: Generator, frame: Frame) -> Surface:
    """Grained hide: pebbles of uneven size between creases, in lighter and darker patches."""
    side = frame.side
    y, x = (place + 3 * noise(rng, side, rows=14, columns=14) for place in (frame.y, frame.x))
    near, gap, number = cells(rng, y, x, pitch=9.5 * (1 + rng.normal(0, 0.05)))
    tall = 0.85 + 0.3 * rng.random(number.max() + 1)
    pebble = smoothstep(gap, low=0, high=0.42) * (1 - 0.35 * near**2) * tall[number]
    shade = 1 + 0.04 * noise(rng, side, rows=160, columns=160) + 0.05 * noise(rng, side, rows=4, columns=4)
    hide = np.array([0.47, 0.30, 0.20]) * (1 + rng.normal(0, 0.025, 3)) * shade[:, :, None]
    return Surface(
        colour=hide * (0.68 + 0.32 * pebble)[:, :, None],
        relief=1.7 * pebble,
        bare_colour=hide * 0.9,
        bare_relief=0.3 * noise(rng, side, rows=30, columns=30),
        under=np.full((*near.shape, 3), 1.0) * np.array([0.42, 0.34, 0.27]),
        busy=0.2,
    )


def _terrazzo(rng: Generator, frame: Frame) -> Surface:
    """Polished stone chips of two sizes in tinted cement."""
    side = frame.side
    hue = 1 + rng.normal(0, 0.015, 3)
    sand = 1 + 0.04 * noise(rng, side, rows=120, columns=120) + 0.03 * noise(rng, side, rows=5, columns=5)
    cement = np.array([0.56, 0.55, 0.51]) * hue * sand[:, :, None]
    kinds = np.array([[0.68, 0.66, 0.62], [0.45, 0.41, 0.37], [0.58, 0.48, 0.41], [0.42, 0.43, 0.45]]) * hue
    veins = (1 + 0.04 * noise(rng, side, rows=45, columns=45))[:, :, None]
    colour, cover = cement, np.zeros(frame.y.shape)
    for pitch, share in ((8.0, 0.45), (21.0, 0.65)):
        _, gap, number = cells(rng, frame.y, frame.x, pitch=pitch)
        count = number.max() + 1
        edge = np.where(rng.random(count) < share, rng.uniform(0.12, 0.4, count), 9.0)  # 9: no stone in this cell
        stone = kinds[rng.integers(len(kinds), size=count)] * (1 + rng.normal(0, 0.05, (count, 1)))
        inside = smoothstep(gap - edge[number], low=0, high=1 / pitch)
        colour, cover = mix(colour, stone[number] * veins, inside), np.maximum(cover, inside)
    return Surface(
        colour=colour,
        relief=0.3 * cover,
        bare_colour=cement,
        bare_relief=np.zeros_like(cover),
        under=cement * 0.6,
        busy=0.2,
    )


def _washer(rng: Generator, frame: Frame) -> Surface:
    """Turned steel ring on a mat: bevels, turning marks, highlights towards the lamp, eight stamped marks."""
    cy, cx = 128 + rng.uniform(-6, 6, 2)
    dy, dx = frame.y - cy, frame.x - cx
    r, phi = np.hypot(dy, dx), np.arctan2(dy, dx)
    outer, inner = 100 + rng.normal(0, 0.6), 48 + rng.normal(0, 0.6)
    edge = np.minimum(outer - r, r - inner)
    facing = np.cos(phi - frame.light)
    bevel = (1 - smoothstep(edge, low=2, high=6)) * np.where(r > (outer + inner) / 2, facing, -facing)
    turning = np.interp(r, np.linspace(0, 130, 300), rng.standard_normal(300)) * (1 + 0.5 * np.cos(3 * phi))
    film = noise(rng, frame.side, rows=14, columns=14)  # of oil
    sharp, second = rng.uniform(3, 9), rng.uniform(0.7, 1.3)
    glint = np.abs(facing) ** sharp + 0.5 * np.abs(np.cos(phi - frame.light - second)) ** (2 * sharp)
    bright = (1 + rng.uniform(0.25, 0.5) * glint + 0.06 * turning + 0.025 * film) * (1 + 0.45 * bevel)
    plain = bright[:, :, None] * np.array([0.42, 0.43, 0.45]) * (1 + rng.normal(0, 0.01, 3))
    far = np.hypot(dy + 5 * np.sin(frame.light), dx + 5 * np.cos(frame.light))  # from the middle of the shadow
    shadow = smoothstep(far, low=inner - 5, high=inner + 4) * (1 - smoothstep(far, low=outer - 4, high=outer + 7))
    ground = mat(rng, frame, colour=(0.27, 0.30, 0.33)) * (1 - 0.5 * shadow)[:, :, None]
    first, eighth = rng.normal(0, 0.06), np.pi / 4
    off = (phi - first + eighth / 2) % eighth - eighth / 2  # angle to the nearest mark
    marks = 1 - smoothstep(np.hypot((r - 74) / 10, r * off / 3), low=0.7, high=1.1)
    angles = first + eighth * np.arange(8)
    whole = smoothstep(edge, low=-0.7, high=0.7)
    return Surface(
        colour=mix(ground, plain * (1 - 0.3 * marks)[:, :, None], whole),
        relief=-1.2 * marks,
        bare_colour=mix(ground, plain, whole),
        bare_relief=np.zeros_like(r),
        under=0.5 * ground + 0.14,
        body=edge > 0,
        busy=0.05,
        parts=np.stack([cy + 74 * np.sin(angles), cx + 74 * np.cos(angles), np.full(8, 12.0)], axis=1),
    )


def _capsule(rng: Generator, frame: Frame) -> Surface:
    """Gelatine capsule of two colours with a printed code, on a grey tray."""
    cy, cx = 128 + rng.uniform(-6, 6, 2)
    tilt = -0.35 + rng.normal(0, 0.05)
    v, u = turned_axes(frame, angle=tilt, centre=(cy, cx))
    cos, sin = np.cos(tilt), np.sin(tilt)
    half, radius = 62 + rng.normal(0, 0.8), 41 + rng.normal(0, 0.5)
    cap = u > -4
    end = np.sign(u) * np.clip(np.abs(u) - half, 0, None)
    reach = np.hypot(end, v) / (radius + 1.2 * cap)  # the cap slides over the other half
    lit_y, lit_x = cos * v + sin * end, cos * end - sin * v
    toward = 0.55 / radius * (lit_y * np.sin(frame.light) + lit_x * np.cos(frame.light))
    toward = np.clip(toward + 0.83 * np.sqrt(np.clip(1 - reach**2, 0, 1)), 0, 1)
    hue = 1 + rng.normal(0, 0.02, 3)
    shell = np.where(cap[:, :, None], np.array([0.60, 0.24, 0.16]), np.array([0.60, 0.56, 0.46])) * hue
    seam = 1 - 0.25 * np.exp(-(((u + 4) / 1.2) ** 2))
    grain = 1 + 0.012 * noise(rng, frame.side, rows=60, columns=60)
    plain = shell * (grain * seam * (0.45 + 0.6 * toward))[:, :, None]
    plain = plain + rng.uniform(0.15, 0.4) * (toward**40)[:, :, None]
    slip = rng.normal(0, 1.5, 2)
    ink, letters = lettering(v, u, at=(slip[0] - 11, slip[1] - 52), height=22)
    printed = plain * (1 - rng.uniform(0.52, 0.66) * ink)[:, :, None]
    away = np.hypot(np.clip(np.abs(u) - half, 0, None), v + 6) / radius
    shadow = 1 - smoothstep(away, low=0.85, high=1.25)
    ground = mat(rng, frame, colour=(0.47, 0.48, 0.50)) * (1 - 0.45 * shadow)[:, :, None]
    whole = 1 - smoothstep(reach, low=1 - 0.8 / radius, high=1 + 0.8 / radius)
    return Surface(
        colour=mix(ground, printed, whole),
        relief=np.zeros_like(v),
        bare_colour=mix(ground, plain, whole),
        bare_relief=np.zeros_like(v),
        under=ground * 0.8,
        body=reach < 1,
        busy=0.04,
        parts=np.array([(cy + cos * a + sin * b, cx + cos * b - sin * a, 12.5) for a, b in letters]),
    )


def _board(rng: Generator, frame: Frame) -> Surface:
    """Small circuit board: tracks under green varnish, tinned pads, two chips, resistors, capacitors and lamps."""
    cy, cx = 128 + rng.uniform(-5, 5, 2)
    tilt = rng.normal(0, 0.035)
    v, u = turned_axes(frame, angle=tilt, centre=(cy, cx))
    points = np.stack([v, u]) * 2 + 255.5
    tracks, pads = (ndimage.map_coordinates(layer, points, order=1) for layer in _artwork())
    fibres = 1 + 0.03 * np.sin(1.3 * u) * np.sin(1.3 * v) + 0.02 * noise(rng, frame.side, rows=50, columns=50)
    green = np.array([0.10, 0.33, 0.20]) * (1 + rng.normal(0, 0.06, 3))
    varnish = mix(green * fibres[:, :, None], green * 1.5 + 0.02, tracks)
    tin = np.full(3, 0.6) * (1 + 0.06 * noise(rng, frame.side, rows=80, columns=80))[:, :, None]
    plain = mix(mix(varnish, tin, pads), np.full(3, 0.62), 0.85 * lettering(v, u, at=(58, -84), height=11)[0])
    flat = 0.5 * tracks + 0.6 * pads
    colour, height, parts = plain.copy(), flat.copy(), np.zeros((len(_PARTS), 3))
    for index, (a, b, kind) in enumerate(_PARTS):
        y, x = cy + np.cos(tilt) * a + np.sin(tilt) * b, cx + np.cos(tilt) * b - np.sin(tilt) * a
        parts[index] = y, x, np.hypot(*_KINDS[kind][0]) + 3
        _mount(rng, frame, colour, height, at=parts[index], kind=kind, tilt=tilt)
    shadow = rectangle(v + 5 * np.sin(frame.light), u + 5 * np.cos(frame.light), half=(86, 98), soft=4)
    ground = mat(rng, frame, colour=(0.36, 0.36, 0.37)) * (1 - 0.5 * shadow)[:, :, None]
    whole = rectangle(v, u, half=(84, 96), soft=0.8)
    return Surface(
        colour=mix(ground, colour, whole),
        relief=height * whole,
        bare_colour=mix(ground, plain, whole),
        bare_relief=flat * whole,
        under=np.ones((*v.shape, 3)) * np.array([0.40, 0.36, 0.24]),
        body=whole > 0.5,
        busy=0.24,
        parts=parts,
    )


def _cork(rng: Generator, frame: Frame) -> Surface:
    """Natural cork with a brand, before a black ground: each is another one, and around it nothing but noise varies."""
    cy, cx = 128 + rng.uniform(-4, 4, 2)
    tilt = rng.normal(0, 0.03)
    v, u = turned_axes(frame, angle=tilt, centre=(cy, cx))
    half, radius = 66 + rng.normal(0, 0.8), 40 + rng.normal(0, 0.5)
    whole = rectangle(u, v, half=(radius, half), soft=0.8)
    bent = np.arcsin(np.clip(u / radius, -1, 1))  # around the axis
    round_ = np.sqrt(np.clip(1 - (u / radius) ** 2, 0.04, 1))
    side = frame.side
    patches = 0.10 * noise(rng, side, rows=7, columns=7) + 0.07 * noise(rng, side, rows=30, columns=30)
    _, gap, number = cells(rng, v / 2.2, 24 * bent, pitch=5.0)
    deep = np.where(rng.random(number.max() + 1) < 0.5, rng.uniform(0.05, 0.3, number.max() + 1), 0.0)
    pores = deep[number] * smoothstep(gap, low=0.25, high=0.6)
    hue = 1 + rng.normal(0, 0.04, 3)
    bare = np.array([0.62, 0.47, 0.32]) * hue * ((1 + patches) * (0.35 + 0.7 * round_))[:, :, None]
    plain = bare * (1 - pores)[:, :, None]
    slip = rng.normal(0, 1.5, 2)
    ink, letters = lettering(v, u, at=(slip[0] - 9, slip[1] - 22), height=13)
    # The camera's gain follows the light, so that the noise of one picture is not that of the next.
    speckle = 0.05 * np.exp(rng.normal(0, 0.8)) * rng.standard_normal((*v.shape, 3))
    ground = 0.12 * (1 + speckle)
    cos, sin = np.cos(tilt), np.sin(tilt)
    return Surface(
        colour=mix(ground, plain * (1 - 0.6 * ink)[:, :, None], whole),
        relief=-0.8 * pores * whole,
        bare_colour=mix(ground, plain, whole),
        bare_relief=-0.8 * pores * whole,
        under=np.ones((*v.shape, 3)) * np.array([0.30, 0.20, 0.12]),
        body=whole > 0.5,
        busy=0.14,
        parts=np.array([(cy + cos * a + sin * b, cx + cos * b - sin * a, 8.0) for a, b in letters]),
    )


_KINDS: dict[str, tuple[tuple[float, float], float, tuple[float, float, float]]] = {
    "chip": ((17, 17), 0, (0.13, 0.13, 0.14)),
    "driver": ((11, 18), 0, (0.14, 0.14, 0.15)),
    "resistor": ((4.5, 9), 3, (0.15, 0.15, 0.17)),
    "capacitor": ((5, 9), 3, (0.52, 0.41, 0.29)),
    "lamp": ((6, 6), 1.5, (0.62, 0.60, 0.45)),
}
"""Part of the board: half height and half width, width of its tinned ends (0: it has legs instead), colour."""

_PARTS: tuple[tuple[float, float, str], ...] = (
    (-18, -22, "chip"), (-40, 52, "driver"), (-62, -60, "resistor"), (-62, -28, "capacitor"), (-46, -68, "capacitor"),
    (22, -70, "resistor"), (38, -70, "resistor"), (36, -22, "capacitor"), (36, 10, "resistor"), (6, 36, "capacitor"),
    (6, 66, "resistor"), (36, 52, "lamp"), (36, 76, "lamp"), (-66, 14, "resistor"),
)  # fmt: skip
"""Row and column from the middle of the board, and kind of each part."""


def _mount(rng: Generator, frame: Frame, colour: Floats, height: Floats, *, at: Floats, kind: str, tilt: float) -> None:
    """Put one part on the board, a little out of place; changes `colour` and `height`."""
    half, ends, tone = _KINDS[kind]
    y, x = at[:2] + rng.normal(0, 0.7, 2)
    near = window(frame, (y, y), (x, x), margin=at[2] + 5)
    local = Frame(frame.y[near], frame.x[near], frame.pixel, frame.light)
    v, u = turned_axes(local, angle=tilt + rng.normal(0, 0.02), centre=(y, x))
    shade = np.array(tone) * (1 + rng.normal(0, 0.08)) * np.ones((*v.shape, 3))
    if ends:
        tinned = 1 - rectangle(v, u, half=(99, half[1] - ends), soft=0.5)
        shade = mix(shade, np.full(3, 0.58), tinned)
    else:
        dot = 1 - smoothstep(np.hypot(v + half[0] - 5, u + half[1] - 5), low=1.4, high=2.6)
        shade = shade + (0.1 * dot + 0.2 * lettering(v, u, at=(-3.5, -10), height=8)[0])[:, :, None]
    inside = rectangle(v, u, half=half, soft=0.7)
    fringe = rectangle(v, u, half=(half[0] + 1.5, half[1] + 1.5), soft=2)
    colour[near] = mix(colour[near] * (1 - 0.3 * fringe)[:, :, None], shade, inside)
    height[near] = np.maximum(height[near], 1.6 * inside)


@lru_cache(maxsize=1)
def _artwork() -> tuple[Floats, Floats]:
    """Tracks and pads of the board, `(512, 512)` each, two points a unit, the middle of the board in the middle."""
    axis = (np.arange(512) + 0.5) / 2 - 128
    v, u = np.meshgrid(axis, axis, indexing="ij")
    pads, tracks = np.zeros(v.shape), np.zeros(v.shape)
    for index, (a, b, kind) in enumerate(_PARTS):
        (high, wide), ends, _ = _KINDS[kind]
        legs = np.array([0.0]) if ends else np.arange(3 - high, high, 5.5)
        size, reach = ((high - 0.5, 4.0), wide) if ends else ((1.5, 4.0), wide + 3)
        for leg in legs:
            pads = np.maximum(pads, rectangle(v - a - leg, np.abs(u - b) - reach, half=size, soft=0.5))
        to_a, to_b, _ = _PARTS[(5 * index + 3) % len(_PARTS)]
        level = rectangle(v - a, u - (b + to_b) / 2, half=(1.3, abs(to_b - b) / 2 + 1.3), soft=0.5)
        down = rectangle(v - (a + to_a) / 2, u - to_b, half=(abs(to_a - a) / 2 + 1.3, 1.3), soft=0.5)
        tracks = np.maximum(tracks, np.maximum(level, down))
    for hole in np.arange(-84, 85, 14):
        r = np.hypot(np.abs(v) - 76, u - hole)
        pads = np.maximum(pads, (1 - smoothstep(r, low=3.5, high=4.5)) * smoothstep(r, low=1.4, high=2.2))
        tracks = np.maximum(tracks, rectangle(np.abs(v) - 62, u - hole, half=(10, 1), soft=0.5))
    return tracks * (1 - pads), pads


PRODUCTS: dict[str, Callable[[Generator, Frame], Surface]] = {
    "weave": _weave,
    "brushed": _brushed,
    "leather": _leather,
    "terrazzo": _terrazzo,
    "washer": _washer,
    "capsule": _capsule,
    "board": _board,
    "cork": _cork,
}
"""Name of a product, and the function that draws its surface."""
