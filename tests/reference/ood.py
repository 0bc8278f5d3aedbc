"""Out-of-distribution scores from the formulas of their papers, one image at a time; shares no code with blemish.

Decimals have as many digits as the logits ask for, so that 1 - p is right where p is 1 - 1e-300.
"""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> list[Decimal]:
    getcontext().prec = max(getcontext().prec, 40 + int(np.ptp(logits) / temperature / 2))
    powers = [(Decimal(float(z)) / Decimal(temperature)).exp() for z in logits]
    return [power / sum(powers) for power in powers]


def msp(logits: np.ndarray, temperature: float = 1.0) -> float:
    getcontext().prec = 40
    return float((1 - max(softmax(logits, temperature))).ln())


def energy(logits: np.ndarray, temperature: float = 1.0) -> float:
    getcontext().prec = 40
    return float(-Decimal(temperature) * sum((Decimal(float(z)) / Decimal(temperature)).exp() for z in logits).ln())


def entropy(logits: np.ndarray) -> float:
    getcontext().prec = 40
    return float(-sum(p * p.ln() for p in softmax(logits)))


def generalised_entropy(logits: np.ndarray, gamma: float, top: int) -> float:
    getcontext().prec = 40
    largest = sorted(softmax(logits), reverse=True)[:top]
    return float(sum((p * (1 - p)) ** Decimal(gamma) for p in largest))


def kl(p: list[Decimal], q: list[Decimal]) -> Decimal:
    return sum((a * (a.ln() - b.ln()) for a, b in zip(p, q, strict=True)), Decimal(0))


def ensemble(logits: np.ndarray) -> dict[str, float]:
    """The six measures for one image, logits (members, classes); divergences between members by the double loop."""
    getcontext().prec = 40 + int(np.ptp(logits, axis=1).max() / 2)
    members = [softmax(row) for row in logits]
    count, mean = len(members), [sum(column) / len(members) for column in zip(*members, strict=True)]
    h = [-sum(p * p.ln() for p in member) for member in members]
    h_mean = -sum(p * p.ln() for p in mean)
    pairs = sum(kl(a, b) for a in members for b in members) / count**2
    return {
        "confidence": float((1 - max(mean)).ln()),
        "entropy_of_expected": float(h_mean),
        "expected_entropy": float(sum(h) / count),
        "mutual_information": float(h_mean - sum(h) / count),
        "epkl": float(pairs),
        "mkl": float(pairs - (h_mean - sum(h) / count)),
    }


def mahalanobis(train: np.ndarray, labels: np.ndarray, x: np.ndarray) -> float:
    """Smallest squared distance to a class mean under the covariance that all classes share."""
    means = {
        c: sum(t for t, label in zip(train, labels, strict=True) if label == c) / (labels == c).sum() for c in labels
    }
    covariance = sum(np.outer(t - means[c], t - means[c]) for t, c in zip(train, labels, strict=True)) / len(train)
    inverse = np.linalg.inv(covariance)
    return min(float((x - mean) @ inverse @ (x - mean)) for mean in means.values())


def relative_mahalanobis(train: np.ndarray, labels: np.ndarray, x: np.ndarray) -> float:
    return mahalanobis(train, labels, x) - mahalanobis(train, np.zeros_like(labels), x)


def nearest_neighbour(train: np.ndarray, x: np.ndarray, k: int) -> float:
    unit = x / np.sqrt((x**2).sum())
    return sorted(float(np.sqrt(((t / np.sqrt((t**2).sum()) - unit) ** 2).sum())) for t in train)[k - 1]


class ViM:
    """Projections onto the principal space, subtracted, instead of onto what is left."""

    def __init__(self, train: np.ndarray, weight: np.ndarray, bias: np.ndarray, dimensions: int) -> None:
        self.weight, self.bias = weight, bias
        self.origin = -np.linalg.pinv(weight) @ bias
        _, _, rows = np.linalg.svd(train - self.origin, full_matrices=True)
        self.principal = rows[:dimensions]
        largest = [max(weight @ x + bias) for x in train]
        self.alpha = np.mean(largest) / np.mean([self.residual(x) for x in train])

    def residual(self, x: np.ndarray) -> float:
        moved = x - self.origin
        for direction in self.principal:
            moved = moved - (moved @ direction) * direction
        return float(np.sqrt((moved**2).sum()))

    def score(self, x: np.ndarray) -> float:
        """log of the odds of the virtual class."""
        logits = [float(z) for z in self.weight @ x + self.bias]
        getcontext().prec = 40
        virtual = self.alpha * self.residual(x)
        return float((Decimal(virtual).exp() / sum(Decimal(z).exp() for z in logits)).ln())


def percentile(values: np.ndarray, share: float) -> float:
    """Linear between the order statistics."""
    ordered = sorted(float(v) for v in values.ravel())
    place = share / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def head_energy(features: list[float], weight: np.ndarray, bias: np.ndarray) -> float:
    return energy(weight @ np.array(features) + bias)


def react(x: np.ndarray, threshold: float) -> list[float]:
    return [v if v < threshold else threshold for v in x]


def ash(x: np.ndarray, variant: str, share: float) -> list[float]:
    count = len(x) - round(len(x) * share / 100)
    smallest = sorted(x, reverse=True)[count - 1]
    kept = [float(v) if v >= smallest else 0.0 for v in x]
    s1, s2, nonzero = sum(x), sum(kept), sum(v > 0 for v in kept)
    if variant == "b":
        return [s1 / nonzero if v > 0 else 0.0 for v in kept]
    return kept if variant == "p" else [v * np.exp(s1 / s2) for v in kept]


def scale(x: np.ndarray, share: float) -> list[float]:
    largest = sorted(x, reverse=True)[: len(x) - round(len(x) * share / 100)]
    return [v * np.exp(sum(x) / sum(largest)) for v in x]


def tuned_alone(values: dict[tuple[float, float], float]) -> tuple[float, float]:
    """From values by (T, eps): the T that is best at eps = 0, the eps that is best at T = 1; the smaller of equals."""
    best_t, best_eps = None, None
    for (t, eps), value in sorted(values.items()):
        if eps == 0 and (best_t is None or value > values[best_t, 0.0]):
            best_t = t
        if t == 1 and (best_eps is None or value > values[1.0, best_eps]):
            best_eps = eps
    return best_t, best_eps
