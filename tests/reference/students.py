"""Uninformed Students (Bergmann et al., CVPR 2020, section 3) in plain loops; shares no code with blemish.

Descriptors are arrays (image, channel, row, column).
"""

from __future__ import annotations

import numpy as np


def target_normalisation(descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu and sigma of each of the teacher's channels over all positions of all training images."""
    channels = range(descriptors.shape[1])
    mu = np.array([np.mean([image[c] for image in descriptors]) for c in channels])
    sigma = np.array([np.sqrt(np.mean([(image[c] - mu[c]) ** 2 for image in descriptors])) for c in channels])
    return mu, sigma


def errors(
    teacher: np.ndarray, students: list[np.ndarray], mu: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Regression error e and predictive variance v at each position, (image, row, column)."""
    n, _, height, width = teacher.shape
    e, v = np.zeros((n, height, width)), np.zeros((n, height, width))
    for i in range(n):
        for r in range(height):
            for c in range(width):
                target = (teacher[i, :, r, c] - mu) / sigma
                outputs = [student[i, :, r, c] for student in students]
                mean = sum(outputs) / len(outputs)
                e[i, r, c] = np.linalg.norm(mean - target) ** 2
                v[i, r, c] = sum(np.linalg.norm(o) ** 2 for o in outputs) / len(outputs) - np.linalg.norm(mean) ** 2
    return e, v


def residuals(teacher: np.ndarray, students: list[np.ndarray], mu: np.ndarray, sigma: np.ndarray) -> list[np.ndarray]:
    """mu_i - y of each student, (image, channel, row, column)."""
    target = np.stack([(teacher[:, c] - mu[c]) / sigma[c] for c in range(len(mu))], axis=1)
    return [student - target for student in students]


def gaussian(normal: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse covariance of the students' mean residual at all positions, shrunk (Ledoit and Wolf 2004)."""
    mean_residual = sum(normal) / len(normal)
    n, _, height, width = mean_residual.shape
    rows = [mean_residual[i, :, r, c] for i in range(n) for r in range(height) for c in range(width)]
    mean = sum(rows) / len(rows)
    d = len(mean)
    s = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
    m = np.trace(s) / d
    spread = np.sum((s - m * np.eye(d)) ** 2) / d
    noise = sum(np.sum((np.outer(row - mean, row - mean) - s) ** 2) / d for row in rows) / len(rows) ** 2
    share = min(noise, spread) / spread
    return mean, np.linalg.inv((1 - share) * s + share * m * np.eye(d))


def distances(of: list[np.ndarray], mean: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """e and v by the Mahalanobis distance of that Gaussian, at each position, (image, row, column)."""
    n, _, height, width = of[0].shape
    e, v = np.zeros((n, height, width)), np.zeros((n, height, width))
    for i in range(n):
        for r in range(height):
            for c in range(width):
                each = [student[i, :, r, c] for student in of]
                middle = sum(each) / len(each)
                e[i, r, c] = (middle - mean) @ inverse @ (middle - mean)
                v[i, r, c] = sum((one - middle) @ inverse @ (one - middle) for one in each) / len(each)
    return e, v


def score(e: np.ndarray, v: np.ndarray, normal_e: np.ndarray, normal_v: np.ndarray) -> np.ndarray:
    """(e - e_mu) / e_sigma + (v - v_mu) / v_sigma, with the statistics of normal validation images."""
    return (e - normal_e.mean()) / normal_e.std() + (v - normal_v.mean()) / normal_v.std()


def loss(teacher: np.ndarray, student: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    """Mean over the positions of ||mu^S - (y - mu) diag(sigma)^-1||^2."""
    n, _, height, width = teacher.shape
    total = 0.0
    for i in range(n):
        for r in range(height):
            for c in range(width):
                total += float(np.sum((student[i, :, r, c] - (teacher[i, :, r, c] - mu) / sigma) ** 2))
    return total / (n * height * width)


def hard_loss(squared: np.ndarray, quantile: float) -> float:
    """EfficientAD (Batzner, Heckler, König, WACV 2024): mean of the squared errors from their quantile on."""
    values = np.sort(squared.ravel())
    return float(values[values >= values[int(np.ceil(quantile * len(values)))]].mean())
