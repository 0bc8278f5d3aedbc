"""`compare` by simulation: whether its intervals cover as they say, and how often it finds a difference that is none.

    python benchmarks/compare.py

Scores of two detectors are drawn from normal distributions, so that the true difference of their AUROC is known. The
intervals in brackets are exact 95 % ones. The rule: the promise fails where 95 % lies above that of the coverage, or,
where both AUROCs are the same, 5 % below that of small p-values.
"""

from __future__ import annotations

import math

import numpy as np

from blemish.metrics import binomial_interval
from blemish.metrics.paired import paired_differences, ranks

REPETITIONS = 200
DRAWS = 200
"""Of the bootstrap, and of the swaps."""


def area(gain):
    """AUROC of a score that is larger by `gain` for anomalous images, of variance 2."""
    return (1 + math.erf(gain / 2 / math.sqrt(2))) / 2


def scores(random, anomalous, groups, gains):
    """Of variance 2: half of it is common to both detectors; with groups, half of each half to a group."""
    number = groups.max() + 1

    def part():
        alone = random.standard_normal(anomalous.size)
        together = random.standard_normal(number)[groups]
        return alone if number == anomalous.size else (alone + together) / math.sqrt(2)

    common = part()
    return [common + part() + gain * anomalous for gain in gains]


def auroc_of(a, b, anomalous):
    """Both AUROCs of drawn or swapped ranks; all pairs are compared, so classes of this size are quick."""
    both = np.stack([ranks(a), ranks(b)])

    def statistic(images, swapped):
        pair, labels = np.where(swapped, both[::-1, images], both[:, images]), anomalous[images]
        high, low = pair[:, labels, None], pair[:, None, ~labels]
        return ((high > low).mean(axis=(1, 2)) + 0.5 * (high == low).mean(axis=(1, 2)))[:, None]

    return statistic


def main():
    print("| images | groups of | true AUROCs | interval covers (95 %) | p at most 5 % |\n|---|---|---|---|---|")
    for size, together in ((20, 1), (40, 4)):
        for gains in ((1.5, 1.5), (2.5, 1.5)):
            random = np.random.default_rng(size + together)
            anomalous = np.arange(2 * size) < size
            groups = np.arange(2 * size) // together
            truth = area(gains[0]) - area(gains[1])
            covered = small = 0
            for repetition in range(REPETITIONS):
                a, b = scores(random, anomalous, groups, gains)
                (found,) = paired_differences(
                    auroc_of(a, b, anomalous), anomalous, groups=groups, repetitions=DRAWS, seed=repetition
                )
                covered += found.interval.low <= truth <= found.interval.high
                small += found.p_value <= 0.05
            texts = []
            for count in (covered, small):
                interval = binomial_interval(count, REPETITIONS)
                texts.append(f"{count / REPETITIONS:.1%} ({interval.low:.1%} to {interval.high:.1%})")
            areas = ", ".join(f"{area(gain):.3f}" for gain in gains)
            print(f"| {size} + {size} | {together} | {areas} | {texts[0]} | {texts[1]} |", flush=True)


if __name__ == "__main__":
    main()
