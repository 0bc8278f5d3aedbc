"""Bilinear interpolation, pixel centres at half-integers, in a plain loop; shares no code with blemish."""

from __future__ import annotations

import numpy as np


def enlarge(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(*size, ...) from (h, w, ...), edges repeated."""
    grid = grid.astype(np.float64)
    height, width = grid.shape[:2]
    result = np.empty((*size, *grid.shape[2:]))
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * height / size[0] - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size[1] - 0.5, 0), width - 1)
            i, j = int(v), int(u)
            k, m = min(i + 1, height - 1), min(j + 1, width - 1)
            a, b = v - i, u - j
            result[y, x] = (
                (1 - a) * ((1 - b) * grid[i, j] + b * grid[i, m]) + a * ((1 - b) * grid[k, j] + b * grid[k, m])
            )  # fmt: skip
    return result
