from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.methods import GaussianAD
from blemish.ops.shrinkage import ShrinkageSums
from contract.laws import Images, batch
from reference import gaussian as reference
from reference import knn
from small import BACKBONE, layers, small_pixels


def levels(pixels):
    return [knn.pool(layer) for layer in layers(pixels)]


@pytest.mark.parametrize("n", [4, 40])
def test_equals_the_paper(n):
    train, test = small_pixels(n, 1), small_pixels(4, 2)
    scores = GaussianAD(backbone=BACKBONE).fit(Images(train)).score(batch(test))
    expected = reference.scores(levels(train), levels(test))
    np.testing.assert_allclose(scores.images.numpy(), expected, rtol=1e-3)
    squared = [reference.distances(a, b) ** 2 for a, b in zip(levels(train), levels(test), strict=True)]
    p_values = reference.chi2_p_values(squared, [6, 8, 10])
    np.testing.assert_allclose(scores.p_values.numpy(), p_values, rtol=2e-2, atol=1e-6)
    assert scores.maps is None


@pytest.mark.parametrize(("components", "share"), [("pca", 0.6), ("pca", 0.99), ("npca", 0.01), ("npca", 0.3)])
def test_components_equal_the_paper(components, share):
    train, test = small_pixels(40, 1), small_pixels(4, 2)
    method = GaussianAD(backbone=BACKBONE, components=components, variance=share).fit(Images(train))
    expected = np.zeros(4)
    for a, b in zip(levels(train), levels(test), strict=True):
        mean, covariance, _ = reference.ledoit_wolf(a)
        choose = reference.pca_components if components == "pca" else reference.npca_components
        expected += reference.component_distances(mean, *choose(covariance, share), b)
    np.testing.assert_allclose(method.score(batch(test)).images.numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("shape", [(5, 12), (60, 12), (30, 1), (2, 3)])
def test_shrinkage_equals_ledoit_and_wolf(shape):
    x = np.random.default_rng(0).normal(3.0, 1.0, shape) * np.arange(1, shape[1] + 1)
    sums = ShrinkageSums.empty(shape[1], torch.device("cpu"))
    sums.update(torch.from_numpy(x[: len(x) // 2]))
    rest = ShrinkageSums.empty(shape[1], torch.device("cpu"))
    rest.update(torch.from_numpy(x[len(x) // 2 :]))
    sums.merge(rest)
    mean, covariance, shrinkage = sums.estimate()
    expected = reference.ledoit_wolf(x)
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=1e-10)
    np.testing.assert_allclose(covariance.numpy(), expected[1], rtol=1e-8, atol=1e-9)
    assert shrinkage == pytest.approx(expected[2], abs=1e-9)


def test_images_of_another_size_can_be_scored():
    method = GaussianAD(backbone=BACKBONE).fit(Images(small_pixels(9, 1)))
    assert method.score(batch(small_pixels(2, 2, (40, 32)))).images.shape == (2,)


@pytest.mark.parametrize(("name", "value"), [("components", "ica"), ("variance", 0.0), ("variance", 1.5)])
def test_bad_parameters(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}: expected .*, got {value}"):
        GaussianAD(backbone=BACKBONE, **{name: value}).fit(Images(small_pixels(6, 1)))


def test_images_that_do_not_differ_are_refused():
    with pytest.raises(ArgumentError, match=r"images: expected normal images that differ"):
        GaussianAD(backbone=BACKBONE).fit(Images(small_pixels(1, 1).expand(5, -1, -1, -1).contiguous()))
    with pytest.raises(ArgumentError, match=r"images: expected at least 2 normal images, got 1"):
        GaussianAD(backbone=BACKBONE).fit(Images(small_pixels(1, 1)))
