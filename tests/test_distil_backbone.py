from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blemish.augment.crops import read_cache
from blemish.cli import app
from blemish.distil import backbone as module
from blemish.distil.backbone import BackboneRecipe, VariedCrops, distil_backbone, map_loss, write_backbone
from blemish.errors import ArgumentError, ModelFileError
from blemish.features.backbones import custom_backbone, find_backbone
from blemish.features.builtin.compact import CompactNetwork
from blemish.features.extract import build_extractor
from blemish.features.weights import read_weights
from small import BACKBONE


class Teacher(torch.nn.Module):
    """Maps at strides 4, 8 and 16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 7, 4, 3), torch.nn.ReLU())
        self.b = torch.nn.Sequential(torch.nn.Conv2d(6, 7, 3, 2, 1), torch.nn.ReLU())
        self.c = torch.nn.Sequential(torch.nn.Conv2d(7, 8, 3, 2, 1), torch.nn.ReLU())

    def forward(self, x):
        return self.c(self.b(self.a(x)))


TEACHER = custom_backbone(Teacher(), taps=("a", "b", "c"), trace_size=32)
SMALL = BackboneRecipe(
    stem=4, widths=(8, 8, 8), blocks=(1, 1, 0), teacher="small", side=32, steps=12, batch=8, warmup=2, image_side=48,
    held_out=0.25,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STATISTICS_CROPS", 64)
        rows = {"small": TEACHER, "shallow": BACKBONE}
        patch.setattr(module, "find_backbone", lambda name: rows.get(name) or find_backbone(name))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(16):
        coarse = random.uniform(0, 255, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(place / f"{number:02}.png")
    return place


@pytest.fixture(scope="module")
def images(folder):
    return read_cache(folder, side=48)


@pytest.fixture(scope="module")
def made(images):
    return distil_backbone(images, SMALL)


def test_the_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(2, 2, 3, 4, 5, generator=generator)
    deviation = torch.rand(3, generator=generator) + 0.5
    total = 0.0
    for image in range(2):
        for channel in range(3):
            for y in range(4):
                for x in range(5):
                    difference = float(given[image, channel, y, x] - wanted[image, channel, y, x])
                    total += (difference / float(deviation[channel])) ** 2
    assert float(map_loss(given, wanted, deviation)) == pytest.approx(total / (2 * 3 * 4 * 5), rel=1e-5)


def test_mean_and_deviation_are_those_of_all_positions(images):
    crops = VariedCrops(images, SMALL)
    teacher = build_extractor(TEACHER)
    means, deviations = module._statistics(crops, teacher)
    seen = [teacher(crops.draw(step, use="statistics")).maps for step in range(8)]
    for i, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        values = np.concatenate([np.moveaxis(maps[i].numpy().astype(float), 1, -1) for maps in seen])
        values = values.reshape(-1, values.shape[-1])
        np.testing.assert_allclose(mean.numpy(), values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            deviation.numpy(), np.maximum(values.std(axis=0), 1e-3 * values.std(axis=0).max()), rtol=1e-4
        )


def test_training_teaches(images, made):
    """Share of the teacher's variance that is missed; 1 is what the mean alone misses."""
    longer = distil_backbone(images, replace(SMALL, steps=80, rate=1e-2))
    assert max(longer.unexplained) < 0.8
    assert all(after < before for after, before in zip(longer.unexplained, made.unexplained, strict=True))
    assert longer.course.terms == ("stride4", "stride8", "stride16")


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(images, made):
    assert distil_backbone(images, SMALL).card["digest"] == made.card["digest"]
    assert distil_backbone(images, replace(SMALL, seed=1)).card["digest"] != made.card["digest"]


def test_a_killed_run_goes_on_to_the_same_weights(images, made, tmp_path):
    class Killed(BaseException):
        pass

    def die(progress):
        if progress.step == 8:
            raise Killed

    path = tmp_path / "c"
    with pytest.raises(Killed):
        distil_backbone(images, SMALL, checkpoint=path, checkpoint_every=5, progress=die)
    told = []
    again = distil_backbone(images, SMALL, checkpoint=path, checkpoint_every=5, progress=told.append)
    assert told[0].step == 6
    assert again.card["digest"] == made.card["digest"]
    assert again.unexplained == made.unexplained
    with pytest.raises(ModelFileError, match="a checkpoint of another run, which differs in grey"):
        distil_backbone(images, replace(SMALL, grey=0.9), checkpoint=path)


def test_the_file_is_weights_for_the_same_network(made, tmp_path):
    write_backbone(made.network, tmp_path / "w.safetensors")
    fresh = CompactNetwork(stem=4, widths=(8, 8, 8), blocks=(1, 1, 0), outputs=(6, 7, 8))
    row = custom_backbone(fresh, taps=("stride4", "stride8", "stride16"), trace_size=32)
    read = build_extractor(row, weights=read_weights(tmp_path / "w.safetensors"), taps=row.taps)
    pixels = torch.rand(2, 3, 32, 48)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (row.mean, row.std))
    with torch.no_grad():
        wanted = made.network((pixels - mean) / std)
    for found, expected in zip(read(pixels).maps, wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [tuple(m.shape[1:]) for m in wanted] == [(6, 8, 12), (7, 4, 6), (8, 2, 3)]


def test_crops_are_turned_greyed_and_lit(images):
    plain = replace(SMALL, grey=0.0, light=0.0, contrast=0.0)
    assert torch.equal(VariedCrops(images, plain).draw(0), VariedCrops(images, plain).draw(0))
    grey = VariedCrops(images, replace(plain, grey=1.0)).draw(0)
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(
        grey[:, 0], (VariedCrops(images, plain).draw(0) * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    )
    lit = VariedCrops(images, replace(plain, light=0.5)).draw(0)
    ratio = lit.mean(dim=(1, 2, 3)) / VariedCrops(images, plain).draw(0).mean(dim=(1, 2, 3))
    assert ratio.min() < 0.9
    assert ratio.max() > 1.02  # less than 1.5, as white stays white


def test_a_mixed_crop_lies_between_two_plain_ones(images):
    plain, mixed, some = (VariedCrops(images, replace(SMALL, mix=share)).draw(3) for share in (0.0, 1.0, 0.5))
    weights = []
    for i in range(SMALL.batch):
        one, other = plain[i], plain[i - 1]
        weight = float(((mixed[i] - other) * (one - other)).sum() / (one - other).square().sum())
        torch.testing.assert_close(mixed[i], weight * one + (1 - weight) * other, rtol=0, atol=1e-5)
        assert torch.equal(some[i], plain[i]) or torch.equal(some[i], mixed[i])
        weights.append(weight)
    assert 0 < min(weights) < 0.3
    assert 0.6 < max(weights) < 1
    assert 0 < sum(torch.equal(some[i], plain[i]) for i in range(SMALL.batch)) < SMALL.batch


def test_a_run_begins_with_the_weights_of_an_earlier_one(images, made, tmp_path):
    write_backbone(made.network, tmp_path / "first.safetensors")
    further = distil_backbone(images, replace(SMALL, steps=1, rate=1e-9), start=tmp_path / "first.safetensors")
    for name, value in made.network.named_parameters():
        torch.testing.assert_close(further.network.get_parameter(name), value, rtol=0, atol=1e-6)
    assert further.card["start"] == made.card["digest"]
    assert made.card["start"] is None
    with pytest.raises(ArgumentError, match=r"start: expected weights of a compact network with the same stem"):
        distil_backbone(images, replace(SMALL, stem=6), start=tmp_path / "first.safetensors")


def test_a_settled_run_keeps_the_statistics_with_which_it_begins(images, made, tmp_path):
    first = tmp_path / "first.safetensors"
    write_backbone(made.network, first)
    for settled in (True, False):
        further = distil_backbone(images, replace(SMALL, steps=3, settled=settled), start=first).network
        kept = [
            torch.equal(value, further.get_buffer(name))
            for name, value in made.network.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ]
        assert kept == [settled] * len(kept)
        assert not torch.equal(further.stride4[0].weight, made.network.stride4[0].weight)
    with pytest.raises(ArgumentError, match=r"settled: expected False without start"):
        distil_backbone(images, replace(SMALL, settled=True))


def test_a_teacher_of_other_strides_is_refused(images):
    with pytest.raises(ArgumentError, match=r"strides 4, 8 and 16, .* got shallow, with maps of 16, 8, 4"):
        distil_backbone(images, replace(SMALL, teacher="shallow"))


def test_the_command_writes_weights_and_card(folder, tmp_path):
    out = tmp_path / "c.safetensors"
    settings = ("widths=[8,8,8]", "blocks=[1,1,0]", "stem=4", "side=32", "batch=8", "image_side=48")
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = ["distil", "backbone", str(folder), "--teacher", "small", "--steps", "2", "--out", str(out), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    card = json.loads((tmp_path / "c.json").read_text())
    assert card["recipe"]["widths"] == [8, 8, 8]
    assert card["held_out"].keys() == {f"unexplained, {layer}" for layer in ("stride4", "stride8", "stride16")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.safetensors"]
    assert read_weights(out)["stride4.0.weight"].dtype == torch.float16
