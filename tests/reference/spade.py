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


def layer_map(gallery: np.ndarray, layer: np.ndarray, kappa: int) -> np.ndarray:
    """Mean (h, w) of the kappa smallest squared distances of the vectors of (channel, h, w) to (image, channel, h, w).

    All of them where there are fewer than kappa.
    """
    gallery, layer = gallery.astype(np.float64), layer.astype(np.float64)
    _, height, width = layer.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            squared = []
            for image in gallery:
                for p in range(height):
                    for q in range(width):
                        squared.append(((image[:, p, q] - layer[:, i, j]) ** 2).sum())
            result[i, j] = np.mean(sorted(squared)[:kappa])
    return result


def maps(
    train_layers: list[np.ndarray],
    test_layers: list[np.ndarray],
    train_pooled: np.ndarray,
    test_pooled: np.ndarray,
    *,
    k: int,
    kappa: int,
    size: tuple[int, int],
    sigma: float,
) -> np.ndarray:
    """(image, *size): the enlarged maps of the layers, averaged, then smoothed."""
    _, nearest = search(train_pooled, test_pooled, k)
    result = np.zeros((len(test_pooled), *size))
    for t in range(len(test_pooled)):
        for train, test in zip(train_layers, test_layers, strict=True):
            result[t] += enlarge(layer_map(train[nearest[t]], test[t], kappa), size) / len(train_layers)
        result[t] = gaussian_filter(result[t], sigma)
    return result
