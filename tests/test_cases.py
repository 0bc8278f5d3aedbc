"""Folders as people have them, each of which went wrong once, from the listing to the verdicts."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector, PaDiM, Preprocess
from blemish.cli import app
from blemish.datasets.layouts import open_dataset
from blemish.drift import DriftMonitor
from blemish.errors import DatasetError

SIDE = 32


def drawn(seed, *, hole=False):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] + random.uniform(0, 8)
    picture = 128 + 30 * np.sin(2 * np.pi * x / 8) + 30 * np.sin(2 * np.pi * y / 8) + random.normal(0, 6, (SIDE, SIDE))
    if hole:
        picture[8:20, 8:20] = picture[8:20, 8:20] * 0.3 + 20
    return picture.clip(0, 255).astype(np.uint8)


def fill(folder, count, *, hole=False, seed=0):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(drawn(seed + i, hole=hole)).save(folder / f"{i:03d}.png")


@pytest.mark.parametrize("folders", [("good", "crack", "mask/crack"), ("Train/OK", "Test/NG"), ("OK", "NG")])
def test_good_and_bad_side_by_side_learns_the_good_and_finds_the_bad(tmp_path, folders):
    good, bad, *masks = (tmp_path / folder for folder in folders)
    fill(good, 30)
    fill(bad, 6, hole=True, seed=1000)
    for folder in masks:
        fill(folder, 6)
    method = PaDiM(backbone="filters", dimensions=20)
    detector = Detector(method=method, preprocess=Preprocess(SIDE), held_out=0.5, false_alarm_rate=0.1).fit(tmp_path)
    assert {path.parent for path in open_dataset(tmp_path).train} == {good}
    assert detector.images_ + len(detector.calibration_.scores) == (30 if "Test" in str(bad) else 24)
    assert all(decision.is_anomalous for decision in detector.predict(bad))


def test_several_of_them_in_one_folder_are_refused_with_what_was_found(tmp_path):
    fill(tmp_path / "hazel/good", 2)
    fill(tmp_path / "line/Test/NG", 2)
    with pytest.raises(DatasetError, match=r"hazel/good \(2\), line/Test/NG \(2\)"):
        open_dataset(tmp_path)


ODD = (
    "café.png".encode("latin-1"),
    "猫🙂.png".encode(),
    b"-x.png",
    b"two\nlines.png",
    b"a#b.png",
    b"a" * 200 + b".png",
)
ODD = (*ODD, b"a:one-class=b.png", b"[bold]x[red].png", b"%s %d {0}.png")


def test_odd_names_of_files_and_folders_are_judged_and_named(tmp_path):
    root = os.fsencode(tmp_path) + b"/f\xf6lder"
    os.makedirs(root)
    for i, name in enumerate(ODD):
        Image.fromarray(drawn(i)).save(tmp_path / "one.png")
        os.rename(tmp_path / "one.png", root + b"/" + name)
    with open(root + b"/br\xf6ken.png", "wb") as file:
        file.write(b"not an image")
    detector = Detector(
        method=PaDiM(backbone="filters", dimensions=5), preprocess=Preprocess(SIDE), calibration="none", on_error="skip"
    )
    folder = os.fsdecode(root)
    detector.fit(folder)
    assert detector.images_ == len(ODD)
    detector.save(tmp_path / "m.blemish")
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "m.blemish"), folder, "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {os.fsencode(row["image"]) for row in rows if "score" in row} == {root + b"/" + name for name in ODD}
    assert [os.fsencode(row["image"]) for row in rows if "error" in row] == [root + b"/br\xf6ken.png"]
    assert len({row["heatmap"] for row in rows if "score" in row}) == len(ODD)


def test_what_is_packed_says_how_to_open_it(tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([3, 4, 3, 4]))
    np.savez(tmp_path / "test.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([3, 4, 3, 4]))
    with pytest.raises(DatasetError, match=r"2 classes in packed files: say which is normal, .*:one-class=3\. "):
        open_dataset(tmp_path)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/test_jpg.tar.xz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"Archives are not read: unpack test_jpg\.tar\.xz\. "):
        open_dataset(tmp_path / "archive")


def test_an_ageing_lamp_alarms_and_new_images_repair_the_threshold():
    def dimmed(first, count, brightness=0.8):
        return [(drawn(first + i).astype(float) * brightness).astype(np.uint8) for i in range(count)]

    def flagged():
        return sum(decision.is_anomalous for decision in detector.predict(dimmed(2000, 40)))

    method = PaDiM(backbone="filters", dimensions=20)
    detector = Detector(method=method, preprocess=Preprocess(SIDE), calibration="split").fit(dimmed(0, 120, 1))
    alarms = {}
    for brightness in (1, 0.8):
        monitor = DriftMonitor.of(detector.calibration_, delta=0.05, seed=0)
        decisions = detector.predict(dimmed(1000, 60, brightness))
        alarms[brightness] = [monitor.update(decision.score).is_alarm for decision in decisions]
    assert not any(alarms[1])
    assert any(alarms[0.8][:30])
    assert flagged() > 10
    detector.recalibrate(images=dimmed(3000, 40))
    assert flagged() < 6
