from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from blemish.augment.defects import FAMILIES
from blemish.errors import ArgumentError, ModelFileError, NotEnoughMemoryError
from blemish.features.backbones import custom_backbone
from blemish.features.extract import Extractor
from blemish.methods.gaussian_finetune import GaussianFinetune
from blemish.ops.separation import separation
from blemish.training.loop import batch_of, generator
from blemish.training.pictures import Pictures, split_off
from blemish.types import ImageBatch
from contract.laws import Images, batch
from reference import gaussian_finetune as reference
from reference import knn
from small import BACKBONE, layers, small_pixels

PIXELS, TEST = small_pixels(15, 1), small_pixels(3, 2)
TRAIN, HELD_OUT = split_off(15, 0.2, seed=0)
SMALL = {"backbone": BACKBONE, "epochs": 2, "batch": 5, "rate": 1e-3}


def fitted(pixels=PIXELS, **parameters):
    return GaussianFinetune(**SMALL | parameters).fit(Images(pixels))


def initial(pixels):
    return [knn.pool(layer) for layer in layers(pixels)]


def tuned(method, pixels):
    return [m.numpy() for m in method.extractor_(pixels).maps]


def judged(monkeypatch, *separations):
    """Let the criterion find these, one after the other, of a single family."""
    found = iter(separations)
    monkeypatch.setattr("blemish.methods.gaussian_finetune.separation", lambda *_: next(found))
    return {"families": ("scar",), "epochs": len(separations) - 1}


def changed(families=tuple(FAMILIES)):
    return [FAMILIES[family](PIXELS[HELD_OUT], generator(0, 0, family)) for family in families]


# Against the plain loops


@pytest.mark.parametrize("covariance", ["full", "diagonal", "identity"])
def test_scores_and_maps_equal_the_plain_loops(covariance, monkeypatch):
    method = fitted(covariance=covariance, sigma=0.0, **judged(monkeypatch, 0.5, 0.6, 0.7))
    assert method.course_.best[0] == 6
    scores = method.score(batch(TEST))
    pooled = [knn.pool(m) for m in tuned(method, TEST)]
    expected = reference.scores(initial(PIXELS[TRAIN]), pooled, covariance)
    np.testing.assert_allclose(scores.images.numpy(), expected, rtol=1e-3)
    maps = reference.maps(tuned(method, PIXELS[TRAIN]), tuned(method, TEST), covariance, (24, 24))
    np.testing.assert_allclose(scores.maps.numpy(), maps, rtol=1e-3)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "identity"])
def test_loss_equals_the_plain_loops(covariance):
    chosen = PIXELS[TRAIN][batch_of(12, 5, seed=0, step=0)]
    expected = reference.loss(initial(PIXELS[TRAIN]), initial(chosen), covariance)
    course = fitted(covariance=covariance).course_
    assert course.terms == ("a", "b", "c")
    np.testing.assert_allclose(course.losses[0].numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("families", [("augmix", "cutout", "cutpaste", "scar"), ("scar",), ("cutout", "augmix")])
def test_criterion_equals_the_plain_loops(families):
    """Before the first step, and of the network that is kept."""
    method = fitted(families=families)
    normal = initial(PIXELS[TRAIN])
    views = [reference.scores(normal, initial(view), "full") for view in changed(families)]
    untouched = reference.scores(normal, initial(PIXELS[HELD_OUT]), "full")
    assert method.course_.looks[0] == (0, pytest.approx(reference.criterion(untouched, views)))
    views = [method.score(batch(view)).images.tolist() for view in changed(families)]
    untouched = method.score(batch(PIXELS[HELD_OUT])).images.tolist()
    assert method.course_.best[1] == pytest.approx(reference.criterion(untouched, views))


def test_separation_is_mann_whitney_with_ties():
    random = torch.Generator().manual_seed(0)
    normal, other = torch.randint(6, (20,), generator=random).float(), torch.randint(9, (15,), generator=random).float()
    assert separation(normal, other) == pytest.approx(reference.separation(normal.tolist(), other.tolist()))
    assert separation(torch.zeros(3), torch.ones(2)) == 1.0
    assert separation(torch.ones(3), torch.ones(2)) == 0.5


# What is trained, and what it sees


@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 1e-3), ("sgd", 1e-3)])
def test_normal_images_come_closer(optimiser, rate):
    losses = fitted(epochs=6, patience=9, optimiser=optimiser, rate=rate).course_.losses.sum(dim=1)
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()


def test_the_first_step_of_sgd_goes_down_the_gradient(monkeypatch):
    """By rate times the gradient: Adam's first step has nearly the same length in every parameter."""
    steps = []
    for rate in (1e-4, 2e-4):
        method = fitted(optimiser="sgd", rate=rate, batch=99, **judged(monkeypatch, 0.5, 0.9))
        before, after = (dict(m.named_parameters())["a.weight"] for m in (BACKBONE.build(), method.extractor_.module))
        steps.append((after - before).detach())
    torch.testing.assert_close(steps[1], 2 * steps[0], rtol=1e-2, atol=1e-7)


def test_only_the_chosen_modules_change(monkeypatch):
    method = fitted(trained=("c",), **judged(monkeypatch, 0.5, 0.9))
    before = dict(BACKBONE.build().named_parameters())
    after = dict(method.extractor_.module.named_parameters())
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert not any(parameter.requires_grad for parameter in after.values())


def test_batch_norm_is_frozen(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2), nn.Tanh())
    backbone = custom_backbone(net, taps=("2", "4"), trace_size=24)
    method = fitted(backbone=backbone, rate=0.05, **judged(monkeypatch, 0.5, 0.9))
    norm = method.extractor_.module[2]
    assert isinstance(norm, nn.BatchNorm2d)
    assert not torch.equal(method.extractor_.module[0].weight, net[0].weight)
    assert all(torch.equal(value, net[2].state_dict()[name]) for name, value in norm.state_dict().items())


def test_criterion_sees_held_out_normal_images_alone(monkeypatch):
    """Every image that goes through the network in a fit is a normal one, or a held-out one with a small change.

    With gradients go those that are not held out, and no others: what is trained on judges nothing.
    """
    with_gradients, without = [], []
    maps = Extractor.maps

    def spy(self, pixels):
        (with_gradients if torch.is_grad_enabled() else without).append(pixels.clone())
        return maps(self, pixels)

    monkeypatch.setattr(Extractor, "maps", spy)
    fitted()

    def contents(images):
        return {image.numpy().tobytes() for image in images}

    assert contents(torch.cat(with_gradients)) == contents(PIXELS[TRAIN])
    assert contents(torch.cat(without)) == contents(PIXELS) | contents(torch.cat(changed()))


def test_held_out_images_shape_neither_gaussians_nor_losses():
    other = PIXELS.clone()
    other[HELD_OUT] = 1 - other[HELD_OUT]
    first, second = fitted(), fitted(other)
    assert all(torch.equal(a, b) for a, b in zip(first.gaussians_[0], second.gaussians_[0], strict=True))
    assert torch.equal(first.course_.losses, second.course_.losses)
    assert first.course_.looks != second.course_.looks


def test_training_stops_after_patience_and_keeps_the_best_epoch(monkeypatch):
    method = fitted(patience=2, **judged(monkeypatch, 0.5, 0.9, 0.7, 0.8, 1.0, 1.0))
    assert method.course_.ended == "watch"
    assert [step for step, _ in method.course_.looks] == [0, 3, 6, 9]
    short = fitted(**judged(monkeypatch, 0.5, 0.9))
    assert torch.equal(method.score(batch(TEST)).images, short.score(batch(TEST)).images)


def test_goes_on_from_its_checkpoint(tmp_path):
    path = str(tmp_path / "run")
    stopped = fitted(checkpoint=path, time_limit=1e-9)
    assert stopped.course_.steps < 6
    resumed, whole = fitted(checkpoint=path), fitted()
    assert resumed.course_.steps == 6
    assert torch.equal(resumed.score(batch(TEST)).maps, whole.score(batch(TEST)).maps)
    with pytest.raises(ModelFileError, match="families"):
        fitted(checkpoint=path, families=("scar",))


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1), ("batch", 0), ("patience", 0), ("rate", -1.0), ("validation", 0.0), ("covariance", "sparse"),
        ("families", ("blur",)), ("families", ()), ("precision", "bfloat16"), ("trained", ("d",)),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}: expected "):
        fitted(**{name: value})


def test_more_than_the_memory_holds_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(Pictures, "read", None)
    with pytest.raises(NotEnoughMemoryError, match=r"gaussian_finetune: 15 inputs .*; model .* Give fewer images"):
        fitted(memory_gb=1e-9)


def test_a_backbone_without_parameters_is_refused():
    with pytest.raises(ArgumentError, match=r"backbone: expected modules with parameters .this backbone has none"):
        fitted(backbone="filters", pixels=small_pixels(4, 1, (64, 64)))


def test_features_of_another_network_are_refused():
    method = fitted()
    known = ImageBatch(TEST, ("a",) * 3, ((24, 24),) * 3, dict.fromkeys("abc", torch.zeros(3, 1, 1, 1)))
    for use in (method.score, lambda known: method.fit([known])):
        with pytest.raises(ArgumentError, match=r"features: expected none: gaussian_finetune reads the pixels"):
            use(known)


# Small changes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_a_pure_function_of_its_generator(family):
    pixels = small_pixels(4, 3, (40, 32))
    kept = pixels.clone()
    first, again, other = (FAMILIES[family](pixels, generator(seed, 0, "test")) for seed in (0, 0, 1))
    assert torch.equal(pixels, kept)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == pixels.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert all(not torch.equal(a, b) for a, b in zip(first, pixels, strict=True))


@pytest.mark.parametrize(("family", "most"), [("cutout", 0.06), ("cutpaste", 0.17), ("scar", 0.02)])
def test_a_family_changes_a_small_part(family, most):
    pixels = small_pixels(30, 3, (64, 64))
    share = (FAMILIES[family](pixels, generator(0, 0, "test")) != pixels).any(dim=1).float().mean(dim=(1, 2))
    assert share.min() > 0
    assert share.max() <= most
    assert share.max() > 2 * share.min()


def test_pasted_content_is_the_images_own():
    """Where the green channel is twice the red one, it is so in every pasted part."""
    red = small_pixels(20, 3, (64, 64))[:, :1] / 3
    pixels = torch.cat([red, 2 * red, torch.full_like(red, 0.3)], dim=1)
    for family in ("cutpaste", "scar"):
        pasted = FAMILIES[family](pixels, generator(0, 0, "test"))
        torch.testing.assert_close(pasted[:, 1], 2 * pasted[:, 0])
        assert not torch.equal(pasted, pixels)
        assert (pasted[:, 2] - 0.3).abs().max() <= 0.031  # a tenth brighter or darker


def test_cut_out_leaves_the_mean_colour():
    pixels = small_pixels(5, 3, (64, 64))
    for before, after in zip(pixels, FAMILIES["cutout"](pixels, generator(0, 0, "test")), strict=True):
        inside = (after != before).any(dim=0)
        torch.testing.assert_close(after[:, inside], before.mean(dim=(1, 2))[:, None].expand(-1, int(inside.sum())))
