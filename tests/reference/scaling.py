"""Mean and deviation at each position, in plain loops; shares no code with blemish."""

from __future__ import annotations

import numpy as np

PRIOR = 10
"""Images whose worth of the channel's mean variance is put to that of a position."""


def position_moments(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (channel, h, w) of maps (image, channel, h, w)."""
    n, channels, height, width = maps.shape
    mean, variance = np.zeros((channels, height, width)), np.zeros((channels, height, width))
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                values = [float(one[c, y, x]) for one in maps]
                mean[c, y, x] = sum(values) / n
                variance[c, y, x] = sum((v - mean[c, y, x]) ** 2 for v in values) / n
    for c in range(channels):
        typical = variance[c].mean()
        variance[c] = (n * variance[c] + PRIOR * typical) / (n + PRIOR)
    return mean, np.sqrt(variance)
