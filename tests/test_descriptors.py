from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import pad

import blemish
from blemish import persist
from blemish.distil.card import in_half
from blemish.errors import ArgumentError, ModelFileError, WeightsError
from blemish.features.descriptors import PATCHES, PatchDescriptor, find_descriptor, read_descriptor, write_descriptor
from reference import descriptors as reference

FIELDS = {17: 17, 33: 32, 65: 60}


def network(patch, width=0.05):
    torch.manual_seed(patch)
    return PatchDescriptor(patch, width=width).eval().requires_grad_(False)


def image(height, width, n=1):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(height))


BEFORE = {17: 8, 33: 15, 65: 29}
"""Rows above the pixel in the middle of a field; of an even number, one more is below."""


def patch_around(pixels, net, row, column):
    """The p x p patch whose field has this pixel of one image in its middle, mirrored at the borders."""
    before, after = BEFORE[net.patch], FIELDS[net.patch] - 1 - BEFORE[net.patch]
    wide = pad(pixels, (before, after, before, after), mode="reflect")
    unread = net.patch - FIELDS[net.patch]
    return pad(wide, (0, unread, 0, unread))[:, :, row : row + net.patch, column : column + net.patch]


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_against_the_plain_loops(patch):
    net = network(patch)
    weights = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in net.layers]
    patches = image(patch, patch, n=2)
    expected = [reference.describe(p.numpy(), weights, list(net.pooled)) for p in patches]
    np.testing.assert_allclose(net(patches).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 41), (34, 31)])
@pytest.mark.parametrize("patch", PATCHES)
def test_dense_maps_hold_the_descriptor_of_the_patch_around_every_pixel(patch, size):
    net, pixels = network(patch), image(*size)
    maps = net.dense(pixels)
    assert maps.shape == (1, 128, *size)
    for row in range(size[0]):
        patches = torch.cat([patch_around(pixels, net, row, column) for column in range(size[1])])
        torch.testing.assert_close(net(patches).T, maps[0, :, row], rtol=1e-4, atol=1e-4 * float(maps.std()))


@pytest.mark.parametrize("patch", PATCHES)
def test_the_papers_widths_too(patch):
    net, pixels = network(patch, width=1.0), image(35, 39)
    maps = net.dense(pixels)
    for row, column in ((0, 0), (17, 20), (34, 38)):
        one = net(patch_around(pixels, net, row, column))[0]
        torch.testing.assert_close(one, maps[0, :, row, column], rtol=1e-4, atol=1e-4 * float(maps.std()))


@pytest.mark.parametrize("patch", PATCHES)
def test_the_field_is_what_is_read(patch):
    net = network(patch)
    pixels = image(patch, patch).requires_grad_()
    net(pixels).square().sum().backward()
    read = pixels.grad[0].abs().sum(dim=0) > 0
    assert net.field == FIELDS[patch]
    assert not read[net.field :].any()
    assert not read[:, net.field :].any()
    assert read[: net.field].any(dim=1).sum() >= net.field - 3  # the largest of two may never be the first


@pytest.mark.parametrize("memory", [1, 300_000, 3_000_000, 1 << 30])
@pytest.mark.parametrize("patch", PATCHES)
def test_parts_give_the_whole(patch, memory):
    net, pixels = network(patch), image(37, 43, n=3)
    maps = torch.full((3, 128, 37, 43), torch.nan)
    for images, rows, strip in net.strips(pixels, memory=memory):
        maps[images, :, rows] = net.inside(strip)
    torch.testing.assert_close(maps, net.dense(pixels), rtol=1e-5, atol=1e-6)


def test_parts_are_small():
    net = network(33)
    seen = [strip.shape for *_, strip in net.strips(image(64, 48, n=3), memory=5_000_000)]
    widest = max(layer.weight.shape[1] + 2 * layer.weight.shape[0] for layer in net.layers)
    assert len(seen) > 3
    assert all(4 * widest * n * h * w <= 5_000_000 for n, _, h, w in seen)


def test_numbers_of_the_paper():
    counts = {p: sum(q.numel() for q in PatchDescriptor(p).parameters()) for p in PATCHES}
    assert counts == {17: 2_996_480, 33: 1_616_000, 65: 1_386_624}
    assert PatchDescriptor(65).operations((10, 20)) == 200 * (counts[65] - 4 * 128 - 256)
    assert PatchDescriptor(33, width=0.5).layers[1].weight.shape == (128, 64, 5, 5)


@pytest.mark.parametrize("patch", PATCHES)
def test_rescaled_layers_give_mean_0_and_deviation_1(patch):
    net, crops = network(patch), [0.3 + 0.1 * image(75, side, 3) for side in (71, 68)]
    net.rescale(crops)
    inputs = [((crop - net.mean) / net.std).double() for crop in crops]
    for layer, pooled in zip(net.layers, net.pooled, strict=True):
        outputs = [nn.functional.conv2d(x, layer.weight.double(), layer.bias.double()) for x in inputs]
        outputs = [nn.functional.max_pool2d(y, 2) if pooled else y for y in outputs]
        rows = torch.cat([y.movedim(1, 3).reshape(-1, y.shape[1]) for y in outputs])
        assert rows.mean(dim=0).abs().max() < 1e-4
        assert (rows.std(dim=0) - 1).abs().max() < 1e-4
        inputs = [torch.where(y < 0, 0.005 * y, y) for y in outputs]


def test_rescaling_on_images_without_contrast_keeps_the_weights():
    net, grey = network(33), torch.full((2, 3, 40, 40), 0.5)
    before = [layer.weight.clone() for layer in net.layers]
    net.rescale([grey])
    assert all(torch.equal(layer.weight, old) for layer, old in zip(net.layers, before, strict=True))
    assert net.inside(grey).abs().max() < 1e-4


def test_a_file_brings_the_network_back_in_half_precision(tmp_path):
    net = network(33, width=0.5)
    write_descriptor(net, tmp_path / "t.safetensors")
    again = read_descriptor(tmp_path / "t.safetensors")
    assert (again.patch, again.width, again.training) == (33, 0.5, False)
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float())
    count = sum(q.numel() for q in net.parameters())
    assert 2 * count < (tmp_path / "t.safetensors").stat().st_size < 2 * count + 2000


@pytest.mark.parametrize("patch", PATCHES)
def test_built_in_networks_are_those_of_their_cards(patch):
    file = Path(blemish.__file__).parent / "features" / "builtin" / f"descriptor{patch}.safetensors"
    card = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    net = find_descriptor(patch)
    assert persist.digest(in_half(net)) == card["digest"]
    assert (net.patch, net.width) == (card["recipe"]["patch"], card["recipe"]["width"])
    assert file.stat().st_size == card["bytes"] <= 3_000_000
    assert card["file"] == file.name
    assert card["held_out"]["unexplained"] < 0.9
    assert not [value for value in json.dumps(card).split('"') if value.startswith("/")]
    with torch.no_grad():
        found = net.dense(image(64, 70))
    assert found.shape == (1, 128, 64, 70)
    assert torch.isfinite(found).all()
    assert (found.std(dim=(2, 3)) > 1e-3 * found.std()).all()


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(WeightsError, match=r"the file does not exist. `blemish distil descriptor IMAGES --out"):
        read_descriptor(path)
    persist.save(path, {"a": torch.zeros(1)}, {"method": "padim"})
    with pytest.raises(WeightsError, match=r"t.safetensors: not of a patch descriptor network"):
        read_descriptor(path)
    path.write_bytes(b"no")
    with pytest.raises(ModelFileError, match=r"t.safetensors: not a model file, it is no safetensors file"):
        read_descriptor(path)


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match=r"patch: expected 17 or 33 or 65, got 32"):
        PatchDescriptor(32)
    with pytest.raises(ArgumentError, match=r"width: expected a factor in \(0, 4\], got 0"):
        PatchDescriptor(33, width=0)
    with pytest.raises(ArgumentError, match=r"patches: expected shape \(batch, 3, 17, 17\), got an array of shape"):
        network(17)(torch.zeros(2, 3, 33, 33))
    with pytest.raises(
        ArgumentError, match=r"sides of at least 31, got .* Enlarge the images, or take a smaller patch"
    ):
        network(65).dense(torch.zeros(1, 3, 30, 40))
