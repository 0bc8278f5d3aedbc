"""Pixel metrics over whole test sets: exact pixel AUROC, pixel average precision and AU-PRO, in bounded memory.

All three follow from one curve, whose corners lie at the distinct scores of the *anomalous* pixels: between two of
them only the false-positive rate moves. The first pass over the maps collects those scores, the second one counts,
for each of them, the normal pixels above it and at it. No threshold grid, no rescaling, no rounding of a score.

The counting uses that floats of one sign are ordered like their bits: a table with one counter per representable
score (or per run of neighbouring ones, where the scores span too many) takes each normal pixel in one step. Where a
run holds both anomalous and normal scores, its pixels are sorted and compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import ArgumentError

Keys = NDArray[np.signedinteger[Any]]
_Floats = NDArray[np.floating[Any]]
Pair = tuple[_Floats, NDArray[np.bool_] | NDArray[np.uint8] | None]
"""An anomaly map `(height, width)` float32 or float64 and its ground truth, or None for a normal image.

The ground truth has the shape of the map, bool or uint8; non-zero = anomalous. Sizes may differ between images. Of a
`numpy.ma.MaskedArray`, what is masked out counts as neither: it was not judged.
"""

_BLOCK = 2**18  # pixels handled at once: their temporaries stay in a core's cache
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class PixelCurve:
    """Rates over all pixels of all images, at each distinct score of an anomalous pixel, from high to low.

    The curve starts at (0, 0) and ends at (1, 1). At step k the false-positive rate goes from `fpr_before[k]` to
    `fpr_after[k]` while `tpr` and `pro` rise from their value of step k - 1 to that of step k.
    """

    thresholds: NDArray[np.float64]
    """`(steps,)` in score units, descending."""
    fpr_before: NDArray[np.float64]
    """`(steps,)` share of the normal pixels with score > threshold."""
    fpr_after: NDArray[np.float64]
    """`(steps,)` share of the normal pixels with score >= threshold."""
    tpr: NDArray[np.float64]
    """`(steps,)` share of the anomalous pixels with score >= threshold."""
    pro: NDArray[np.float64]
    """`(steps,)` mean over the regions of the share of their pixels with score >= threshold."""
    n_normal_pixels: int
    n_anomalous_pixels: int
    n_regions: int


def pixel_curve(pairs: Iterable[Pair], *, chunk_pixels: int | None = None, max_bins: int = 2**26) -> PixelCurve:
    """Build the exact curve in two passes over `pairs`, which must give the same maps on each (a list does).

    Memory beyond one image: about 100 bytes a distinct anomalous score and 30 an anomalous pixel, 5 bytes a bin (one
    bin for two pixels, at most `max_bins`), and `chunk_pixels` scores twice (default: the larger of 2**23 and four
    a distinct anomalous score). Both settings trade memory for speed; the curve does not depend on them.

    >>> scores = np.array([[0.1, 0.2, 0.9], [0.3, 0.8, 0.8]], dtype=np.float32)
    >>> curve = pixel_curve([(scores, scores > 0.5), (scores, None)])
    >>> round(au_pro(curve), 12), curve.n_regions
    (0.45, 1)
    """
    _check_arguments(pairs, chunk_pixels, max_bins)
    found = _collect(pairs)
    bins = _plan(_keys(found.scores), min(max_bins, max(2**16, found.n_pixels // 2)))
    levels = _levels(found, bins)
    counter = _Counter(levels, bins, found.n_pixels, chunk_pixels or max(2**23, 4 * levels.scores.size))
    for scores, mask, judged in _images(pairs):
        normal = judged if mask is None else ~mask if judged is None else judged & ~mask
        counter.add(scores.ravel() if normal is None else scores[normal])
    below, up_to = counter.totals(found.n_normal_pixels)
    return _curve(levels, below, up_to, found)


def pixel_auroc(curve: PixelCurve) -> float:
    """Area under the ROC curve over all pixels, ties counting one half; chance level 0.5."""
    return _area(curve, curve.tpr, 1.0)


def pixel_average_precision(curve: PixelCurve) -> float:
    """Average precision over all pixels, anomalous = positive: the sum of (R_k - R_{k-1}) P_k over distinct scores.

    Chance level: the share of anomalous pixels.
    """
    true = curve.tpr * curve.n_anomalous_pixels
    precision = true / (true + curve.fpr_after * curve.n_normal_pixels)
    return float(np.diff(curve.tpr, prepend=0.0) @ precision)


def au_pro(curve: PixelCurve, *, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to the false-positive rate `limit`, divided by `limit`.

    Regions are the 8-connected components of the ground truth, all of equal weight whatever their size; false
    positives are counted over the normal pixels of all images. Linear interpolation at the limit; chance level
    `limit / 2`. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
    """
    if not 0 < limit <= 1:
        raise ArgumentError.about("limit", expected="a false-positive rate in (0, 1]", got=limit, instead="Write 0.3.")
    return _area(curve, curve.pro, limit) / limit


@dataclass(frozen=True, slots=True, eq=False)
class FoundRegions:
    """What the regions that a detector reports hit and miss, image by image: each array is `(images,)`.

    The last four are None without masks.
    """

    reported: NDArray[np.intp]
    """Regions reported."""
    hit: NDArray[np.intp] | None = None
    """True defects of which at least a pixel is reported: 8-connected regions of the ground truth."""
    defects: NDArray[np.intp] | None = None
    """True defects."""
    pixels: NDArray[np.intp] | None = None
    """`(images, 3)`: pixels reported and true, reported and not true, true and not reported."""

    def of(self, images: NDArray[np.intp] | NDArray[np.bool_]) -> FoundRegions:
        """The same of some images."""
        if self.hit is None or self.defects is None or self.pixels is None:
            return FoundRegions(self.reported[images])
        return FoundRegions(self.reported[images], self.hit[images], self.defects[images], self.pixels[images])


def count_found(pairs: Iterable[Pair], threshold: float) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """`hit`, `defects` and `pixels` of `FoundRegions`: what of each map lies above the threshold, against its mask."""
    counts = [_count_found(*pair, threshold) for pair in _images(pairs)]
    hit, defects, pixels = (np.array(column, dtype=np.intp) for column in zip(*counts, strict=True))
    return hit, defects, pixels.reshape(-1, 3)


def _count_found(
    values: _Floats, mask: NDArray[np.bool_] | None, judged: NDArray[np.bool_] | None, threshold: float
) -> tuple[int, int, tuple[int, int, int]]:
    found = values > np.float64(threshold)  # a plain number would be rounded to what float32 can hold
    if judged is not None:
        found &= judged
    if mask is None:
        return 0, 0, (0, int(found.sum()), 0)
    region, sizes = _regions(mask)
    both = found[mask]
    true = int(both.sum())
    return len(np.unique(region[both])), sizes.size, (true, int(found.sum()) - true, int(mask.sum()) - true)


def seg_f1(found: FoundRegions) -> float:
    """F1 of pixels at a fixed threshold, over the pixels of all images at once; 0 where nothing true is found.

    Heckler-Kram et al., "The MVTec AD 2 Dataset", 2025 (SegF1).
    """
    assert found.pixels is not None
    true, false, missed = (int(count) for count in found.pixels.sum(axis=0))
    return 2 * true / max(1, 2 * true + false + missed)


def defects_hit(found: FoundRegions) -> float:
    """Share of the true defects of which at least a pixel is reported."""
    assert found.hit is not None
    assert found.defects is not None
    return float(found.hit.sum() / max(1, found.defects.sum()))


def _area(curve: PixelCurve, heights: NDArray[np.float64], limit: float) -> float:
    """Integrate `heights` over the false-positive rate from 0 to `limit`: flat between steps, a ramp at a tie."""
    steps = int(np.searchsorted(curve.fpr_before, limit, side="left"))
    if steps == 0:
        return 0.0
    left, right, top = curve.fpr_before[:steps], curve.fpr_after[:steps], heights[:steps].copy()
    bottom = np.concatenate(([0.0], top[:-1]))
    if right[-1] > limit:  # only the last ramp can cross the limit
        top[-1] = bottom[-1] + (top[-1] - bottom[-1]) * (limit - left[-1]) / (right[-1] - left[-1])
    right = np.minimum(right, limit)
    ramps = (right - left) @ (bottom + top) / 2
    flats = (np.append(left[1:], limit) - right) @ top
    return float(ramps + flats)


@dataclass(frozen=True)
class _Found:
    """What the first pass leaves: the anomalous pixels of all images."""

    scores: _Floats
    """`(pixels,)`; float64 if any map is, normal images included."""
    weights: NDArray[np.float64]
    """`(pixels,)` 1 / size of the pixel's region."""
    n_regions: int
    n_pixels: int
    """Of either kind."""

    @property
    def n_normal_pixels(self) -> int:
        return self.n_pixels - self.scores.size


def _check_arguments(pairs: Iterable[Pair], chunk_pixels: int | None, max_bins: int) -> None:
    if isinstance(pairs, Iterator):
        hint = "Pass a list, or an object whose __iter__ starts again."
        got = f"a one-shot {type(pairs).__name__}"
        raise ArgumentError.about("pairs", expected="an iterable that can be iterated twice", got=got, instead=hint)
    if chunk_pixels is not None and chunk_pixels < 1:
        raise ArgumentError.about("chunk_pixels", expected="at least 1, or None", got=chunk_pixels)
    if max_bins < 2:
        raise ArgumentError.about("max_bins", expected="at least 2", got=max_bins, instead="Leave it out.")


def _collect(pairs: Iterable[Pair]) -> _Found:
    scores: list[_Floats] = []
    weights: list[NDArray[np.float64]] = []
    n_regions, n_pixels, dtype = 0, 0, np.dtype(np.float32)
    for values, mask, judged in _images(pairs):
        n_pixels += values.size if judged is None else int(judged.sum())
        dtype = np.promote_types(dtype, values.dtype)
        if mask is not None:
            region, sizes = _regions(mask)
            scores.append(values[mask])
            weights.append((1 / sizes)[region])
            n_regions += sizes.size
    n_anomalous = sum(part.size for part in scores)
    for missing, count in (("anomalous", n_anomalous), ("normal", n_pixels - n_anomalous)):
        if count == 0:
            got = f"{n_pixels} pixels, none {missing}"
            raise ArgumentError.about("pairs", expected="both normal and anomalous pixels", got=got)
    return _Found(np.concatenate(scores).astype(dtype, copy=False), np.concatenate(weights), n_regions, n_pixels)


def _regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number the 8-connected regions: the region of each anomalous pixel in row order, and the size of each region."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labels, _ = ndimage.label(cut, structure=_EIGHT_NEIGHBOURS)
    region = labels[cut].astype(np.intp) - 1
    return region, np.bincount(region)


def _images(
    pairs: Iterable[Pair],
) -> Iterator[tuple[_Floats, NDArray[np.bool_] | None, NDArray[np.bool_] | None]]:
    """Check each pair: scores, a mask of the judged anomalous pixels, None where there are none, and what was judged.

    The last is None where all of it was.
    """
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ArgumentError.about(f"pairs[{index}]", expected="a pair (map, mask or None)", got=pair)
        scores, judged = _checked_map(pair[0], f"map of pairs[{index}]")
        mask = None if pair[1] is None else _checked_mask(pair[1], scores.shape, f"mask of pairs[{index}]")
        if mask is not None and judged is not None:
            mask = mask & judged
        yield scores, mask if mask is not None and mask.any() else None, judged


def _checked_map(given: _Floats, name: str) -> tuple[_Floats, NDArray[np.bool_] | None]:
    judged = ~np.ma.getmaskarray(given) if isinstance(given, np.ma.MaskedArray) else None
    scores = np.asarray(given)
    if scores.ndim != 2 or scores.size == 0 or scores.dtype not in (np.float32, np.float64):
        raise ArgumentError.about(name, expected="a float32 or float64 array (height, width)", got=scores)
    if not np.isfinite(scores if judged is None else scores[judged]).all():
        raise ArgumentError.about(
            name,
            expected="finite scores",
            got="NaN or infinity",
            instead="Cut map and mask to the pixels that were scored, or mask out the others.",
        )
    return scores, judged


def _checked_mask(given: NDArray[np.bool_] | NDArray[np.uint8], shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    mask = np.asarray(given)
    if mask.shape != shape or mask.dtype not in (np.bool_, np.uint8):
        raise ArgumentError.about(name, expected=f"a bool or uint8 array of its map's shape {shape}", got=mask)
    return mask.astype(np.bool_, copy=False)


def _keys(scores: _Floats) -> Keys:
    """Map `(n,)` floats to integers of the same order: their bits, negated by hand where the sign bit is set."""
    integer = np.int32 if scores.dtype == np.float32 else np.int64
    bits: Keys = np.ascontiguousarray(scores).view(integer)
    if bits.min() >= 0:
        return bits
    return np.where(bits < 0, np.iinfo(integer).min - bits, bits)  # -0.0 becomes 0, as it must: it equals 0.0


@dataclass(frozen=True)
class _Bins:
    """Runs of `2**shift` neighbouring keys, from the lowest anomalous score to the highest."""

    first: int
    count: int
    shift: int

    def of(self, scores: _Floats) -> NDArray[np.intp]:
        """Give the bin of each score, 1 to `count`; 0 below all of them and `count + 1` above."""
        keys = _keys(scores)
        runs = (keys >> self.shift if self.shift else keys).clip(self.first - 1, self.first + self.count)
        slots: NDArray[np.intp] = np.subtract(runs, self.first - 1, dtype=np.intp)
        return slots


def _plan(keys: Keys, max_bins: int) -> _Bins:
    low, high = int(keys.min()), int(keys.max())
    shift = 0
    while (high >> shift) - (low >> shift) >= max_bins:
        shift += 1
    first = low >> shift
    return _Bins(first, (high >> shift) - first + 1, shift)


@dataclass(frozen=True)
class _Levels:
    """The distinct anomalous scores, ascending."""

    scores: _Floats
    """`(levels,)`."""
    pixels: NDArray[np.intp]
    """`(levels,)` anomalous pixels with this score."""
    weights: NDArray[np.float64]
    """`(levels,)` sum of their weights."""


def _levels(found: _Found, bins: _Bins) -> _Levels:
    scores, level = _ranked(found.scores, bins)
    weights = np.asarray(np.bincount(level, weights=found.weights), dtype=np.float64)
    return _Levels(scores, np.bincount(level), weights)


def _ranked(scores: _Floats, bins: _Bins) -> tuple[_Floats, Keys]:
    """Give the distinct scores, ascending, and the rank of each score among them."""
    if bins.shift:
        distinct, rank = np.unique(scores, return_inverse=True)
        return distinct, rank
    slots = bins.of(scores)  # one score a bin: to rank the bins is a quarter of the work of sorting the scores
    occupied = np.zeros(bins.count + 2, dtype=np.bool_)
    occupied[slots] = True
    rank_of_bin = np.cumsum(occupied, dtype=np.int32)
    rank_of_bin -= 1
    distinct = np.empty(rank_of_bin[-1] + 1, dtype=scores.dtype)
    distinct[rank_of_bin[slots]] = scores
    return distinct, rank_of_bin[slots]


class _Counter:
    """Counts the normal pixels below each level and up to it."""

    def __init__(self, levels: _Levels, bins: _Bins, n_pixels: int, chunk_pixels: int) -> None:
        self._levels, self._bins, self._chunk_pixels = levels, bins, chunk_pixels
        self._slots = bins.of(levels.scores)
        self._table = np.zeros(bins.count + 2, dtype=np.uint32 if n_pixels < 2**32 else np.uint64)
        self._mixed: NDArray[np.bool_] | None = None  # bins that hold a level among other scores
        if bins.shift:
            self._mixed = np.zeros(self._table.size, dtype=np.bool_)
            self._mixed[self._slots] = True
        self._waiting: list[_Floats] = []  # scores in such bins, to be compared exactly
        self._n_waiting = 0
        self._below = np.zeros(levels.scores.size, dtype=np.int64)
        self._up_to = np.zeros(levels.scores.size, dtype=np.int64)

    def add(self, scores: _Floats) -> None:
        """Take the normal scores of one image, `(n,)`."""
        one = self._table.dtype.type(1)
        for start in range(0, scores.size, _BLOCK):
            block = scores[start : start + _BLOCK].astype(self._levels.scores.dtype, copy=False)
            slots = self._bins.of(block)
            np.add.at(self._table, slots, one)
            if self._mixed is not None:
                self._waiting.append(block[self._mixed[slots]])
                self._n_waiting += self._waiting[-1].size
            if self._n_waiting >= self._chunk_pixels:
                self._compare()

    def totals(self, n_normal_pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the counts of normal pixels `< level` and `<= level`, `(levels,)` each; the last call."""
        counted = int(self._table.sum())
        if counted != n_normal_pixels:
            expected = f"the same {n_normal_pixels} normal pixels on both passes"
            raise ArgumentError.about("pairs", expected=expected, got=f"{counted} on the second")
        if self._mixed is not None:
            self._compare()
            self._table[self._mixed] = 0  # those pixels have been compared one by one
        reached = np.cumsum(self._table, dtype=self._table.dtype, out=self._table)
        self._below += reached[self._slots - 1]
        self._up_to += reached[self._slots]
        return self._below, self._up_to

    def _compare(self) -> None:
        if self._waiting:
            chunk = np.concatenate(self._waiting)
            self._waiting, self._n_waiting = [], 0
            chunk.sort()
            self._below += np.searchsorted(chunk, self._levels.scores, side="left")
            self._up_to += np.searchsorted(chunk, self._levels.scores, side="right")


def _curve(levels: _Levels, below: NDArray[np.int64], up_to: NDArray[np.int64], found: _Found) -> PixelCurve:
    """Turn counts at ascending levels into rates at descending thresholds."""
    n_normal = found.n_normal_pixels
    pro = np.cumsum(levels.weights[::-1])
    return PixelCurve(
        thresholds=levels.scores[::-1].astype(np.float64),
        fpr_before=(n_normal - up_to[::-1]) / n_normal,
        fpr_after=(n_normal - below[::-1]) / n_normal,
        tpr=np.cumsum(levels.pixels[::-1]) / found.scores.size,
        pro=pro / pro[-1],  # pro[-1] is the number of regions but for rounding; so the curve ends at exactly 1
        n_normal_pixels=n_normal,
        n_anomalous_pixels=found.scores.size,
        n_regions=found.n_regions,
    )
