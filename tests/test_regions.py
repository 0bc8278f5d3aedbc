"""Pixel metrics against plain loops: every distinct score of every pixel as a threshold, regions by flood fill."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.metrics import (
    FoundRegions,
    PixelCurve,
    au_pro,
    count_found,
    defects_hit,
    pixel_auroc,
    pixel_average_precision,
    pixel_curve,
    seg_f1,
)
from reference import metrics as reference
from reference import regions as places

LIMITS = (1e-3, 0.05, 0.3, 0.5, 1.0)
# Neighbouring floats: within the table's reach, one bin a score. Then values too far apart for that: bins are shared.
NEAR = [np.nextafter(np.float32(1), np.float32(2)) + k * np.finfo(np.float32).eps for k in range(6)]
FAR = [-3.5e30, -1.0, -1e-20, -0.0, 0.0, 1e-30, 0.25, np.nextafter(np.float32(0.25), np.float32(1)), 0.3, 8e9]


@st.composite
def image_sets(draw):
    """One to four images of different sizes with many ties; at least one pixel of each kind in all."""
    levels = draw(st.sampled_from([NEAR, FAR, FAR[5:], [0.7]]))
    dtypes = draw(st.sampled_from([[np.float32], [np.float64], [np.float32, np.float64]]))
    pairs = []
    for index in range(draw(st.integers(1, 4))):
        height, width = draw(st.integers(1, 6)), draw(st.integers(2, 6))
        size = height * width
        values = draw(st.lists(st.sampled_from(levels), min_size=size, max_size=size))
        labels = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        if index == 0:
            labels[:2] = [True, False]
        mask = np.array(labels).reshape(height, width)
        given_mask = None if index and draw(st.booleans()) else mask.astype(draw(st.sampled_from([bool, np.uint8])))
        pairs.append((np.array(values, dtype=draw(st.sampled_from(dtypes))).reshape(height, width), given_mask))
    return pairs


def assert_all_equal_reference(pairs, curve):
    scores, anomalous = reference.pixels(pairs)
    assert pixel_auroc(curve) == pytest.approx(reference.auroc(scores, anomalous), abs=1e-12)
    assert pixel_average_precision(curve) == pytest.approx(reference.average_precision(scores, anomalous), abs=1e-12)
    for limit in LIMITS:
        assert au_pro(curve, limit=limit) == pytest.approx(reference.au_pro(pairs, limit), abs=1e-12)


@given(image_sets())
def test_the_curve_gives_what_the_definitions_give(pairs):
    assert_all_equal_reference(pairs, pixel_curve(pairs))


@given(image_sets())
def test_the_curve_describes_itself(pairs):
    curve = pixel_curve(pairs)
    scores, anomalous = (np.array(column) for column in reference.pixels(pairs))
    assert curve.thresholds.tolist() == sorted(set(scores[anomalous].tolist()), reverse=True)
    assert (curve.n_normal_pixels, curve.n_anomalous_pixels) == ((~anomalous).sum(), anomalous.sum())
    assert curve.n_regions == sum(len(reference.regions(mask)) for _, mask in pairs if mask is not None)
    for k, t in enumerate(curve.thresholds):
        assert curve.fpr_before[k] == np.mean(scores[~anomalous] > t)
        assert curve.fpr_after[k] == np.mean(scores[~anomalous] >= t)
        assert curve.tpr[k] == np.mean(scores[anomalous] >= t)
    assert curve.tpr[-1] == curve.pro[-1] == 1.0


def curves_equal(first: PixelCurve, second: PixelCurve) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in PixelCurve.__slots__)


@given(image_sets(), st.integers(1, 40), st.integers(2, 40))
def test_the_curve_does_not_depend_on_chunks_or_bins(pairs, chunk_pixels, max_bins):
    assert curves_equal(pixel_curve(pairs), pixel_curve(pairs, chunk_pixels=chunk_pixels, max_bins=max_bins))


def smooth_set(dtype, *, images=4, size=300, offset=0.0):
    """Images larger than one block of pixels, with continuous scores."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, : 3 * size]
    pairs = []
    for index in range(images):
        waves = np.sin(rows / random.uniform(9, 30)) + np.cos(columns / random.uniform(9, 30)) + offset
        mask = (rows - random.integers(size)) ** 2 + (columns - random.integers(3 * size)) ** 2 < 40**2
        scores = (waves + mask * random.uniform(0, 2) + random.normal(0, 0.1, waves.shape)).astype(dtype)
        pairs.append((scores, mask if index else None))
    return pairs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 40.0, 1e4])
def test_large_images_agree_between_one_bin_a_score_and_shared_bins(dtype, offset):
    pairs = smooth_set(dtype, offset=offset)
    curve = pixel_curve(pairs)
    assert curves_equal(curve, pixel_curve(pairs, chunk_pixels=100_000, max_bins=1000))
    scores = np.concatenate([scores.ravel() for scores, _ in pairs])
    labels = np.concatenate([np.zeros(s.size, bool) if m is None else m.ravel() for s, m in pairs])
    for k in range(0, curve.thresholds.size, 997):
        assert curve.fpr_before[k] == np.mean(scores[~labels] > curve.thresholds[k])
        assert curve.fpr_after[k] == np.mean(scores[~labels] >= curve.thresholds[k])
        assert curve.tpr[k] == np.mean(scores[labels] >= curve.thresholds[k])


class Lazy:
    """Makes each image when it is asked for, as a reader of files would."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        for seed in range(self.images):
            mask = np.zeros((256, 256), dtype=bool)
            mask[0, :8] = True
            yield np.random.default_rng(seed).random(mask.shape), mask


@pytest.mark.parametrize("settings", [{"chunk_pixels": 2**16}, {"chunk_pixels": 2**16, "max_bins": 2}])
def test_memory_does_not_grow_with_the_number_of_images(settings):
    tracemalloc.start()
    pixel_curve(Lazy(32), **settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**20  # the maps themselves: 16 MiB


@given(image_sets())
def test_only_the_order_of_the_scores_counts(pairs):
    curve = pixel_curve(pairs)
    levels = sorted({float(score) for scores, _ in pairs for score in scores.ravel()})
    ranked = pixel_curve([(np.searchsorted(levels, scores).astype(np.float32), mask) for scores, mask in pairs])
    for name in ("fpr_before", "fpr_after", "tpr", "pro"):
        assert np.array_equal(getattr(curve, name), getattr(ranked, name))


def test_all_tied_scores_are_at_chance_level():
    mask = np.zeros((5, 4), dtype=bool)
    mask[1:3, 1:3] = True
    curve = pixel_curve([(np.full((5, 4), 0.3, dtype=np.float32), mask)])
    assert pixel_auroc(curve) == 0.5
    assert pixel_average_precision(curve) == 4 / 20
    assert au_pro(curve) == pytest.approx(0.15)  # the limit, 0.3, over 2


def test_a_map_equal_to_its_mask_is_perfect():
    mask = np.eye(6, dtype=bool)
    curve = pixel_curve([(mask.astype(np.float32), mask), (np.zeros((3, 3), dtype=np.float32), None)])
    assert pixel_auroc(curve) == pixel_average_precision(curve) == au_pro(curve) == au_pro(curve, limit=1e-9) == 1.0


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.eye(4, dtype=bool)
    assert pixel_curve([(mask.astype(np.float32), mask)]).n_regions == 1


def test_regions_at_the_border_and_in_other_images_count_alike():
    mask = np.zeros((6, 7), dtype=np.uint8)
    mask[0, 0] = mask[5, 6] = mask[2:4, 0] = 255
    scores = np.random.default_rng(5).random((6, 7))
    pairs = [(scores, mask), (scores[::-1], mask[:, ::-1])]
    curve = pixel_curve(pairs)
    assert curve.n_regions == 6
    assert_all_equal_reference(pairs, curve)


def test_a_small_region_weighs_as_much_as_a_large_one():
    mask = np.zeros((10, 10), dtype=bool)
    mask[:5, :5] = mask[9, 9] = True
    scores = np.zeros((10, 10))
    scores[9, 9] = 1.0  # only the small region is found
    assert au_pro(pixel_curve([(scores, mask)]), limit=1e-6) == pytest.approx(0.5, abs=1e-5)


def test_false_positives_are_counted_on_normal_images_too():
    scores, mask = np.array([[0.9, 0.1]], dtype=np.float32), np.array([[True, False]])
    alarm = np.full((1, 3), 0.95, dtype=np.float32)
    assert pixel_auroc(pixel_curve([(scores, mask)])) == 1.0
    assert pixel_auroc(pixel_curve([(scores, mask), (alarm, None)])) == 0.25
    assert pixel_auroc(pixel_curve([(scores, mask), (alarm, np.zeros((1, 3), dtype=np.uint8))])) == 0.25


def test_strided_maps_and_masks_are_read_in_place():
    random = np.random.default_rng(2)
    scores, mask = random.integers(0, 4, (8, 9)).astype(np.float32), random.random((8, 9)) < 0.3
    views = [(scores.T[::2], mask.T[::2])]
    copies = [(scores.T[::2].copy(), mask.T[::2].copy())]
    assert curves_equal(pixel_curve(views), pixel_curve(copies))


def test_arguments_are_not_changed():
    scores, mask = np.array([[-1.0, 0.0, 2.0]], dtype=np.float32), np.array([[0, 255, 0]], dtype=np.uint8)
    pixel_curve([(scores, mask)])
    assert scores.tolist() == [[-1.0, 0.0, 2.0]]
    assert mask.tolist() == [[0, 255, 0]]


class Fickle:
    """Gives one image on the first pass and two on the second."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([GOOD] * self.passes)


GOOD = (np.array([[0.0, 1.0]]), np.array([[False, True]]))
ONES = np.ones((2, 2))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((pair for pair in [GOOD]), r"pairs: expected an iterable .* twice, got a one-shot generator\. Pass a list"),
        ([], r"pairs: expected both normal and anomalous pixels, got 0 pixels, none anomalous\."),
        ([(ONES, None)], r"pairs: expected both .*, got 4 pixels, none anomalous\."),
        ([(ONES, ONES > 0)], r"pairs: expected both .*, got 4 pixels, none normal\."),
        ([ONES], r"pairs\[0\]: expected a pair \(map, mask or None\), got an array of shape \(2, 2\)"),
        (
            [GOOD, (ONES[0], None)],
            r"map of pairs\[1\]: expected a float32 or float64 array \(height, width\), got .*\(2,\)",
        ),
        ([(ONES.astype(np.float16), None)], r"map of pairs\[0\]: expected a float32 or float64 array .* float16"),
        ([(ONES[:0], None)], r"map of pairs\[0\]: expected .* shape \(0, 2\)"),
        ([(ONES * np.nan, None)], r"map of pairs\[0\]: expected finite scores, got NaN or infinity\. Cut map and mask"),
        ([(ONES * -np.inf, None)], r"map of pairs\[0\]: expected finite scores"),
        ([(ONES, ONES[:1] > 0)], r"mask of pairs\[0\]: expected a bool or uint8 array of .* \(2, 2\), got .*\(1, 2\)"),
        ([(ONES, ONES)], r"mask of pairs\[0\]: expected a bool or uint8 array .* float64\."),
        (Fickle(), r"pairs: expected the same 1 normal pixels on both passes, got 2 on the second\."),
    ],
)
def test_bad_input_is_named(pairs, message):
    with pytest.raises(ArgumentError, match=message):
        pixel_curve(pairs)


@pytest.mark.parametrize("limit", [0.0, -0.3, 1.1, float("nan")])
def test_a_limit_outside_its_range_is_refused(limit):
    with pytest.raises(ArgumentError, match=r"limit: expected a false-positive rate in \(0, 1\], got .* Write 0\.3\."):
        au_pro(pixel_curve([GOOD]), limit=limit)


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ArgumentError, match=r"chunk_pixels: expected at least 1, or None, got 0\."):
        pixel_curve([GOOD], chunk_pixels=0)
    with pytest.raises(ArgumentError, match=r"max_bins: expected at least 2, got 1\. Leave it out\."):
        pixel_curve([GOOD], max_bins=1)


@given(image_sets())
def test_reported_pixels_and_defects_are_counted_as_the_definitions_say(pairs):
    threshold = float(np.median(pairs[0][0]))
    hit, defects, pixels = count_found(pairs, threshold)
    totals = np.zeros(3, int)
    for i, (values, mask) in enumerate(pairs):
        found, truth = values > np.float64(threshold), np.zeros(values.shape, bool) if mask is None else mask != 0
        parts = places.components(truth)
        assert (hit[i], defects[i]) == (sum(any(found[at] for at in part) for part in parts), len(parts))
        totals += places.counts(found, truth)
    true, false, missed = totals.tolist()
    assert pixels.sum(axis=0).tolist() == [true, false, missed]
    found = FoundRegions(np.zeros(len(pairs), int), hit, defects, pixels)
    precision, recall = true / max(1, true + false), true / (true + missed)
    expected = 2 * precision * recall / (precision + recall) if true else 0.0
    assert seg_f1(found) == pytest.approx(expected, abs=1e-12)
    assert defects_hit(found) == hit.sum() / defects.sum()
    assert seg_f1(found.of(np.arange(len(pairs))[::-1])) == seg_f1(found)


def test_what_was_not_judged_is_neither_found_nor_missed():
    map, mask = np.array([[9.0, 9.0, 1.0, 1.0]]), np.array([[1, 0, 1, 0]], np.uint8)
    hidden = np.ma.MaskedArray(map, [[True, True, False, False]])
    hit, defects, pixels = count_found([(hidden, mask), (map, None)], 5.0)
    assert (hit.tolist(), defects.tolist(), pixels.tolist()) == ([0, 0], [1, 0], [[0, 0, 1], [0, 2, 0]])
