"""PatchCore from the paper's equations, in plain loops over positions; shares no code with blemish."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from reference.bilinear import enlarge
from reference.neighbours import search


def windows(image: np.ndarray) -> np.ndarray:
    """The 3x3 window of each position, zeros outside: (h, w, channel, 3, 3) from (channel, h, w)."""
    channels, height, width = image.shape
    result = np.zeros((height, width, channels, 3, 3))
    for i in range(height):
        for j in range(width):
            for p in range(3):
                for q in range(3):
                    if 0 <= i + p - 1 < height and 0 <= j + q - 1 < width:
                        result[i, j, :, p, q] = image[:, i + p - 1, j + q - 1]
    return result


def adaptive_pool(vector: np.ndarray, count: int) -> np.ndarray:
    """Output i averages inputs floor(i L / count) to ceil((i + 1) L / count) - 1."""
    result = np.empty(count)
    for i in range(count):
        start, stop = i * len(vector) // count, -(-(i + 1) * len(vector) // count)
        result[i] = vector[start:stop].mean()
    return result


def average_patches(layers: list[np.ndarray]) -> np.ndarray:
    """Preset "light": (image, h * w, sum of channels), 3x3 means on the first layer's grid."""
    n, _, height, width = layers[0].shape
    result = []
    for image in range(n):
        grids = [enlarge(windows(layer[image]).sum(axis=(3, 4)) / 9, (height, width)) for layer in layers]
        result.append(np.concatenate(grids, axis=2).reshape(height * width, -1))
    return np.stack(result)


def single_patches(layers: list[np.ndarray]) -> np.ndarray:
    """(image, h * w, sum of channels) on the first layer's grid, no neighbours."""
    n, _, height, width = layers[0].shape
    result = []
    for image in range(n):
        grids = [enlarge(layer[image].transpose(1, 2, 0), (height, width)) for layer in layers]
        result.append(np.concatenate(grids, axis=2).reshape(height * width, -1))
    return np.stack(result)


def cosine_distances(bank: np.ndarray, patches: np.ndarray) -> list[float]:
    """1 - cos of each patch to the bank vector that is nearest by it."""
    found = []
    for patch in patches:
        best = 2.0
        for vector in bank:
            best = min(best, 1 - patch @ vector / np.sqrt((patch @ patch) * (vector @ vector)))
        found.append(best)
    return found


def official_patches(layers: list[np.ndarray], d_layer: int, d_out: int) -> np.ndarray:
    """Preset "paper": (image, h * w, d_out), pooled 3x3 windows on the first layer's grid."""
    n, _, height, width = layers[0].shape
    result = np.empty((n, height * width, d_out))
    for image in range(n):
        grids = [enlarge(windows(layer[image]), (height, width)) for layer in layers]
        for i in range(height):
            for j in range(width):
                vectors = [adaptive_pool(grid[i, j].reshape(-1), d_layer) for grid in grids]
                result[image, i * width + j] = adaptive_pool(np.concatenate(vectors), d_out)
    return result


def patch_scores(bank: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of each patch to its nearest bank vector, and that vector's index."""
    squared, indices = search(bank, patches, 1)
    return np.sqrt(squared[:, 0]), indices[:, 0]


def image_score(bank: np.ndarray, patches: np.ndarray, b: int = 0) -> float:
    """The largest patch score (equation 6); with b > 0, weighted by equation 7."""
    distances, indices = patch_scores(bank, patches)
    worst = int(distances.argmax())
    if b == 0:
        return float(distances[worst])
    _, neighbours = search(bank, bank[indices[worst]][None], b)
    squared, _ = search(bank[neighbours[0]], patches[worst][None], b)
    nearest, others = distances[worst], np.sqrt(squared[0])
    weight = 1 - np.exp(nearest - others.max()) / np.exp(others - others.max()).sum()
    return float(weight * nearest)


def anomaly_map(scores: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Enlarged bilinearly, then smoothed: (*size) from (h, w)."""
    return gaussian_filter(enlarge(scores, size), sigma)
