"""Why a region was reported: nearest patches by plain loops, and words for pixels whose difference is known."""

from __future__ import annotations

import json
from copy import copy

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blemish.cli import app
from blemish.detector import Detector
from blemish.errors import ArgumentError
from blemish.explain import differences, explain
from blemish.features.patches import average_patches
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_arrays
from blemish.methods import PaDiM, PatchCore
from contract.laws import normal_pixels
from test_detector import arrays


def grating(angle, seed, *, wavelength=8.0, contrast=40.0, colour=(120, 120, 120), noise=2.0):
    """Lines of a direction in degrees, 0 level, counted against the clock."""
    y, x = np.mgrid[:48, :48]
    across = x * np.sin(np.radians(angle)) + y * np.cos(np.radians(angle))
    random = np.random.default_rng(seed)
    values = contrast * np.sin(2 * np.pi * across / wavelength + random.uniform(0, 6)) + random.normal(
        0, noise, (48, 48)
    )
    return (values[..., None] + np.array(colour)).clip(0, 255).round().astype(np.uint8)


PLAIN = [grating(0, seed, contrast=0) for seed in range(8)]
LEVEL = [grating(0, seed) for seed in range(8)]


@pytest.mark.parametrize(
    ("pixels", "normal", "words"),
    [
        (grating(0, 9, contrast=0), PLAIN, ()),
        (grating(0, 9), LEVEL, ()),
        (grating(0, 9, contrast=0, colour=(90,) * 3), PLAIN, ("darker (90, normally 120 of 255)",)),
        (grating(0, 9, contrast=0, colour=(160,) * 3), PLAIN, ("brighter (160, normally 120 of 255)",)),
        (grating(0, 9, contrast=0, colour=(150, 90, 120)), PLAIN, ("redder",)),
        (grating(0, 9, contrast=0, colour=(90, 150, 120)), PLAIN, ("greener",)),
        (grating(0, 9, contrast=0, colour=(130, 130, 100)), PLAIN, ("yellower",)),
        (grating(0, 9, contrast=0, colour=(110, 110, 140)), PLAIN, ("bluer",)),
        (grating(90, 9), LEVEL, ("lines run upright, normally level",)),
        (grating(45, 9), LEVEL, ("lines run up to the right, normally level",)),
        (grating(135, 9), LEVEL, ("lines run down to the right, normally level",)),
        (grating(0, 9, contrast=0, noise=12), PLAIN, ("rougher: more fine structure",)),
        (PLAIN[0], [], ()),
    ],
)
def test_what_differs_is_said_in_words(pixels, normal, words):
    assert differences(pixels, normal) == words


def test_lines_that_come_or_go_are_said():
    assert "lines that run level, where normally none do" in differences(grating(0, 9), PLAIN)
    assert "without the lines that normally run level" in differences(grating(0, 9, contrast=0), LEVEL)


@pytest.fixture(scope="module")
def pictures():
    dark = normal_pixels(2, 4)
    dark[:, :, 16:44, 16:44] *= 0.4
    return arrays(normal_pixels(30, 1)), arrays(dark)


@pytest.fixture(scope="module")
def fitted(pictures):
    methods = (PatchCore(backbone="filters", ratio=0.1), PaDiM(backbone="filters"))
    small = {"preprocess": Preprocess(64), "false_alarm_rate": 0.2}
    return {method.name: Detector(method=method, **small).fit(pictures[0]) for method in methods}


@pytest.mark.parametrize("name", ["patchcore", "padim"])
def test_the_nearest_patch_is_that_of_plain_loops(pictures, fitted, name):
    (normal, odd), detector = pictures, fitted[name]
    method = detector.method_
    found = explain(detector, from_arrays(odd), from_arrays(normal), most=1)
    assert [one.name for one in found] == ["image 0", "image 1"]
    with torch.inference_mode():
        stacks = [torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).float() / 255 for part in (odd, normal)]
        vectors = [average_patches(method.extractor_(stack)).numpy().astype(float) for stack in stacks]
    side = round(vectors[0].shape[1] ** 0.5)
    for one in found:
        assert any("darker" in word for word in one.differences)
        map = next(detector.predict([odd[int(one.name[6:])]])).map
        row, column = np.unravel_index(map.argmax(), map.shape)
        cell = int(row * side / 64) * side + int(column * side / 64)
        best = {}
        for i, image in enumerate(vectors[1]):
            cells = range(side * side) if isinstance(method, PatchCore) else [cell]
            best[i] = min((np.linalg.norm(image[c] - vectors[0][int(one.name[6:]), cell]), c) for c in cells)
        del best[int(one.name[6:])]  # a name is an image: it is not compared with itself
        order = sorted(best, key=best.get)[:8]
        assert [patch.name for patch in one.nearest] == [f"image {i}" for i in order]
        for patch in one.nearest:
            distance, at = best[int(patch.name[6:])]
            assert patch.distance == pytest.approx(distance, rel=1e-3)
            assert patch.centre == (round((at % side + 0.5) * 64 / side, 1), round((at // side + 0.5) * 64 / side, 1))
            assert patch.pixels.shape == one.pixels.shape
            if isinstance(method, PaDiM):  # the same place
                assert np.abs(patch.pixels.astype(int) - one.pixels).mean() < 60


def test_an_image_is_not_explained_by_itself(pictures, fitted):
    normal, odd = pictures
    both = [odd[0], *normal[:9]]
    (one, *_) = explain(fitted["patchcore"], from_arrays(both), from_arrays(both), most=1)
    assert one.name == "image 0"
    assert "image 0" not in {patch.name for patch in one.nearest}


def test_what_cannot_be_explained_is_refused(pictures, fitted):
    normal, odd = pictures
    changed = copy(fitted["padim"])
    changed.peaks_ = None
    with pytest.raises(ArgumentError, match="expected one that reports regions, got one without held-out maps"):
        explain(changed, odd, normal)
    changed = copy(fitted["padim"])
    changed.tile = 32
    with pytest.raises(ArgumentError, match="without tiles, got tiles of 32"):
        explain(changed, odd, normal)


def test_the_command_says_and_shows_it(pictures, fitted, tmp_path):
    normal, odd = pictures
    for name, images in (("normal", normal), ("odd", odd)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:02}.png")
    fitted["padim"].save(tmp_path / "m.blemish")
    command = ["explain", tmp_path / "m.blemish", tmp_path / "odd", "--normal", tmp_path / "normal"]
    done = CliRunner().invoke(app, [*map(str, command), "--report", str(tmp_path / "why.html")])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) >= 2
    assert "darker" in lines[0]
    assert "Most like" in lines[0]
    page = (tmp_path / "why.html").read_text()
    assert page.count("<figure") == len(lines)
    assert "darker" in page
    command[2] = tmp_path / "odd" / "00.png"
    done = CliRunner().invoke(app, [*map(str, command), "--json", "--most", "1"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 1
    assert len(rows[0]["nearest"]) == 8
    assert "contour" not in rows[0]["region"]
