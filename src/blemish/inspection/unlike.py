"""How unlike the others each normal image is: its distance from what all the others are like."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from sklearn.covariance import ledoit_wolf

if TYPE_CHECKING:
    from ..types import Floats

FEWEST = 8
"""Below so many images, no score says anything."""


def leave_one_out(vectors: Floats) -> Floats:
    """Mahalanobis distance of each of `(n, dimension)` vectors from the Gaussian of all the others: `(n,)`.

    Columns are brought to one variance, then the covariance is shrunk as by Ledoit and Wolf. With scale, target and
    intensity of the shrinkage those of all n, leaving one out changes mean and covariance by a rank of one. With
    d = x - mean, S = d's scatter matrix, shrunk, a the intensity and q = d' S^-1 d, the squared distance is
    n^2 / (n - 1) * q / (1 - (1 - a) n / (n - 1) q).
    """
    n = len(vectors)
    spread = vectors.std(axis=0)
    d = (vectors - vectors.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    if n < FEWEST or not d.shape[1]:
        return np.zeros(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single dimension
        covariance, a = ledoit_wolf(d)
    q = np.einsum("ij,ji->i", d, np.linalg.pinv(n * covariance, hermitian=True) @ d.T)
    distances: Floats = np.sqrt(n * n / (n - 1) * q / np.maximum(1 - (1 - a) * n / (n - 1) * q, 1e-12))
    return distances
