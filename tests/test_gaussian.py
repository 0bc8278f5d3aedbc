from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.ops import gaussian
from blemish.ops.gaussian import Moments

POSITIONS, D, EPS = 3, 6, 0.01


def vectors(n, seed, d=D):
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(POSITIONS, d, d, generator=random)
    return (torch.randn(n, POSITIONS, 1, d, generator=random) @ mix)[:, :, 0] + 5


def moments_of(parts, d=D, expected=None):
    moments = Moments(POSITIONS, d, expected=expected)
    for part in parts:
        moments.update(part)
    return moments


def a_target(d=D):
    random = torch.Generator().manual_seed(9)
    mix = torch.randn(d, d, generator=random, dtype=torch.float64)
    return mix @ mix.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


TARGETS = pytest.mark.parametrize("target", [None, a_target], ids=["identity", "target"])


def made(target, d=D):
    return None if target is None else target(d)


def reference_distances(train, test, eps=EPS, target=None):
    """The definition, position by position, in float64."""
    target = np.eye(train.shape[2]) if target is None else target.numpy()
    result = np.empty(test.shape[:2])
    for p in range(train.shape[1]):
        x = train[:, p].double().numpy()
        covariance = np.zeros((x.shape[1], x.shape[1]))
        for row in x:
            covariance += np.outer(row - x.mean(axis=0), row - x.mean(axis=0)) / (len(x) - 1)
        inverse = np.linalg.inv(covariance + eps * target)
        for k in range(len(test)):
            z = test[k, p].double().numpy() - x.mean(axis=0)
            result[k, p] = np.sqrt(z @ inverse @ z)
    return result


@TARGETS
@pytest.mark.parametrize("n", [2, 5, 6, 7, 40])
def test_distances_equal_the_definition(n, target):
    train, test = vectors(n, 0), vectors(4, 1)
    fitted = moments_of([train], expected=n).whiten(EPS, made(target))
    assert (fitted.spectrum is None) == (n > D)
    # Training vectors too: there the short form of Woodbury's identity loses its digits.
    both = torch.cat([test, train])
    expected = reference_distances(train, both, target=made(target))
    np.testing.assert_allclose(fitted.distances(both).numpy(), expected, rtol=3e-5)


@TARGETS
def test_low_rank_equals_dense_where_both_apply(target):
    train = vectors(20, 0, d=30)
    low = moments_of([train], d=30, expected=20).whiten(EPS, made(target, 30))
    dense = moments_of([train], d=30, expected=4).whiten(EPS, made(target, 30))  # a small buffer forces the scatter
    assert low.spectrum is not None
    assert dense.spectrum is None
    assert low.factor.shape == (POSITIONS, 19, 30)
    test = torch.cat([vectors(5, 1, d=30), train])
    torch.testing.assert_close(low.distances(test), dense.distances(test), rtol=1e-5, atol=0)


def test_repeated_images_are_no_problem():
    train = vectors(3, 0).repeat(2, 1, 1)
    test = vectors(4, 1)
    distances = moments_of([train], expected=6).whiten(EPS).distances(test)
    np.testing.assert_allclose(distances.numpy(), reference_distances(train, test), rtol=2e-5)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, D))
def test_any_split_gives_the_same_moments(sizes, capacity):
    train = vectors(sum(sizes) + 1, 3)
    parts = moments_of(train.split([1, *sizes]), expected=capacity)
    rows = train.double()
    mean = rows.mean(dim=0)
    covariance = torch.einsum("npd,npe->pde", rows - mean, rows - mean) / (len(rows) - 1)
    torch.testing.assert_close(parts.mean(), mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts.covariance(), covariance, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 20))
def test_merge_equals_one_pass(n, m):
    train = vectors(n + m, 4)
    left, right = moments_of([train[:n]]), moments_of([train[n:]])
    left.merge(right)
    whole = moments_of([train])
    assert left.count == n + m
    torch.testing.assert_close(left.mean(), whole.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(left.covariance(), whole.covariance(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [4, 30], ids=["low rank", "dense"])
def test_the_pooled_covariance_is_the_mean_over_positions(n):
    train = vectors(n, 2)
    rows = train.double().numpy()
    expected = np.mean([np.cov(rows[:, p].T) for p in range(POSITIONS)], axis=0)
    moments = moments_of([train], expected=n)
    np.testing.assert_allclose(moments.pooled().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert (moments._scatter is None) == (n < D)  # few rows make no scatter


@TARGETS
@pytest.mark.parametrize("n", [4, 30], ids=["low rank", "dense"])
def test_moments_come_back_from_the_factor(n, target):
    train = vectors(n, 5)
    whole = moments_of([train], expected=n)
    mean, covariance = whole.mean().clone(), whole.covariance()
    back = Moments.from_factor(moments_of([train], expected=n).whiten(EPS, made(target)), expected=3)
    assert back.count == n
    torch.testing.assert_close(back.mean(), mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back.covariance(), covariance, rtol=1e-5, atol=1e-5)


@TARGETS
def test_few_rows_stay_in_the_low_rank_form_after_an_update(target):
    train = vectors(8, 5, d=30)
    moments = Moments.from_factor(moments_of([train[:5]], d=30, expected=5).whiten(EPS, made(target, 30)), expected=3)
    moments.update(train[5:])
    updated = moments.whiten(EPS)
    assert updated.spectrum is not None
    test = vectors(3, 6, d=30)
    whole = moments_of([train], d=30, expected=8).whiten(EPS)
    torch.testing.assert_close(updated.distances(test), whole.distances(test), rtol=1e-4, atol=0)


def test_chunks_do_not_matter(monkeypatch):
    train, test = vectors(20, 6), vectors(3, 7)
    whole = moments_of([train]).whiten(EPS).distances(test)
    monkeypatch.setattr(gaussian, "_CHUNK_BYTES", 1)
    torch.testing.assert_close(moments_of([train]).whiten(EPS).distances(test), whole, rtol=1e-6, atol=0)


@TARGETS
@pytest.mark.parametrize("n", [4, 40], ids=["low rank", "dense"])
def test_sample_has_the_gaussians_moments(n, target):
    fitted = moments_of([vectors(n, 8)], expected=n).whiten(EPS, made(target))
    squared = torch.stack([fitted.distances(fitted.sample(seed=s))[0].square() for s in range(400)])
    # The squared Mahalanobis distance of a draw is chi-squared with d degrees of freedom.
    assert abs(float(squared.mean()) - D) < 0.4


def test_memory_does_not_grow_with_the_images():
    moments = Moments(POSITIONS, D)
    sizes = set()
    for seed in range(20):
        moments.update(vectors(5, seed))
        held = [t for t in vars(moments).values() if isinstance(t, torch.Tensor)]
        sizes.add(sum(t.numel() * t.element_size() for t in held))
    assert max(sizes) == POSITIONS * (D * D * 4 + D * 8 + D * D * 8)


def test_errors_are_named():
    with pytest.raises(ArgumentError, match=r"count: expected at least 2 vectors, got 1"):
        moments_of([vectors(1, 0)]).whiten(EPS)
    with pytest.raises(ArgumentError, match=r"other: expected moments of shape"):
        moments_of([vectors(2, 0)]).merge(moments_of([vectors(2, 0, d=4)], d=4))
    with pytest.raises(ArgumentError, match=r"eps: expected a regularisation"):
        moments_of([vectors(9, 0)]).whiten(-1e6)
