"""Closed forms against a loop of backward passes through a linear layer, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.ood import ExGrad, GradNorm, Head, LastLayerGradient, Outputs
from blemish.ood.last_layer import ex_grad, grad_norm, last_layer_gradient

N, CLASSES, CHANNELS = 9, 5, 7
RANDOM = np.random.default_rng(0)
LAYER = torch.nn.Linear(CHANNELS, CLASSES, dtype=torch.float64)
with torch.no_grad():
    LAYER.weight.copy_(torch.from_numpy(RANDOM.normal(0, 1, (CLASSES, CHANNELS))))
    LAYER.bias.copy_(torch.from_numpy(RANDOM.normal(0, 1, CLASSES)))
# From nearly uniform softmax to one whose top class is 1 - 1e-9: autograd still has digits there.
FEATURES = RANDOM.normal(0, 1, (N, CHANNELS)) * np.geomspace(0.01, 6, N)[:, None]
LOGITS = LAYER(torch.from_numpy(FEATURES)).detach().numpy()


def gradients(loss_of):
    """(weight, bias) gradient of the loss, image by image."""
    for row in torch.from_numpy(FEATURES):
        LAYER.zero_grad()
        loss_of(LAYER(row)).backward()
        yield LAYER.weight.grad.clone(), LAYER.bias.grad.clone()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_grad_norm_equals_autograd(temperature):
    def to_uniform(z):
        return torch.nn.functional.cross_entropy(z / temperature, torch.full_like(z, 1 / CLASSES))

    norms = [float(weight.abs().sum()) for weight, _ in gradients(to_uniform)]
    np.testing.assert_allclose(grad_norm(LOGITS, FEATURES, temperature=temperature), -np.log(norms), rtol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_last_layer_gradient_equals_autograd(temperature, bias):
    def top(z):
        return torch.log_softmax(z / temperature, dim=0).max()

    norms = [math.sqrt(float(w.square().sum() + bias * b.square().sum())) for w, b in gradients(top)]
    scores = last_layer_gradient(LOGITS, FEATURES, temperature=temperature, bias=bias)
    np.testing.assert_allclose(scores, np.log(norms), rtol=1e-6)


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_ex_grad_equals_autograd(norm, order):
    expected = np.zeros(N)
    for y in range(CLASSES):
        p = np.exp(LOGITS[:, y]) / np.exp(LOGITS).sum(axis=1)
        of_class = gradients(lambda z, y=y: torch.log_softmax(z, dim=0)[y])
        expected += p * [float(torch.linalg.vector_norm(weight, order)) for weight, _ in of_class]
    np.testing.assert_allclose(ex_grad(LOGITS, FEATURES, norm=norm), np.log(expected), rtol=1e-6)


def test_squared_ex_grad_is_the_trace_of_the_fisher_matrix():
    """sum_y p_y |e_y - p|^2 = 1 - |p|^2, so the L2 score lies below half of its logarithm (Jensen)."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    trace = (FEATURES**2).sum(axis=1) * (1 - (p**2).sum(axis=1))
    by_class = sum(p[:, y] * ((np.eye(CLASSES)[y] - p) ** 2).sum(axis=1) for y in range(CLASSES))
    np.testing.assert_allclose((FEATURES**2).sum(axis=1) * by_class, trace, rtol=1e-6)
    assert (ex_grad(LOGITS, FEATURES, norm="l2") <= np.log(trace) / 2 + 1e-7).all()


def test_saturated_images_keep_their_norm():
    """With gaps of g and C - 1 equal others, |p - e_y| = sqrt((C - 1)^2 + C - 1) exp(-g), and autograd has only 0."""
    gaps = np.array([40.0, 300.0, 900.0])
    logits, features = np.zeros((3, 5)), np.full((3, 2), 3.0)
    logits[:, 2] = gaps
    expected = np.log(np.sqrt(16 + 4)) - gaps + np.log(np.sqrt(19))
    np.testing.assert_allclose(last_layer_gradient(logits, features), expected, rtol=1e-12)
    np.testing.assert_allclose(ex_grad(logits, features), np.log(2 * 2 * 4) - gaps + np.log(6), rtol=1e-12)


def test_nearly_uniform_images_keep_their_norm():
    """p - 1/C from probabilities would be rounding errors here: p differs from 1/4 in the 17th digit."""
    logits, features = np.array([[0.0, 0.0, 1e-17, 1e-17]]), np.ones((1, 3))
    expected = -np.log(3 * 1e-17 / 2)  # p - 1/4 is +-1e-17 / 8, times 4 classes
    np.testing.assert_allclose(grad_norm(logits, features), expected, rtol=1e-12)


def test_norms_of_0_stay_finite():
    zero, certain = np.zeros((1, 3)), np.array([[1.0, 0, 0]])
    for scores in (
        grad_norm(zero, zero),
        last_layer_gradient(zero, zero, bias=False),
        ex_grad(zero, zero),
        ex_grad(zero, zero, norm="l2"),
    ):
        assert np.isfinite(scores).all()
    assert grad_norm(zero, zero) > grad_norm(certain, zero + 1e-3)
    assert last_layer_gradient(zero, zero, bias=False) < last_layer_gradient(zero, zero + 1e-3, bias=False)


def test_detectors_hand_their_parameters_on():
    outputs = Outputs(LOGITS, FEATURES, Head(LAYER.weight.detach().numpy(), LAYER.bias.detach().numpy()))
    pairs = [
        (GradNorm(temperature=2.0), grad_norm(LOGITS, FEATURES, temperature=2.0)),
        (
            LastLayerGradient(temperature=2.0, bias=False),
            last_layer_gradient(LOGITS, FEATURES, temperature=2.0, bias=False),
        ),
        (ExGrad(norm="l2"), ex_grad(LOGITS, FEATURES, norm="l2")),
    ]
    for detector, expected in pairs:
        np.testing.assert_array_equal(detector.score(outputs), expected)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match=r"norm: expected l2 or l1, got l3"):
        ex_grad(LOGITS, FEATURES, norm="l3")
    with pytest.raises(ArgumentError, match=r"temperature: expected a number above 0, got 0"):
        grad_norm(LOGITS, FEATURES, temperature=0)
    with pytest.raises(ArgumentError, match=r"temperature"):
        last_layer_gradient(LOGITS, FEATURES, temperature=-1)
    with pytest.raises(ArgumentError, match=r"bias: expected true or false, got yes\. The default is true\."):
        last_layer_gradient(LOGITS, FEATURES, bias="yes")
    with pytest.raises(ArgumentError, match=r"features: expected 9 rows, as logits"):
        ex_grad(LOGITS, FEATURES[1:])
