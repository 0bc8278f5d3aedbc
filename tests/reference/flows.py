"""Affine coupling blocks and 2-D position codes, one number at a time; shares no code with blemish."""

from __future__ import annotations

import math

import numpy as np


def block(x, c, weights, clamp):
    """One block on one vector: returns y and log|det dy/dx|. `weights` are of this block, by name."""
    d = len(x)
    kept = d - d // 2
    inputs = np.concatenate([x[:kept], c])
    first = np.concatenate([weights["of_vector"], weights["of_condition"]])
    width, changed = first.shape[1], d - kept
    hidden = []
    for j in range(width):
        total = weights["first_bias"][j]
        for i in range(len(inputs)):
            total += inputs[i] * first[i, j]
        hidden.append(max(0.0, total))
    outputs = []
    for j in range(2 * changed):
        total = weights["second_bias"][j]
        for i in range(width):
            total += hidden[i] * weights["second"][i, j]
        outputs.append(0.1 * total)
    y, log_det = list(x[:kept]), 0.0
    for j in range(changed):
        s = clamp * math.tanh(outputs[j])
        y.append(x[kept + j] * math.exp(s) + outputs[changed + j])
        log_det += s
    for i in range(d):
        gain = 0.1 * 2 * math.log(1 + math.exp(0.5 * weights["gains"][i]))
        y[i] = y[i] * gain + weights["offsets"][i]
        log_det += math.log(gain)
    mixed = [sum(y[i] * weights["mixings"][i, j] for i in range(d)) for j in range(d)]
    return np.array(mixed), log_det


def log_density(x, c, blocks, clamp):
    """Natural logarithm of the density of one vector under a stack of blocks."""
    total = 0.0
    for weights in blocks:
        x, log_det = block(x, c, weights, clamp)
        total += log_det
    return total - 0.5 * sum(z * z for z in x) - 0.5 * len(x) * math.log(2 * math.pi)


def position_code(height, width, size):
    """(height, width, size): the first half of the column, the second of the row."""
    half = size // 2
    code = np.empty((height, width, size))
    for y in range(height):
        for x in range(width):
            for i in range(0, half, 2):
                rate = math.exp(i * -(math.log(10000.0) / half))
                code[y, x, i], code[y, x, i + 1] = math.sin(x * rate), math.cos(x * rate)
                code[y, x, half + i], code[y, x, half + i + 1] = math.sin(y * rate), math.cos(y * rate)
    return code
