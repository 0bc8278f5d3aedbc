"""`auto`: the method that the normal images choose, as if it had been named."""

from __future__ import annotations

import itertools
import logging
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector, PaDiM, PatchCore, Preprocess
from blemish.choosing import auto as home
from blemish.choosing import candidates
from blemish.choosing.auto import Auto
from blemish.cli import app
from blemish.errors import ArgumentError, CalibrationError, NotFittedError
from blemish.features.extract import Extractor
from blemish.folds import fold_of
from blemish.images.digest import pixel_digest
from blemish.methods import KNN, GaussianAD
from blemish.promises import plus_bound
from test_choose import PICTURES

SMALL = Preprocess(32)


def make(**settings):
    return Detector(**{"method": "auto", "preprocess": SMALL, "false_alarm_rate": 0.2} | settings)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Four of the table, to save time."""
    quick = [
        row for row in candidates.ROWS if row.kind.name != "patchcore" and (row.layers or row.kind.name != "padim")
    ]
    monkeypatch.setattr(candidates, "ROWS", quick)


@pytest.fixture
def choices(monkeypatch):
    """Every choice that is made."""
    found, compare = [], home.compare

    def watched(*args, **settings):
        found.append(compare(*args, **settings))
        return found[-1]

    monkeypatch.setattr(home, "compare", watched)
    return found


def scores(detector, pictures=PICTURES):
    return [decision.score for decision in detector.predict(pictures)]


@pytest.mark.parametrize("seed", [0, 5])
def test_the_detector_is_that_of_the_chosen_name_and_who_chose_sets_no_threshold(choices, seed):
    detector = make(seed=seed).fit(PICTURES)
    ((choice, _),) = choices
    assert type(detector.method_) is type(choice.picked.method)
    assert detector.chosen_ == choice.reason
    named = make(method=type(detector.method_)(**detector.method_.get_params(deep=False)), seed=seed).fit(PICTURES)
    assert scores(named) == scores(detector)
    assert named.calibration_.threshold == detector.calibration_.threshold
    assert (detector.images_, detector.method_.seed) == (32, seed)
    chose = {pixel_digest(PICTURES[int(name.split()[-1])]) for name in choice.held_out}
    assert len(chose) == len(choice.held_out) == 8
    assert chose < detector.learned_
    assert len(detector.calibrated_on_) == 8
    assert not chose & detector.calibrated_on_


def test_every_image_goes_through_the_network_once_beside_its_changed_copies(choices, monkeypatch):
    seen, call = [], Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda self, pixels: seen.append(len(pixels)) or call(self, pixels))
    make(calibration="none").fit(PICTURES)
    assert sum(seen) == len(PICTURES) + choices[0][0].changed


def test_beyond_so_many_images_some_of_them_choose_and_all_are_learned(choices, monkeypatch):
    monkeypatch.setattr(home, "MOST", 30)
    detector = make(calibration="none").fit(PICTURES)
    choice, _ = choices[0]
    assert choice.learned + len(choice.held_out) == 30
    assert detector.images_ == len(detector.learned_) == 40


@pytest.mark.parametrize(("count", "more"), [(19, {}), (40, {"tile": 32, "preprocess": Preprocess(64)})])
def test_where_nothing_can_be_compared_it_is_patchcore(choices, caplog, count, more):
    with caplog.at_level(logging.INFO, "blemish"):
        detector = make(calibration="none", seed=3, **more).fit(PICTURES[:count])
    assert not choices
    assert detector.method_ == PatchCore(seed=3)
    assert "chosen: patchcore: " in caplog.text


def test_images_too_few_to_choose_and_to_calibrate_choose_nothing(choices, tmp_path):
    """From 4 images on a rate of 20 % has a calibration; `split` takes 8."""
    detector = make(seed=3, folds=3).fit(PICTURES[:7])
    assert not choices
    assert (detector.method_, detector.calibration_.kind) == (PatchCore(seed=3), "cross")
    assert detector.chosen_ == (
        "patchcore: 7 images are too few to choose by and to calibrate with; from 8 on they do both"
    )
    assert [model.seed for model in detector.others_] == [3, 3]
    detector.save(tmp_path / "m.blemish")
    assert list(scores(Detector.load(tmp_path / "m.blemish"))) == scores(detector)
    assert make().fit(PICTURES[:8]).calibration_.kind == "split"
    with pytest.raises(CalibrationError):
        make().fit(PICTURES[:3])
    detector.choose(PICTURES)
    with pytest.raises(CalibrationError):
        detector.fit(PICTURES[:7])  # who chose cannot calibrate


def test_what_it_takes_and_why_is_said_and_kept(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "blemish"):
        detector = make().fit(PICTURES)
    first = next(line for line in caplog.messages if "largest" in line)
    assert first.startswith("choosing among 4 candidates on 32 images: feature maps ")
    assert f"chosen: {detector.chosen_}" in caplog.messages
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    assert loaded.chosen_ == detector.chosen_
    assert type(loaded.method_) is type(detector.method_)
    np.testing.assert_allclose(scores(loaded), scores(detector), rtol=1e-6)
    assert not Detector(method="knn", preprocess=SMALL, calibration="none").fit(PICTURES[:5]).chosen_


@pytest.fixture
def by_fold(monkeypatch):
    """`auto` takes another method for each number of a fold, so that the models differ."""
    made = itertools.cycle([KNN, GaussianAD, partial(PaDiM, taps=("stride16",))])
    monkeypatch.setattr(Auto, "choose", lambda self, *args, seed, **more: (next(made)(seed=seed), "drawn", None))


def crossed(pictures=PICTURES, **settings):
    return make(calibration="cross", folds=3, seed=1, **settings).fit(pictures)


def test_the_choice_is_made_again_without_each_fold(choices):
    """Against fits that never see a fold, which choose by what they learn."""
    detector, folds = crossed(), fold_of(range(40), 3, seed=1)
    assert len(choices) == 3
    rest = [[i for i in range(40) if folds[i] != fold] for fold in range(3)]
    for (choice, _), own, model in zip(choices, rest, (detector.method_, *detector.others_), strict=True):
        assert {int(name.split()[-1]) for name in choice.held_out} <= set(own)
        assert choice.learned + len(choice.held_out) == len(own)
        assert type(model) is type(choice.picked.method)
    alone = [make(calibration="none", seed=1).fit([PICTURES[i] for i in own]) for own in rest]
    assert [one.method_ for one in alone] == [detector.method_, *detector.others_]
    left_out = [scores(alone[fold], [PICTURES[i]])[0] if (fold := folds[i]) >= 0 else None for i in range(40)]
    new = [PICTURES[0] // 2, PICTURES[3][::-1].copy()]
    for decision, picture in zip(detector.predict(new), new, strict=True):
        by_model = [scores(one, [picture])[0] for one in alone]
        beaten = sum(left_out[i] >= by_model[fold] for i, fold in enumerate(folds) if fold >= 0)
        assert decision.p_value == pytest.approx((1 + beaten) / (1 + sum(fold >= 0 for fold in folds)))
    assert detector.calibration_.promise.guaranteed_rate == plus_bound(8, 39, folds=3)
    assert detector.chosen_.endswith("each by the images that its model learns")


def test_folds_of_several_methods_have_one_unit_and_survive_a_file(by_fold, tmp_path):
    detector = crossed()
    models = (detector.method_, *detector.others_)
    assert [model.name for model in models] == ["knn", "gaussian", "padim"]
    assert detector.chosen_.startswith("knn in 1 of 3 folds, gaussian in 1, padim, taps=stride16 in 1: ")
    calibration, folds = detector.calibration_, detector.calibration_.folds
    assert [calibration.scores[folds == fold].mean() for fold in range(3)] == pytest.approx([1, 1, 1], rel=1e-3)
    ((batch, found),) = list(detector.score(PICTURES[:3]))
    expected = torch.stack([model.score(batch).images for model in models], dim=1) / torch.tensor(detector.scales_)
    torch.testing.assert_close(found.plus, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.images, expected.mean(dim=1), rtol=1e-5, atol=0)
    detector.save(tmp_path / "m.blemish")
    again = Detector.load(tmp_path / "m.blemish")
    assert scores(again) == pytest.approx(scores(detector), rel=1e-6)  # to the last digit with some builds of torch
    assert (again.scales_, again.chosen_) == (detector.scales_, detector.chosen_)
    fresh = again.recalibrate(images=[picture[::-1].copy() for picture in PICTURES])
    fresh.save(tmp_path / "fresh.blemish")
    assert scores(Detector.load(tmp_path / "fresh.blemish")) == pytest.approx(scores(fresh), rel=1e-6)


@pytest.mark.parametrize(("kinds", "said"), [([PatchCore, PaDiM, PaDiM], False), ([PatchCore, KNN, PaDiM], True)])
def test_a_fold_whose_choice_has_no_maps_leaves_the_model_without_regions(kinds, said, monkeypatch, caplog):
    made = iter(kinds)
    monkeypatch.setattr(Auto, "choose", lambda self, *args, seed, **more: (next(made)(seed=seed), "drawn", None))
    with caplog.at_level(logging.INFO, "blemish"):
        assert (crossed().peaks_ is None) is said
    assert ("No regions: what was chosen in 1 of 3 folds has no maps." in caplog.messages) is said


def test_an_unfitted_one_has_no_method():
    with pytest.raises(NotFittedError, match="has no method before it is fitted"):
        make().method_  # noqa: B018
    with pytest.raises(NotFittedError):
        make().update(PICTURES)
    with pytest.raises(ArgumentError, match=r"memory_gb: expected a number in \(0, 1e\+06\]"):
        make(method=Auto(memory_gb=0.0)).fit(PICTURES)


def test_unreadable_files_are_skipped_once(tmp_path):
    for number, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"no picture")
    detector = make(on_error="skip", calibration="none").fit(tmp_path)
    assert detector.images_ == 39
    assert [name for name, _ in detector.skipped_] == [str(tmp_path / "05.png")]


def test_the_command_line(tmp_path):
    for number, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    fit = ["fit", str(tmp_path), "--method", "auto", "--resize", "32", "--out", str(tmp_path / "m.blemish")]
    done = CliRunner().invoke(app, [*fit, "--false-alarm-rate", "0.2"])
    assert done.exit_code == 0, done.output
    assert "chosen: " in done.stderr
    wrong = CliRunner().invoke(app, [*fit, "--taps", "stride8"])
    assert "--method: expected an option that auto knows" in wrong.stderr
