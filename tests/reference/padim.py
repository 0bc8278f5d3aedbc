"""PaDiM from the paper's equations, in plain loops over positions; shares no code with blemish."""

from __future__ import annotations

import random

import numpy as np
from scipy.ndimage import gaussian_filter

from reference.bilinear import enlarge


def embeddings(layers: list[np.ndarray], dims: list[int]) -> np.ndarray:
    """Nearest-neighbour alignment and concatenation: (image, row, column, dimension) from (image, channel, h, w)."""
    n, _, height, width = layers[0].shape
    result = np.empty((n, height, width, len(dims)))
    for i in range(height):
        for j in range(width):
            vectors = [
                layer[:, :, i * layer.shape[2] // height, j * layer.shape[3] // width].astype(np.float64)
                for layer in layers
            ]
            result[:, i, j] = np.concatenate(vectors, axis=1)[:, dims]
    return result


def random_dimensions(total: int, d: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(total), d)


def covariance(vectors: np.ndarray) -> np.ndarray:
    """Sample covariance of (image, dimension)."""
    n, d = vectors.shape
    mean = vectors.mean(axis=0)
    result = np.zeros((d, d))
    for k in range(n):
        result += np.outer(vectors[k] - mean, vectors[k] - mean) / (n - 1)
    return result


def typical(train: np.ndarray) -> np.ndarray:
    """Mean of the covariances over all positions, and a thousandth of its mean variance in every direction."""
    _, height, width, d = train.shape
    result = np.zeros((d, d))
    for i in range(height):
        for j in range(width):
            result += covariance(train[:, i, j]) / (height * width)
    return result + 0.001 * np.trace(result) / d * np.eye(d)


def distances(train: np.ndarray, test: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Equations 1 and 2: (image, row, column); `added` to the covariance of each position."""
    _, height, width, _ = train.shape
    result = np.empty(test.shape[:3])
    for i in range(height):
        for j in range(width):
            mean = train[:, i, j].mean(axis=0)
            inverse = np.linalg.inv(covariance(train[:, i, j]) + added)
            for k in range(len(test)):
                z = test[k, i, j] - mean
                result[k, i, j] = np.sqrt(z @ inverse @ z)
    return result


def maps(distance_grids: np.ndarray, size: int, sigma: float) -> np.ndarray:
    return np.stack([gaussian_filter(enlarge(grid, (size, size)), sigma) for grid in distance_grids])
