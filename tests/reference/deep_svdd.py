"""Deep SVDD from its formulas, in plain loops; shares no code with blemish."""

from __future__ import annotations

import numpy as np


def distance(vector: np.ndarray, centre: np.ndarray) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(vector.astype(np.float64), centre.astype(np.float64), strict=True)))


def hard(vectors: np.ndarray, centre: np.ndarray) -> float:
    return float(np.mean([distance(v, centre) for v in vectors]))


def soft(vectors: np.ndarray, centre: np.ndarray, radius: float, nu: float) -> float:
    outside = [max(0.0, distance(v, centre) - radius**2) for v in vectors]
    return radius**2 + sum(outside) / (nu * len(vectors))


def centre(vectors: np.ndarray) -> list[float]:
    """Mean, each number at least 0.1 away from 0."""
    found = []
    for value in vectors.astype(np.float64).mean(axis=0):
        found.append(value if abs(value) >= 0.1 else -0.1 if value < 0 else 0.1)
    return found


def contrast(image: np.ndarray) -> np.ndarray:
    """Global contrast normalisation by the mean absolute value."""
    image = image.astype(np.float64)
    centred = image - sum(image.flat) / image.size
    return centred / (sum(abs(v) for v in centred.flat) / image.size)
