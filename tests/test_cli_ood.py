from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import stripes
from blemish.cli import app
from blemish.cli.ood.options import NetworkOptions
from blemish.datasets.labelled import open_labelled
from blemish.errors import ArgumentError
from blemish.evaluation import classifiers
from blemish.evaluation.classifiers import Reader

MODEL = ("--model", "stripes:factory")


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["ood", *(str(a) for a in arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("ood")
    for name, seed in (("test", 11), ("train", 13), ("held_out", 14)):
        images, labels = stripes.stripes(45, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / name / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    np.savez(root / "blobs.npz", images=stripes.blobs(30, 12))
    return root


def test_every_command_teaches():
    for command in ("score", "evaluate", "tune", "ablate", "reliability"):
        assert "Example: blemish ood" in run(command, "--help").stdout


def test_score_prints_a_line_an_image_with_p_values_and_verdicts(data):
    (data / "test" / "0" / "broken.png").write_bytes(b"no image")
    try:
        result = run(
            "score",
            data / "test",
            *MODEL,
            "--detector",
            "mahalanobis",
            "--learn-from",
            data / "train",
            "--calibration",
            data / "held_out",
            "--fdr",
            "0.3",
        )
    finally:
        (data / "test" / "0" / "broken.png").unlink()
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 45
    assert "broken.png" in result.stderr
    assert all(0 < row["p_value"] <= 1 for row in rows)
    assert sum(row["outlier"] for row in rows) <= 10
    outside = run(
        "score",
        data / "blobs.npz",
        *MODEL,
        "--detector",
        "mahalanobis",
        "--learn-from",
        data / "train",
        "--calibration",
        data / "held_out",
        "--fdr",
        "0.3",
    )
    flagged = [json.loads(line)["outlier"] for line in outside.stdout.splitlines()]
    assert np.mean(flagged) > 0.9


def test_p_values_are_those_of_the_exported_file(data, tmp_path, monkeypatch):
    """Also of a held-out picture whose last digits differ in another batch (it is refused here, so let in)."""
    exported, score_batches = [], classifiers.score_batches

    def with_other_digits(*args, stage="", **more):
        for part in score_batches(*args, stage=stage, **more):
            yield part if stage else replace(part, scores={"msp": part.scores["msp"] + 1e-6})

    def export(*_args, calibration, **_more):
        exported.append(calibration)
        raise ArgumentError("enough")

    monkeypatch.setattr(classifiers, "require_disjoint", lambda _: None)
    monkeypatch.setattr(classifiers, "score_batches", with_other_digits)
    monkeypatch.setattr("blemish.export.classifier.export_classifier", export)
    command = (*MODEL, "--detector", "msp", "--calibration", data / "held_out")
    lines = [json.loads(line) for line in run("score", data / "held_out", *command).stdout.splitlines()]
    run("export", *command, "--out", tmp_path / "m.onnx", status=1)
    assert [row["p_value"] for row in lines] == exported[0].p_values([row["score"] for row in lines]).tolist()


def test_score_refuses_what_cannot_be(data):
    assert "--calibration" in run("score", data / "test", *MODEL, "--fdr", "0.1", status=1).stderr
    wrong = run("score", data / "test", *MODEL, "--fdr", "1.5", status=1)
    assert (wrong.stderr, wrong.stdout) == ("error: --fdr: expected a number between 0 and 1, got 1.5.\n", "")
    error = run("score", data / "test", *MODEL, "--detector", "vim", status=1).stderr
    assert "learn from" in error
    error = run("score", data / "test", *MODEL, "--calibration", data / "test", status=1).stderr
    assert "16 equal images" in error
    assert "one of msp" in run("score", data / "test", *MODEL, "--detector", "magic", status=1).stderr
    assert "a parameter out of" in run("score", data / "test", *MODEL, "--detector", "odin,size=3", status=1).stderr


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("score {test} --learn-from {known} --calibration {known}", "calibration images"),
        ("score {known} --learn-from {known}", "images"),
        ("export --learn-from {known} --calibration {known} --out {out}", "calibration images"),
        ("reliability {known} --learn-from {known}", "images"),
    ],
)
def test_what_was_learned_from_neither_calibrates_nor_is_judged(data, tmp_path, command, role):
    places = {"test": data / "test", "known": data / "held_out", "out": tmp_path / "m.onnx"}
    name, *words = (word.format(**places) for word in command.split())
    asked = ("--detectors" if name == "reliability" else "--detector", "knn,k=1")
    error = run(name, *words, *MODEL, *asked, status=1).stderr
    assert f"error: {role}: expected no image that is also among the images to learn from, got " in error
    assert not (tmp_path / "m.onnx").exists()


def test_what_is_scored_before_an_error_is_not_lost(data, tmp_path):
    broken = data / "test" / "2" / "z.png"
    broken.write_bytes(b"no image")
    common = ("score", data / "test", *MODEL, "--detector", "msp", "--batch-size", "8", "--out", tmp_path / "lines")
    try:
        error = run(*common, "--on-error", "raise", status=1).stderr
    finally:
        broken.unlink()
    assert "z.png" in error
    assert len((tmp_path / "lines").read_text().splitlines()) == 40


def test_evaluate_from_end_to_end(data, tmp_path):
    common = ("evaluate", data / "test", *MODEL, "--outliers", f"blobs={data / 'blobs.npz'}")
    report = tmp_path / "r.html"
    result = run(
        *common,
        "--learn-from",
        data / "train",
        "--labels",
        "folders",
        "--ablate",
        "--report",
        report,
        "--json",
        "--scores",
        tmp_path / "scores",
    )
    content = json.loads(result.stdout)
    names = {row["detector"] for row in content["comparisons"]}
    assert {"msp", "odin", "gradient", "mahalanobis", "vim"} <= names
    assert content["accuracy"] == 1.0
    assert content["left_out"].keys() == {"knn"} or "knn" in names
    assert {row["part"] for row in content["ablation"]} == {"preprocessing", "blocks"}
    assert {row["detector"] for row in content["reliability"]} == names
    assert "blobs" in report.read_text()
    table = run(*common, "--detectors", "msp gradient,temperature=5", "--limit", "20").stdout
    assert "20 in-distribution images against 20 of blobs" in table
    assert "gradient,temperature=5" in table


def test_tune_then_evaluate_on_the_rest(data, tmp_path):
    tuning = tmp_path / "t.json"
    result = run(
        "tune",
        data / "test",
        *MODEL,
        "--outliers",
        data / "blobs.npz",
        "--temperatures",
        "1,5",
        "--eps",
        "0,0.01",
        "--limit",
        "10",
        "--out",
        tuning,
        "--report",
        tmp_path / "t.html",
    )
    assert "chosen by outliers on test (10) against blobs (10)" in " ".join(result.stdout.split())
    common = (
        "evaluate",
        data / "test",
        *MODEL,
        "--outliers",
        data / "blobs.npz",
        "--detectors",
        "gradient",
        "--tuned",
        tuning,
        "--json",
    )
    assert "tuned on" in run(*common, status=1).stderr
    content = json.loads(run(*common, "--exclude-tuned").stdout)
    assert content["tuned"][0]["tuned_on"] == "test (10) against blobs (10)"
    others = (*common[:-4], "msp", *common[-3:])
    assert common[-4] == "gradient"
    assert "each for one of --detectors" in run(*others, status=1).stderr
    chosen = json.loads(tuning.read_text())
    assert f"temperature={chosen['temperature']}, eps={chosen['chosen_eps']}" in content["detectors"]["gradient"]
    assert content["comparisons"][0]["n_inliers"] == 35
    ablated = json.loads(
        run("ablate", data / "test", *MODEL, "--outliers", data / "blobs.npz", "--tuned", tuning, "--json").stdout
    )
    assert len(ablated["ablation"]) == 9


def test_tuning_without_outliers(data, tmp_path):
    printed = json.loads(
        run(
            "tune",
            data / "test",
            *MODEL,
            "--detector",
            "odin,temperature=10",
            "--objective",
            "inliers",
            "--eps",
            "0,0.01",
            "--limit",
            "10",
            "--out",
            tmp_path / "t.json",
            "--json",
        ).stdout
    )
    assert (printed["objective"], printed["grid"]["temperatures"]) == ("inliers", [10.0])
    assert (
        "expected a list of numbers in [0, 10], got a"
        in run("tune", data / "test", *MODEL, "--eps", "a", "--out", tmp_path / "t.json", status=1).stderr
    )


def test_no_detector_is_not_all_of_them(data):
    said = run("reliability", data / "test", *MODEL, "--detectors", " ", status=1).stderr
    assert "--detectors: expected names, such as 'msp energy', got" in said


def test_reliability(data, tmp_path):
    result = run(
        "reliability",
        data / "test",
        *MODEL,
        "--detectors",
        "msp energy",
        "--bin-size",
        "10",
        "--json",
        "--report",
        tmp_path / "r.html",
    )
    content = json.loads(result.stdout)
    assert content["accuracy"] == 1.0
    assert [row["detector"] for row in content["reliability"]] == ["msp", "energy"]
    assert content["reliability"][0]["aurc"] == 0.0
    assert "class labels" in run("reliability", data / "test", *MODEL, "--labels", "none", status=1).stderr


def test_the_white_level_of_a_camera_reaches_the_classifier(tmp_path, caplog):
    for i in range(2):
        Image.fromarray(np.full((16, 16), 600 + i, np.uint16)).save(tmp_path / f"{i}.png")
    images = open_labelled(tmp_path)
    for level, note in ((None, "say white_level=1023"), (1023.0, "")):
        caplog.clear()
        classifier = NetworkOptions(white_level=level).open("stripes:factory")
        (batch,) = Reader().batches(classifier, images, "reading")
        assert float(batch.pixels.max()) == pytest.approx(601 / (level or 65535), rel=1e-4)
        assert (note in caplog.text) if note else not caplog.messages
