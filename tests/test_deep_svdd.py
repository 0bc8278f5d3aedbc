from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish import persist
from blemish.errors import ArgumentError, TrainingError
from blemish.methods import deep_svdd as module
from blemish.methods.deep_svdd import (
    Autoencoder,
    DeepSVDD,
    LeNet,
    away_from_zero,
    contrast_normalised,
    distances,
    radius,
    reconstruction_loss,
    soft_boundary,
)
from contract.laws import Images, batch
from reference import deep_svdd as reference
from reference import knn as knn_reference
from trained import NET, check_resumes, varied_pixels

TRAIN, TEST = varied_pixels(10, 1), varied_pixels(4, 2)


def deep_svdd(**parameters):
    return DeepSVDD(**{"epochs": 2, "batch": 5, "side": 8} | parameters)


# The formulas


def test_losses_equal_the_paper():
    random = np.random.default_rng(0)
    vectors, centre = random.normal(size=(9, 4)), random.normal(size=4)
    squared = distances(torch.from_numpy(vectors), torch.from_numpy(centre))
    assert float(squared.mean()) == pytest.approx(reference.hard(vectors, centre))
    for r, nu in ((0.0, 0.1), (1.5, 0.1), (2.0, 0.5)):
        ours = soft_boundary(squared, torch.tensor(r, dtype=torch.float64), nu)
        assert float(ours) == pytest.approx(reference.soft(vectors, centre, r, nu))


def test_the_radius_is_the_best_one():
    random = np.random.default_rng(0)
    vectors, centre = random.normal(size=(41, 4)), np.zeros(4)
    best = float(radius(distances(torch.from_numpy(vectors), torch.zeros(4)), 0.3))
    losses = [reference.soft(vectors, centre, r, 0.3) for r in np.linspace(0.5, 4, 200)]
    assert reference.soft(vectors, centre, best, 0.3) <= min(losses) + 1e-2


def test_the_centre_stays_away_from_zero():
    vectors = np.random.default_rng(0).normal(0, 0.5, size=(9, 30))
    ours = away_from_zero(torch.from_numpy(vectors).mean(dim=0))
    np.testing.assert_allclose(ours.numpy(), reference.centre(vectors))
    assert float(ours.abs().min()) == pytest.approx(0.1)


def test_contrast_is_normalised_image_by_image():
    ours = contrast_normalised(TRAIN)
    for image, expected in zip(ours, TRAIN, strict=True):
        np.testing.assert_allclose(image.numpy(), reference.contrast(expected.numpy()), atol=1e-5)
    assert float(contrast_normalised(torch.full((1, 3, 8, 8), 0.4)).abs().max()) < 1


def test_reconstruction_loss():
    made, wanted = TRAIN[:2], TRAIN[2:4]
    expected = sum(float(((made[i] - wanted[i]) ** 2).sum()) for i in range(2)) / 2
    assert float(reconstruction_loss(made, wanted)) == pytest.approx(expected, rel=1e-5)


# The network


def test_the_network_is_the_papers():
    network = LeNet()
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(32, 3, 5, 5), (64, 32, 5, 5), (128, 64, 5, 5), (128, 128, 4, 4)]
    assert network(torch.rand(2, 3, 40, 70)).shape == (2, 128, 1, 1)
    made, wanted = Autoencoder(network)(torch.rand(2, 3, 32, 32))
    assert made.shape == wanted.shape == (2, 3, 32, 32)
    assert all(p.ndim == 4 for p in Autoencoder(network).parameters()), "a bias"


def test_normal_images_run_from_0_to_1():
    method = deep_svdd(epochs=1).fit(Images(TRAIN))
    network = LeNet(side=8)
    network.low, network.high = (method.state()[f"backbone.{name}"] for name in ("low", "high"))
    prepared = network.prepare(TRAIN)
    assert (float(prepared.min()), float(prepared.max())) == pytest.approx((0, 1), abs=1e-5)


# The training


@pytest.mark.parametrize("parameters", [{}, {"boundary": "soft", "warm_up": 1, "nu": 0.3}, {"network": "backbone"}],
                         ids=str)  # fmt: skip
def test_scores_are_distances_to_the_centre(parameters):
    method = deep_svdd(backbone=NET, **parameters).fit(Images(TRAIN))
    vectors = knn_reference.pool(method.extractor_(TEST).maps[0].numpy())
    expected = [reference.distance(v, method.centre_.numpy()) - float(method.radius_) ** 2 for v in vectors]
    np.testing.assert_allclose(method.score(batch(TEST)).images.numpy(), expected, rtol=1e-4)
    assert (float(method.radius_) > 0) == (method.boundary == "soft")


def test_the_loss_falls():
    losses = deep_svdd(epochs=12, batch=10, rate=1e-3).fit(Images(TRAIN)).course_.losses[:, 0]
    assert losses[-1] < 0.7 * losses[0]


def test_pretraining_teaches_the_encoder_to_give_back_its_input(tmp_path):
    method = deep_svdd(pretrain=6, rate=1e-3, checkpoint=str(tmp_path / "c")).fit(Images(TRAIN))
    other = deep_svdd(rate=1e-3).fit(Images(TRAIN))
    assert not torch.equal(method.centre_, other.centre_)
    tensors, _ = persist.load(tmp_path / "c.autoencoder")
    assert int(tensors["step"]) == 12
    assert tensors["losses"][-2:].mean() < tensors["losses"][:2].mean()


@pytest.mark.parametrize("step", [3, 6])
def test_a_fit_that_was_killed_goes_on_with_the_same_scores(step, tmp_path):
    """At step 3 in the pretraining, at step 6 after it."""
    parameters = {"boundary": "soft", "warm_up": 1, "pretrain": 2, "epochs": 4}
    check_resumes(lambda **more: deep_svdd(**parameters, **more), TRAIN, TEST, tmp_path / "c", step=step)


class Biased(LeNet):
    """What the paper warns of."""

    def __init__(self, *, side, contrast):
        super().__init__(side=side, contrast=contrast, bias=True)


@pytest.mark.parametrize("parameters", [
    {"network": "backbone", "backbone": NET, "rate": 3e-2}, {"rate": 3e-3, "collapse": 1e-2},
], ids=["backbone", "lenet"])  # fmt: skip
def test_a_collapse_is_an_error(parameters, monkeypatch):
    """Of a network with biases, and the centre 0, which it reaches for every image."""
    monkeypatch.setattr(module, "LeNet", Biased)
    monkeypatch.setattr(module, "away_from_zero", torch.zeros_like)
    message = r"step \d+: the network has collapsed: over 10 normal images the variance"
    with pytest.raises(TrainingError, match=message):
        deep_svdd(**{"epochs": 200, "batch": 10} | parameters).fit(Images(TRAIN))


def test_what_is_left_of_the_variance_is_recorded():
    method = deep_svdd(epochs=4, batch=10).fit(Images(TRAIN))
    assert [step for step, _ in method.course_.looks] == [0, 1, 2, 3, 4]
    assert method.course_.looks[0][1] == 1
    assert 1e-2 < method.course_.looks[-1][1] < 1


@pytest.mark.parametrize(("parameters", "message"), [
    ({"network": "alexnet"}, "network: expected lenet or backbone, got alexnet"),
    ({"boundary": "none"}, "boundary: expected hard or soft"),
    ({"side": 30}, r"side: expected a whole number in \[8, 256\], a multiple of 8, got 30"),
    ({"nu": 0.0}, r"nu: expected a number in \(0, 1\], got 0"),
    ({"pretrain": -1}, "pretrain: expected a whole number of at least 0"),
    ({"pretrain": 1, "side": 24}, "pretrain: expected 0, or network='lenet' with a side of 8, 16, 32 or 64"),
    ({"pretrain": 1, "network": "backbone"}, "pretrain: expected 0"),
    ({"collapse": 1.0}, r"collapse: expected a number in \[0, 1\), got 1.0"),
])  # fmt: skip
def test_bad_parameters(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        deep_svdd(**parameters).fit(Images(TRAIN))
