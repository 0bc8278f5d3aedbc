"""DN2 from its definition, in plain loops; shares no code with blemish."""

from __future__ import annotations

import numpy as np


def pool(layer: np.ndarray) -> np.ndarray:
    """Global average: (image, channel) from (image, channel, h, w)."""
    n, channels, height, width = layer.shape
    result = np.zeros((n, channels))
    for i in range(height):
        for j in range(width):
            result += layer[:, :, i, j].astype(np.float64)
    return result / (height * width)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row over its length."""
    return np.stack([v / np.sqrt(sum(float(x) ** 2 for x in v)) for v in vectors.astype(np.float64)])


def scores(train: np.ndarray, test: np.ndarray, k: int = 2) -> np.ndarray:
    """Mean of the k smallest squared Euclidean distances to the training vectors."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    result = np.empty(len(test))
    for t in range(len(test)):
        squared = sorted(float(((vector - test[t]) ** 2).sum()) for vector in train)
        result[t] = np.mean([squared[j] for j in range(k)])
    return result
