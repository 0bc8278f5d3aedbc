from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError, ModelFileError
from blemish.methods.cflow import CFlow
from blemish.training.pictures import split_off
from contract.laws import Images, batch, normal_pixels
from reference import cflow as reference
from reference import scaling as reference_scaling
from small import BACKBONE, layers, small_pixels

SMALL = {"backbone": BACKBONE, "blocks": 2, "condition": 4, "positions": 16, "steps": 4}


def fitted(n=6, **parameters):
    return CFlow(**SMALL | parameters).fit(Images(small_pixels(n, 1)))


def graded(n, *, by=0.8):
    """Noise, and so much brighter on the left than on the right."""
    random = torch.Generator().manual_seed(n)
    return torch.linspace(by, 0, 32).expand(n, 3, 32, 32) + (0.9 - by) * torch.rand(n, 3, 32, 32, generator=random)


def blocks_of(method, layer):
    flow = method.flows_[layer]
    names = [*dict(flow.named_parameters()), "mixings"]
    return [{name: getattr(flow, name)[i].numpy() for name in names} for i in range(method.blocks)]


def grids(method, pixels):
    scalings, maps_of = [scaling.numpy() for scaling in method.scalings_], layers(pixels)
    if method.scale_ == "position":
        scalings = [s.reshape(2, *m.shape[2:], -1) for s, m in zip(scalings, maps_of, strict=True)]
    return [
        reference.densities(maps, scalings[i], blocks_of(method, i), clamp=method.clamp, condition=method.condition)
        for i, maps in enumerate(maps_of)
    ]


@pytest.mark.parametrize(
    "parameters",
    [
        {"scale": "auto"},
        {"scale": "position"},
        {"scale": "global"},
        {"combine": "likelihood", "scale": "none", "permutation": "hard"},
    ],
)
def test_maps_equal_the_plain_loops(parameters):
    method = fitted(sigma=0.0, clamp=1.2, **parameters)
    test = small_pixels(2, 2)
    _, held_out = split_off(6, method.validation, seed=0)
    combine = getattr(reference, method.combine)
    expected = combine(grids(method, test), grids(method, small_pixels(6, 1)[held_out]), (24, 24))
    scores = method.score(batch(test))
    np.testing.assert_allclose(scores.maps.numpy(), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores.images.numpy(), expected.max(axis=(1, 2)), rtol=1e-3, atol=1e-3)


def test_the_scale_is_that_of_the_images_learned_from():
    """A position's: mean 0, deviation about 1 there. The channel's: the same over all positions."""
    pixels = small_pixels(6, 1)
    train, _ = split_off(6, 0.1, seed=0)
    for i, maps in enumerate(layers(pixels[train])):
        mean, deviation = reference_scaling.position_moments(maps)
        shift, factor = fitted(scale="position").scalings_[i].numpy()
        np.testing.assert_allclose(shift, mean.reshape(len(mean), -1).T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(1 / factor, deviation.reshape(len(mean), -1).T, rtol=1e-3, atol=1e-5)
        shift, factor = fitted(scale="global").scalings_[i].numpy()
        np.testing.assert_allclose(shift, maps.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(1 / factor, maps.std(axis=(0, 2, 3)), rtol=1e-3)


def test_what_is_usual_at_a_position_is_told_from_what_is_not():
    """Bright on the left, dark on the right: turned round, every vector is known, but not where it is."""
    pixels = graded(12)
    scores = {}
    for scale in ("position", "global"):
        method = CFlow(**SMALL | {"scale": scale, "steps": 1, "condition": 4}).fit(Images(pixels))
        normal, turned = (method.score(batch(p[:4])).images.mean() for p in (pixels, pixels.flip(3)))
        scores[scale] = float(turned - normal)
    assert scores["position"] > 50 * scores["global"] > 0


@pytest.mark.parametrize(("by", "likelier"), [(0.8, "position"), (0.0, "global")])
def test_auto_keeps_the_scale_by_which_held_out_images_are_likelier(by, likelier, caplog):
    pixels = graded(6, by=by)
    with caplog.at_level(logging.INFO, logger="blemish"):
        found = {
            s: CFlow(**SMALL | {"scale": s, "steps": 30}).fit(Images(pixels)) for s in ("auto", "global", "position")
        }
    best = {scale: min(figure for _, figure in found[scale].course_.looks) for scale in ("global", "position")}
    assert found["auto"].scale_ == likelier == min(best, key=best.get)
    assert (
        f"{best['global']:.3f} with global and {best['position']:.3f} with position; scale={likelier} is kept"
        in caplog.text
    )
    test = batch(graded(3))
    expected = found[likelier].score(test)
    assert torch.equal(found["auto"].score(test).maps, expected.maps)
    again = CFlow(**SMALL | {"scale": "auto", "steps": 30})
    again.restore(found["auto"].state())
    assert torch.equal(again.score(test).maps, expected.maps)
    assert again.scale_ == likelier


@pytest.mark.parametrize("scale", ["global", "position"])
def test_looks_are_of_vectors_as_they_were_before_they_were_scaled(scale):
    """A new flow is a diagonal Gaussian."""
    pixels = graded(20)
    method = CFlow(**SMALL | {"scale": scale, "steps": 0, "validation": 0.5}).fit(Images(pixels))
    _, held_out = split_off(20, 0.5, seed=0)
    densities = []
    for maps, scaling in zip(layers(pixels[held_out]), method.scalings_, strict=True):
        vectors = maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1).astype(np.float64)
        shift, factor = scaling.double().numpy()
        densities.append((np.log(factor) - ((vectors - shift) * factor) ** 2 / 2 - np.log(2 * np.pi) / 2).mean())
    assert method.course_.looks[0][1] == pytest.approx(-np.mean(densities), abs=0.1)


def test_one_image_says_nothing_of_how_much_a_position_varies():
    assert fitted(2, scale="auto").scale_ == "global"
    seen = 0

    class Counted(Images):
        def __iter__(self):
            nonlocal seen
            for part in super().__iter__():
                seen += 1
                yield part

    with pytest.raises(ArgumentError, match=r"images: expected at least 2 to learn from .*scale=global"):
        CFlow(**SMALL | {"scale": "position"}).fit(Counted(graded(2), batch_size=1))
    assert seen == 1  # of the first image the layers' sizes are known


def test_what_is_known_of_each_position_is_planned_for():
    method = CFlow(**SMALL | {"scale": "position", "steps": 1}).fit(Images(graded(20)))
    plan = method.plan(method._maps(batch(graded(1))), 20)
    assert plan.model_bytes == pytest.approx(sum(t.nbytes for t in method._learned().values()), rel=0.05)


def test_auto_goes_on_from_its_two_checkpoints(tmp_path):
    path = str(tmp_path / "run")
    fitted(scale="auto", checkpoint=path, time_limit=1e-9)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "run.position"]
    test = batch(small_pixels(2, 2))
    assert torch.equal(fitted(scale="auto", checkpoint=path).score(test).maps, fitted(scale="auto").score(test).maps)


@pytest.mark.parametrize("loss", ["nll", "logsigmoid"])
def test_loss_equals_the_plain_loops(loss):
    """Of the first step; `start` has the flows as they are before it."""
    method = CFlow(**SMALL | {"loss": loss, "scale": "none", "steps": 1, "positions": 4000, "taps": ("c",)})
    method.fit(Images(small_pixels(2, 1)))
    start = CFlow(**SMALL | {"taps": ("c",)})
    start.flows_ = start._build([10])
    start.flows_.requires_grad_(False)
    train, _ = split_off(2, 0.1, seed=0)
    maps = layers(small_pixels(2, 1)[train], ("c",))[0]
    codes = reference.flows.position_code(3, 3, 4).reshape(9, 4)
    vectors = maps[0].reshape(10, 9).T
    expected = reference.loss(vectors, codes, blocks_of(start, 0), start.clamp, logsigmoid=loss == "logsigmoid")
    assert float(method.course_.losses[0, 0]) == pytest.approx(expected, rel=0.02)  # 4000 draws of 9 vectors


def test_training_makes_normal_images_likelier():
    method = CFlow(**SMALL | {"steps": 60, "rate": 5e-3}).fit(Images(normal_pixels(12, 1)))
    looks = [value for _, value in method.course_.looks]
    assert min(looks) < looks[0] - 0.03
    assert method.course_.losses[-5:].sum(dim=1).mean() < method.course_.losses[:5].sum(dim=1).mean() - 0.1
    assert method.course_.losses.shape == (60, 3)
    assert method.course_.terms == ("a", "b", "c")


def test_layers_are_put_on_one_scale_by_held_out_images_alone():
    """Scores do not change with what is scored, and on the held-out images each layer has mean 0 and deviation 1."""
    method = fitted(sigma=0.0)
    _, held_out = split_off(6, method.validation, seed=0)
    for i, grid in enumerate(grids(method, small_pixels(6, 1)[held_out])):
        mean, deviation, most = method.normal_[i].tolist()
        assert mean == pytest.approx(grid.mean(), abs=1e-4)
        assert deviation == pytest.approx(grid.std(ddof=1), rel=1e-3)
        assert most == pytest.approx(grid.max(), abs=1e-4)


def test_held_out_images_are_never_trained_on():
    """The same model comes out, whatever the held-out image is, where nothing is chosen by it."""
    pixels, other = small_pixels(6, 1), small_pixels(6, 1)
    train, held_out = split_off(6, 0.1, seed=0)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(6))
    other[held_out] = 1 - other[held_out]
    first, second = (CFlow(**SMALL).fit(Images(p)) for p in (pixels, other))
    assert torch.equal(first.course_.losses, second.course_.losses)
    assert not torch.equal(first.normal_, second.normal_)


def test_goes_on_from_its_checkpoint(tmp_path):
    path = str(tmp_path / "run")
    stopped = fitted(checkpoint=path, time_limit=1e-9)
    assert stopped.course_.steps < 4
    resumed = fitted(checkpoint=path)
    whole = fitted()
    assert resumed.course_.steps == 4
    test = batch(small_pixels(2, 2))
    assert torch.equal(resumed.score(test).maps, whole.score(test).maps)
    with pytest.raises(ModelFileError, match="features"):
        fitted(7, checkpoint=path)


def test_progress_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="blemish"):
        fitted()
    assert "cflow: step 4 of 4, loss" in caplog.text


def test_a_channel_that_never_fires_does_no_harm():
    method = CFlow(backbone="filters", blocks=1, condition=4, positions=8, steps=1)
    flat = torch.full((3, 3, 64, 64), 0.5) + 0.001 * normal_pixels(3, 1)
    method.fit(Images(flat))
    assert torch.isfinite(method.score(batch(normal_pixels(2, 2))).maps).all()


def test_another_size_is_refused():
    with pytest.raises(ArgumentError, match=r"images: expected preprocessed images of size \(24, 24\)"):
        fitted().score(batch(small_pixels(2, 2, (32, 24))))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1), ("rate", 0.0), ("validation", 1.0), ("sigma", -1.0), ("time_limit", -1.0), ("positions", 0),
        ("blocks", 0), ("clamp", 0.0), ("permutation", "none"), ("condition", 6), ("loss", "mse"), ("combine", "max"),
        ("scale", "layer"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}: expected .*, got {value}"):
        fitted(**{name: value})


def test_one_image_is_too_few():
    with pytest.raises(ArgumentError, match=r"images: expected at least 2 normal images, got 1"):
        fitted(1)
