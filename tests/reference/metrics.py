"""The metrics from their definitions, in plain loops; shares no code with blemish."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, permutations
from typing import Any

Pairs = Sequence[tuple[Any, Any]]


def auroc(scores: Sequence[float], anomalous: Sequence[bool]) -> float:
    """Share of (anomalous, normal) pairs in the right order, a tie counting one half."""
    won, pairs = 0.0, 0
    for high, is_anomalous in zip(scores, anomalous, strict=True):
        for low, other_is_anomalous in zip(scores, anomalous, strict=True):
            if is_anomalous and not other_is_anomalous:
                won += 1.0 if high > low else 0.5 if high == low else 0.0
                pairs += 1
    return won / pairs


def confusion(
    scores: Sequence[float], anomalous: Sequence[bool], alarm: Callable[[float], bool]
) -> tuple[int, int, int]:
    """True positives, false positives, false negatives."""
    tp = fp = fn = 0
    for score, is_anomalous in zip(scores, anomalous, strict=True):
        tp += is_anomalous and alarm(score)
        fp += not is_anomalous and alarm(score)
        fn += is_anomalous and not alarm(score)
    return int(tp), int(fp), int(fn)


def roc_points(scores: Sequence[float], anomalous: Sequence[bool]) -> list[tuple[float, float]]:
    """(FPR, TPR) of `score >= t` for t above all scores, then for each distinct score from high to low."""
    positives = sum(bool(label) for label in anomalous)
    points = [(0.0, 0.0)]
    for t in sorted(set(scores), reverse=True):
        tp, fp, _ = confusion(scores, anomalous, lambda score, t=t: score >= t)
        points.append((fp / (len(anomalous) - positives), tp / positives))
    return points


def average_precision(scores: Sequence[float], anomalous: Sequence[bool]) -> float:
    total, recall_before = 0.0, 0.0
    for t in sorted(set(scores), reverse=True):
        tp, fp, fn = confusion(scores, anomalous, lambda score, t=t: score >= t)
        recall = tp / (tp + fn)
        total += (recall - recall_before) * tp / (tp + fp)
        recall_before = recall
    return total


def fpr_at_tpr(scores: Sequence[float], anomalous: Sequence[bool], tpr: float) -> float:
    return min(fpr for fpr, reached in roc_points(scores, anomalous) if reached >= tpr)


def passed_at_kept(scores: Sequence[float], anomalous: Sequence[bool], kept: float) -> float:
    """Smallest share of the anomalous at or below a threshold that has the share `kept` of the normal there."""
    normal = [score for score, label in zip(scores, anomalous, strict=True) if not label]
    others = [score for score, label in zip(scores, anomalous, strict=True) if label]
    passed = []
    for t in scores:
        if sum(score <= t for score in normal) / len(normal) >= kept:
            passed.append(sum(score <= t for score in others) / len(others))
    return min(passed)


def tie_share(scores: Sequence[float]) -> float:
    tied = 0
    for i in range(len(scores)):
        tied += any(scores[i] == scores[j] for j in range(len(scores)) if j != i)
    return tied / len(scores)


def delong_covariance(detectors: Sequence[Sequence[float]], anomalous: Sequence[bool]) -> list[list[float]]:
    """Covariance matrix S10 / m + S01 / n of the detectors' AUROCs (DeLong 1988, equations 4 to 6)."""
    positives = [i for i, label in enumerate(anomalous) if label]
    negatives = [i for i, label in enumerate(anomalous) if not label]

    def won(scores: Sequence[float], i: int, j: int) -> float:
        return 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0

    def covariance(x: list[float], y: list[float]) -> float:
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (len(x) - 1)

    v10 = [[sum(won(s, i, j) for j in negatives) / len(negatives) for i in positives] for s in detectors]
    v01 = [[sum(won(s, i, j) for i in positives) / len(positives) for j in negatives] for s in detectors]
    several = range(len(detectors))
    return [
        [covariance(v10[a], v10[b]) / len(positives) + covariance(v01[a], v01[b]) / len(negatives) for b in several]
        for a in several
    ]


def f1(scores: Sequence[float], anomalous: Sequence[bool], threshold: float) -> float:
    tp, fp, fn = confusion(scores, anomalous, lambda score: score > threshold)
    return 2 * tp / (2 * tp + fp + fn)


def best_f1(scores: Sequence[float], anomalous: Sequence[bool]) -> float:
    return max(f1(scores, anomalous, t) for t in [*scores, float("-inf")])


def regions(mask: Any) -> list[list[tuple[int, int]]]:
    """8-connected components by flood fill, each a list of (row, column)."""
    height, width = mask.shape
    left = {(row, column) for row in range(height) for column in range(width) if mask[row, column]}
    found = []
    while left:
        region, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            region.append((row, column))
            for neighbour in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if neighbour in left:
                    left.remove(neighbour)
                    edge.append(neighbour)
        found.append(region)
    return found


def pixels(pairs: Pairs) -> tuple[list[float], list[bool]]:
    """Scores and labels of all pixels of all images."""
    scores, anomalous = [], []
    for values, mask in pairs:
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                scores.append(float(values[row, column]))
                anomalous.append(mask is not None and bool(mask[row, column]))
    return scores, anomalous


def pro_points(pairs: Pairs) -> list[tuple[float, float]]:
    """(FPR, PRO) for every distinct score of any pixel, from high to low."""
    scores, anomalous = pixels(pairs)
    normal = [score for score, label in zip(scores, anomalous, strict=True) if not label]
    inside = []
    for values, mask in pairs:
        for region in regions(mask) if mask is not None else []:
            inside.append([float(values[place]) for place in region])
    points = [(0.0, 0.0)]
    for t in sorted(set(scores), reverse=True):
        overlaps = [sum(score >= t for score in region) / len(region) for region in inside]
        points.append((sum(score >= t for score in normal) / len(normal), sum(overlaps) / len(overlaps)))
    return points


def au_pro(pairs: Pairs, limit: float) -> float:
    """Trapezoids under the points, the last one cut at the limit."""
    area = 0.0
    points = pro_points(pairs)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            y_at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y_at_limit) / 2
    return area / limit


def mean_over_orders(
    uncertainty: Sequence[float], wrong: Sequence[bool], area: Callable[[list[bool]], Fraction]
) -> float:
    """Average of an area over every order of the samples that is sorted by uncertainty."""
    areas = []
    for order in permutations(range(len(wrong))):
        if all(uncertainty[a] <= uncertainty[b] for a, b in pairwise(order)):
            areas.append(area([bool(wrong[i]) for i in order]))
    return float(sum(areas) / len(areas))


def aurc(wrong: list[bool]) -> Fraction:
    n = len(wrong)
    return sum((Fraction(sum(wrong[:k]), k) for k in range(1, n + 1)), Fraction(0)) / n


def augrc(wrong: list[bool]) -> Fraction:
    n = len(wrong)
    return sum((Fraction(sum(wrong[:k]), n) for k in range(1, n + 1)), Fraction(0)) / n


def risk_coverage(uncertainty: Sequence[float], wrong: Sequence[bool]) -> list[tuple[float, float, float]]:
    """(threshold, coverage, risk) of accepting `uncertainty <= threshold`."""
    points = []
    for t in sorted(set(uncertainty)):
        accepted = [error for value, error in zip(uncertainty, wrong, strict=True) if value <= t]
        points.append((t, len(accepted) / len(wrong), sum(accepted) / len(accepted)))
    return points


def tails(uncertainty: Sequence[float], wrong: Sequence[bool], bin_size: int) -> list[tuple[float, int, int]]:
    """(smallest uncertainty, samples, right ones) of the tail that starts with each bin."""
    ranked = sorted(uncertainty)
    found = []
    for i in range(max(1, len(ranked) // bin_size)):
        start = ranked[i * bin_size]
        tail = [not error for value, error in zip(uncertainty, wrong, strict=True) if value >= start]
        if (start, len(tail), sum(tail)) not in found:
            found.append((start, len(tail), sum(tail)))
    return found


def binomial_tail(n: int, p: float, at_least: int) -> float:
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(at_least, n + 1))


def binomial_quantile(n: int, p: Fraction, q: Fraction) -> int:
    """Smallest k with P(X <= k) >= q, in exact arithmetic."""
    below = Fraction(0)
    for k in range(n + 1):
        below += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if below >= q:
            return k
    raise AssertionError


def benjamini_hochberg(p_values: Sequence[Fraction], level: Fraction) -> list[bool]:
    """Reject the k smallest, for the largest k for which k p-values are at most k level / m; exact arithmetic."""
    m = len(p_values)
    for k in range(m, 0, -1):
        if sum(p <= k * level / m for p in p_values) >= k:
            return [p <= k * level / m for p in p_values]
    return [False] * m
