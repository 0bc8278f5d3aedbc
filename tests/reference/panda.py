"""PANDA from its formulas, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np


def centre_loss(vectors: np.ndarray, centre: np.ndarray) -> float:
    """Mean over images of ||f - c||^2 / d."""
    losses = []
    for vector in vectors.astype(np.float64):
        losses.append(sum((vector[j] - centre[j]) ** 2 for j in range(len(vector))) / len(vector))
    return float(np.mean(losses))


def ewc_penalty(now: list[np.ndarray], first: list[np.ndarray], fisher: list[np.ndarray], weight: float) -> float:
    """lambda / 2 sum F_i (theta_i - theta0_i)^2."""
    total = 0.0
    for a, b, f in zip(now, first, fisher, strict=True):
        for i in range(a.size):
            total += float(f.flat[i]) * (float(a.flat[i]) - float(b.flat[i])) ** 2
    return weight / 2 * total


def fisher_of_linear(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, labels: list) -> tuple:
    """Of a softmax on W x + b: the derivative of the cross-entropy is (p - y) x^T; its square, mean over images."""
    of_weight, of_bias = np.zeros(weight.shape), np.zeros(bias.shape)
    for x, label in zip(inputs.astype(np.float64), labels, strict=True):
        logits = [sum(weight[i, j] * x[j] for j in range(len(x))) + bias[i] for i in range(len(bias))]
        exps = [math.exp(value - max(logits)) for value in logits]
        wanted = int(np.argmax(logits)) if label is None else label
        for i in range(len(bias)):
            slope = exps[i] / sum(exps) - (i == wanted)
            of_bias[i] += slope**2
            for j in range(len(x)):
                of_weight[i, j] += (slope * x[j]) ** 2
    return of_weight / len(inputs), of_bias / len(inputs)


def ses_scores(stages: list, centre: np.ndarray) -> list[float]:
    """`stages`: (normal features, features to score) of each kept network."""
    best: list[float] = []
    for normal, tested in stages:
        mean = np.mean([sum((f - centre) ** 2) for f in normal.astype(np.float64)])
        scores = [float(sum((f - centre) ** 2) / mean) for f in tested.astype(np.float64)]
        best = scores if not best else [max(a, b) for a, b in zip(best, scores, strict=True)]
    return best


def ewc_weight(fisher: list[np.ndarray], loss: float, distance: float) -> float:
    """lambda with which a move by `distance`, as far in each parameter, costs the loss by `ewc_penalty`."""
    numbers = [value for values in fisher for value in values.flat]
    each = distance / len(numbers) ** 0.5
    return loss / (sum(value * each**2 for value in numbers) / 2)
