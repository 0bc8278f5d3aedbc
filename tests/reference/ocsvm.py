"""The one-class SVM from its definition, in plain loops, its dual by a general solver; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize


def kernel(
    name: str, a: np.ndarray, b: np.ndarray, *, gamma: float = 1.0, degree: int = 3, coef0: float = 1.0
) -> float:
    """k(a, b) of two vectors."""
    if name == "rbf":
        return math.exp(-gamma * sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))
    product = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return product if name == "linear" else (gamma * product + coef0) ** degree


def matrix(name: str, a: np.ndarray, b: np.ndarray, **parameters: float) -> np.ndarray:
    """k(a_i, b_j) for all pairs."""
    return np.array([[kernel(name, x, y, **parameters) for y in b] for x in a])


def dual(k: np.ndarray, linear: np.ndarray, nu: float) -> np.ndarray:
    """Minimise a'Ka - b'a over 0 <= a <= 1/(nu n), sum of a = 1."""
    n = len(k)
    scale = float(np.abs(np.diag(k)).mean())
    k, linear = k / scale, linear / scale
    found = minimize(
        lambda a: float(a @ k @ a - linear @ a),
        np.full(n, 1 / n),
        jac=lambda a: 2 * k @ a - linear,
        bounds=[(0, 1 / (nu * n))] * n,
        constraints={"type": "eq", "fun": lambda a: float(a.sum() - 1), "jac": lambda a: np.ones(n)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 5000},
    )
    return np.asarray(found.x)


def scores(name: str, train: np.ndarray, test: np.ndarray, nu: float, **parameters: float) -> np.ndarray:
    """(rho - <w, phi(x)>) / |w|; rho is <w, phi(x_i)> of the vectors with 0 < a_i < 1/(nu n)."""
    k = matrix(name, train, train, **parameters)
    alpha = dual(k, np.zeros(len(k)), nu)
    length = math.sqrt(alpha @ k @ alpha)
    cap = 1 / (nu * len(k))
    free = [i for i in range(len(k)) if 1e-4 * cap < alpha[i] < (1 - 1e-4) * cap]
    rho = np.mean([alpha @ k[i] for i in free])
    return (rho - matrix(name, test, train, **parameters) @ alpha) / length
