"""`blemish feedback`: false alarms are learned, and never set the threshold."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector, Preprocess
from blemish.cli import app
from blemish.errors import ArgumentError
from blemish.feedback import take_feedback
from blemish.images.source import from_paths
from blemish.methods import PaDiM
from blemish.report.lines import judged
from contract.laws import anomalous_pixels, normal_pixels
from test_detector import arrays


@pytest.fixture
def place(tmp_path):
    """A model, and the lines of 2 false alarms and 12 images that pass."""
    detector = Detector(method=PaDiM(backbone="filters"), preprocess=Preprocess(32), false_alarm_rate=0.2)
    detector.fit(arrays(normal_pixels(30, 1))).save(tmp_path / "m.blemish")
    odd, usual = arrays(anomalous_pixels(2, 4)), arrays(normal_pixels(12, 2))
    for number, image in enumerate([*odd, *usual]):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    decisions = list(detector.predict([tmp_path / f"{number:02}.png" for number in range(14)]))
    assert [d.is_anomalous for d in decisions[:2]] == [True, True]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(judged(d)) + "\n" for d in decisions), encoding="utf-8")
    return tmp_path


def call(place, *options, fine=("00.png", "01.png"), sample=()):
    (place / "fine.txt").write_text("\n".join(fine), encoding="utf-8")
    (place / "sample.txt").write_text("\n".join(sample), encoding="utf-8")
    given = [*(["--sample", str(place / "sample.txt")] if sample else []), "--json", *options]
    lines = ["feedback", str(place / "m.blemish"), str(place / "lines.jsonl"), "--fine", str(place / "fine.txt")]
    done = CliRunner().invoke(app, [*lines, *given])
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else done.output


def test_what_changes_is_shown_and_nothing_saved(place):
    before = (place / "m.blemish").read_bytes()
    status, found = call(place)
    assert (status, found["saved"]) == (0, None)
    old, new = found["changes"]["images learned"]
    assert new == old + 2
    assert found["changes"]["threshold"][1] is None
    assert found["changes"]["mean score in --fine"][1] < found["changes"]["mean score in --fine"][0]
    assert (place / "m.blemish").read_bytes() == before


def test_saved_with_yes_and_calibrated_by_the_sample(place):
    sample = [f"{number:02}.png" for number in range(1, 14)]  # all of the period but one; 01.png was flagged
    status, found = call(place, "--yes", sample=sample)
    assert (status, found["saved"]) == (0, str(place / "m.blemish"))
    assert "flagged of 1 in --fine" in found["changes"], "01.png sets the threshold, and is not learned"
    saved = Detector.load(place / "m.blemish")
    assert saved.images_ == found["changes"]["images learned"][1]
    assert len(saved.calibration_.scores) == 13
    score = next(saved.predict([place / "01.png"])).score
    assert saved.calibration_.scores[-1] == pytest.approx(score, rel=1e-4), "the false alarm counts among the scores"


def test_what_is_in_both_lists_calibrates_alone(place):
    images = from_paths(place / f"{number:02}.png" for number in range(14))
    detector = Detector.load(place / "m.blemish")
    before = detector.images_
    assert take_feedback(detector, fine=images.subset([0, 1]), sample=images) == ()
    assert (detector.images_, len(detector.calibration_.scores)) == (before, 14)
    assert take_feedback(detector, fine=images.subset([0, 1]), sample=images.subset(range(1, 14))) == images.names[:1]
    assert (detector.images_, len(detector.calibration_.scores)) == (before + 1, 13)
    with pytest.raises(ArgumentError, match="fine: expected pictures to learn, or a sample, got neither"):
        take_feedback(detector, fine=images.subset([]), sample=images.subset([]))


def test_what_was_not_flagged_is_refused(place):
    assert "05.png, which was not" in call(place, fine=["00.png", "05.png"])[1].replace("\n", "")
    assert "nowhere.png, which none has" in call(place, fine=["nowhere.png"])[1].replace("\n", "")


def test_lines_of_another_model_are_refused(place):
    rows = [json.loads(line) for line in (place / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    (place / "lines.jsonl").write_text(json.dumps(rows[0] | {"model": "0" * 16}) + "\n", encoding="utf-8")
    assert "lines of this model" in call(place, fine=["00.png"])[1]
    (place / "lines.jsonl").write_text("", encoding="utf-8")
    assert "no line" in call(place)[1]


def test_too_small_a_sample_is_refused_before_the_work(place):
    status, said = call(place, sample=["05.png"])
    assert status == 1
    assert "needs at least 4" in said
