"""Greedy k-centre, one pass over the points for each chosen one; shares no code with blemish."""

from __future__ import annotations

import numpy as np


def greedy(
    points: np.ndarray, count: int, *, initial: np.ndarray | None = None, radius: float | None = None
) -> tuple[list[int], float]:
    """Indices in the order chosen, and the largest distance of any point to its nearest chosen one."""
    points = points.astype(np.float64)
    nearest = np.full(len(points), np.inf)  # to the chosen points alone
    bounds = nearest.copy() if initial is None else initial.astype(np.float64)
    chosen: list[int] = []
    while len(chosen) < count:
        if bounds.max() == 0 or (radius is not None and nearest.max() <= radius):
            break
        best = 0
        for i in range(len(points)):
            if bounds[i] > bounds[best]:
                best = i
        chosen.append(best)
        for i in range(len(points)):
            distance = np.sqrt(((points[i] - points[best]) ** 2).sum())
            nearest[i] = min(nearest[i], distance)
            bounds[i] = min(bounds[i], distance)
    return chosen, float(nearest.max())
