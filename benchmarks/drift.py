"""Which bets watch a stream best, how often they alarm without a cause, and how soon with one.

    python benchmarks/drift.py choose
    python benchmarks/drift.py false-alarms
    python benchmarks/drift.py real ../shared/data/mtd --weights ../shared/data/weights/resnet18.pth

The rules are in docs/experiments/drift.md.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable

import numpy as np

from blemish.drift import bet, capital, no_bets

DELTA = 0.05
_TINY = 2.0**-53


def ranked(calibration, streams, seed=0):
    """P-values of many streams, `(streams, n)` and `(streams, images)` to `(streams, images)`: the definition."""
    random = np.random.default_rng(seed)
    drawn = 1 - random.random(streams.shape)
    found = np.empty(streams.shape)
    for row, (known, stream) in enumerate(zip(calibration, streams, strict=True)):
        seen = sorted(known.tolist())
        for t, score in enumerate(stream.tolist()):
            low, high = bisect_left(seen, score), bisect_right(seen, score)
            found[row, t] = (len(seen) - high + drawn[row, t] * (high - low + 1)) / (len(seen) + 1)
            insort(seen, score)
    return found


def ours(p):
    """Log capital after each image, `(streams, images)`."""
    bets, found = no_bets(p.shape[:1]), np.empty(p.shape)
    for t in range(p.shape[1]):
        bets = bet(bets, p[:, t], t)
        found[:, t] = capital(bets, t + 1)
    return found


def composite_jumper(p):
    """Vovk et al., "Retrain or not retrain", 2021: the mean of Simple Jumpers of five rates."""
    rates = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0])[:, None]
    slopes = np.array([-1.0, 0.0, 1.0])
    held = np.full((len(p), 5, 3), 1 / 3)
    scale, found = np.zeros((len(p), 5)), np.empty(p.shape)
    for t in range(p.shape[1]):
        held = (1 - rates) * held + rates * held.sum(axis=2, keepdims=True) / 3
        held *= 1 + slopes * (np.clip(p[:, t], _TINY, 1 - _TINY)[:, None, None] - 0.5)
        total = held.sum(axis=2)
        scale += np.log(total)
        held /= total[..., None]
        found[:, t] = np.logaddexp.reduce(scale, axis=1) - np.log(5)
    return found


def from_the_start(p):
    """The same bets as ours, all made before the first image."""
    found, bets = np.empty(p.shape), np.zeros((len(p), no_bets().size))
    for t in range(p.shape[1]):
        bets = bet(bets, p[:, t], 10**9)  # so late that nothing new is put on them
        found[:, t] = np.logaddexp.reduce(bets, axis=1) - np.log(bets.shape[1])
    return found


CANDIDATES: dict[str, Callable] = {
    "Composite Jumper": composite_jumper,
    "power bets from the start": from_the_start,
    "power bets at any time": ours,
}
CHANGES: dict[str, Callable] = {
    "+0.5 sigma": lambda x, random: x + 0.5,
    "+1 sigma": lambda x, random: x + 1,
    "-1 sigma": lambda x, random: x - 1,
    "5 % defects (+4 sigma)": lambda x, random: x + 4 * (random.random(x.shape) < 0.05),
}


def choose(streams=200, n=50, within=500):
    print("| change | at image | " + " | ".join(CANDIDATES) + " |\n|---|---|" + "---|" * len(CANDIDATES))
    sums = np.zeros(len(CANDIDATES))
    for name, change in CHANGES.items():
        for start in (0, 2000):
            random = np.random.default_rng(start + 11)
            x = random.standard_normal((streams, start + within))
            x[:, start:] = change(x[:, start:], random)
            p = ranked(random.standard_normal((streams, n)), x)
            cells = []
            for number, candidate in enumerate(CANDIDATES.values()):
                alarm = candidate(p) >= -np.log(DELTA)
                early, found = alarm[:, :start].any(axis=1), alarm[:, start:]
                hit = found.any(axis=1) & ~early
                sums[number] += hit.mean() / 8
                delay = np.median(np.where(hit, found.argmax(axis=1) + 1, np.inf))
                cells.append(f"{hit.mean():.0%}, {delay:.0f}")
            print(f"| {name} | {start} | " + " | ".join(cells) + " |", flush=True)
    print("| mean | | " + " | ".join(f"{share:.1%}" for share in sums) + " |")


if __name__ == "__main__":
    {"choose": choose}[sys.argv[1]](*sys.argv[2:])
