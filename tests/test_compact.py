"""The backbones that ship with the package: their files are those of their cards, and say what their teacher says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blemish import Detector, PaDiM, PatchCore, persist
from blemish.errors import WeightsError
from blemish.features import weights
from blemish.features.backbones import find_backbone
from blemish.features.builtin import compact
from blemish.features.extract import build_extractor
from blemish.features.weights import find_weights, read_weights
from test_real_data import DATA, RESNET

FOLDER = Path(compact.__file__).parent


@pytest.fixture(autouse=True)
def _no_weights_of_the_users(monkeypatch):
    monkeypatch.delenv("BLEMISH_WEIGHTS", raising=False)


@pytest.mark.parametrize(("name", "most"), [("compact", 4e6), ("compact_large", 8e6)])
def test_the_file_is_that_of_its_card(name, most):
    card = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = read_weights(FOLDER / f"{name}.safetensors")
    assert card["digest"] == persist.digest(tensors)
    assert card["parameters"] == sum(p.numel() for p in find_backbone(name).build().parameters())
    assert (FOLDER / f"{name}.safetensors").stat().st_size < most
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert "/" not in card["data"]


def test_the_default_backbone_needs_neither_weights_nor_network(monkeypatch):
    monkeypatch.setattr(weights, "_from_hub", None)
    images = np.random.default_rng(0).random((8, 64, 64, 3)).astype(np.float32)
    detector = Detector(method=PaDiM(), calibration="none").fit(list(images[:6]))
    bad = images[6].copy()
    bad[20:40, 20:40] = 0.0
    good, worse = detector.predict([images[6], bad])
    assert worse.score > good.score


def test_padim_reads_the_layers_before_they_are_widened():
    """Each tap is a 1 x 1 convolution and ReLU of the narrow module of its stride."""
    row = find_backbone("compact")
    assert PaDiM().tapped() == row.narrow == ("stage4", "stage8", "stage16")
    assert PatchCore().tapped() == row.taps[-2:]
    tensors, pixels = find_weights(row), torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    maps = build_extractor(row, weights=tensors, taps=(*row.narrow, *row.taps))(pixels).maps
    for narrow, wide, tap in zip(maps[:3], maps[3:], row.taps, strict=True):
        kernel, bias = tensors[f"{tap}.0.weight"].float()[:, :, 0, 0], tensors[f"{tap}.0.bias"].float()
        expected = torch.einsum("oc,nchw->nohw", kernel, narrow) + bias[:, None, None]
        torch.testing.assert_close(wide, expected.clamp_min(0), rtol=1e-3, atol=1e-3)
    assert find_backbone("resnet18").narrow == ()
    assert PaDiM(backbone="resnet18").tapped() == find_backbone("resnet18").taps


def test_a_file_of_the_users_comes_before_the_built_in_one(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "compact.pth")
    monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
    assert find_weights(find_backbone("compact")).keys() == {"a"}


def test_a_row_without_a_file_goes_to_the_hub(monkeypatch):
    monkeypatch.setattr(weights, "_download", lambda row: 1 / 0)
    with pytest.raises(WeightsError, match="use the backbone `compact`, whose weights ship with blemish"):
        find_weights(find_backbone("resnet18"))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set BLEMISH_TEST_DATA)")
@pytest.mark.parametrize(("name", "at_most"), [("compact", (0.5, 0.6, 0.7)), ("compact_large", (0.4, 0.5, 0.6))])
def test_it_says_what_its_teacher_says(name, at_most):
    """Of screws, which neither saw in training; a map that knows nothing but the mean misses 1."""
    files = sorted((DATA / "mvtec_ad" / "screw" / "train" / "good").glob("*.png"))[:4]
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) / 255 for f in files]
    )
    row, teacher = find_backbone(name), find_backbone("resnet18")
    mine = build_extractor(row, weights=find_weights(row))(pixels).maps
    theirs = build_extractor(teacher, weights=read_weights(RESNET["weights"]), taps=teacher.taps)(pixels).maps
    for given, wanted, most in zip(mine, theirs, at_most, strict=True):
        missed = (given - wanted).square().mean() / (wanted - wanted.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
        assert missed < most
