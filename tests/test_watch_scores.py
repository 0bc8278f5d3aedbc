"""`blemish watch-scores`: what it reads, keeps, says and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from blemish.calibrate import calibrate
from blemish.cli import app
from blemish.detector import Detector
from blemish.discoveries import BatchAlarms
from blemish.drift import DriftMonitor, StreamMonitor
from blemish.images.preprocess import Preprocess
from blemish.methods import PaDiM
from blemish.report.lines import judged, judged_batch, judged_part, model_digest
from blemish.types import Look, PartDecision


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("watched") / "model.blemish"
    Detector(method=PaDiM(backbone="filters"), preprocess=Preprocess(32), false_alarm_rate=0.2).fit(images).save(path)
    return path


@pytest.fixture(scope="module")
def detector(model):
    return Detector.load(model)


@pytest.fixture
def watch(model, tmp_path):
    """Call the command on `lines.jsonl`; gives the status, and the JSON object or the error."""

    def watch(*options):
        done = CliRunner().invoke(app, ["watch-scores", str(model), str(tmp_path / "lines.jsonl"), "--json", *options])
        return done.exit_code, json.loads(done.stdout) if done.exit_code in (0, 3) else done.output

    return watch


@pytest.fixture
def write(detector, tmp_path):
    """Add lines of scores, given as shares of a typical one."""

    def write(shares, *, mode="a", **fields):
        with (tmp_path / "lines.jsonl").open(mode, encoding="utf-8") as file:
            for number, share in enumerate(shares):
                row = judged(detector.decide(f"{number}.png", share * float(detector.calibration_.scores.mean())))
                file.write(json.dumps(row | fields) + "\n")

    return write


def test_a_growing_file_is_read_once(watch, write, detector, tmp_path):
    shares = np.random.default_rng(1).normal(1, 0.01, 20).tolist()
    write(shares[:12])
    with (tmp_path / "lines.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"version": 1, "image": "torn.png", "error": "no picture"}) + "\n" + '{"version": 1, "ima'
        )
    status, first = watch()
    assert (status, first["new"], first["images"]) == (0, 12, 12)
    text = (tmp_path / "lines.jsonl").read_text(encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(text[: text.rindex("{")], encoding="utf-8")
    write(shares[12:])
    status, second = watch()
    assert (status, second["new"], second["images"]) == (0, 8, 20)
    whole = StreamMonitor.of(detector.calibration_)
    whole.extend((share * float(detector.calibration_.scores.mean()), None) for share in shares)
    assert second["evidence"] == whole.drift.evidence
    assert watch()[1]["new"] == 0


def test_lines_of_parts_and_of_the_batch_are_none_of_images(watch, write, detector, tmp_path):
    write([1.0, 1.01])
    part = PartDecision("7", ("0.png", "1.png"), "1.png", 2.0, 0.3, None, detector.calibration_.promise)
    batch = BatchAlarms(0.1, (False,), "benjamini_hochberg", 1)
    with (tmp_path / "lines.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(judged_part(part)) + "\n" + json.dumps(judged_batch(["7"], batch)) + "\n")
    status, found = watch()
    assert (status, found["new"], found["images"]) == (0, 2, 2)


def test_a_new_file_continues_the_stream(watch, write):
    write([1.0, 1.01])
    watch()
    write([1.02, 0.99, 1.0], mode="w")
    assert {"new": 3, "images": 5}.items() <= watch()[1].items()


def test_an_alarm_names_the_image_and_has_a_status(watch, write, model, tmp_path):
    write([2.0] * 60)
    status, found = watch("--delta", "0.05")
    assert status == 3
    assert found["alarm_image"] == f"{found['alarm_at'] - 1}.png"
    said = CliRunner().invoke(app, ["watch-scores", str(model), str(tmp_path / "lines.jsonl"), "--delta", "0.05"])
    assert said.exit_code == 3
    assert f"ALARM at score {found['alarm_at']} of the stream, {found['alarm_image']}" in said.stdout
    assert "What to do" in said.stdout


def test_a_new_stream_begins_after_the_lines_that_are_there(watch, write):
    write([2.0] * 60)
    assert watch()[0] == 3
    assert {"new": 0, "images": 0, "alarm": False}.items() <= watch("--restart")[1].items()
    write([1.0])
    assert watch()[1]["images"] == 1


def test_alone_the_stream_is_compared_with_itself(watch, write):
    write(np.random.default_rng(1).normal(2, 0.01, 60).tolist())
    status, found = watch("--alone")
    assert (status, found["calibration_images"]) == (0, 0)


def test_what_does_not_belong_is_refused(watch, write, model, tmp_path):
    write([1.0], model=model_digest(model))
    assert watch()[0] == 0
    assert "the options with which the stream began (--delta 0.01 --seed 0)" in " ".join(
        watch("--delta", "0.5")[1].split()
    )
    for fields in ({"model": "0" * 16}, {"threshold": 1e9}):
        write([1.0], mode="w", **fields)
        assert "lines of this model" in watch()[1]
    write([1.0], mode="w")
    for line in ("[]", "{}", "no JSON", '{"image": "a", "score": "b"}'):
        (tmp_path / "lines.jsonl").write_text(line + "\n", encoding="utf-8")
        assert "lines of `blemish predict`" in watch()[1]
    (tmp_path / "lines.jsonl.drift.json").write_text("{}", encoding="utf-8")
    assert "expected the state that" in watch()[1]


def test_one_score_of_each_group_is_compared():
    calibration = calibrate(np.arange(40.0), false_alarm_rate=0.1, groups=np.repeat(range(20), 2))
    known = DriftMonitor.of(calibration, seed=1).state()["scores"]
    assert [score // 2 for score in known] == list(range(20))
    assert {score % 2 for score in known} == {0, 1}


def test_scores_of_images_left_out_in_turn_are_no_reference():
    calibration = calibrate(np.arange(40.0), false_alarm_rate=0.1, kind="loo")
    assert DriftMonitor.of(calibration).calibration_images == 0


def lines_of(detector, pictures, path):
    rows = [judged(d) | {"image": f"{i}.png"} for i, d in enumerate(detector.predict(list(pictures)))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def test_pictures_that_lie_elsewhere_alarm_by_their_look(watch, detector, tmp_path):
    """The file of the model holds the looks of the held-out pictures, a line that of its own."""
    known = detector.calibration_
    assert known.looks.shape == (len(known.scores), 5)
    pictures = np.random.default_rng(5).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    rows = lines_of(detector, pictures, tmp_path / "lines.jsonl")
    assert rows[0]["look"]["level"] == pytest.approx(pictures[0].mean() / 255, abs=1e-3)
    expected = StreamMonitor(known.scores, known.looks, delta=0.05)
    expected.extend((row["score"], Look(**row["look"])) for row in rows)
    status, found = watch("--delta", "0.05")
    assert (status, found["evidence_of"]) == (0, expected.evidence_of)
    pictures[:, :, 16:] = 0
    lines_of(detector, pictures, tmp_path / "lines.jsonl")
    status, found = watch("--delta", "0.05")
    assert status == 3
    assert found["evidence_of"]["x"] > 3


def test_scores_alone_are_watched_where_that_is_asked_for_and_in_old_states(watch, write, tmp_path):
    write([1.0])
    state = tmp_path / "lines.jsonl.drift.json"
    assert list(watch("--scores-only")[1]["evidence_of"]) == ["score"]
    assert "--scores-only) , got" in " ".join(watch()[1].split()).replace("),", ") ,")
    old = json.loads(state.read_text(encoding="utf-8"))
    old["monitor"] = old["monitor"]["monitors"]["score"]
    del old["scores_only"]
    state.write_text(json.dumps(old | {"format": 1}), encoding="utf-8")
    write([1.0])
    assert {"new": 1, "images": 2}.items() <= watch("--scores-only")[1].items()
    for look in ({"level": 1}, "dark"):
        write([1.0], look=look)
        assert "lines of `blemish predict`" in watch("--scores-only")[1]
