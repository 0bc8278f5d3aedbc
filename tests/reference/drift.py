"""The definitions of `blemish.drift` in plain loops."""

from __future__ import annotations


def p_value(score, known, drawn):
    """The share that is larger, and the part `drawn` of what is equal, itself among both."""
    larger = sum(1 for other in known if other > score)
    equal = 1 + sum(1 for other in known if other == score)
    return (larger + drawn * equal) / (len(known) + 1)


def capital(p_values, powers, late):
    """The mixture written out: every bet made before every image, and what was never put on a bet."""
    densities = [lambda p, a=a: a * p ** (a - 1) for a in powers]
    densities += [lambda p, a=a: a * (1 - p) ** (a - 1) for a in powers]
    kept, total = 1.0, 0.0
    for start in range(len(p_values)):
        left = 0.5 * late / (start + late)
        for density in densities:
            grown = (kept - left) / len(densities)
            for p in p_values[start:]:
                grown *= density(p)
            total += grown
        kept = left
    return total + kept
