"""The fine-tuned Gaussian: distances, loss, criterion and map, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np

from reference import bilinear
from reference.gaussian import ledoit_wolf


def squared(train, test, covariance):
    """(m,) squared Mahalanobis distances of test (m, d) to the Gaussian of train (n, d)."""
    mean, full, _ = ledoit_wolf(train)
    d = len(mean)
    if covariance == "diagonal":
        full = np.array([[full[i, j] if i == j else 0.0 for j in range(d)] for i in range(d)])
    elif covariance == "identity":
        full = np.eye(d)
    inverse = np.linalg.inv(full)
    return np.array([(x - mean) @ inverse @ (x - mean) for x in test.astype(np.float64)])


def loss(train_levels, batch_levels, covariance):
    """Per level the mean over the batch of the squared distance per channel."""
    return [
        sum(squared(train, batch, covariance)) / len(batch) / batch.shape[1]
        for train, batch in zip(train_levels, batch_levels, strict=True)
    ]


def scores(train_levels, test_levels, covariance):
    """Sum of the levels' distances."""
    total = np.zeros(len(test_levels[0]))
    for train, test in zip(train_levels, test_levels, strict=True):
        total += np.sqrt(squared(train, test, covariance))
    return total


def separation(normal, other):
    """Mann-Whitney, pair by pair."""
    wins = 0.0
    for a in normal:
        for b in other:
            wins += 1.0 if b > a else 0.5 if b == a else 0.0
    return wins / (len(normal) * len(other))


def criterion(untouched, changed):
    """1 - mean over the families of how well their scores are told from those of the untouched images."""
    return 1 - sum(separation(untouched, family) for family in changed) / len(changed)


def maps(train_levels, test_levels, covariance, size):
    """(n, *size) from (n, d, h, w) levels: distances to one Gaussian of all positions a level, enlarged and summed."""
    total = 0.0
    for train, test in zip(train_levels, test_levels, strict=True):
        n, d, h, w = test.shape
        rows = [np.moveaxis(m, 1, 3).reshape(-1, d) for m in (train, test)]
        grid = np.array([math.sqrt(s) for s in squared(*rows, covariance)]).reshape(n, h, w)
        total = total + np.stack([bilinear.enlarge(one, size) for one in grid])
    return total
