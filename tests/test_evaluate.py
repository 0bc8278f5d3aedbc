from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from blemish import evaluate, open_dataset, write_report
from blemish.calibrate import calibrate
from blemish.discoveries import BatchAlarms
from blemish.errors import ArgumentError, DatasetError
from blemish.evaluation.batch import BatchFigures
from blemish.evaluation.detector import evaluation_json
from blemish.images.decode import decode_mask
from contract.laws import anomalous_pixels, normal_pixels
from reference import metrics as reference
from reference import regions as places
from test_detector import arrays, make

SQUARE = np.zeros((64, 64), np.uint8)
SQUARE[20:36, 24:40] = 255


def write(root, *, mask_scale=1):
    parts = {"train/good": normal_pixels(40, 1), "test/good": normal_pixels(5, 3), "test/flip": anomalous_pixels(4, 4)}
    for folder, pixels in parts.items():
        (root / folder).mkdir(parents=True)
        for i, image in enumerate(arrays(pixels)):
            Image.fromarray(image).save(root / folder / f"{i:02}.png")
    (root / "ground_truth" / "flip").mkdir(parents=True)
    for i in range(4):
        mask = Image.fromarray(SQUARE.repeat(mask_scale, axis=0).repeat(mask_scale, axis=1))
        mask.save(root / "ground_truth" / "flip" / f"{i:02}_mask.png")
    return open_dataset(root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def detector(dataset):
    return make().fit(dataset.train_images())


def test_figures_are_those_of_the_decisions(detector, dataset):
    evaluation = evaluate(detector, dataset)
    decisions = list(detector.predict(dataset.test_images()))
    scores, anomalous = [d.score for d in decisions], [s.anomalous for s in dataset.test]
    assert [r.decision.score for r in evaluation.records] == pytest.approx(scores)
    figures = evaluation.figures
    assert figures.image_auroc == pytest.approx(reference.auroc(scores, anomalous))
    assert figures.f1 == pytest.approx(reference.f1(scores, anomalous, decisions[0].threshold))
    flagged = [d.is_anomalous for d in decisions]
    assert figures.false_alarms == sum(f and not a for f, a in zip(flagged, anomalous, strict=True)) / 5
    assert figures.misses == sum(a and not f for f, a in zip(flagged, anomalous, strict=True)) / 4
    every_fourth = slice(None, None, 4)
    maps = np.concatenate([d.map[every_fourth, every_fourth].ravel() for d in decisions])
    masks = [np.zeros((64, 64), bool) if s.mask is None else decode_mask(s.mask) for s in dataset.test]
    truth = np.concatenate([m[every_fourth, every_fourth].ravel() for m in masks])
    assert figures.pixel_auroc == pytest.approx(reference.auroc(maps, truth), abs=0.02)
    for i, decision in enumerate(decisions):
        np.testing.assert_allclose(evaluation.map(i), decision.map, rtol=1e-4)


def test_masks_at_another_scale_change_nothing(detector, dataset, tmp_path):
    enlarged = evaluate(detector, write(tmp_path, mask_scale=4)).figures
    figures = evaluate(detector, dataset).figures
    for name in ("pixel_auroc", "au_pro_30", "au_pro_05"):
        assert getattr(enlarged, name) == pytest.approx(getattr(figures, name))


def test_network_pixels_of_an_uncropped_image_are_its_own_here(detector, dataset):
    original, network = (evaluate(detector, dataset, pixels=p) for p in ("original", "network"))
    assert original.figures.au_pro_30 == pytest.approx(network.figures.au_pro_30)
    assert (original.pixels, network.pixels) == ("original", "network")


def test_a_defect_without_a_mask_is_not_counted_as_normal_pixels(detector, dataset):
    samples = (replace(dataset.test[0], mask=None), *dataset.test[1:])
    assert samples[0].anomalous
    with pytest.raises(DatasetError, match="anomalous, but without a mask, while other images have one"):
        evaluate(detector, replace(dataset, test=samples))
    none = replace(dataset, test=tuple(replace(s, mask=None) for s in dataset.test))
    figures = evaluate(detector, none).figures
    assert figures.pixel_auroc is None
    assert figures.image_auroc == evaluate(detector, dataset).figures.image_auroc


def test_intervals_hold_their_figures(detector, dataset):
    evaluation = evaluate(detector, dataset, intervals=True, repetitions=20)
    expected = {"image_auroc", "pixel_auroc", "au_pro_30", "au_pro_05", "f1", "f1_max_oracle", "fpr_at_95_tpr"}
    assert expected <= evaluation.intervals.keys()
    for name, (low, high) in evaluation.intervals.items():
        assert low <= getattr(evaluation.figures, name) <= high


@pytest.mark.parametrize("anomalous", [False, True])
def test_a_score_at_the_threshold_is_not_flagged(detector, dataset, tmp_path, anomalous):
    """The verdict is `score > threshold` everywhere; the highest score of a class is the threshold here."""
    scores = [(r.decision.score, r.sample.anomalous) for r in evaluate(detector, dataset).records]
    threshold = max(score for score, label in scores if label == anomalous)
    judge = copy(detector)
    judge.calibration_ = calibrate([threshold] * 40, false_alarm_rate=0.1)
    evaluation = evaluate(judge, dataset, intervals=True, repetitions=0)
    found = sum(score > threshold for score, _ in scores)
    assert found == (0 if anomalous else 4)  # those of the other class are all on one side
    figures = evaluation.figures
    assert (figures.threshold, figures.false_alarms, figures.misses) == (threshold, 0.0, 1 - found / 4)
    assert figures.f1 == (1.0 if found else 0.0)
    assert evaluation.intervals["f1"] == (figures.f1, figures.f1)
    assert [kind.flagged for kind in evaluation.kinds] == [0.0, found / 4]
    assert sum(bool(record.decision.is_anomalous) for record in evaluation.records) == found
    text = write_report(evaluation, tmp_path / "r.html", title="t").read_text()
    assert f"it flags {found} of 4 anomalous images and 0 of 5 normal images." in text
    assert text.count(">false alarm</span>") == 0
    assert text.count(">missed</span>") == 4 - found


@pytest.mark.parametrize("case", [(0, 19, "does not speak against"), (4, 3, "An unlucky"), (5, 40, "may not hold")])
def test_the_realised_rate_is_held_against_the_promise(detector, dataset, tmp_path, case):
    alarms, held_out, says = case
    normal = sorted(r.decision.score for r in evaluate(detector, dataset).records if not r.sample.anomalous)
    threshold = normal[-1] if not alarms else normal[-alarms] - 1e-9
    judge = copy(detector)
    judge.calibration_ = calibrate([threshold] * held_out, false_alarm_rate=0.25 if held_out == 3 else 0.05)
    evaluation = evaluate(judge, dataset)
    realised = evaluation.realised
    assert (realised.alarms, realised.images) == (alarms, 5)
    low, high = realised.interval
    assert reference.binomial_tail(5, low, alarms) == pytest.approx(0.025 if alarms else 1.0)
    assert reference.binomial_tail(5, high, alarms + 1) == pytest.approx(0.975 if alarms < 5 else 0.0)
    assert (realised.is_below, realised.speaks_against_premise) == (low > realised.promised, alarms == 5)
    assert says in str(realised)
    text = write_report(evaluation, tmp_path / "r.html", title="t").read_text()
    assert str(realised) in text.replace("\N{NO-BREAK SPACE}", " ")
    assert evaluation_json(evaluation)["realised"]["promise"]["guaranteed_rate"] == realised.promise.guaranteed_rate


@pytest.mark.parametrize("min_area", [1, 900])
def test_regions_are_held_against_the_marked_defects(dataset, min_area):
    detector = make(min_area=min_area).fit(dataset.train_images())
    evaluation = evaluate(detector, dataset)
    threshold, totals, hit, defects, normal = detector.peaks_.threshold, np.zeros(3, int), 0, 0, 0
    for sample, decision in zip(dataset.test, detector.predict(dataset.test_images()), strict=True):
        truth = np.zeros((64, 64), bool) if sample.mask is None else decode_mask(sample.mask)
        parts = [part for part in places.components(decision.map > threshold) if len(part) >= min_area]
        found = np.zeros((64, 64), bool)
        for part in parts:
            found[tuple(np.array(list(part)).T)] = True
        assert len(decision.regions) == len(parts)
        assert sorted(region.area for region in decision.regions) == sorted(map(len, parts))
        totals += places.counts(found, truth)
        normal += bool(parts) and not sample.anomalous
        defects += sample.anomalous
        hit += bool((found & truth).any())
    figures, (true, false, missed) = evaluation.figures, totals.tolist()
    assert figures.seg_f1 == pytest.approx(2 * true / (2 * true + false + missed), abs=0.005)
    assert (figures.defects_hit, figures.false_regions) == (hit / defects, normal / 5)
    assert (evaluation.realised_regions.alarms, evaluation.realised_regions.images) == (normal, 5)
    assert "normal test images show a region" in str(evaluation.realised_regions)
    assert evaluation_json(evaluation)["realised_regions"]["promise"]["held_out"] == 8


def test_without_peaks_figures_of_regions_are_left_open(detector, dataset, tmp_path):
    old = copy(detector)
    old.peaks_ = None  # as of a file that is older than regions
    evaluation = evaluate(old, dataset)
    assert (evaluation.figures.seg_f1, evaluation.figures.false_regions, evaluation.realised_regions) == (None,) * 3
    text = write_report(evaluation, tmp_path / "r.html", title="t").read_text()
    assert "Not computed: the detector reports no regions" in text


def test_with_cross_the_report_says_which_figures_of_regions_there_are(dataset, tmp_path):
    evaluation = evaluate(make(calibration="cross", folds=3).fit(dataset.train_images()), dataset)
    assert (evaluation.figures.seg_f1, evaluation.figures.defects_hit) == (None, None)
    assert evaluation.figures.false_regions is not None
    text = write_report(evaluation, tmp_path / "r.html", title="t").read_text()
    assert text.count("Not computed: with calibration cross a region is no level of one map") == 2


def test_json_has_the_figures_at_the_top(detector, dataset):
    row = evaluation_json(evaluate(detector, dataset))
    assert row["n_anomalous"] == 4
    assert [kind["kind"] for kind in row["kinds"]] == ["good", "flip"]


def test_nothing_to_test_on_is_said(detector, tmp_path):
    Image.fromarray(SQUARE).save(tmp_path / "0.png")
    with pytest.raises(DatasetError, match=r"no test images \(folder layout\)"):
        evaluate(detector, open_dataset(tmp_path))


def test_a_few_defects_have_an_exact_interval(detector, dataset):
    """Clopper and Pearson by their definition: at each end, so many misses or more (fewer) have a chance of 2.5 %."""
    evaluation = evaluate(detector, dataset, intervals=True)
    missed = evaluation.missed
    assert missed.images == 4
    assert missed.misses == round(4 * evaluation.figures.misses)
    low, high = missed.interval
    at_least = reference.binomial_tail(4, low, missed.misses)
    at_most = 1 - reference.binomial_tail(4, high, missed.misses + 1)
    assert missed.misses == 0 or at_least == pytest.approx(0.025)
    assert missed.misses == 4 or at_most == pytest.approx(0.025)
    assert evaluation.intervals["misses"] == missed.interval
    assert f"{missed.misses} of 4 anomalous test images are missed" in str(missed)
    assert evaluation_json(evaluation)["missed"]["interval"] == missed.interval
    alarms = round(5 * evaluation.figures.false_alarms)
    assert evaluation.intervals["false_alarms"] == evaluation.realised.interval
    assert evaluation.realised.alarms == alarms


def test_without_a_threshold_nothing_is_missed(dataset):
    uncalibrated = make(calibration="none").fit(dataset.train_images())
    assert evaluate(uncalibrated, dataset).missed is None


def test_alarms_of_all_test_images_together_are_those_of_predict(dataset, tmp_path):
    """Level 0.5: with 8 held-out images, 9 images raise alarms from 2 striking ones on."""
    detector = make().fit(dataset.train_images())
    evaluation = evaluate(detector, dataset, fdr=0.5)
    chosen = detector.choose_alarms([record.decision for record in evaluation.records], 0.5)
    anomalous = [record.sample.anomalous for record in evaluation.records]
    found = sum(a and b for a, b in zip(chosen.alarms, anomalous, strict=True))
    assert evaluation.batch.chosen == chosen
    assert (evaluation.batch.found, evaluation.batch.false) == (found, sum(chosen.alarms) - found)
    some = BatchFigures(BatchAlarms(0.1, (True, True, True, False), "e_values", 1), (True, True, False, True), "images")
    assert (some.found, some.false) == (2, 1)
    row = evaluation_json(evaluation)["batch"]
    assert (row["alarms"], row["found"], row["batch"]) == (sum(chosen.alarms), found, 9)
    write_report(evaluation, tmp_path / "report.html", title="t", facts={})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count(f"{found} of the 4 anomalous images are among the alarms.") == 1
    assert evaluation_json(evaluate(detector, dataset))["batch"] is None
    with pytest.raises(ArgumentError, match="level: expected a number between 0 and 1, got 2"):
        evaluate(detector, dataset, fdr=2.0)
