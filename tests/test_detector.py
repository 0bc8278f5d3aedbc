from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blemish import Batches, Detector, PaDiM, Preprocess, custom_backbone, from_arrays
from blemish.calibrate import with_margin
from blemish.errors import ArgumentError, CalibrationError, DatasetError, ModelFileError, NotFittedError
from blemish.images.source import as_source
from blemish.methods import DeepSVDD
from contract.laws import anomalous_pixels, normal_pixels
from test_padim import Net


def arrays(pixels):
    return list((pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())


NORMAL, TEST = arrays(normal_pixels(40, 1)), arrays(torch.cat([normal_pixels(3, 3), anomalous_pixels(2, 4)]))
SMALL = Preprocess(64)


def make(**settings):
    return Detector(**{"method": PaDiM(backbone="filters"), "preprocess": SMALL, "false_alarm_rate": 0.2, **settings})


@pytest.fixture(scope="module")
def fitted():
    return make().fit(NORMAL)


def test_decisions(fitted):
    decisions = list(fitted.predict(TEST))
    assert [d.is_anomalous for d in decisions[3:]] == [True, True]
    assert min(d.score for d in decisions[3:]) > max(d.score for d in decisions[:3])
    for decision in decisions:
        assert decision.map.shape == (64, 64)
        assert decision.score == pytest.approx(float(decision.map.max()))
        assert decision.threshold == fitted.calibration_.threshold
        assert decision.p_value == fitted.calibration_.p_value(decision.score)
    assert [d.p_value for d in decisions[3:]] == [pytest.approx(1 / 9)] * 2


def test_threshold_comes_from_the_held_out_images_alone(fitted):
    train, held_out = as_source(NORMAL).split(0.2, seed=0)
    assert fitted.images_ == len(train) == 32
    alone = make(calibration="none").fit(train)
    scores = [d.score for d in alone.predict(held_out)]
    np.testing.assert_array_equal(fitted.calibration_.scores, sorted(with_margin(scores)))
    decision = next(alone.predict(TEST))
    assert (decision.p_value, decision.threshold, decision.is_anomalous) == (None, None, None)


def test_maps_come_back_at_the_original_size(fitted):
    wide = np.asarray(Image.fromarray(TEST[3]).resize((200, 100)))
    decision = next(fitted.predict([wide]))
    assert decision.map.shape == (100, 200)
    y, x = np.unravel_index(decision.map.argmax(), decision.map.shape)
    assert 25 < y < 62
    assert 60 < x < 140


def test_without_maps_nothing_else_changes(fitted):
    whole, bare = (list(fitted.predict(TEST, maps=maps)) for maps in (True, False))
    assert [decision.map for decision in bare] == [None] * len(whole)
    for ours, theirs in zip(whole, bare, strict=True):
        assert (ours.score, ours.p_value, ours.regions) == (theirs.score, theirs.p_value, theirs.regions)


def test_save_and_load_score_identically(fitted, tmp_path):
    fitted.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    for a, b in zip(fitted.predict(TEST), loaded.predict(TEST), strict=True):
        assert (a.score, a.p_value, a.threshold) == (b.score, b.p_value, b.threshold)
        np.testing.assert_array_equal(a.map, b.map)
    assert loaded.manifest() == fitted.manifest()
    assert loaded.preprocess == SMALL


def test_dense_model_survives_the_file(tmp_path):
    detector = make(method=PaDiM(backbone="filters", dimensions=10, storage="float16"), calibration="none").fit(NORMAL)
    assert detector.method.gaussian_.spectrum is None
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    assert [d.score for d in loaded.predict(TEST)] == [d.score for d in detector.predict(TEST)]


def test_bfloat16_backbone_survives_the_file(tmp_path):
    torch.manual_seed(0)
    row = custom_backbone(Net(), taps=("a", "b"), name="mine", trace_size=64)
    detector = make(method=PaDiM(backbone=row, precision="bfloat16"), calibration="none").fit(NORMAL)
    detector.save(tmp_path / "model.blemish")
    again = Detector.load(tmp_path / "model.blemish", backbone=row)
    assert again.method.state()["backbone.a.weight"].dtype == torch.bfloat16
    for before, after in zip(detector.predict(TEST), again.predict(TEST), strict=True):
        np.testing.assert_array_equal(before.map, after.map)


def test_custom_backbone_must_be_given_again(tmp_path):
    row = custom_backbone(Net(), taps=("a", "b"), name="mine", trace_size=64)
    detector = make(method=PaDiM(backbone=row), calibration="none").fit(NORMAL)
    detector.save(tmp_path / "m.blemish")
    with pytest.raises(ModelFileError, match=r"fitted on the network custom:mine. Pass it again"):
        Detector.load(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish", backbone=row)
    assert [d.score for d in loaded.predict(TEST)] == [d.score for d in detector.predict(TEST)]


def test_another_false_alarm_rate_needs_no_refit(tmp_path):
    detector = make().fit(NORMAL)
    before = detector.calibration_.threshold
    detector.recalibrate(0.5).save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    assert loaded.calibration_.threshold == detector.calibration_.threshold < before
    with pytest.raises(CalibrationError, match="needs at least 99"):
        detector.recalibrate(0.01)
    with pytest.raises(NotFittedError, match="recalibrate needs a calibrated detector"):
        make(calibration="none").fit(NORMAL).recalibrate(0.5)


def test_a_certain_rate_holds_out_what_it_takes_and_stays_with_the_model(tmp_path):
    detector = make(certain=0.8).fit(NORMAL[:30])
    assert len(detector.calibration_.scores) == 8  # 0.8 ** 8 <= 1 - 0.8, and a fifth would be 6
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    promise = next(loaded.predict(TEST)).promise
    assert promise == detector.calibration_.promise == loaded.calibration_.promise
    assert (promise.false_alarm_rate, promise.certain, promise.guaranteed_rate) == (0.2, 0.8, pytest.approx(1 / 9))
    assert loaded.recalibrate(0.5).calibration_.certain == 0.8
    assert loaded.recalibrate(0.5, certain=0.5).certain == 0.5
    assert loaded.manifest()["detector"]["certain"] == 0.5
    assert loaded.set_params(certain=None).recalibrate(0.5).calibration_.certain is None
    assert next(make(calibration="none").fit(NORMAL[:30]).predict(TEST)).promise is None


def test_a_dataset_folder_gives_only_its_normal_training_images(tmp_path):
    for i, image in enumerate(NORMAL):
        for kind in ("train/good", "test/dent", "ground_truth/dent"):
            (tmp_path / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / kind / f"{i:02}{'_mask' if 'truth' in kind else ''}.png")
    assert make(calibration="none").fit(tmp_path).images_ == 40
    assert make(calibration="none").fit(NORMAL).update(tmp_path).images_ == 80


@pytest.mark.parametrize(
    ("images", "rate", "held_out"),
    [(40, 0.2, 8), (40, 0.1, 9), (38, 0.05, 19), (10, 0.2, 4)],
    ids=["a fifth is enough", "what it takes", "half", "few"],
)
def test_as_many_images_are_held_out_as_the_rate_needs(images, rate, held_out):
    detector = make(false_alarm_rate=rate).fit(NORMAL[:images])
    assert (len(detector.calibration_.scores), detector.images_) == (held_out, images - held_out)


def test_more_than_half_is_never_held_out_unasked():
    with pytest.raises(CalibrationError, match="needs at least 19 held-out normal images, there are 7"):
        make(calibration="split", false_alarm_rate=0.05).fit(NORMAL[:37])


def test_too_few_readable_held_out_files_are_found_before_the_fit(tmp_path):
    for i, image in enumerate(NORMAL[:20]):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    bad = as_source(tmp_path).split(0.2, seed=0)[1].names[0]
    Path(bad).write_bytes(b"junk")
    stages = []
    with pytest.raises(CalibrationError, match="needs at least 4 held-out normal images, there are 3"):
        make(on_error="skip").fit(tmp_path, progress=lambda stage, *_: stages.append(stage))
    assert stages == []


def test_scores_that_are_no_numbers_are_refused():
    row = custom_backbone(Net(), taps=("a", "b"), trace_size=64)
    detector = make(method=PaDiM(backbone=row), calibration="none").fit(NORMAL)
    detector.method.extractor_.module.a.weight.fill_(torch.nan)
    with pytest.raises(ArgumentError, match="method: expected finite scores, got NaN or infinity for image 0, image 1"):
        list(detector.predict(TEST))


def test_another_input_scaling_is_refused(tmp_path):
    row = custom_backbone(Net(), taps=("a", "b"), name="mine", trace_size=64)
    make(method=PaDiM(backbone=row), calibration="none").fit(NORMAL).save(tmp_path / "m")
    with pytest.raises(ArgumentError, match="backbone: expected the mean and std of the fit"):
        Detector.load(tmp_path / "m", backbone=replace(row, mean=(0.0, 0.0, 0.0)))


def test_a_model_file_does_not_say_where_it_was_made(tmp_path):
    method = DeepSVDD(epochs=1, side=16, trained=("layers",), checkpoint=str(tmp_path / "c"), time_limit=99.0)
    detector = make(method=method).fit(NORMAL)
    assert (tmp_path / "c").is_file()
    assert str(tmp_path) not in json.dumps(detector.manifest())
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish").method
    assert (loaded.trained, loaded.checkpoint, loaded.time_limit) == (("layers",), None, None)


def test_update_equals_a_refit_and_drops_the_old_threshold():
    detector = make(calibration="none").fit(NORMAL[:25])
    detector.update(NORMAL[25:])
    whole = make(calibration="none").fit(NORMAL)
    assert detector.images_ == 40
    np.testing.assert_allclose(
        [d.score for d in detector.predict(TEST)], [d.score for d in whole.predict(TEST)], rtol=1e-4
    )
    calibrated = make().fit(NORMAL[:25])
    assert calibrated.update(NORMAL[25:30]).calibration_ is None
    assert len(calibrated.update(NORMAL[30:32], held_out=NORMAL[32:]).calibration_.scores) == 8


def test_skipped_files_are_counted(tmp_path):
    for i, image in enumerate(NORMAL):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    (tmp_path / "00.png").write_bytes(b"junk")
    (tmp_path / "39.png").write_bytes(b"junk")
    detector = make(on_error="skip").fit(tmp_path)
    assert sorted(name[-6:] for name, _ in detector.skipped_) == ["00.png", "39.png"]
    assert detector.images_ + len(detector.calibration_.scores) == 38
    assert len(list(detector.predict(tmp_path))) == 38
    assert len(detector.skipped_) == 2


def test_progress_counts_every_image():
    calls = []
    make().fit(NORMAL, progress=lambda *call: calls.append(call))
    assert [c for c in calls if c[1] == c[2]] == [("fit", 32, 32), ("calibrate", 8, 8)]
    assert [c[1] for c in calls if c[0] == "fit"] == [8, 16, 24, 32]


def test_reading_batches_by_hand_gives_the_same(fitted):
    batches = Batches(from_arrays(TEST), SMALL, batch_size=2)
    by_hand = torch.cat([fitted.method.score(b).images for b in batches])
    np.testing.assert_allclose(by_hand.numpy(), [d.score for d in fitted.predict(TEST)], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "images", "error", "message"),
    [
        (
            {"false_alarm_rate": 0.05, "held_out": 0.2},
            NORMAL,
            CalibrationError,
            "0.05 needs at least 19 held-out normal images, there are 8",
        ),
        (
            {"certain": 0.999},
            NORMAL,
            CalibrationError,
            "0.2 at confidence 0.999 needs at least 31 held-out normal images, there are 8",
        ),
        (
            {"certain": 0.95, "calibration": "none"},
            NORMAL,
            ArgumentError,
            "certain: expected None with calibration none, got 0.95",
        ),
        (
            {"calibration": "maybe"},
            NORMAL,
            ArgumentError,
            "calibration: expected split, cross, loo, full or none or None, got maybe",
        ),
        ({"held_out": 1.0}, NORMAL, ArgumentError, r"held_out: expected a number in \(0, 1\) or None, got 1.0"),
        (
            {"preprocess": "big"},
            NORMAL,
            ArgumentError,
            "preprocess: expected one of default, paper, .*, got big",
        ),
        ({}, [], DatasetError, "images: expected normal images to fit on, got none"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(settings, images, error, message):
    with pytest.raises(error, match=message):
        make(**settings).fit(images)


def test_unfitted_detector_says_so(tmp_path):
    with pytest.raises(NotFittedError, match=r"Call fit"):
        next(make().predict(TEST))
    with pytest.raises(NotFittedError, match=r"Detector.save needs a fitted detector"):
        make().save(tmp_path / "m")
