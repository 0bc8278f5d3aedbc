"""Pareto front and picks by their definitions, in plain loops over (quality, cost) points; all return indices."""

from __future__ import annotations

import math


def front(points):
    """Those that no other one beats: at least as good, at no more cost, and one of both truly."""
    kept = set()
    for i, (quality, cost) in enumerate(points):
        beaten = False
        for other, price in points:
            if other >= quality and price <= cost and (other > quality or price < cost):
                beaten = True
        if not beaten:
            kept.add(i)
    return kept


def best(points):
    found = 0
    for i, (quality, cost) in enumerate(points):
        if quality > points[found][0] or (quality == points[found][0] and cost < points[found][1]):
            found = i
    return found


def bar(points):
    highest = points[best(points)][0]
    return 0.5 + 0.9 * (highest - 0.5) if highest > 0.5 else highest


def fastest(points):
    found = None
    for i, (quality, cost) in enumerate(points):
        if quality < bar(points):
            continue
        if found is None or cost < points[found][1] or (cost == points[found][1] and quality > points[found][0]):
            found = i
    return found


def knee(points):
    """Distance in quality to the straight line from the fastest to the best, which is drawn over log(cost)."""
    start, end = points[fastest(points)], points[best(points)]
    chosen, largest = best(points), 0.0
    for i in front(points):
        quality, cost = points[i]
        if not start[1] <= cost <= end[1] or start[1] == end[1]:
            continue
        slope = (end[0] - start[0]) / (math.log(end[1]) - math.log(start[1]))
        above = quality - (start[0] + slope * (math.log(cost) - math.log(start[1])))
        if above > largest + 1e-12:
            chosen, largest = i, above
    return chosen


def mean_over_datasets(rows):
    """Each data set counts once, whatever the number of its seeds; `rows` are (dataset, value) pairs."""
    total, datasets = 0.0, []
    for dataset, _ in rows:
        if dataset not in datasets:
            datasets.append(dataset)
    for dataset in datasets:
        values = [value for name, value in rows if name == dataset]
        total += sum(values) / len(values)
    return total / len(datasets)
