"""Patch descriptors in plain loops, one patch after the other; shares no code with blemish."""

from __future__ import annotations

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(channel, h, w) with (out, channel, k, k), no padding."""
    k = weight.shape[2]
    result = np.zeros((len(weight), x.shape[1] - k + 1, x.shape[2] - k + 1))
    for i in range(result.shape[1]):
        for j in range(result.shape[2]):
            result[:, i, j] = np.tensordot(weight, x[:, i : i + k, j : j + k], 3) + bias
    return result


def pool(x: np.ndarray) -> np.ndarray:
    """The largest of each 2 x 2 square; a last odd row or column is dropped."""
    result = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2))
    for i in range(result.shape[1]):
        for j in range(result.shape[2]):
            result[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return result


def describe(patch: np.ndarray, weights: list[tuple[np.ndarray, np.ndarray]], pooled: list[bool]) -> np.ndarray:
    """128 numbers of one (3, p, p) patch."""
    x = np.stack([(patch[c].astype(np.float64) - MEAN[c]) / STD[c] for c in range(3)])
    for number, (weight, bias) in enumerate(weights):
        x = convolve(x, weight, bias)
        if number < len(weights) - 1:
            x = np.where(x > 0, x, 0.005 * x)
        if pooled[number]:
            x = pool(x)
    assert x.shape == (128, 1, 1)
    return x[:, 0, 0]
