"""Gaussian-AD (arXiv 2005.14140) and Ledoit & Wolf's shrinkage, from the formulas; shares no code with blemish."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2


def ledoit_wolf(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, shrunk covariance and shrinkage (Ledoit & Wolf 2004) of (n, d)."""
    x = x.astype(np.float64)
    n, d = x.shape
    mean = x.mean(axis=0)
    s = np.zeros((d, d))
    for k in range(n):
        s += np.outer(x[k] - mean, x[k] - mean) / n
    mu = np.trace(s) / d
    delta2 = ((s - mu * np.eye(d)) ** 2).sum() / d
    beta2_bar = 0.0
    for k in range(n):
        beta2_bar += ((np.outer(x[k] - mean, x[k] - mean) - s) ** 2).sum() / d / n**2
    shrinkage = 0.0 if delta2 == 0 else min(beta2_bar, delta2) / delta2
    return mean, (1 - shrinkage) * s + shrinkage * mu * np.eye(d), float(shrinkage)


def distances(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each row of test to the Gaussian of train."""
    mean, covariance, _ = ledoit_wolf(train)
    inverse = np.linalg.inv(covariance)
    return np.array([np.sqrt((x - mean) @ inverse @ (x - mean)) for x in test.astype(np.float64)])


def scores(train_levels: list[np.ndarray], test_levels: list[np.ndarray]) -> np.ndarray:
    """Sum of the levels' distances."""
    result = np.zeros(len(test_levels[0]))
    for train, test in zip(train_levels, test_levels, strict=True):
        result += distances(train, test)
    return result


def pca_components(covariance: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors as rows (r, d) and eigenvalues (r,), descending: the fewest that hold at least the share."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors.T[::-1]
    held = values.cumsum()
    count = 1
    while count < len(values) and held[count - 1] < share * held[-1]:
        count += 1
    return vectors[:count], values[:count]


def npca_components(covariance: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors as rows and eigenvalues, ascending: the most that hold at most the share, at least one."""
    values, vectors = np.linalg.eigh(covariance)
    held = values.cumsum()
    count = 1
    while count < len(values) and held[count] <= share * held[-1]:
        count += 1
    return vectors.T[:count], values[:count]


def component_distances(mean: np.ndarray, vectors: np.ndarray, values: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each row of test within the components."""
    result = np.zeros(len(test))
    for t in range(len(test)):
        for vector, value in zip(vectors, values, strict=True):
            result[t] += (vector @ (test[t] - mean)) ** 2 / value
    return np.sqrt(result)


def chi2_p_values(squared: list[np.ndarray], dims: list[int]) -> np.ndarray:
    """Smallest of the levels' chi-squared p values, times the number of levels (Bonferroni), at most 1."""
    smallest = np.ones(len(squared[0]))
    for level, d in zip(squared, dims, strict=True):
        smallest = np.minimum(smallest, chi2.sf(level, d))
    return np.minimum(1, len(dims) * smallest)
