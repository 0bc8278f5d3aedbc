"""Every run says what it took and what it passed over."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish.cli import app
from blemish.datasets.layouts import open_dataset, open_to_judge
from blemish.datasets.taken import take
from blemish.errors import DatasetError

FIT = ("--backbone", "filters", "--resize", 32, "--calibration", "none", "--set", "dimensions=5")


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def draw(root, *paths):
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path, format="PNG")


@pytest.fixture
def base(tmp_path):
    root = tmp_path / "base"
    draw(root, *(f"train/good/{i}.png" for i in range(6)), "test/good/0.png", "test/hole/0.png", "test/hole/1.png")
    draw(root, "validation/good/0.png", "train/crack/0.png")
    for i in range(2):
        (root / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(16, dtype=bool)).save(root / f"ground_truth/hole/{i}_mask.png")
    (root / "readme.txt").write_text("hello")
    (root / "train/good/.hidden.png").write_bytes(b"")
    return root


def test_a_line_a_folder(base):
    assert [*take(open_dataset(base)).lines()] == [
        f"{base}: layout mvtec",
        "  train/good: 6 images, normal, to learn from",
        "  test/good: 1 images, test, normal",
        "  test/hole: 2 images, test, anomalous (hole), 2 masks",
        "  .: passed over 1 files, not an image by its name: readme.txt",
        "  train/crack: passed over 1 files, no part of what the layout mvtec takes",
        "  train/good: passed over 1 files, hidden: .hidden.png",
        "  validation/good: passed over 1 files, no part of what the layout mvtec takes",
    ]


def test_every_file_is_taken_or_passed_over(base):
    taken = take(open_dataset(base))
    counted = sum(f.images + f.masks for f in taken.folders) + sum(p.count for p in taken.passed_over)
    assert counted == sum(path.is_file() for path in base.rglob("*"))


def test_masks_are_passed_over_as_masks_and_a_drawn_test_is_said(tmp_path):
    draw(tmp_path, *(f"OK/{i}.png" for i in range(5)), "NG/0.png", "mask/0.png")
    lines = [*take(open_dataset(tmp_path)).lines()]
    assert "  mask: passed over 1 files, a mask of no anomalous test image" in lines
    assert lines[-1] == "  no test part: a fifth of the normal images, drawn with seed 0, is kept for the test"
    assert "drawn" not in "".join(take(open_to_judge(tmp_path)).lines())


def test_many_folders_are_cut_for_people_and_not_in_json(tmp_path):
    draw(tmp_path, *(f"{i:03}/0.png" for i in range(60)))
    taken = take(open_dataset(tmp_path))
    lines = [*taken.lines()]
    assert (len(lines), lines[-1]) == (42, "  ... and 20 more folders (--json names all)")
    assert len(taken.as_json()["folders"]) == 60


def test_images_of_an_unknown_suffix_are_named_where_nothing_else_is_there(tmp_path):
    draw(tmp_path, "0.tga", "1.tga")
    with pytest.raises(DatasetError, match=r"Passed over: 2 files, such as .*0\.tga \(not an image by its name\)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "pnm", "apng", "mpo"])
def test_other_suffixes_of_readable_formats_are_taken(tmp_path, suffix):
    draw(tmp_path, f"0.{suffix}")
    assert [p.name for p in open_dataset(tmp_path).train] == [f"0.{suffix}"]


def test_commands_say_it_on_stderr_and_in_json(base, tmp_path):
    model = tmp_path / "m"
    fitted = run("fit", base, *FIT, "--out", model, "--json")
    said = "  train/good: 6 images, normal, to learn from"
    assert said in fitted.stderr.splitlines()
    data = json.loads(fitted.stdout)["data"]
    assert (data["layout"], data["folders"][0]["images"]) == ("mvtec", 6)
    assert {"folder": ".", "reason": "not an image by its name", "count": 1, "files": ["readme.txt"]} in data[
        "passed_over"
    ]
    evaluated = run("evaluate", model, base, "--json")
    assert said in evaluated.stderr.splitlines()
    assert json.loads(evaluated.stdout)["data"] == data

    judged = run("predict", model, base)
    assert [json.loads(line)["image"] for line in judged.stdout.splitlines()] == [
        str(base / path) for path in ("test/good/0.png", "test/hole/0.png", "test/hole/1.png")
    ]
    assert "  judged: 3 images of the test part" in judged.stderr.splitlines()

    draw(tmp_path, "new/0.png", "new/1.tga")
    judged = run("predict", model, tmp_path / "new", base / "test" / "good", base / "train" / "good" / "0.png")
    assert len(judged.stdout.splitlines()) == 3
    assert "  .: passed over 1 files, not an image by its name: 1.tga" in judged.stderr.splitlines()

    updated = run("update", model, base, "--json")
    assert json.loads(updated.stdout)["data"] == data


def test_sub_folders_as_said_on_the_command_line(tmp_path):
    draw(tmp_path, *(f"set/io/{i}.png" for i in range(10)), "set/nio/0.png", "set/cuts/0.png", "set/labels/nio/0.png")
    refused = run("fit", tmp_path / "set", *FIT, "--out", tmp_path / "m", status=1)
    assert "cuts (1), io (10)" in refused.stderr
    assert "--normal SUB" in refused.stderr
    said = ("--normal", "io", "--anomalous", "nio", "--anomalous", "cuts")
    fitted = run("fit", tmp_path / "set", *FIT, *said, "--out", tmp_path / "m", "--json")
    assert json.loads(fitted.stdout)["images"] == 8
    figures = json.loads(run("evaluate", tmp_path / "m", tmp_path / "set", *said, "--json").stdout)
    assert (figures["n_normal"], figures["n_anomalous"]) == (2, 2)
    marked = run("evaluate", tmp_path / "m", tmp_path / "set", *said, "--masks", "labels", status=1)
    assert "its mask is missing" in marked.stderr


def test_a_list_of_images_may_hold_what_a_folder_may_not(tmp_path):
    draw(tmp_path, *(f"{i}.png" for i in range(5)), "NG_1.png")
    run("fit", tmp_path, *FIT, "--out", tmp_path / "m", status=1)
    (tmp_path / "list.txt").write_text("\n".join(path.name for path in tmp_path.glob("*.png")))
    fitted = run("fit", tmp_path / "list.txt", *FIT, "--out", tmp_path / "m", "--json")
    assert json.loads(fitted.stdout)["data"] == {"root": str(tmp_path / "list.txt"), "images": 6}
