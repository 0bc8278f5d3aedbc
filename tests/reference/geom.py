"""Geometric transformations and Dirichlet normality by their formulas, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np


def transformations(mirror: bool, shift: bool, turns: int) -> list[tuple[bool, int, int, int]]:
    """(mirrored, down, right, quarter turns), the last one changing first."""
    found = []
    for mirrored in (False, True) if mirror else (False,):
        for down in (0, -1, 1) if shift else (0,):
            for right in (0, -1, 1) if shift else (0,):
                for quarters in {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}[turns]:
                    found.append((mirrored, down, right, quarters))
    return found


def transformed(image: np.ndarray, transformation: tuple[bool, int, int, int], share: float) -> np.ndarray:
    """`(channel, height, width)`, pixel by pixel."""
    mirrored, down, right, quarters = transformation
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y = _inside(y - down * round(share * height), height)
            from_x = _inside(x - right * round(share * width), width)
            out[:, y, x] = image[:, from_y, width - 1 - from_x if mirrored else from_x]
    for _ in range(quarters):
        channels, height, width = out.shape
        turned = np.zeros((channels, width, height), out.dtype)
        for y in range(height):
            for x in range(width):
                turned[:, width - 1 - x, y] = out[:, y, x]  # against the clock
        out = turned
    return out


def _inside(position: int, length: int) -> int:
    if position < 0:
        return -position
    return 2 * (length - 1) - position if position > length - 1 else position


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = [math.exp(v - max(logits)) for v in logits]
    return np.array([p / sum(powers) for p in powers])


def likelihood(alpha: np.ndarray, vectors: np.ndarray) -> float:
    """Mean log density of probability vectors under a Dirichlet distribution."""
    constant = math.lgamma(sum(alpha)) - sum(math.lgamma(a) for a in alpha)
    return float(
        np.mean([constant + sum((a - 1) * math.log(v) for a, v in zip(alpha, y, strict=True)) for y in vectors])
    )


def normality(answers: np.ndarray, alpha: np.ndarray) -> float:
    """sum_i (alpha_i - 1) . log y_i: the likelihood of all answers, but for what is the same for every image."""
    total = 0.0
    for i in range(len(answers)):
        for k in range(len(answers)):
            total += (alpha[i, k] - 1) * math.log(answers[i, k])
    return total


def simple(answers: np.ndarray) -> float:
    """(1 / k) sum_i y_i[i]."""
    return sum(answers[i, i] for i in range(len(answers))) / len(answers)
