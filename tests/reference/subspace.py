"""SubspaceAD's residual from the formulas, in plain loops; shares no code with blemish."""

from __future__ import annotations

import numpy as np


def fit(patches: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) of (n, d) patches, and the fewest leading eigenvectors (k, d) that hold the share; fewer than d."""
    n, d = patches.shape
    mean = np.zeros(d)
    for x in patches:
        mean += x / n
    covariance = np.zeros((d, d))
    for x in patches:
        covariance += np.outer(x - mean, x - mean) / n
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors.T[::-1]
    kept, held = 0, 0.0
    while kept < d - 1 and held < share * values.sum():
        held += values[kept]
        kept += 1
    return mean, vectors[:kept]


def residual(mean: np.ndarray, basis: np.ndarray, x: np.ndarray) -> float:
    """|z - V V^T z|^2 of one patch."""
    z = x - mean
    projected = np.zeros_like(z)
    for v in basis:
        projected += (v @ z) * v
    return float(((z - projected) ** 2).sum())
