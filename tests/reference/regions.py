"""Connected regions and their peaks in plain loops; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np


def components(above):
    """The 8-connected regions, each a frozenset of (row, column)."""
    left = {(int(r), int(c)) for r, c in zip(*np.nonzero(above), strict=True)}
    found = set()
    while left:
        part, border = set(), [left.pop()]
        while border:
            r, c = border.pop()
            part.add((r, c))
            for neighbour in [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if neighbour in left:
                    left.remove(neighbour)
                    border.append(neighbour)
        found.add(frozenset(part))
    return found


def peak(map, least):
    """The largest value at and above which some region has `least` pixels; the smallest value where there is none."""
    values = sorted({float(value) for value in map.ravel() if np.isfinite(value)}, reverse=True)
    for value in values:
        if any(len(part) >= least for part in components(map >= value)):
            return value
    return values[-1]


def filled(region):
    """A region with its holes: what the outside does not reach over the sides of pixels."""
    framed = np.pad(region, 1)
    outside, border = np.zeros_like(framed), [(0, 0)]
    while border:
        r, c = border.pop()
        if not (0 <= r < framed.shape[0] and 0 <= c < framed.shape[1]) or framed[r, c] or outside[r, c]:
            continue
        outside[r, c] = True
        border += [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
    return ~outside[1:-1, 1:-1]


def corners_cut(region):
    """What a polygon through the middles of a region's outer edges has less than the region: 1/8 a corner."""
    framed, cut = np.pad(filled(region), 1), 0.0
    for r in range(framed.shape[0] - 1):
        for c in range(framed.shape[1] - 1):
            block = framed[r : r + 2, c : c + 2]
            is_saddle = block.sum() == 2 and block[0, 0] == block[1, 1]
            cut += {1: 1, 3: -1}.get(int(block.sum()), -2 if is_saddle else 0) / 8
    return cut


def counts(found, truth):
    """Pixels found and true, found and false, not found and true."""
    tp = fp = fn = 0
    for yes, is_true in zip(np.ravel(found), np.ravel(truth), strict=True):
        tp, fp, fn = tp + bool(yes and is_true), fp + bool(yes and not is_true), fn + bool(is_true and not yes)
    return tp, fp, fn


def contour(map, region, level):
    """The outer contour of a region, pixel edge by pixel edge, clockwise; `map` has a frame of one pixel."""
    sides = ((-1, 0), (0, 1), (1, 0), (0, -1))
    inside = np.pad(region, 1)
    start = (1, 1 + int(np.argmax(region[0])), 0)
    row, column, side = start
    points = []
    while True:
        down, right = sides[side]
        within, beyond = map[row, column], map[row + down, column + right]
        reach = (within - level) / (within - beyond) if np.isfinite(beyond) else 0.5
        points.append((column - 0.5 + reach * right, row - 0.5 + reach * down))
        ahead, across = sides[(side + 1) % 4]
        if inside[row + ahead + down, column + across + right]:
            row, column, side = row + ahead + down, column + across + right, (side - 1) % 4
        elif inside[row + ahead, column + across]:
            row, column = row + ahead, column + across
        else:
            side = (side + 1) % 4
        if (row, column, side) == start:
            return np.array(points)


def _away(point, start, end):
    """Distance of a point from a segment."""
    length = (end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2
    along = 0.0
    if length > 0:
        along = ((point[0] - start[0]) * (end[0] - start[0]) + (point[1] - start[1]) * (end[1] - start[1])) / length
    along = min(1.0, max(0.0, along))
    foot = start[0] + along * (end[0] - start[0]), start[1] + along * (end[1] - start[1])
    return math.dist(point, foot)


def distance(point, polygon):
    """Distance of a point from a closed polygon."""
    return min(_away(point, polygon[i - 1], polygon[i]) for i in range(len(polygon)))


def simplified(polygon, tolerance):
    """Ramer, Douglas, Peucker: the polygon cut at its first point and the one furthest from it, each half by itself."""

    def piece(points):
        """What is kept of a line, without its end."""
        if len(points) < 3:
            return points[:1]
        away = [_away(point, points[0], points[-1]) for point in points[1:-1]]
        worst = max(range(len(away)), key=away.__getitem__)
        if away[worst] <= tolerance:
            return points[:1]
        return piece(points[: worst + 2]) + piece(points[worst + 1 :])

    points = [tuple(point) for point in polygon]
    cut = max(range(len(points)), key=lambda i: math.dist(points[i], points[0]))
    kept = piece(points[: cut + 1]) + piece([*points[cut:], points[0]])
    return np.array(kept if len(kept) > 2 else points)
