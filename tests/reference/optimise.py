"""Gradient descent from the formulas, in plain loops over numbers; shares no code with blemish."""

from __future__ import annotations

import math


def clipped(gradient: list[float], norm: float) -> list[float]:
    """Scaled down to this Euclidean norm where it is longer."""
    length = math.sqrt(sum(g * g for g in gradient))
    return [g * norm / length for g in gradient] if length > norm else gradient


def sgd(start, gradient_at, *, rates, momentum, weight_decay, clip):
    """Parameters after one step a rate: v <- momentum v + g + decay w, w <- w - rate v."""
    w, v = list(start), None
    for rate in rates:
        g = [gi + weight_decay * wi for gi, wi in zip(clipped(gradient_at(w), clip), w, strict=True)]
        v = g if v is None else [momentum * vi + gi for vi, gi in zip(v, g, strict=True)]
        w = [wi - rate * vi for wi, vi in zip(w, v, strict=True)]
    return w


def adam(start, gradient_at, *, rates, weight_decay, decoupled):
    """Kingma and Ba, algorithm 1; `decoupled`: Loshchilov and Hutter, algorithm 2."""
    w, m, s = list(start), [0.0] * len(start), [0.0] * len(start)
    for t, rate in enumerate(rates, start=1):
        g = gradient_at(w)
        for i in range(len(w)):
            gi = g[i] if decoupled else g[i] + weight_decay * w[i]
            m[i] = 0.9 * m[i] + 0.1 * gi
            s[i] = 0.999 * s[i] + 0.001 * gi * gi
            step = m[i] / (1 - 0.9**t) / (math.sqrt(s[i] / (1 - 0.999**t)) + 1e-8)
            w[i] -= rate * (step + (weight_decay * w[i] if decoupled else 0.0))
    return w


def cosine(step, *, steps, end, warmup, start):
    """The factor of the learning rate."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
