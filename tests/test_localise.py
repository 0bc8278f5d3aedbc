"""Regions against plain loops, and the one statistic that held-out and new images share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from blemish.calibrate import calibrate
from blemish.detector import Detector
from blemish.images.preprocess import Preprocess
from blemish.localise import Localiser, components, contour_of, peak_of, simplified
from blemish.metrics.regions import count_found
from blemish.types import ImageBatch, Scores
from reference import regions as reference
from test_detector import anomalous_pixels, arrays, make, normal_pixels


def field(seed, size=(13, 17), steps=6):
    """A map with ties and corners that touch."""
    return np.random.default_rng(seed).integers(0, steps, size).astype(np.float64)


def judged(maps, sizes, inside=None):
    maps = torch.from_numpy(np.asarray(maps, np.float32))
    names = tuple(map(str, range(len(maps))))
    batch = ImageBatch(torch.zeros(len(maps), 3, *maps.shape[1:]), names, tuple(sizes), inside=inside)
    return batch, Scores(maps.amax(dim=(1, 2)), maps)


@pytest.mark.parametrize("least", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_components_and_peaks_are_those_of_plain_loops(seed, least):
    map = field(seed)
    if seed % 2:
        map[:, :6] = -np.inf  # a region of interest
    for level in range(6):
        found = set()
        for where, own in components(map > level, least):
            rows, columns = np.nonzero(own)
            found.add(frozenset(zip(rows + where[0].start, columns + where[1].start, strict=True)))
        assert found == {part for part in reference.components(map > level) if len(part) >= least}
    assert peak_of(map, least) == reference.peak(map, least)


def test_a_region_is_reported_exactly_where_the_peak_is_above_the_threshold():
    localiser = Localiser(Preprocess(16), 3)
    peaks = calibrate(np.arange(1, 10) / 2, false_alarm_rate=0.3)
    for seed in range(40):
        map = field(seed, (16, 16), 50) * (seed % 5) / 40
        batch, scores = judged([map], [(16, 16)])
        (peak,), (regions,) = localiser.peaks(batch, scores), localiser.regions(batch, scores, peaks)
        assert bool(regions) == (peak > peaks.threshold) == (peaks.p_value(peak) <= 0.3)
        if regions:
            assert (regions[0].peak, regions[0].p_value) == (peak, peaks.p_value(peak))
            assert [region.peak for region in regions] == sorted((region.peak for region in regions), reverse=True)
            assert all(region.p_value <= 0.3 for region in regions)


def test_a_threshold_between_two_numbers_of_float32_is_not_rounded():
    value = np.float32(0.1)
    threshold = float(value) - 1e-12
    map = np.zeros((16, 16), np.float32)
    map[4:6, 8:11] = value
    batch, scores = judged([map], [(16, 16)])
    localiser, peaks = Localiser(Preprocess(16), 1), calibrate([0.01, threshold, 5.0], false_alarm_rate=0.5)
    assert np.float32(peaks.threshold) == value
    assert float(value) > peaks.threshold
    assert len(localiser.regions(batch, scores, peaks)[0]) == 1
    np.testing.assert_array_equal(localiser.reported(map, None, threshold, (16, 16)), map)
    assert Localiser(Preprocess(16), 7).reported(map, None, threshold, (16, 16)).max().item() < threshold
    assert count_found([(map, map > 0)], threshold)[2].tolist() == [[6, 0, 0]]


def test_area_box_centre_and_contour_are_on_the_original_pixels():
    map = np.zeros((16, 16))
    map[4:6, 8:11] = 4.0
    peaks = calibrate([1.0, 2.0, 3.0], false_alarm_rate=0.5)
    batch, scores = judged([map], [(32, 48)])
    ((region,),) = Localiser(Preprocess(16), 1).regions(batch, scores, peaks)
    assert peaks.threshold == 2.0  # half-way between 0 and 4: the contour is on the pixels' edges
    assert region.box == (24.0, 8.0, 9.0, 4.0)
    assert (region.centre, region.area, region.peak, region.mean, region.p_value) == ((28.5, 10.0), 36.0, 4, 4, 0.25)
    assert region.contour == (
        (25.5, 8.0),
        (31.5, 8.0),
        (33.0, 9.0),
        (33.0, 11.0),
        (31.5, 12.0),
        (25.5, 12.0),
        (24.0, 11.0),
        (24.0, 9.0),
    )
    cropped = Preprocess(32, 16)  # the network saw the middle half
    ((region,),) = Localiser(cropped, 1).regions(batch, scores, peaks)
    assert region.box == (24.0, 12.0, 3.0, 2.0)


@pytest.mark.parametrize(("area", "kept"), [(36, 1), (37, 0)])
def test_small_regions_are_counted_in_pixels_of_the_image(area, kept):
    map = np.zeros((16, 16))
    map[4:6, 8:11] = 4.0
    batch, scores = judged([map], [(32, 48)])
    localiser = Localiser(Preprocess(16), area)
    (regions,) = localiser.regions(batch, scores, calibrate([1.0, 2.0, 3.0], false_alarm_rate=0.5))
    assert len(regions) == kept
    cut = localiser.reported(map.astype(np.float32), None, 2.0, (32, 48))
    np.testing.assert_array_equal(cut, map if kept else np.minimum(map, 2))


@pytest.mark.parametrize("seed", range(6))
def test_a_contour_goes_once_around_its_region(seed):
    """Its area with holes filled, on the pixels' edges, is that of the pixels; corners that touch are one region."""
    map = np.where(field(seed) > 3, 2.0, 0.0)
    for where, own in components(map > 1, 1):
        around = np.pad(np.where(own, 2.0, 0.0), 1)
        points = contour_of(around, own, 1.0)
        x, y = points.T
        area = (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        corners = reference.corners_cut(own)
        assert area == pytest.approx(reference.filled(own).sum() - corners, abs=1e-9)
        assert points.min() >= 0
        assert (points.max(axis=0) <= [own.shape[1], own.shape[0]]).all()
        assert where


@pytest.mark.parametrize("seed", range(6))
def test_a_contour_is_that_of_the_plain_loop(seed):
    map = field(seed)
    framed = np.pad(map, 1, constant_values=-np.inf)
    for where, own in components(map > 3, 1):
        around = framed[where[0].start : where[0].stop + 2, where[1].start : where[1].stop + 2]
        np.testing.assert_array_equal(contour_of(around, own, 3.0), reference.contour(around, own, 3.0))


def test_a_contour_lies_where_the_map_crosses_the_level():
    map = np.full((3, 3), -np.inf)
    map[1, 1], map[1, 2], map[0, 1] = 4.0, 0.0, -4.0
    right = contour_of(map, np.ones((1, 1), bool), 3.0)
    np.testing.assert_allclose(right, [(0.5, 0.5 - 1 / 8), (0.75, 0.5), (0.5, 1.0), (0.0, 0.5)])


@pytest.mark.parametrize("seed", range(6))
def test_a_thinned_contour_is_that_of_the_plain_recursion_and_near_all_points(seed):
    map = field(seed)
    framed, fewer = np.pad(map, 1, constant_values=-np.inf), 0
    for where, own in components(map > 3, 1):
        around = framed[where[0].start : where[0].stop + 2, where[1].start : where[1].stop + 2]
        whole = contour_of(around, own, 3.0)
        found = simplified(whole, 0.25)
        np.testing.assert_array_equal(found, reference.simplified(whole, 0.25))
        assert max(reference.distance(point, found) for point in whole) <= 0.25 + 1e-9
        fewer += len(whole) - len(found)
    assert fewer > 0


def test_the_contour_of_one_pixel_stays_a_square():
    around = np.pad(np.full((1, 1), 4.0), 1)
    whole = contour_of(around, np.ones((1, 1), bool), 2.0)
    np.testing.assert_array_equal(simplified(whole, 0.25), whole)
    flat = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, 0.0]])
    np.testing.assert_array_equal(simplified(flat, 0.4), flat)  # two points would be no polygon


def test_nothing_outside_the_region_of_interest_is_reported_or_calibrated():
    map = np.zeros((2, 16, 16))
    map[:, 2, 2], map[0, 9, 9] = 9.0, 5.0
    inside = torch.ones(2, 16, 16, dtype=torch.bool)
    inside[:, :5] = False
    batch, scores = judged(map, [(16, 16)] * 2, inside)
    localiser = Localiser(Preprocess(16), 1)
    assert localiser.peaks(batch, scores) == [5.0, 0.0]
    first, second = localiser.regions(batch, scores, calibrate([1.0, 2.0, 3.0], false_alarm_rate=0.5))
    assert (len(first), second) == (1, ())
    assert first[0].centre == (9.5, 9.5)


@pytest.fixture(scope="module")
def detector():
    return make(false_alarm_rate=0.2, min_area=4).fit(arrays(normal_pixels(40, 1)))


def test_held_out_images_judged_again_are_those_that_set_the_threshold(detector):
    peaks = []
    for batch, scores in detector.score(arrays(normal_pixels(40, 1))):
        peaks += detector.localiser.peaks(batch, scores)
    held_out = detector.peaks_.scores
    assert len(held_out) == len(detector.calibration_.scores) == 8
    for peak in held_out:
        assert np.abs(np.array(peaks) - peak).min() < 2e-5 * held_out.max()
    false = [bool(d.regions) for d in detector.predict(arrays(normal_pixels(40, 1)))]
    assert sum(false) <= 8  # of 40, and at most one of the held-out ones


def test_a_defect_has_a_region_where_it_is(detector):
    faint = normal_pixels(3, 4) + 0.04 * (anomalous_pixels(3, 4) - normal_pixels(3, 4))  # strong ones cast a halo
    for decision in detector.predict(arrays(faint)):
        (found,) = decision.regions
        left, top, width, height = found.box
        assert left < 40 < left + width + 16
        assert top < 36 < top + height + 16
        assert found.area < 64 * 64 / 2
        assert found.p_value == pytest.approx(1 / 9)
        assert decision.threshold < found.mean < found.peak <= np.nanmax(decision.map)


def test_a_file_keeps_the_peaks(detector, tmp_path):
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    assert loaded.min_area == 4
    np.testing.assert_array_equal(loaded.peaks_.scores, detector.peaks_.scores)
    one, two = (next(d.predict(arrays(anomalous_pixels(1, 4)))).regions[0] for d in (detector, loaded))
    assert one.peak == pytest.approx(two.peak, rel=1e-5)
    assert one.box == pytest.approx(two.box, abs=0.2)
    assert loaded.recalibrate(0.5).peaks_.threshold < detector.peaks_.threshold
    loaded.peaks_ = None
    assert next(loaded.predict(arrays(anomalous_pixels(1, 4)))).regions is None


def test_regions_by_folds_are_those_of_places_with_small_p_values():
    """Against plain loops: a place's own p-value counts the left-out peaks that its fold's model reaches there."""
    random, found = np.random.default_rng(0), 0
    for seed in range(12):
        peaks, folds = random.gamma(2.0, size=20), np.arange(20) % 4
        of_folds = random.gamma(2.0, size=(4, 16, 18)).astype(np.float32) * (1 + seed % 3)
        inside = torch.ones(1, 16, 18, dtype=torch.bool)
        inside[:, :, :2] = False
        batch, scores = judged([of_folds.mean(axis=0)], [(16, 18)], inside)
        scores = replace(scores, fold_maps=torch.from_numpy(of_folds)[None])
        calibration = calibrate(peaks, false_alarm_rate=0.1, kind="cross", folds=folds)
        for least in (1, 3):
            (regions,) = Localiser(Preprocess((16, 18)), least).regions(batch, scores, calibration)
            p = np.ones((16, 18))
            for r in range(16):
                for c in range(2, 18):
                    p[r, c] = (1 + sum(peaks[i] >= of_folds[folds[i], r, c] for i in range(20))) / 21
            parts = [part for part in reference.components(p <= 0.1) if len(part) >= least]
            assert sorted(region.area for region in regions) == sorted(len(part) for part in parts)
            if least == 1:
                expected = sorted(min(p[place] for place in part) for part in parts)
                assert sorted(region.p_value for region in regions) == pytest.approx(expected)
            highest = [of_folds[fold][:, 2:].max() for fold in range(4)]
            whole = (1 + sum(peaks[i] >= highest[folds[i]] for i in range(20))) / 21
            assert all(whole <= region.p_value + 1e-9 and region.p_value <= 0.1 for region in regions)
            found += len(regions)
    assert found > 30
    with_none = replace(scores, fold_maps=None)
    assert Localiser(Preprocess((16, 18)), 1).regions(batch, with_none, calibration) == [None]
