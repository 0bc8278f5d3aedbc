"""A detector with each calibration: what it learns, what its p-values compare, what its file keeps."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blemish import Detector, Preprocess, from_arrays, from_paths
from blemish.calibrate import with_margin
from blemish.errors import ArgumentError, CalibrationError, ModelFileError, NotEnoughMemoryError, NotFittedError
from blemish.features.memory import FeatureMemory
from blemish.folds import fold_of, pick_calibration
from blemish.images.groups import join_groups
from blemish.methods import KNN, PANDA, GaussianAD, PaDiM, PatchCore
from blemish.promises import plus_bound
from small import BACKBONE

SIDE = 24
KINDS = ("split", "cross", "loo", "full")


def pictures(n, seed=0, brightness=120):
    random = np.random.default_rng(seed)
    levels = brightness + random.normal(0, 8, (n, 1, 1, 1))
    return list((levels + random.normal(0, 20, (n, SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8))


NORMAL, NEW = pictures(20), [*pictures(4, 1), *pictures(2, 2, 200)]


def knn():
    return KNN(backbone=BACKBONE)


def make(calibration, method=knn, **settings):
    given = {"preprocess": Preprocess(SIDE), "false_alarm_rate": 0.2, "folds": 4, "seed": 0, **settings}
    return Detector(method=method(), calibration=calibration, **given)


def scores(detector, images):
    return [decision.score for decision in detector.predict(images)]


def refitted(method, images, new):
    return scores(make("none", method).fit(images), [new])[0]


def without(images, *left_out):
    return [image for i, image in enumerate(images) if i not in left_out]


@pytest.fixture(scope="module", params=KINDS)
def fitted(request):
    return make(request.param).fit(NORMAL)


def test_decisions_follow_the_p_values_and_survive_a_file(fitted, tmp_path):
    decisions = list(fitted.predict(NEW))
    assert [d.is_anomalous for d in decisions] == [d.p_value <= 0.2 for d in decisions]
    assert [d.is_anomalous for d in decisions[4:]] == [True, True]
    assert (decisions[0].threshold is None) == (fitted.calibration in ("cross", "full"))
    fitted.save(tmp_path / "m")
    again = Detector.load(tmp_path / "m", backbone=BACKBONE)
    assert list(again.predict(NEW)) == decisions
    assert again.calibration == fitted.calibration
    np.testing.assert_array_equal(again.calibration_.scores, fitted.calibration_.scores)


def test_each_calibration_states_what_it_learned_and_guarantees():
    found = {kind: make(kind).fit(NORMAL) for kind in KINDS}
    assert {kind: detector.images_ for kind, detector in found.items()} == {
        "split": 16,
        "cross": 20,
        "loo": 20,
        "full": 20,
    }
    guaranteed = {kind: detector.calibration_.promise.guaranteed_rate for kind, detector in found.items()}
    assert guaranteed == pytest.approx(
        {"split": 1 / 5, "cross": plus_bound(4, 20, folds=4), "loo": 7 / 21, "full": 4 / 21}
    )


def test_left_out_scores_are_those_of_fits_without_the_image():
    expected = [refitted(knn, without(NORMAL, i), NORMAL[i]) for i in range(20)]
    for kind in ("loo", "full"):
        np.testing.assert_allclose(make(kind).fit(NORMAL).calibration_.scores, sorted(with_margin(expected)), rtol=1e-5)


def test_each_model_of_cross_has_left_out_a_fold_of_its_own():
    detector = make("cross").fit(NORMAL)
    folds = fold_of(range(20), 4, seed=0)
    models = [make("none").fit(without(NORMAL, *(i for i in range(20) if folds[i] == fold))) for fold in range(4)]
    own = [scores(models[folds[i]], [NORMAL[i]])[0] for i in range(20)]
    for decision, new in zip(detector.predict(NEW), NEW, strict=True):
        by_model = [scores(model, [new])[0] for model in models]
        beaten = sum(with_margin(own)[i] >= by_model[folds[i]] for i in range(20))
        assert decision.p_value == pytest.approx((1 + beaten) / 21)
        assert decision.score == pytest.approx(np.mean(by_model), rel=1e-5)


def test_regions_of_cross_are_where_each_folds_model_says_so(tmp_path):
    def method():
        return PatchCore(backbone=BACKBONE, ratio=0.5, sigma=0.0)

    detector = make("cross", method, min_area=4).fit(NORMAL)
    folds = np.array(fold_of(range(20), 4, seed=0))
    models = [make("none", method).fit(without(NORMAL, *np.flatnonzero(folds == fold))) for fold in range(4)]
    peaks = with_margin([next(models[folds[i]].predict([NORMAL[i]])).map.max() for i in range(20)])
    spotted = NEW[0].copy()
    spotted[4:14, 6:16] = 255
    (decision,) = detector.predict([spotted])
    maps = [next(model.predict([spotted])).map for model in models]
    p_values = np.ones((SIDE, SIDE))
    for r in range(SIDE):
        for c in range(SIDE):
            p_values[r, c] = (1 + sum(peaks[i] >= maps[folds[i]][r, c] for i in range(20))) / 21
    assert decision.regions
    assert sum(region.area for region in decision.regions) == (p_values <= 0.2).sum()
    assert min(region.p_value for region in decision.regions) == pytest.approx(p_values.min())
    assert detector.peaks_.promise.guaranteed_rate == plus_bound(4, 20, folds=4)
    detector.save(tmp_path / "m")
    again = Detector.load(tmp_path / "m", backbone=BACKBONE)
    assert next(again.predict([spotted])).regions == decision.regions
    assert make("cross").fit(NORMAL).peaks_ is None  # knn has no maps


@pytest.mark.parametrize("method", [knn, lambda: GaussianAD(backbone=BACKBONE)], ids=["knn", "gaussian"])
def test_full_compares_each_image_with_the_new_one_as_fits_with_both_do(method):
    few = NORMAL[:9]
    detector = make("full", method).fit(few)
    for new in (NEW[0], NEW[4]):
        beside = [refitted(method, [*without(few, i), new], few[i]) for i in range(9)]
        (decision,) = detector.predict([new])
        assert decision.p_value == (1 + sum(with_margin(beside) >= refitted(method, few, new))) / 10


@pytest.mark.parametrize("kind", ["loo", "cross", "full"])
@pytest.mark.parametrize("is_full", [False, True])
def test_images_go_through_the_network_once_where_their_maps_can_be_kept(kind, is_full, monkeypatch):
    def method():
        return GaussianAD(backbone=BACKBONE)

    def seen(self, pixels, own=GaussianAD._seen):
        counts.append(len(pixels))
        return own(self, pixels)

    def no_room(self, maps):
        raise NotEnoughMemoryError("none")

    counts: list[int] = []
    again = make(kind, method)
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "_memory_of", lambda self, source: None)
        again.fit(NORMAL)
    monkeypatch.setattr(GaussianAD, "_seen", seen)
    if is_full:
        monkeypatch.setattr(FeatureMemory, "_set_aside", no_room)
    detector = make(kind, method).fit(NORMAL)
    assert sum(counts) == 20 * (1 if not is_full else {"loo": 2, "full": 3, "cross": 4}[kind])
    # In batches of other images the network's last digits differ.
    np.testing.assert_allclose(detector.calibration_.scores, again.calibration_.scores, rtol=1e-6)


def test_a_bad_file_is_left_out_once_where_maps_are_kept(tmp_path):
    for i, picture in enumerate(NORMAL):
        Image.fromarray(picture).save(tmp_path / f"{i:02}.png")
    (tmp_path / "07.png").write_bytes(b"no picture")
    for kind in ("loo", "cross"):
        detector = make(kind, on_error="skip").fit(tmp_path)
        assert [name.endswith("07.png") for name, _ in detector.skipped_] == [True]
        expected = make(kind).fit(from_paths([tmp_path / f"{i:02}.png" for i in range(20) if i != 7]))
        if kind == "loo":
            np.testing.assert_array_equal(detector.calibration_.scores, expected.calibration_.scores)


def test_folds_are_of_one_size_and_keep_groups_whole():
    groups = join_groups([i // 2 for i in range(23)])
    folds = fold_of(groups, 5, seed=3)
    assert sorted(folds.count(fold) for fold in (0, 1, 2, 3, 4)) in ([3, 4, 4, 4, 4], [4, 4, 4, 4, 4])
    assert all(len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) == 1 for group in groups)
    assert fold_of(groups, 5, seed=4) != folds


def test_copies_of_a_picture_are_left_out_together():
    copied = [*NORMAL, NORMAL[0]]
    detector = make("loo").fit(copied)
    promise = detector.calibration_.promise
    assert (promise.held_out, promise.in_groups) == (20, True)
    assert min(detector.calibration_.scores) > 1e-3 * max(detector.calibration_.scores)  # no copy beside its own copy
    with pytest.raises(ArgumentError, match="knn cannot leave out groups of up to 2 of the 21 images, such as copies"):
        make("full").fit(copied)
    crossed = make("cross").fit(copied)
    assert crossed.calibration_.promise.in_groups
    with pytest.raises(ArgumentError, match="padim cannot leave out groups of up to 2"):
        make("loo", lambda: PaDiM(backbone=BACKBONE)).fit(copied)


def test_a_coreset_and_a_size_found_in_the_images_guarantee_nothing():
    patchcore = make("loo", lambda: PatchCore(backbone=BACKBONE, ratio=0.1)).fit(NORMAL)
    assert patchcore.calibration_.promise.guaranteed_rate is None
    assert patchcore.calibration_.promise.unproven == "the coreset is chosen in view of every image"
    sizes = [picture[:, : 12 + i] for i, picture in enumerate(NORMAL[:12])] + NORMAL[12:]
    for kind in ("loo", "cross", "full"):
        settled = make(kind, preprocess=Preprocess("auto:24")).fit(sizes)
        assert "settled in view of images of several sizes" in settled.calibration_.promise.unproven
    assert not make("loo", preprocess=Preprocess("auto:24")).fit(NORMAL).calibration_.promise.unproven


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": lambda: "auto"}, "calibration: expected split or cross with method auto, as images that choose"),
        ({"certain": 0.95}, "certain: expected None with calibration loo, got 0.95"),
        ({"held_out": 0.5}, "held_out: expected None with calibration loo, got 0.5"),
        ({"tile": 16}, "tile: expected None with calibration loo, got 16"),
        (
            {"method": lambda: "svdd"},
            r"method: expected one that can be calibrated by loo \(gaussian, .*got svdd\. Take calibration split",
        ),
    ],
)
def test_what_leaving_out_does_not_go_with_is_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        make("loo", **settings).fit(NORMAL)


def test_too_few_images_are_refused_before_the_work():
    with pytest.raises(CalibrationError, match=r"false_alarm_rate 0\.05 needs at least 19"):
        make("loo", false_alarm_rate=0.05).fit(NORMAL[:18])
    with pytest.raises(CalibrationError, match=r"false_alarm_rate 0\.05 needs at least 19"):
        make("cross", false_alarm_rate=0.05, folds=7).fit(NORMAL[:18])
    assert len(make("cross", false_alarm_rate=0.05, folds=7).fit(NORMAL).calibration_.scores) == 20  # 14 in 7 folds
    assert make("cross", false_alarm_rate=0.05, folds=5).fit(NORMAL).calibration_.promise.guaranteed_rate < 0.2


def test_new_normal_images_take_the_place_of_all_earlier_ones(fitted):
    made = make(fitted.calibration).fit(NORMAL)
    before = list(made.predict(NEW))
    fresh = pictures(9, 5)
    made.recalibrate(images=fresh)
    np.testing.assert_allclose(made.calibration_.scores, sorted(with_margin(scores(made, fresh))), rtol=1e-6)
    assert (made.calibration, made.calibration_.kind, made.images_) == ("split", "split", fitted.images_)
    assert scores(made, NEW) == [decision.score for decision in before]
    with pytest.raises(CalibrationError, match="needs at least 19"):
        made.recalibrate(0.05, images=pictures(5, 6))
    assert made.false_alarm_rate == made.calibration_.false_alarm_rate == 0.2
    with pytest.raises(CalibrationError, match="there are 0"):  # learned ones do not count
        make("loo").fit(NORMAL).recalibrate(images=NORMAL[:6])


def test_a_recalibrated_model_of_several_folds_survives_a_file(tmp_path):
    made = make("cross").fit(NORMAL).recalibrate(images=pictures(9, 5))
    made.save(tmp_path / "m")
    assert list(Detector.load(tmp_path / "m", backbone=BACKBONE).predict(NEW)) == list(made.predict(NEW))
    with pytest.raises(ArgumentError, match="expected one model, to be updated, got cross with 4"):
        made.update(pictures(3, 7))


def test_a_detector_that_is_not_fitted_cannot_be_recalibrated():
    with pytest.raises(NotFittedError, match="needs a fitted detector"):
        make("split").recalibrate(images=NORMAL)
    with pytest.raises(NotFittedError, match="a calibrated detector, or new normal images"):
        make("none").fit(NORMAL).recalibrate(0.1)


def test_an_update_drops_what_full_remembers():
    made = make("full").fit(NORMAL).update(pictures(3, 7))
    assert (made.calibration_, made.kept_) == (None, None)
    assert next(made.predict(NEW)).p_value is None


def test_bad_files_are_skipped_in_every_fold():
    images = from_arrays([*NORMAL, np.zeros((SIDE, SIDE, 3), np.uint8)])  # of one colour: nothing to learn
    for kind in ("cross", "loo"):
        made = make(kind, on_error="skip").fit(images)
        assert (made.images_, [name for name, _ in made.skipped_]) == (20, ["image 20"])
        assert len(made.calibration_.scores) == (20 if kind == "loo" else 19)  # one is of no fold, or of an unequal one


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_fold_of_which_no_image_can_be_read_compares_with_none(lost, tmp_path):
    numbers = fold_of(range(20), 4, seed=0)
    plain = [np.full((SIDE, SIDE, 3), grey, np.uint8) for grey in range(20)]  # of one colour: nothing to learn
    images = [plain[i] if number == lost else NORMAL[i] for i, number in enumerate(numbers)]
    made = make("cross", on_error="skip").fit(from_arrays(images))
    assert (made.images_, len(made.skipped_)) == (15, 5)
    above = np.ones(len(NEW))
    for fold, method in enumerate((made.method_, *made.others_)):
        alone = Detector(method=method, preprocess=Preprocess(SIDE), calibration="none")
        alone.images_ = 1
        own = made.calibration_.scores[made.calibration_.folds == fold]
        above += (own[None] >= np.array(scores(alone, NEW))[:, None]).sum(axis=1)
    decisions = list(made.predict(NEW))
    assert [decision.p_value for decision in decisions] == pytest.approx(above / 16)
    assert decisions[0].promise.guaranteed_rate == plus_bound(3, 15, folds=3)
    made.save(tmp_path / "m")
    assert list(Detector.load(tmp_path / "m", backbone=BACKBONE).predict(NEW)) == decisions


@pytest.mark.parametrize("kind", ["cross", "full"])
def test_a_file_whose_parts_do_not_fit_is_refused(kind, tmp_path):
    from blemish import persist

    made = make(kind).fit(NORMAL)
    made.save(tmp_path / "m")
    tensors, manifest = persist.load(tmp_path / "m")
    part = "fold.2." if kind == "cross" else "left_out."
    persist.save(tmp_path / "less", {n: t for n, t in tensors.items() if not n.startswith(part)}, manifest)
    with pytest.raises(ModelFileError, match=r"tensors? (fold|left_out|calibration\.folds)"):
        Detector.load(tmp_path / "less", backbone=BACKBONE)
    changed = {n: torch.zeros(3, 2) if n.startswith("left_out.") else t for n, t in tensors.items()}
    changed = {n: t[:, :1] if n == "fold.1.bank" else t for n, t in changed.items()}
    persist.save(tmp_path / "other", changed, manifest)
    with pytest.raises(ModelFileError, match=r"tensor (nearest|bank|centre)|expected"):
        Detector.load(tmp_path / "other", backbone=BACKBONE)


@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        ("full", "peaks", r"tensors peaks\.\*, parts\.\*: not expected with calibration full"),
        ("cross", "parts", r"tensors peaks\.\*, parts\.\*: not expected with calibration cross"),
        ("cross", "peaks", r"tensor peaks\.folds: expected 4 folds, got None"),
    ],
)
def test_peaks_and_parts_have_what_their_calibration_compares(kind, part, message, tmp_path):
    from blemish import persist

    make(kind).fit(NORMAL).save(tmp_path / "m")
    tensors, manifest = persist.load(tmp_path / "m")
    persist.save(tmp_path / "more", tensors | {f"{part}.scores": tensors["calibration.scores"].clone()}, manifest)
    with pytest.raises(ModelFileError, match=message):
        Detector.load(tmp_path / "more", backbone=BACKBONE)


@pytest.mark.parametrize("number", [4, 2**63 - 1])
def test_a_fold_that_no_model_has_is_refused(number, tmp_path):
    from blemish import persist

    make("cross").fit(NORMAL).save(tmp_path / "m")
    tensors, manifest = persist.load(tmp_path / "m")
    tensors["calibration.folds"][0] = number
    persist.save(tmp_path / "more", tensors, manifest)
    with pytest.raises(ModelFileError, match=rf"tensor calibration\.folds: expected 4 folds, got {number + 1}"):
        Detector.load(tmp_path / "more", backbone=BACKBONE)


def test_the_network_is_kept_once_for_all_folds(tmp_path):
    from blemish import persist

    make("cross").fit(NORMAL).save(tmp_path / "m")
    names = persist.load(tmp_path / "m")[0]
    assert not [name for name in names if name.startswith("fold.") and "backbone" in name]
    assert {name.split(".")[1] for name in names if name.startswith("fold.")} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("method", "count", "kind"),
    [
        (knn, 18, "split"), (knn, 19, "loo"), (knn, 94, "loo"), (knn, 95, "split"),
        (lambda: PaDiM(backbone=BACKBONE), 37, "cross"), (lambda: PaDiM(backbone=BACKBONE), 38, "split"),
        (lambda: PatchCore(backbone=BACKBONE), 20, "cross"),
        (lambda: PatchCore(backbone=BACKBONE, ratio=1.0), 60, "loo"),
        (lambda: PatchCore(backbone=BACKBONE, turns=4), 20, "cross"), (lambda: PANDA(backbone=BACKBONE), 20, "split"),
    ],
)  # fmt: skip
def test_the_number_of_images_picks_the_calibration(method, count, kind):
    picked, reason = pick_calibration(method(), range(count), 0.05)
    assert picked == kind
    assert bool(reason) == (kind != "split")


def test_the_calibration_of_few_images_is_said_and_kept(caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="blemish"):
        detector = make(None).fit(NORMAL)
    assert "calibration loo: a fifth of 20 images is fewer than the 4" not in caplog.text  # a fifth suffices here
    with caplog.at_level(logging.INFO, logger="blemish"):
        detector = make(None, false_alarm_rate=0.05).fit(NORMAL)
    assert "calibration loo: a fifth of 20 images is fewer than the 19 that 5 % takes, and knn can leave" in caplog.text
    assert (detector.calibration, detector.calibration_.kind, detector.images_) == (None, "loo", 20)
    detector.save(tmp_path / "m")
    assert Detector.load(tmp_path / "m", backbone=BACKBONE).calibration == "loo"
    assert make(None, held_out=0.5, false_alarm_rate=0.1).fit(NORMAL).calibration_.kind == "split"


def test_as_many_images_as_the_rate_takes_are_enough_without_options(tmp_path, caplog):
    """Ten folds of one of 19 would leave out ten: there are more folds then."""
    caplog.set_level(logging.INFO)
    method = PatchCore(backbone="filters", count=40)
    detector = Detector(method=method, preprocess=Preprocess(32)).fit(pictures(19))
    assert (detector.calibration_.kind, len(detector.calibration_.scores), detector.folds) == ("cross", 19, 10)
    assert len(set(detector.calibration_.folds)) == 19
    detector.save(tmp_path / "m.blemish")
    judged = [next(one.predict([NEW[0]])).p_value for one in (detector, Detector.load(tmp_path / "m.blemish"))]
    assert judged[0] == judged[1]
    assert not any("reserve." in name for name in load_file(tmp_path / "m.blemish"))  # such models are not updated
    assert sum("beside the backbone" in line for line in caplog.messages) == 1  # for all models


@pytest.mark.parametrize("method", [PatchCore(backbone="filters"), KNN(backbone="filters")])
@pytest.mark.parametrize("count", [5, 18])
def test_advice_for_too_few_images_is_not_refused_when_it_is_followed(method, count):
    detector = Detector(method=method, preprocess=Preprocess(32))
    with pytest.raises(CalibrationError, match=f"of {count}. Give at least 19 normal .* left out in turn") as refused:
        detector.fit(pictures(count))
    rate = float(re.search(r"a higher rate, ([\d.]+) at least", str(refused.value))[1])
    assert rate == pytest.approx(1 / (count + 1), abs=1e-3)
    replace(detector, false_alarm_rate=rate).fit(pictures(count))
    detector.fit(pictures(19))
    with pytest.raises(CalibrationError, match="Give at least 38 normal images, and hold out half"):
        replace(detector, calibration="split").fit(pictures(count))
