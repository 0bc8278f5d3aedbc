"""SPADE from the paper's definitions, in plain loops over positions; shares no code with blemish."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from reference.bilinear import enlarge
from reference.knn import scores
from reference.neighbours import search


def image_scores(train: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    """Mean of the k smallest squared Euclidean distances between pooled features."""
    return scores(train, test, k)


def layer_map(gallery: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Smallest squared distance (h, w) of the vectors of (channel, h, w) to any of (image, channel, h, w)."""
    gallery, layer = gallery.astype(np.float64), layer.astype(np.float64)
    _, height, width = layer.shape
    result = np.full((height, width), np.inf)
    for i in range(height):
        for j in range(width):
            for image in gallery:
                for p in range(height):
                    for q in range(width):
                        squared = ((image[:, p, q] - layer[:, i, j]) ** 2).sum()
                        result[i, j] = min(result[i, j], squared)
    return result


def maps(
    train_layers: list[np.ndarray],
    test_layers: list[np.ndarray],
    train_pooled: np.ndarray,
    test_pooled: np.ndarray,
    *,
    k: int,
    size: tuple[int, int],
    sigma: float,
) -> np.ndarray:
    """(image, *size): the enlarged maps of the layers, averaged, then smoothed."""
    _, nearest = search(train_pooled, test_pooled, k)
    result = np.zeros((len(test_pooled), *size))
    for t in range(len(test_pooled)):
        for train, test in zip(train_layers, test_layers, strict=True):
            result[t] += enlarge(layer_map(train[nearest[t]], test[t]), size) / len(train_layers)
        result[t] = gaussian_filter(result[t], sigma)
    return result
