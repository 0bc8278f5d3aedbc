from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blemish import persist
from blemish.augment import crops
from blemish.augment.crops import Boxes, cut, draw_boxes, move_boxes, read_cache
from blemish.cli import app
from blemish.distil import descriptor as module
from blemish.distil.card import thinned
from blemish.distil.descriptor import (
    DescriptorRecipe,
    PatchCrops,
    Targets,
    compactness_loss,
    distil_descriptor,
    fit_targets,
    judge_descriptor,
    knowledge_loss,
    triplet_loss,
)
from blemish.errors import ArgumentError, ModelFileError, NotEnoughMemoryError
from blemish.features.backbones import find_backbone
from blemish.features.descriptors import read_descriptor, write_descriptor
from blemish.training.loop import Course
from reference import distil as reference
from small import BACKBONE

SMALL = DescriptorRecipe(
    patch=17, width=0.1, backbone="small", teacher_side=24, steps=24, batch=16, rate=1e-3, metric=1.0, image_side=64,
    held_out=0.25,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TARGET_CROPS", 64)
        patch.setattr(module, "_HELD_OUT_CROPS", 64)
        patch.setattr(module, "find_backbone", lambda name: BACKBONE if name == "small" else find_backbone(name))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty-two pictures, each of waves of its own direction, length and colour, which fade towards one side."""
    place = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:80, :96]
    for number in range(32):
        angle, length = random.uniform(0, np.pi), random.uniform(4, 20)
        waves = np.sin(2 * np.pi / length * (x * np.cos(angle) + y * np.sin(angle))) * x / 96
        colours = random.uniform(0, 255, (2, 3))
        pixels = colours[0] + (colours[1] - colours[0]) * (waves[..., None] + 1) / 2 + random.normal(0, 4, (80, 96, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number:02}.png")
    return place


@pytest.fixture(scope="module")
def images(folder):
    return read_cache(folder, side=64)


@pytest.fixture(scope="module")
def made(images):
    return distil_descriptor(images, SMALL)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Losses


@pytest.mark.parametrize("margin", [0.0, 1.0, 7.0])
def test_losses_against_the_formulas(margin):
    a, b, c = normal(9, 5), normal(9, 5, seed=1), normal(9, 5, seed=2)
    plain = [x.tolist() for x in (a, b, c)]
    assert float(knowledge_loss(a, b)) == pytest.approx(reference.knowledge(*plain[:2]), rel=1e-9)
    found = float(triplet_loss(a, a + 0.3 * b, c, margin=margin))
    assert found == pytest.approx(reference.metric(plain[0], (a + 0.3 * b).tolist(), plain[2], margin), rel=1e-9)
    assert float(compactness_loss(a)) == pytest.approx(reference.compactness(plain[0]), rel=1e-9)


def test_compactness_has_gradients_where_a_number_is_constant():
    x = normal(6, 4)
    x[:, 1] = 3.0
    x.requires_grad_()
    compactness_loss(x).backward()
    assert torch.isfinite(x.grad).all()


def test_targets_are_standardised_principal_components():
    features = (normal(400, 12) @ normal(12, 12, seed=1)) * torch.logspace(-3, 3, 12, dtype=torch.float64) + 5
    features = torch.cat([features, torch.full((400, 1), 2.0, dtype=torch.float64)], dim=1)  # says nothing
    targets = fit_targets(features.float(), variance=0.9)
    found = targets(features.float()).double()
    unit = ((features - features.mean(0)) / features.std(0))[:, :12].numpy()
    values = np.linalg.svd(unit, compute_uv=False) ** 2
    kept = found.shape[1]
    assert values[: kept - 1].sum() < 0.9 * values.sum() <= values[:kept].sum()
    np.testing.assert_allclose(found.var(0), values[:kept] / values[:kept].sum(), rtol=1e-4)
    np.testing.assert_allclose(torch.corrcoef(found.T), np.eye(kept), atol=1e-4)
    assert float(found.square().sum(1).mean()) == pytest.approx(1, rel=0.01)
    assert not targets.basis[12].any()
    assert fit_targets(features.float(), variance=1.0).basis.shape == (13, 12)


# Crops


def test_a_crop_of_the_wanted_size_is_the_image_itself(images):
    boxes = Boxes(*(torch.tensor(v) for v in ([2, 5], [3, 10], [7, 0], [17, 17])))
    found = cut(images, boxes, 17)
    assert torch.equal((found[0] * 255).round().byte(), images.pixels[2][:, 3:20, 7:24])
    assert torch.equal((found[1] * 255).round().byte(), images.pixels[5][:, 10:27, 0:17])


@pytest.mark.parametrize("side", [17, 40])
def test_other_crops_are_resized_as_pillow_does(images, side):
    boxes = Boxes(*(torch.tensor(v) for v in ([1], [5], [9], [36])))
    window = images.pixels[1][:, 5:41, 9:45].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(window).resize((side, side), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(cut(images, boxes, side)[0].permute(1, 2, 0) * 255, expected, atol=1)


def test_boxes_stay_inside_and_obey_the_recipe(images):
    random = torch.Generator().manual_seed(0)
    which = torch.arange(len(images)).repeat(80)
    boxes = draw_boxes(images, which, zoom=(2.0, 8.0), generator=random)
    moved = move_boxes(images, boxes, share=0.25, generator=random)
    height, width = torch.tensor([images.pixels[i].shape[1:] for i in which.tolist()]).T
    for box in (boxes, moved):
        assert (box.top >= 0).all()
        assert (box.left >= 0).all()
        assert (box.top + box.side <= height).all()
        assert (box.left + box.side <= width).all()
    assert (boxes.side.min(), boxes.side.max()) == (8, 32)
    assert ((moved.top - boxes.top).abs() <= 0.25 * boxes.side + 0.5).all()
    assert (moved.top != boxes.top).float().mean() > 0.5
    assert (boxes.top == 0).any()
    assert (boxes.top + boxes.side == height).any()


def test_a_draw_depends_on_seed_and_step_alone(images):
    def draw(step, **changes):
        return PatchCrops(images, replace(SMALL, **changes), torch.device("cpu")).draw(step, alike=True)

    assert torch.equal(draw(3)[1], draw(3)[1])
    assert not torch.equal(draw(3)[0], draw(4)[0])
    assert not torch.equal(draw(3)[0], draw(3, seed=1)[0])
    anchors, similar = draw(3, grey=1.0, light=0.0, noise=0.0)
    assert torch.equal(anchors[:, 0], anchors[:, 2])
    assert torch.equal(similar[:, 0], similar[:, 2])
    assert torch.equal(*draw(3, shift=0.0, light=0.0, noise=0.0))
    for name in ("shift", "light", "noise"):
        still = {other: 0.0 for other in ("shift", "light", "noise") if other != name}
        assert not torch.equal(*draw(3, **still)), name


def test_images_are_held_small_and_told_apart(tmp_path):
    Image.fromarray(np.full((60, 90), 300 * 257 // 2, np.uint16)).save(tmp_path / "a.png")  # deep grey
    Image.new("RGB", (20, 31), (255, 0, 9)).save(tmp_path / "b.png")
    cache = read_cache(tmp_path, side=30)
    assert [tuple(p.shape) for p in cache.pixels] == [(3, 30, 45), (3, 31, 20)]
    assert all(p.dtype == torch.uint8 for p in cache.pixels)
    assert cache.pixels[0].unique().tolist() == [150]
    assert cache.pixels[1][:, 0, 0].tolist() == [255, 0, 9]
    assert read_cache(tmp_path, side=10).digest == cache.digest
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert read_cache(tmp_path).digest != cache.digest
    arrays = [np.zeros((9, 9, 3), np.uint8), np.ones((9, 9, 3), np.uint8)]
    assert read_cache(arrays).digest != read_cache(arrays[::-1]).digest


def test_the_split_is_seeded_and_complete(images):
    rest, out = images.split(0.25, seed=3)
    assert (len(rest), len(out)) == (24, 8)
    assert {id(p) for p in (*rest.pixels, *out.pixels)} == {id(p) for p in images.pixels}
    assert [id(p) for p in images.split(0.25, seed=3)[1].pixels] == [id(p) for p in out.pixels]
    assert len(images.split(0.0, seed=3)[1]) == 1


def test_images_beyond_the_memory_are_refused(folder, monkeypatch):
    paths = sorted(folder.glob("*.png"))
    monkeypatch.setattr(crops, "available_bytes", lambda: 100_000)
    with pytest.raises(
        NotEnoughMemoryError, match=r"images: 32 with a short side of 64 px take \d\.\d MB, \d\.\d MB are free"
    ):
        read_cache([str(path) for path in paths], side=64)
    with pytest.raises(ArgumentError, match=r"images: expected at least 2 images, got 1"):
        read_cache([str(paths[0])])


# Training


def test_the_losses_fall(made):
    losses = made.course.losses
    assert made.course.terms == ("knowledge", "metric", "compactness")
    assert (losses[-5:, :2].mean(dim=0) < 0.5 * losses[:3, :2].mean(dim=0)).all()
    assert made.quality.unexplained < 0.9
    assert not made.network.training
    assert not any(p.requires_grad for p in made.network.parameters())


def test_the_same_seed_gives_the_same_weights(images, made):
    assert distil_descriptor(images, SMALL).card["digest"] == made.card["digest"]
    short = replace(SMALL, steps=2)
    assert distil_descriptor(images, short).card["digest"] != made.card["digest"]
    assert (
        distil_descriptor(images, replace(short, seed=1)).card["digest"]
        != distil_descriptor(images, short).card["digest"]
    )


def test_crops_that_come_again_are_described_once(images, monkeypatch):
    described, describe = [], module._describe

    def counted(teacher, patches, recipe):
        described.append(patches)
        return describe(teacher, patches, recipe)

    recipe = replace(SMALL, batches=4)
    crops = PatchCrops(images, recipe, torch.device("cpu"))
    (first, alike), (again, other) = crops.draw(1, alike=True), crops.draw(5, alike=True)
    assert torch.equal(first, again)
    assert not torch.equal(alike, other)
    assert not torch.equal(first, crops.draw(2, alike=True)[0])
    monkeypatch.setattr(module, "_describe", counted)
    counts = {}
    for steps in (4, 10):
        described.clear()
        distil_descriptor(images, replace(recipe, steps=steps))
        counts[steps] = len(described)
    assert counts[10] == counts[4]
    assert len(distil_descriptor(images, replace(recipe, steps=10)).course.losses) == 10


def test_the_rate_falls_along_a_cosine(images, monkeypatch):
    recipes = []
    monkeypatch.setattr(module.Training, "run", lambda *args, **more: recipes.append(more["recipe"]) or 1 / 0)
    for cosine in (False, True):
        with pytest.raises(ZeroDivisionError):
            distil_descriptor(images, replace(SMALL, cosine=cosine, steps=8))
    assert recipes[0].schedule is None
    assert [recipes[1].schedule(step) for step in (0, 4, 8)] == pytest.approx([1, 0.5, 0])


def test_gradients_are_clipped(images):
    """Adam's steps have the size of the rate, until gradients vanish beside its epsilon."""
    start, held, free = (
        distil_descriptor(images, replace(SMALL, steps=steps, weight_decay=0.0, clip_norm=clip)).network
        for steps, clip in ((0, None), (2, 1e-14), (2, None))
    )
    weights = [network.layers[0].weight for network in (start, held, free)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_killed_run_goes_on_to_the_same_weights(images, made, tmp_path):
    class Killed(BaseException):
        pass

    def die(progress):
        if progress.step == 15:
            raise Killed

    path = tmp_path / "c"
    with pytest.raises(Killed):
        distil_descriptor(images, SMALL, checkpoint=path, checkpoint_every=6, progress=die)
    told = []
    again = distil_descriptor(images, SMALL, checkpoint=path, checkpoint_every=6, progress=told.append)
    assert told[0].step == 13
    assert again.card["digest"] == made.card["digest"]
    assert again.card["curve"] == made.card["curve"]
    assert again.quality == made.quality
    with pytest.raises(
        ModelFileError, match=r"c: a checkpoint of another run, which differs in margin \(1.0 there, 2.0"
    ):
        distil_descriptor(images, replace(SMALL, margin=2.0), checkpoint=path)


def test_each_term_does_what_it_is_for(images, monkeypatch):
    """Over three seeds: one training differs from another by as much as a term does, also from library to library."""
    monkeypatch.setattr(module, "_HELD_OUT_CROPS", 512)
    alone = {"steps": 60, "metric": 0.0, "compactness": 0.0}

    def qualities(**changes):
        recipe = replace(SMALL, **{**alone, **changes})
        return [distil_descriptor(images, replace(recipe, seed=seed)).quality for seed in range(3)]

    plain = qualities()
    assert all(one.unexplained < 0.4 for one in plain)
    compact = qualities(compactness=1.0)
    assert all(one.correlation < 0.8 * before.correlation for one, before in zip(compact, plain, strict=True))
    wrong = [np.mean([1 - one.triplet_accuracy for one in found]) for found in (qualities(metric=1.0), plain)]
    assert wrong[0] < 0.75 * wrong[1]


def test_terms_of_weight_zero_are_not_computed(images):
    course = distil_descriptor(images, replace(SMALL, steps=1, knowledge=0.0, metric=0.0)).course
    assert course.terms == ("compactness",)
    doubled = distil_descriptor(images, replace(SMALL, steps=1, knowledge=2.0)).course
    single = distil_descriptor(images, replace(SMALL, steps=1)).course
    assert (doubled.losses[0] / single.losses[0]).tolist() == pytest.approx([2, 1, 1], rel=1e-6)


def test_bfloat16_gives_about_the_same(images):
    short = replace(SMALL, steps=1, batch=8)
    half = distil_descriptor(images, replace(short, precision="bfloat16")).course.losses
    whole = distil_descriptor(images, short).course.losses
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.02)


def test_the_judgement_against_the_formulas(images, made, monkeypatch):
    seen = []
    describe = made.network.forward
    monkeypatch.setattr(made.network, "forward", lambda x: seen.append(describe(x)) or seen[-1])
    held_out = PatchCrops(images.split(SMALL.held_out, seed=SMALL.seed)[1], SMALL, torch.device("cpu"))
    teacher = module._teacher(SMALL, None, torch.device("cpu"))
    targets, decoder = Targets(torch.zeros(10), torch.rand(10, 4)), torch.nn.Linear(128, 4)
    found = judge_descriptor(
        torch.nn.ModuleDict({"network": made.network, "decoder": decoder}), held_out, teacher, targets
    )
    anchors, similar = (torch.cat(seen[i::2]).double().tolist() for i in (0, 1))
    assert len(anchors) == 64
    others = anchors[-1:] + anchors[:-1]
    hits = [reference.metric([a], [s], [o], 0.0) == 0 for a, s, o in zip(anchors, similar, others, strict=True)]
    assert found.triplet_accuracy == pytest.approx(sum(hits) / 64)
    assert found.retrieval == pytest.approx(reference.retrieval(anchors, similar))
    assert found.correlation == pytest.approx(reference.compactness(anchors), rel=1e-4)
    drawn = [held_out.draw(step, alike=True, use="held out")[0] for step in range(4)]
    wanted = np.concatenate([targets(module._describe(teacher, x, SMALL)).numpy() for x in drawn])
    decoded = np.array(anchors) @ decoder.weight.detach().double().numpy().T + decoder.bias.detach().numpy()
    left = reference.knowledge(decoded, wanted) / ((wanted - wanted.mean(0)) ** 2).sum(1).mean()
    assert found.unexplained == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patch": 20}, r"patch: expected 17, 33 or 65, got 20"),
        ({"grey": 1.5}, r"grey: expected a number in \[0, 1\], got 1.5"),
        ({"zoom": (4.0, 2.0)}, r"zoom: expected two factors, the smaller first, got \(4.0, 2.0\)"),
        ({"knowledge": 0.0, "metric": 0.0, "compactness": 0.0}, r"compactness: expected one above 0, got none"),
        ({"backbone": "resnet19"}, r"backbone"),
    ],
)
def test_a_wrong_recipe_is_refused(images, changes, reason):
    with pytest.raises(ArgumentError, match=reason):
        distil_descriptor(images, replace(SMALL, **changes))


def test_a_thinned_curve_holds_means():
    losses = torch.arange(10.0, dtype=torch.float64)[:, None]
    course = Course(10, "steps", 1.0, ("loss",), losses, ())
    assert thinned(course, points=3) == [[4, 1.5], [8, 5.5], [10, 8.5]]
    assert thinned(course, points=99)[-1] == [10, 9.0]


# The card and the command


def test_the_card_says_what_the_weights_come_from(images, made, tmp_path):
    write_descriptor(made.network, tmp_path / "t.safetensors")
    card = json.loads(json.dumps(made.card))
    assert card["digest"] == persist.digest(persist.load(tmp_path / "t.safetensors")[0])
    assert card["recipe"]["zoom"] == [4.0, 16.0]
    assert (card["images"], card["images_digest"]) == (32, images.digest)
    assert (card["p"]["backbone"], card["p"]["tap"]) == (BACKBONE.name, "c")
    assert card["p"]["digest"] == persist.digest(module._teacher(SMALL, None, torch.device("cpu")).state())
    assert (card["steps"], card["ended"], card["terms"]) == (24, "steps", ["knowledge", "metric", "compactness"])
    assert len(card["curve"]) == 24
    assert card["held_out"].keys() == {"unexplained", "triplet_accuracy", "retrieval", "correlation"}
    again = read_descriptor(tmp_path / "t.safetensors")
    patches = torch.rand(2, 3, 17, 17)
    assert torch.equal(again(patches), made.network(patches))


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["distil", "descriptor", *(str(a) for a in arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


OPTIONS = ("--patch", 17, "--backbone", "small", "--steps", 6, "--set", "width=0.1", "--set", "teacher_side=24")


def test_the_command_writes_weights_card_and_figure(folder, tmp_path):
    out = tmp_path / "p17.safetensors"
    result = run(folder, *OPTIONS, "--set", "batch=8", "--out", out, "--figure", tmp_path / "f.png")
    assert "6/6 steps: loss " in result.stderr
    assert "held out, triplet accuracy" in result.stdout
    assert f"card: {tmp_path / 'p17.json'}" in result.stdout.replace("\n", "")
    card = json.loads((tmp_path / "p17.json").read_text())
    assert card["data"] == folder.name
    assert card["bytes"] == out.stat().st_size
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.png", "p17.json", "p17.safetensors"]
    printed = json.loads(run(folder, *OPTIONS, "--set", "batch=8", "--out", out, "--json").stdout)
    assert printed["digest"] == card["digest"]
    assert read_descriptor(out).patch == 17


def test_a_run_out_of_time_writes_what_there_is_and_goes_on(folder, tmp_path):
    out = tmp_path / "t.safetensors"
    result = run(folder, *OPTIONS, "--out", out, "--time-limit", 0, "--figure", tmp_path / "f.png")
    assert "The time was up before the last step; the same command goes on." in result.stderr
    assert json.loads((tmp_path / "t.json").read_text())["steps"] == 0
    assert (tmp_path / "t.safetensors.checkpoint").is_file()
    with Image.open(tmp_path / "f.png") as picture:  # of no step
        assert picture.width > 500
    refused = run(folder, *OPTIONS, "--set", "margin=2", "--out", out, status=1).stderr
    assert "a checkpoint of another run, which differs in margin (1.0 there, 2.0 here)" in " ".join(refused.split())
    assert "reading:" not in refused
    run(folder, *OPTIONS, "--out", out)
    assert json.loads((tmp_path / "t.json").read_text())["steps"] == 6
    assert not (tmp_path / "t.safetensors.checkpoint").exists()


def test_wrong_options_are_refused_before_images_are_read(folder, tmp_path):
    out = ("--out", tmp_path / "t.safetensors")
    assert "--set: expected a parameter out of width, " in run(folder, "--set", "x=1", *out, status=1).stderr
    assert "got patch" in run(folder, "--set", "patch=17", *out, status=1).stderr
    assert "--set, grey: expected a number in [0, 1], got no" in run(folder, "--set", "grey=no", *out, status=1).stderr
    assert "a file in an existing folder" in run(folder, "--out", tmp_path / "a" / "b", status=1).stderr
    assert "Example: blemish distil descriptor photographs" in run("--help").stdout
