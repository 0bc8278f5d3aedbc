"""Turning an image from the formula, pixel by pixel; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np


def mirrored(i: int, size: int) -> int:
    """The pixel at place i where the image goes on mirrored beyond both edges: ... 1 0 | 0 1 2 | 2 1 ..."""
    i %= 2 * size
    return i if i < size else 2 * size - 1 - i


def turn(image: np.ndarray, degrees: float) -> np.ndarray:
    """(channel, h, w), clockwise about the middle, bilinear."""
    _, height, width = image.shape
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    result = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            y, x = i + 0.5 - height / 2, j + 0.5 - width / 2
            row, column = c * y - s * x + height / 2 - 0.5, s * y + c * x + width / 2 - 0.5
            top, left = math.floor(row), math.floor(column)
            for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(row - top - p)) * (1 - abs(column - left - q))
                result[:, i, j] += weight * image[:, mirrored(top + p, height), mirrored(left + q, width)]
    return result
