"""The losses of Uninformed Students from their formulas, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math


def _squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def knowledge(decoded, targets):
    """Mean over the crops of ||D(T(p)) - P(p)||^2."""
    return sum(_squared(d, t) for d, t in zip(decoded, targets, strict=True)) / len(decoded)


def metric(anchors, similar, others, margin):
    """Mean over the crops of max(0, delta + delta+ - delta-)."""
    total = 0.0
    for a, s, o in zip(anchors, similar, others, strict=True):
        total += max(0.0, margin + _squared(a, s) - min(_squared(a, o), _squared(s, o)))
    return total / len(anchors)


def correlation(first, second):
    """Pearson's."""
    n = len(first)
    m1, m2 = sum(first) / n, sum(second) / n
    shared = sum((a - m1) * (b - m2) for a, b in zip(first, second, strict=True))
    return shared / math.sqrt(sum((a - m1) ** 2 for a in first) * sum((b - m2) ** 2 for b in second))


def compactness(descriptors):
    """Mean of |c_ij| over all i != j."""
    columns = list(zip(*descriptors, strict=True))
    d = len(columns)
    total = sum(abs(correlation(columns[i], columns[j])) for i in range(d) for j in range(d) if i != j)
    return total / (d * (d - 1))


def retrieval(descriptors, similar):
    """Share of the crops that are nearer to their own `similar` than to any other crop."""
    hits = 0
    for i, (a, s) in enumerate(zip(descriptors, similar, strict=True)):
        hits += _squared(a, s) < min(_squared(a, b) for j, b in enumerate(descriptors) if j != i)
    return hits / len(descriptors)
