"""Nearest neighbours by explicit differences; shares no code with blemish."""

from __future__ import annotations

import numpy as np


def search(bank: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (q, k), ascending, and indices (q, k); among equals the lowest index first."""
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    distances, indices = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
    for q in range(len(queries)):
        found = sorted((float(((bank[i] - queries[q]) ** 2).sum()), i) for i in range(len(bank)))
        for j in range(k):
            distances[q, j], indices[q, j] = found[j]
    return distances, indices
