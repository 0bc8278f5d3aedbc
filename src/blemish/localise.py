"""Where: from the map of one image to regions, with p-values that bound any false region on a normal image.

The peak of a map is the largest level that an 8-connected region of `least` pixels reaches; for one pixel, the largest
value. A normal image shows a region above a level exactly where its peak is above it. So the peaks of held-out images,
calibrated as image scores are (`calibrate.py`), bound the rate of normal images with *any* false region, however many
places there are to look at. They bound nothing on an image with a defect: what lies beside it may be flagged with it.

All of it happens on the grid of the network's input, for held-out and for new images; only what is found is carried to
the original pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from .calibrate import Calibration
from .images.preprocess import Preprocess
from .types import AnomalousRegion, ImageBatch, Scores, Size

if TYPE_CHECKING:
    from .types import Floats

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)
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

        None without maps or without peaks.
        """
        if scores.maps is None or peaks is None:
            return [None] * len(batch)
        return [self._regions(_seen(batch, scores.maps, i), peaks, size) for i, size in enumerate(batch.sizes)]

    def reported(
        self, map: NDArray[np.float32], inside: NDArray[np.bool_] | None, threshold: float, size: Size
    ) -> NDArray[np.float32]:
        """A map in which what is above the threshold, but too small to be reported, is cut down to it."""
        above = map > threshold if inside is None else inside & (map > threshold)
        kept = np.zeros_like(above)
        for where, own in components(above, self._least(size)):
            kept[where] |= own
        return np.where(kept, map, np.minimum(map, np.float32(threshold)))

    def _least(self, size: Size) -> int:
        """How many pixels of the network's input a region has at least."""
        _, _, across, down = self.preprocess.placement(size)
        return max(1, math.ceil(self.min_area / (across * down) - 1e-9))

    def _regions(self, map: Floats, peaks: Calibration, size: Size) -> tuple[AnomalousRegion, ...]:
        left, top, across, down = self.preprocess.placement(size)
        least, threshold = self._least(size), peaks.threshold
        assert threshold is not None  # peaks are those of split or loo
        framed = np.pad(map, 1, constant_values=-np.inf)
        found = []
        for where, own in components(map > threshold, least):
            values = map[where][own]
            peak = peak_of(np.where(own, map[where], -np.inf), least)
            origin = np.array([where[1].start, where[0].start])
            around = framed[where[0].start : where[0].stop + 2, where[1].start : where[1].stop + 2]
            contour = (contour_of(around, own, threshold) + origin) * (across, down) + (left, top)
            rows, columns = np.nonzero(own)
            centre = (np.array([columns.mean(), rows.mean()]) + 0.5 + origin) * (across, down) + (left, top)
            low, high = contour.min(axis=0), contour.max(axis=0)
            found.append(
                AnomalousRegion(
                    box=(*_tenths(low), *_tenths(high - low)),
                    contour=tuple(_tenths(point) for point in contour),
                    centre=_tenths(centre),
                    area=round(values.size * across * down, 1),
                    peak=peak,
                    mean=float(values.mean()),
                    p_value=peaks.p_value(peak),
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
    inside = np.pad(region, 1)
    start = (1, 1 + int(np.argmax(region[0])), 0)  # the upper edge of a pixel in the first row
    row, column, side = start
    points = []
    while True:
        down, right = _SIDES[side]
        within, beyond = map[row, column], map[row + down, column + right]
        reach = (within - level) / (within - beyond) if np.isfinite(beyond) else 0.5
        points.append((column - 0.5 + reach * right, row - 0.5 + reach * down))
        ahead, across = _SIDES[(side + 1) % 4]  # clockwise, with the region on the right hand
        if inside[row + ahead + down, column + across + right]:
            row, column, side = row + ahead + down, column + across + right, (side - 1) % 4
        elif inside[row + ahead, column + across]:
            row, column = row + ahead, column + across
        else:
            side = (side + 1) % 4
        if (row, column, side) == start:
            return np.array(points)


def _seen(batch: ImageBatch, maps: Tensor, index: int) -> Floats:
    """The map of one image; -inf outside the region of interest."""
    map: Floats = maps[index].double().cpu().numpy()
    return map if batch.inside is None else np.where(batch.inside[index].cpu().numpy(), map, -np.inf)


def _tenths(pair: Floats) -> tuple[float, float]:
    """Nobody can tell less than a tenth of a pixel."""
    return round(float(pair[0]), 1), round(float(pair[1]), 1)
