"""Support vector data description from its definition, its dual by a general solver; shares no code with blemish."""

from __future__ import annotations

import numpy as np

from reference.ocsvm import dual, kernel, matrix


def ball(name: str, train: np.ndarray, nu: float, **parameters: float) -> tuple[np.ndarray, float]:
    """The dual variables, and the squared radius: the distance of the vectors with 0 < a_i < 1/(nu n)."""
    k = matrix(name, train, train, **parameters)
    alpha = dual(k, np.diag(k), nu)
    cap = 1 / (nu * len(k))
    free = [i for i in range(len(k)) if 1e-4 * cap < alpha[i] < (1 - 1e-4) * cap]
    return alpha, float(np.mean([k[i, i] - 2 * alpha @ k[i] + alpha @ k @ alpha for i in free]))


def scores(name: str, train: np.ndarray, test: np.ndarray, nu: float, **parameters: float) -> np.ndarray:
    """|phi(x) - C|^2 - R^2."""
    alpha, squared_radius = ball(name, train, nu, **parameters)
    k = matrix(name, train, train, **parameters)
    result = np.empty(len(test))
    for t in range(len(test)):
        total = kernel(name, test[t], test[t], **parameters)
        for i in range(len(train)):
            total -= 2 * alpha[i] * kernel(name, train[i], test[t], **parameters)
            for j in range(len(train)):
                total += alpha[i] * alpha[j] * k[i, j]
        result[t] = total - squared_radius
    return result
