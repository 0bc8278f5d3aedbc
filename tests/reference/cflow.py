"""CFLOW-AD's losses and maps from the densities of `reference.flows`, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np

from reference import bilinear, flows


def loss(vectors, codes, blocks, clamp, *, logsigmoid):
    """Mean over vectors (n, d) of -log p / d, or of -log sigmoid(log p / d)."""
    total = 0.0
    for x, c in zip(vectors, codes, strict=True):
        density = flows.log_density(x, c, blocks, clamp) / len(x)
        total += math.log(1 + math.exp(-density)) if logsigmoid else -density
    return total / len(vectors)


def densities(maps, scaling, blocks, *, clamp, condition):
    """(n, h, w) log-density per channel of maps (n, d, h, w).

    scaling is what to subtract and to multiply with: (d,) for all positions, or (h, w, d).
    """
    shift, factor = (np.broadcast_to(part, (*maps.shape[2:], maps.shape[1])) for part in scaling)
    n, d, h, w = maps.shape
    codes = flows.position_code(h, w, condition)
    grid = np.empty((n, h, w))
    for i in range(n):
        for y in range(h):
            for x in range(w):
                vector = (maps[i, :, y, x] - shift[y, x]) * factor[y, x]
                grid[i, y, x] = flows.log_density(vector, codes[y, x], blocks, clamp) / d
    return grid


def standardised(grids, held_out, size):
    """(n, *size): sum over the layers of (m - log p / C) / s, with m and s of the held-out grids of the layer."""
    total = 0.0
    for grid, normal in zip(grids, held_out, strict=True):
        values = [float(v) for v in normal.ravel()]
        m = sum(values) / len(values)
        s = math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1))
        total = total + np.stack([bilinear.enlarge((m - one) / s, size) for one in grid])
    return total


def likelihood(grids, held_out, size):
    """(n, *size): number of layers - sum of exp(log p / C - M), M the maximum of the held-out grids of the layer."""
    total = float(len(grids))
    for grid, normal in zip(grids, held_out, strict=True):
        total = total - np.stack([bilinear.enlarge(np.exp(one - normal.max()), size) for one in grid])
    return total
