"""What goes together: one table, the same from Python and from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector, PaDiM, PatchCore, Preprocess
from blemish.cli import app
from blemish.errors import ArgumentError
from blemish.features.backbones import BACKBONES
from blemish.features.packages import import_torchvision
from blemish.presets import PRESETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    random = np.random.default_rng(0)
    for i in range(25):
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ["fast", "few"])
def test_python_and_the_command_line_make_the_same_detector(name, folder, tmp_path):
    rate = ("--false-alarm-rate", "0.2")
    result = CliRunner().invoke(
        app, ["fit", str(folder), "--preset", name, "--resize", "64", *rate, "--out", str(tmp_path / "m")]
    )
    assert result.exit_code == 0, result.output
    by_command = Detector.load(tmp_path / "m")
    detector = Detector.preset(name).set_params(preprocess=PRESETS[name].resized(64), false_alarm_rate=0.2, seed=0)
    detector.fit(folder)
    assert by_command.manifest() == detector.manifest()
    picture = folder / "0.png"
    assert next(by_command.predict(picture)).score == next(detector.predict(picture)).score


def test_presets_take_another_method_only_where_none_is_theirs():
    assert Detector.preset("default") == Detector()
    assert Detector.preset("paper", method="patchcore").method == PatchCore(**PatchCore.paper)
    assert Detector.preset("paper").method == PaDiM(**PaDiM.paper)
    with pytest.raises(ArgumentError, match="method: expected subspace with this preset, got knn"):
        Detector.preset("few", method="knn")
    with pytest.raises(ArgumentError, match=r"preset: expected one of default, paper, .*, got best"):
        Detector.preset("best")
    assert PRESETS["paper"].resized(128) == Preprocess(128, 112)


def test_the_table_is_listed():
    result = CliRunner().invoke(app, ["list", "presets", "--json"])
    rows = {row["name"]: row for row in json.loads(result.output)["presets"]}
    assert list(rows) == list(PRESETS)
    assert rows["paper"] | {"use": ""} == {
        "name": "paper", "use": "", "method": "any", "parameters": "the paper's", "input": 256, "crop": 224,
        "calibration": "none",
    }  # fmt: skip


def test_dino_reads_the_last_tokens_of_a_transformer_on_its_own_grid():
    """On a small one of random weights: no download is needed to see that everything fits."""
    import_torchvision()  # timm imports torchvision at once
    from timm.models.vision_transformer import VisionTransformer

    build = partial(
        VisionTransformer,
        img_size=56, patch_size=14, embed_dim=24, depth=2, num_heads=2, reg_tokens=4, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    row = replace(BACKBONES["timm:vit_small_patch14_dinov2"], build=build, trace_size=56)
    detector = Detector.preset("dino").set_params(method__backbone=row, method__weights="random")
    detector.set_params(preprocess=Preprocess("auto:56"))
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (40, 80, 3), dtype=np.uint8) for _ in range(2)]
    detector.fit(images)
    assert detector.preprocessing.size == (42, 84)  # multiples of 14
    method = detector.method_
    (maps,) = method.extractor_(torch.zeros(1, 3, 42, 84)).maps
    assert maps.shape == (1, 24, 3, 6)  # without the class token and the registers
    assert len(method.bank_) == 8 * 2 * 3 * 6  # every patch, in eight directions
    decisions = list(detector.predict(images))
    assert max(decision.score for decision in decisions) < 1e-2  # learned
    assert decisions[0].map.shape == (40, 80)
