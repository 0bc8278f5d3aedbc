"""The metrics from their definitions, in plain loops; shares no code with blemish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
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
