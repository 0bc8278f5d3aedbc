"""Where: from the map of one image to regions, with p-values that bound any false region on a normal image.

The peak of a map is the largest level that an 8-connected region of `least` pixels reaches; for one pixel, the largest
value. A normal image shows a region above a level exactly where its peak is above it. So the peaks of held-out images,
calibrated as image scores are (`calibrate.py`), bound the rate of normal images with *any* false region, however many
places there are to look at. They bound nothing on an image with a defect: what lies beside it may be flagged with it.

With `cross` each fold has a model, and none of them a threshold. There a place x has the p-value of `cross` itself,
(1 + number of left-out images whose peak, by their fold's model, is at least that model's map at x) / (n + 1). It never
is below that of the whole image, which takes the largest value of each map in place of the one at x. So a normal image
has any place with p <= alpha only where its own p-value is: at most as often as the bound of `cross` says. Dropping
small regions makes it rarer still.

All of it happens on the grid of the network's input, for held-out and for new images; only what is found is carried to
the original pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from .calibrate import Calibration
from .images.preprocess import Preprocess
from .types import AnomalousRegion, Floats, ImageBatch, Scores, Size

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)
_TOLERANCE = 0.25
"""Pixels of the network's input that a contour may be off: so few that a small region keeps its shape."""
_SIDES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Row and column of a pixel's neighbours: above, right, below, left."""


@dataclass(frozen=True, slots=True)
class Localiser:
    """Peaks and regions of maps at the size of the network's input."""

    preprocess: Preprocess
    min_area: int
    """Smaller regions are not reported; in pixels of the original image."""

    def peaks(self, batch: ImageBatch, scores: Scores) -> list[float]:
        """The peak of each image's map; none of methods without maps."""
        if scores.maps is None:
            return []
        return [peak_of(_seen(batch, scores.maps, i), self._least(size)) for i, size in enumerate(batch.sizes)]

    def regions(
        self, batch: ImageBatch, scores: Scores, peaks: Calibration | None
    ) -> list[tuple[AnomalousRegion, ...] | None]:
        """The regions of each image above the threshold of held-out `peaks`, highest peak first.

        With `cross`, what has a p-value of at most the rate. None without maps or without peaks.
        """
        if scores.maps is None or peaks is None:
            return [None] * len(batch)
        maps = [_seen(batch, scores.maps, i) for i in range(len(batch))]
        if peaks.threshold is not None:
            pairs = zip(maps, batch.sizes, strict=True)
            return [self._regions(map, map, peaks.threshold, peaks.p_value, size=size) for map, size in pairs]
        if scores.fold_maps is None:
            return [None] * len(batch)
        of_folds = [[_seen(batch, one, i) for one in scores.fold_maps.unbind(dim=1)] for i in range(len(batch))]
        return [self._of_folds(*one, peaks) for one in zip(maps, of_folds, batch.sizes, strict=True)]

    def _of_folds(
        self, map: Floats, of_folds: list[Floats], size: Size, peaks: Calibration
    ) -> tuple[AnomalousRegion, ...]:
        """Regions of places whose own p-values are at most the rate: those of the image, of which none is smaller."""
        most = peaks.false_alarm_rate * (1 + 1e-12)
        highest = [[one.max() for one in of_folds]]
        if peaks.p_values([0.0], plus=highest)[0] > most:
            return ()
        plus = np.stack([one.ravel() for one in of_folds], axis=1)
        p_values = peaks.p_values(np.zeros(len(plus)), plus=plus).reshape(map.shape)
        above = p_values > most
        if above.all():  # the models' peaks are at different places
            return ()
        threshold = -(p_values[~above].max() + p_values.min(initial=1.0, where=above)) / 2
        return self._regions(map, -p_values, threshold, lambda level: -level, size=size)

    def reported(
        self, map: NDArray[np.float32], inside: NDArray[np.bool_] | None, threshold: float, size: Size
    ) -> NDArray[np.float32]:
        """A map in which what is above the threshold, but too small to be reported, is cut down to it."""
        above = map > np.float64(threshold)
        if inside is not None:
            above &= inside
        kept = np.zeros_like(above)
        for where, own in components(above, self._least(size)):
            kept[where] |= own
        most = np.float32(threshold)
        if float(most) > threshold:
            most = np.nextafter(most, np.float32(-np.inf))
        return np.where(kept, map, np.minimum(map, most))

    def _least(self, size: Size) -> int:
        """How many pixels of the network's input a region has at least."""
        _, _, across, down = self.preprocess.placement(size)
        return max(1, math.ceil(self.min_area / (across * down) - 1e-9))

    def _regions(
        self, map: Floats, levels: Floats, threshold: float, p_value: Callable[[float], float], *, size: Size
    ) -> tuple[AnomalousRegion, ...]:
        """What lies above a threshold of levels, which are the map itself or follow it, and have these p-values."""
        left, top, across, down = self.preprocess.placement(size)
        least = self._least(size)
        framed = np.pad(levels, 1, constant_values=-np.inf)
        found = []
        # A plain number would be rounded to what float32 can hold, and the peak's p-value says otherwise.
        for where, own in components(levels > np.float64(threshold), least):
            values = map[where][own]
            level = peak_of(np.where(own, levels[where], -np.inf), least)
            origin = np.array([where[1].start, where[0].start])
            around = framed[where[0].start : where[0].stop + 2, where[1].start : where[1].stop + 2]
            whole = contour_of(around, own, threshold)
            contour = (simplified(whole, _TOLERANCE) + origin) * (across, down) + (left, top)
            rows, columns = np.nonzero(own)
            centre = (np.array([columns.mean(), rows.mean()]) + 0.5 + origin) * (across, down) + (left, top)
            low, high = (
                (end + origin) * (across, down) + (left, top) for end in (whole.min(axis=0), whole.max(axis=0))
            )
            found.append(
                AnomalousRegion(
                    box=(*_tenths(low), *_tenths(high - low)),
                    contour=tuple(_tenths(point) for point in contour),
                    centre=_tenths(centre),
                    area=round(values.size * across * down, 1),
                    peak=level if levels is map else float(values.max()),
                    mean=float(values.mean()),
                    p_value=p_value(level),
                )
            )
        return tuple(sorted(found, key=lambda region: -region.peak))


def peak_of(map: Floats, least: int) -> float:
    """The largest level that an 8-connected region of `least` pixels of a `(height, width)` map reaches.

    -inf stands where nobody looks. Where no region has so many pixels, the smallest value: none will be reported.

    >>> peak_of(np.array([[9.0, 1.0, 5.0], [1.0, 6.0, 1.0]]), 1), peak_of(np.array([[9.0, 1, 5], [1, 6, 1]]), 3)
    (9.0, 5.0)
    """
    if least == 1:
        return float(map.max())
    values = np.sort(map[np.isfinite(map)])
    levels = np.unique(values[: max(1, values.size - least + 1)])
    low, high = 0, levels.size - 1
    while low < high:  # a region of one level is part of one of any lower level
        middle = (low + high + 1) // 2
        enough = any(True for _ in components(map >= levels[middle], least))
        low, high = (middle, high) if enough else (low, middle - 1)
    return float(levels[low])


def components(above: NDArray[np.bool_], least: int) -> Iterator[tuple[tuple[slice, slice], NDArray[np.bool_]]]:
    """The 8-connected regions of at least so many pixels: the rectangle of each, and its pixels in there."""
    if np.count_nonzero(above) < least:
        return
    labels, _ = ndimage.label(above, structure=_EIGHT_NEIGHBOURS)
    sizes = np.bincount(labels.ravel())
    for number, where in enumerate(ndimage.find_objects(labels), start=1):
        if sizes[number] >= least:
            yield where, labels[where] == number


def contour_of(map: Floats, region: NDArray[np.bool_], level: float) -> Floats:
    """The outer contour of an 8-connected region as a closed polygon, `(points, 2)` of x and y; holes are filled.

    `map` has one more pixel on each side than `region`. A point lies between the centre of a pixel and that of its
    outer neighbour, where the map, linear in between, crosses the level; on the pixel's edge where the map ends.
    (0, 0) is the corner of the region's first pixel.
    """
    width = region.shape[1] + 2
    inside = np.pad(region, 1).tobytes()
    steps = [down * width + right for down, right in _SIDES]
    at, side = width + 1 + int(np.argmax(region[0])), 0  # the upper edge of a pixel in the first row
    path = [(at, side)]
    while True:
        beyond, ahead = steps[side], steps[(side + 1) % 4]  # clockwise, with the region on the right hand
        if inside[at + ahead + beyond]:
            at, side = at + ahead + beyond, (side - 1) % 4
        elif inside[at + ahead]:
            at += ahead
        else:
            side = (side + 1) % 4
        if (at, side) == path[0]:
            return _crossings(map, level, path)
        path.append((at, side))


def simplified(polygon: Floats, tolerance: float) -> Floats:
    """Some of the points of a closed polygon `(points, 2)`, so that no other one is further from it than this.

    By Ramer, Douglas and Peucker, "Algorithms for the reduction of the number of points" (1973): of a piece the point
    that is furthest from its chord is kept while it is too far, and both parts are pieces.
    """
    closed = np.concatenate([polygon, polygon[:1]])
    furthest = int(np.square(polygon - polygon[0]).sum(axis=1).argmax())
    kept, pieces = {0, furthest}, [(0, furthest), (furthest, len(polygon))]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        chord, inner = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        along = np.clip(inner @ chord / max(float(chord @ chord), 1e-30), 0, 1)
        away = np.square(inner - along[:, None] * chord).sum(axis=1)
        if away.max() > tolerance**2:
            middle = first + 1 + int(away.argmax())
            kept.add(middle)
            pieces += [(first, middle), (middle, last)]
    return polygon[sorted(kept)] if len(kept) > 2 else polygon


def _crossings(map: Floats, level: float, path: list[tuple[int, int]]) -> Floats:
    """Where the map crosses a level beside each edge of a path: number of a pixel and of a side."""
    pixels, sides = np.array(path).T
    rows, columns = np.divmod(pixels, map.shape[1])
    down, right = np.array(_SIDES).T[:, sides]
    within, beyond = map[rows, columns], map[rows + down, columns + right]
    reach = np.where(np.isfinite(beyond), (within - level) / (within - beyond), 0.5)
    return np.stack([columns - 0.5 + reach * right, rows - 0.5 + reach * down], axis=1)


def _seen(batch: ImageBatch, maps: Tensor, index: int) -> Floats:
    """The map of one image; -inf outside the region of interest."""
    map: Floats = maps[index].double().cpu().numpy()
    return map if batch.inside is None else np.where(batch.inside[index].cpu().numpy(), map, -np.inf)


def _tenths(pair: Floats) -> tuple[float, float]:
    """Nobody can tell less than a tenth of a pixel."""
    return round(float(pair[0]), 1), round(float(pair[1]), 1)
