"""The numbers of a picture's look, written out in loops."""

from __future__ import annotations

import math


def look(pixels):
    """Of `(3, height, width)`: level, contrast, sharpness, x, y."""
    _, height, width = pixels.shape
    grey = [[sum(float(pixels[c, i, j]) for c in range(3)) / 3 for j in range(width)] for i in range(height)]
    values = [value for row in grey for value in row]
    level = sum(values) / len(values)
    contrast = math.sqrt(sum((value - level) ** 2 for value in values) / len(values))
    across = [[abs(row[j + 1] - row[j]) for j in range(width - 1)] for row in grey]
    down = [[abs(grey[i + 1][j] - grey[i][j]) for j in range(width)] for i in range(height - 1)]
    second_across = [abs(row[j + 2] - 2 * row[j + 1] + row[j]) for row in grey for j in range(width - 2)]
    second_down = [
        abs(grey[i + 2][j] - 2 * grey[i + 1][j] + grey[i][j]) for i in range(height - 2) for j in range(width)
    ]
    first = mean([d for row in across for d in row]) + mean([d for row in down for d in row])
    sharpness = (mean(second_across) + mean(second_down)) / first if first else 0.0
    columns = [sum(row[j] for row in across) for j in range(width - 1)]
    rows = [sum(row) for row in down]
    return level, contrast, sharpness, place(columns), place(rows)


def mean(values):
    return sum(values) / len(values)


def place(weights):
    if not sum(weights):
        return 0.5
    return sum(weight * i / (len(weights) - 1) for i, weight in enumerate(weights)) / sum(weights)
