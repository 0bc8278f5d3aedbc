"""Why a region was reported: the normal patches that are most like it, and in which simple ways its pixels differ.

The patch at a region's peak is compared with those of all normal images that are given, in the features that the model
reads, so nothing has to be kept in a model file. Where a method does not learn patches wherever they lie, only those at
the same position count. What is said in words is measured on the pixels around the region and around its nearest normal
patches: brightness, two colours, fine and coarse structure, and the direction of lines. They say what differs, not why
the model thinks so: its features see more than these words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from .detector import Detector
from .errors import ArgumentError
from .features.patches import average_patches, cells_inside
from .images.source import ImageInput, InMemory
from .localise import components
from .methods import FeatureMethod
from .methods._turned import TurnedMethod
from .progress import Progress
from .types import AnomalousRegion, FeatureMaps, Floats, ImageBatch, Size

NEAREST = 8
"""Normal images whose most similar patches say what is usual."""
_LEAST_SIDE = 24
"""Of the pixels that are compared, in pixels of the network's input: smaller regions get some of their surroundings."""
_CLEAR = 3.0
"""How many spreads of the normal patches a measure must differ to be said."""
_LINES = 0.4
"""Coherence of the gradients from which on a texture has a direction."""


@dataclass(frozen=True, slots=True)
class NormalPatch:
    """A patch of a normal image that is like the one at a region's peak."""

    name: str
    centre: tuple[float, float]
    """x and y, in pixels of the original image."""
    distance: float
    """Between the two patches, in the model's features."""
    pixels: NDArray[np.uint8]
    """`(height, width, 3)` around it, of the network's input; of one size with `Explanation.pixels`."""


@dataclass(frozen=True, slots=True)
class PatchDifference:
    """One simple way in which a patch differs from normal ones."""

    kind: str
    """One of `DIFFERENCE_KINDS`."""
    words: str
    """In English."""
    own: float
    """The measure of the patch: of grey levels, of a logarithm, or, of lines, their direction in degrees."""
    usual: float
    """That of the normal patches."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one region was reported."""

    name: str
    region: AnomalousRegion
    pixels: NDArray[np.uint8]
    """`(height, width, 3)` around the region, of the network's input."""
    nearest: tuple[NormalPatch, ...]
    """Each of another normal image, nearest first."""
    measured: tuple[PatchDifference, ...]
    """Clearest first, at most 3; empty where none of the simple measures differs clearly."""

    @property
    def differences(self) -> tuple[str, ...]:
        """The same in words."""
        return tuple(found.words for found in self.measured)


@dataclass(slots=True)
class _Question:
    name: str
    region: AnomalousRegion
    patch: Tensor
    cell: int
    window: tuple[int, int, int, int]
    """Top, left, height and width on the network's input."""
    peak: tuple[int, int]
    """Row and column there."""
    pixels: NDArray[np.uint8]
    found: list[NormalPatch] = field(default_factory=list)


def explain(
    detector: Detector,
    images: ImageInput | Iterable[str | Path | InMemory],
    normal: ImageInput | Iterable[str | Path | InMemory],
    *,
    most: int = 3,
    progress: Progress | None = None,
) -> list[Explanation]:
    """Explain the regions of images, up to `most` of each, by `normal` images, such as those that were learned.

    Takes about twice as long as `predict` on all of them. Raises `ArgumentError` where the detector reports no regions,
    works in tiles, or has a method that reads no features, and what `Detector.predict` raises.
    """
    method = detector.method_
    if detector.peaks_ is None:
        raise ArgumentError.about("detector", expected="one that reports regions", got="one without held-out maps")
    if detector.peaks_.threshold is None:
        raise ArgumentError.about(
            "detector", expected="one model", got=f"the {1 + len(detector.others_)} of cross",
            instead="Fit again with calibration='split' (--calibration split).",
        )  # fmt: skip
    if not isinstance(method, FeatureMethod) or detector.tile is not None:
        got = f"tiles of {detector.tile}" if detector.tile is not None else method.name
        raise ArgumentError.about("detector", expected="a method on features, without tiles", got=got)
    asked = list(_questions(detector, method, images, most=most, progress=progress))
    if not asked:
        return []
    together, anywhere = torch.stack([question.patch for question in asked]), isinstance(method, TurnedMethod)
    for batch, _ in detector.score(normal, progress=progress):
        _look(detector, batch, _features(method, batch), asked, together=together, anywhere=anywhere)
    return [
        Explanation(
            q.name, q.region, q.pixels, tuple(q.found), measured_differences(q.pixels, [n.pixels for n in q.found])
        )
        for q in asked
    ]


def differences(pixels: NDArray[np.uint8], normal: Sequence[NDArray[np.uint8]]) -> tuple[str, ...]:
    """In which simple ways an RGB picture differs from normal ones of its size, in words, clearest first; at most 3."""
    return tuple(found.words for found in measured_differences(pixels, normal))


def measured_differences(pixels: NDArray[np.uint8], normal: Sequence[NDArray[np.uint8]]) -> tuple[PatchDifference, ...]:
    """The same with their measures."""
    if not normal:
        return ()
    own, usual = _measures(pixels), [_measures(one) for one in normal]
    found = []
    for name, (least, *both) in _WORDS.items():
        values = np.array([one[name] for one in usual])
        middle, spread = float(values.mean()), max(float(values.std()), least)
        if abs(own[name] - middle) >= _CLEAR * spread:
            kind, words = both[0] if own[name] > middle else both[1]
            difference = PatchDifference(kind, words.format(own[name], middle), own[name], middle)
            found.append((abs(own[name] - middle) / spread, difference))
    lines = _line_words(_lines(pixels), [_lines(one) for one in normal])
    found += [] if lines is None else [lines]
    return tuple(found for _, found in sorted(found, key=lambda one: one[0], reverse=True)[:3])


_WORDS = {
    "brightness": (
        4.0,
        ("brighter", "brighter ({:.0f}, normally {:.0f} of 255)"),
        ("darker", "darker ({:.0f}, normally {:.0f} of 255)"),
    ),
    "red": (3.0, ("redder", "redder"), ("greener", "greener")),
    "yellow": (3.0, ("yellower", "yellower"), ("bluer", "bluer")),
    "fine": (0.15, ("rougher", "rougher: more fine structure"), ("smoother", "smoother: less fine structure")),
    "coarse": (
        0.15, ("coarser", "more coarse structure: spots or edges"), ("flatter", "less coarse structure: flatter")
    ),
}  # fmt: skip
"""The least spread of each measure; kind and words where it is larger than usual, and where it is smaller."""


DIFFERENCE_KINDS = (*(kind for _, *both in _WORDS.values() for kind, _ in both), "turned", "lined", "unlined")
"""Of differences; the last three are of lines that run another way, are there, or are not there."""


def _measures(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Means of luminance and of two opponent colours in grey levels; logarithms of the spread in two octaves."""
    weights = _weights(pixels)
    red, green, blue = np.moveaxis(pixels.astype(np.float64), 2, 0)
    luminance = (red + green + blue) / 3
    soft, softer = gaussian_filter(luminance, 1.5), gaussian_filter(luminance, 5.0)
    return {
        "brightness": float((weights * luminance).sum()),
        "red": float((weights * (red - green)).sum() / 2),
        "yellow": float((weights * ((red + green) / 2 - blue)).sum() / 2),
        "fine": math.log10(1 + math.sqrt((weights * (luminance - soft) ** 2).sum())),
        "coarse": math.log10(1 + math.sqrt((weights * (soft - softer) ** 2).sum())),
    }


def _lines(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """How far the gradients agree, 0 to 1, and the direction of the lines in degrees: 0 level, 90 upright."""
    weights = _weights(pixels)
    down, across = np.gradient(gaussian_filter(pixels.astype(np.float64).mean(axis=2), 1.0))
    doubled = complex((weights * (across**2 - down**2)).sum(), 2 * (weights * across * down).sum())
    energy = float((weights * (across**2 + down**2)).sum())
    gradient = math.degrees(math.atan2(doubled.imag, doubled.real)) / 2  # of an image whose rows run down
    return abs(doubled) / energy if energy > 0 else 0.0, (90 - gradient) % 180


def _weights(pixels: NDArray[np.uint8]) -> Floats:
    """The middle, where the peak is, counts most: a Gaussian of a fifth of each side, of sum 1."""
    down, across = (np.exp(-0.5 * ((np.arange(n) + 0.5 - n / 2) / (n / 5)) ** 2) for n in pixels.shape[:2])
    return np.outer(down / down.sum(), across / across.sum())


def _line_words(own: tuple[float, float], usual: Sequence[tuple[float, float]]) -> tuple[float, PatchDifference] | None:
    """What is to be said of the direction of lines, and how clear it is."""

    def of(kind: str, words: str) -> PatchDifference:
        return PatchDifference(kind, words, own[1], angle)

    strength = float(np.mean([coherence for coherence, _ in usual]))
    spread = max(float(np.std([coherence for coherence, _ in usual])), 0.1)
    sum_of_turns = sum(coherence * np.exp(2j * math.radians(angle)) for coherence, angle in usual)
    angle = math.degrees(np.angle(sum_of_turns)) / 2 % 180
    turn = abs((own[1] - angle + 90) % 180 - 90)
    if own[0] >= _LINES and strength >= _LINES:
        ways = _way(own[1]), _way(angle)
        is_clear = turn >= 30 and len({*ways}) == 2
        return (turn / 10, of("turned", f"lines run {ways[0]}, normally {ways[1]}")) if is_clear else None
    if max(own[0], strength) < _LINES or abs(own[0] - strength) < _CLEAR * spread:
        return None
    clear = abs(own[0] - strength) / spread
    if own[0] > strength:
        return clear, of("lined", f"lines that run {_way(own[1])}, where normally none do")
    return clear, of("unlined", f"without the lines that normally run {_way(angle)}")


def _way(angle: float) -> str:
    ways = ("level", "up to the right", "upright", "down to the right")
    return ways[round(angle / 45) % 4]


def _features(method: FeatureMethod, batch: ImageBatch) -> FeatureMaps:
    with torch.inference_mode():
        found = method.extractor_(batch.pixels)
    return FeatureMaps(found.maps, found.image_size, batch.inside)


def _questions(
    detector: Detector,
    method: FeatureMethod,
    images: ImageInput | Iterable[str | Path | InMemory],
    *,
    most: int,
    progress: Progress | None,
) -> Iterator[_Question]:
    """The regions, and the patches at their peaks."""
    assert detector.peaks_ is not None
    for batch, scores in detector.score(images, progress=progress):
        found = detector.regions(batch, scores)
        if not any(found) or scores.maps is None:
            continue
        features = _features(method, batch)
        grid, patches = features.maps[0].shape[2:], average_patches(features)
        height, width = scores.maps.shape[1:]
        for i, regions in enumerate(found):
            map = scores.maps[i].cpu().numpy()
            for region in (regions or ())[:most]:
                box = _on_input(region, detector, batch.sizes[i], (height, width))
                peak = _peak(map, box)
                box = _core(map, (map[peak] + detector.peaks_.threshold) / 2, peak, box)
                cell = int(peak[0] * grid[0] / height) * grid[1] + int(peak[1] * grid[1] / width)
                window = _around(peak, box[2:], (height, width))
                yield _Question(
                    batch.names[i], region, patches[i, cell].cpu(), cell, window, peak,
                    _cut(batch.pixels[i], window),
                )  # fmt: skip


def _look(
    detector: Detector,
    batch: ImageBatch,
    features: FeatureMaps,
    asked: Sequence[_Question],
    *,
    together: Tensor,
    anywhere: bool,
) -> None:
    """Keep what is near among the patches of a batch of normal images."""
    patches, grid = average_patches(features).cpu(), features.maps[0].shape[2:]
    inside = cells_inside(features, grid)
    height, width = batch.pixels.shape[2:]
    for i, name in enumerate(batch.names):
        distances = torch.cdist(together, patches[i], compute_mode="donot_use_mm_for_euclid_dist")
        if inside is not None:
            distances = distances.masked_fill(~inside[i].flatten().cpu(), torch.inf)
        for question, row in zip(asked, distances, strict=True):
            cell = int(row.argmin()) if anywhere else question.cell
            distance = float(row[cell])
            full = len(question.found) == NEAREST
            if name == question.name or (full and distance >= question.found[-1].distance):
                continue
            y, x = ((cell // grid[1]) + 0.5) * height / grid[0], ((cell % grid[1]) + 0.5) * width / grid[1]
            top, left, down, across = question.window
            start = (top - question.peak[0] + int(y), left - question.peak[1] + int(x)) if anywhere else (top, left)
            window = _within((*start, down, across), (height, width))
            placed = detector.preprocessing.placement(batch.sizes[i])
            centre = round(placed[0] + x * placed[2], 1), round(placed[1] + y * placed[3], 1)
            question.found.append(NormalPatch(name, centre, distance, _cut(batch.pixels[i], window)))
            question.found.sort(key=lambda patch: patch.distance)
            del question.found[NEAREST:]


def _on_input(region: AnomalousRegion, detector: Detector, size: Size, whole: Size) -> tuple[int, int, int, int]:
    """Top, left, height and width of a region's box on the network's input."""
    left, top, across, down = detector.preprocessing.placement(size)
    x, y, width, height = region.box
    first = int(max(0, (y - top) / down)), int(max(0, (x - left) / across))
    last = math.ceil((y + height - top) / down), math.ceil((x + width - left) / across)
    rows, columns = (max(1, min(end, most) - start) for start, end, most in zip(first, last, whole, strict=True))
    return *first, rows, columns


def _peak(map: Floats | NDArray[np.float32], box: tuple[int, int, int, int]) -> tuple[int, int]:
    top, left, height, width = box
    part = map[top : top + height, left : left + width]
    row, column = np.unravel_index(int(part.argmax()), part.shape)
    return top + int(row), left + int(column)


def _core(
    map: NDArray[np.float32], level: float, peak: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """The box of what lies above this level around a peak: a halo would blur every measure."""
    for where, own in components(map > level, 1):
        rows, columns = where
        at = peak[0] - rows.start, peak[1] - columns.start
        if min(at) >= 0 and at[0] < own.shape[0] and at[1] < own.shape[1] and own[at]:
            return rows.start, columns.start, own.shape[0], own.shape[1]
    return box


def _around(peak: tuple[int, int], sides: tuple[int, int], whole: Size) -> tuple[int, int, int, int]:
    """The rectangle around a peak that has the sides of its region, or more where these are small."""
    rows, columns = (min(max(side, _LEAST_SIDE), most) for side, most in zip(sides, whole, strict=True))
    return _within((peak[0] - rows // 2, peak[1] - columns // 2, rows, columns), whole)


def _within(window: tuple[int, int, int, int], whole: Size) -> tuple[int, int, int, int]:
    """The same, moved to lie in the picture."""
    top, left, height, width = window
    return min(max(0, top), whole[0] - height), min(max(0, left), whole[1] - width), height, width


def _cut(pixels: Tensor, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    top, left, height, width = window
    part = pixels[:, top : top + height, left : left + width]
    return (part.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
