"""The mean-shifted contrastive loss from its formula, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(v * v for v in vector))


def loss(first: np.ndarray, second: np.ndarray, centre: np.ndarray, tau: float) -> float:
    """NT-Xent on (f - c) / |f - c| with f = features / |features|."""
    views = [_unit(_unit(f) - centre) for f in np.concatenate([first, second]).astype(np.float64)]
    n, total = len(first), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        every = sum(math.exp(float(views[i] @ views[m]) / tau) for m in range(2 * n) if m != i)
        total -= math.log(math.exp(float(views[i] @ views[partner]) / tau) / every)
    return total / (2 * n)


def angular(first: np.ndarray, second: np.ndarray, centre: np.ndarray) -> float:
    """Mean of |f - c|^2 of one view plus that of the other."""
    total = 0.0
    for f in np.concatenate([first, second]).astype(np.float64):
        total += sum((a - b) ** 2 for a, b in zip(_unit(f), centre, strict=True))
    return total / len(first)
