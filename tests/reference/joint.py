"""The loss of joint optimisation, l_D + lambda l_C, from its formulas, in plain loops; shares no code with blemish.

l_D is the cross-entropy of the reference images, l_C the compactness of the normal ones.
"""

from __future__ import annotations

import math

import numpy as np


def compactness(vectors: np.ndarray) -> float:
    """(1 / nk) sum z_i . z_i, z_i = x_i minus the mean of all x_j with j not i."""
    vectors = vectors.astype(np.float64)
    n, k = vectors.shape
    total = 0.0
    for i in range(n):
        others = [vectors[j] for j in range(n) if j != i]
        z = vectors[i] - sum(others) / len(others)
        total += float(sum(value * value for value in z))
    return total / (n * k)


def terms(
    vectors: np.ndarray, logits: np.ndarray, labels: np.ndarray, *, weight: float, normalise: bool
) -> tuple[float, float]:
    """lambda l_C of `(n, k)` vectors, each brought to length sqrt(k) where they are normalised, and l_D."""
    if normalise:
        vectors = np.stack([v * math.sqrt(len(v)) / math.sqrt(sum(x * x for x in v)) for v in vectors])
    return weight * compactness(vectors), cross_entropy(logits, labels)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        total += math.log(sum(math.exp(v - row[label]) for v in row))
    return total / len(labels)


def gaussian_logits(vectors: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """-|x - m_c|^2 / 2 s^2 by class, s^2 the mean squared deviation of a number from its class's mean."""
    classes = sorted(set(labels.tolist()))
    means = [vectors[labels == c].mean(axis=0) for c in classes]
    s2 = np.mean([(v - means[label]) ** 2 for v, label in zip(vectors, labels, strict=True)])
    return np.array([[-((x - m) ** 2).sum() / (2 * s2) for m in means] for x in tested])
