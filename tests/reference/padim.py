"""PaDiM from the paper's equations, in plain loops over positions; shares no code with blemish."""

from __future__ import annotations

import random

import numpy as np
from scipy.ndimage import gaussian_filter


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


def distances(train: np.ndarray, test: np.ndarray, eps: float) -> np.ndarray:
    """Equations 1 and 2: (image, row, column)."""
    n, height, width, d = train.shape
    result = np.empty(test.shape[:3])
    for i in range(height):
        for j in range(width):
            mean = train[:, i, j].mean(axis=0)
            covariance = np.zeros((d, d))
            for k in range(n):
                covariance += np.outer(train[k, i, j] - mean, train[k, i, j] - mean) / (n - 1)
            inverse = np.linalg.inv(covariance + eps * np.eye(d))
            for k in range(len(test)):
                z = test[k, i, j] - mean
                result[k, i, j] = np.sqrt(z @ inverse @ z)
    return result


def enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, pixel centres at half-integers, edges repeated: (size, size)."""
    height, width = grid.shape
    result = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            v = min(max((y + 0.5) * height / size - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size - 0.5, 0), width - 1)
            i, j = int(v), int(u)
            k, m = min(i + 1, height - 1), min(j + 1, width - 1)
            a, b = v - i, u - j
            result[y, x] = (
                (1 - a) * ((1 - b) * grid[i, j] + b * grid[i, m]) + a * ((1 - b) * grid[k, j] + b * grid[k, m])
            )  # fmt: skip
    return result


def maps(distance_grids: np.ndarray, size: int, sigma: float) -> np.ndarray:
    return np.stack([gaussian_filter(enlarge(grid, size), sigma) for grid in distance_grids])
