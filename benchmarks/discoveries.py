"""Alarms of a batch: which rule finds most among those that bound the share of false alarms for any dependence.

    python benchmarks/discoveries.py

200 batches a row, without images: normal ones are drawn in three dimensions, the score is the distance to the nearest
learned one (`loo`, `cross`, `full`) or to the origin (`split`, as many held out). P-values are corrected by what is
proven of them. A promise fails where it lies below the mean share of false alarms by more than 3.29 standard errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from decisions import print_table
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from blemish.calibrate import calibrate, conformal_p_values
from blemish.discoveries import benjamini_hochberg, benjamini_yekutieli
from blemish.folds import fold_of
from blemish.promises import plus_bound

REPETITIONS, FOLDS = 200, 10
Floats = NDArray[np.float64]
Rule = Callable[[NDArray[np.int64], float, Floats], NDArray[np.bool_]]
"""From a = p (n + 1), the level, and what P(p <= a / (n + 1)) is at most, by a from 0, to alarms."""


def drawn(kind: str, n: int, new: Floats, random: np.random.Generator) -> Floats:
    """P-values of new images."""
    learned = random.normal(size=(n, 3))
    if kind == "split":
        return conformal_p_values(np.linalg.norm(learned, axis=1), np.linalg.norm(new, axis=1))
    own, to_new = cdist(learned, learned) + np.diag(np.full(n, np.inf)), cdist(new, learned)
    if kind == "loo":
        return conformal_p_values(own.min(axis=1), to_new.min(axis=1))
    if kind == "full":
        beside = np.minimum(own.min(axis=1), to_new)
        return (1 + (beside >= to_new.min(axis=1, keepdims=True)).sum(axis=1)) / (n + 1)
    folds = np.array(fold_of(range(n), FOLDS, seed=0))
    scores = np.array([own[i, folds != folds[i]].min() for i in range(n)])
    plus = np.stack([to_new[:, folds != fold].min(axis=1) for fold in range(FOLDS)], axis=1)
    made = calibrate(scores, false_alarm_rate=0.5, kind="cross", folds=folds)
    return made.p_values(plus.mean(axis=1), plus=plus)


def bounds_of(kind: str, n: int) -> Floats:
    if kind in ("loo", "cross"):
        return np.array([0.0] + [plus_bound(a, n, folds=n if kind == "loo" else FOLDS) for a in range(1, n + 2)])
    return np.arange(n + 2) / (n + 1)


def hochberg(a: NDArray[np.int64], level: float, bounds: Floats) -> NDArray[np.bool_]:
    return benjamini_hochberg(bounds[a], level)


def yekutieli(a: NDArray[np.int64], level: float, bounds: Floats) -> NDArray[np.bool_]:
    return benjamini_yekutieli(bounds[a], level)


def e_values(a: NDArray[np.int64], level: float, bounds: Floats, ranks: list[int]) -> NDArray[np.bool_]:
    """e-BH (Wang and Ramdas 2022) on the mean of 1{p <= a / (n + 1)} / bound(a) over some a."""
    e = np.mean([(a <= rank) / bounds[rank] for rank in ranks], axis=0)
    high = np.sort(e)[::-1]
    passed = np.flatnonzero(high * np.arange(1, e.size + 1) * level >= e.size * (1 - 1e-12))
    return e >= high[passed[-1]] if passed.size else np.zeros(e.shape, dtype=bool)


def first_rank(a: NDArray[np.int64], level: float, bounds: Floats) -> NDArray[np.bool_]:
    return e_values(a, level, bounds, [1])


def doubling_ranks(a: NDArray[np.int64], level: float, bounds: Floats) -> NDArray[np.bool_]:
    ranks = [1 << i for i in range(12) if 1 << i < bounds.size and bounds[1 << i] <= level] or [1]
    return e_values(a, level, bounds, ranks)


def reachable(a: NDArray[np.int64], level: float, bounds: Floats) -> NDArray[np.bool_]:
    """Blanchard and Roquain 2008 with 1/j on j alarms, for the j at which the least p-value could raise one."""
    m, values = a.size, bounds[a]
    least = max(1, int(np.ceil(m * bounds[1] / level - 1e-9)))
    if least > m:
        return np.zeros(m, dtype=bool)
    total = (1 / np.arange(least, m + 1)).sum()
    limits = np.maximum(np.arange(1, m + 1) - least + 1, 0) / total * level / m * (1 + 1e-12)
    passed = np.flatnonzero(np.sort(values) <= limits)
    return values <= limits[passed[-1]] if passed.size else np.zeros(m, dtype=bool)


def chosen_rank(a: NDArray[np.int64], level: float, bounds: Floats) -> NDArray[np.bool_]:
    """The largest rank with which one image can raise an alarm by itself: what `choose_alarms` does."""
    return e_values(a, level, bounds, [max(1, int((bounds * a.size <= level * (1 + 1e-12)).sum()) - 1)])


RULES: dict[str, Rule] = {
    "BH, not proven": hochberg, "BY": yekutieli, "BY, reachable counts": reachable, "e-BH, rank 1": first_rank,
    "e-BH, ranks 1, 2, 4 ...": doubling_ranks, "e-BH, rank by m and n": chosen_rank,
}  # fmt: skip


def main() -> None:
    random = np.random.default_rng(1)
    cells = [
        (kind, n, m, share, 4.0)
        for kind in ("split", "loo", "full", "cross")
        for n in ((200,) if kind == "cross" else (50, 200, 500))
        for m in (20, 100)
        for share in (0.05, 0.2)
    ]
    level, totals = 0.1, {name: [] for name in RULES}
    print_table(["calibration", "n", "batch", "anomalous", "far", *RULES], [])
    for kind, n, m, share, far in cells:
        odd, bounds = round(m * share), bounds_of(kind, n)
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in RULES}
        for _ in range(REPETITIONS):
            new = random.normal(size=(m, 3))
            directions = random.normal(size=(odd, 3))
            new[m - odd :] += far * directions / np.linalg.norm(directions, axis=1, keepdims=True)
            ranks = np.rint(drawn(kind, n, new, random) * (n + 1)).astype(int)
            for name, rule in RULES.items():
                alarms = rule(ranks, level, bounds)
                false = alarms[: m - odd].sum() / max(1, alarms.sum())
                results[name].append((false, alarms[m - odd :].mean()))
        cell = [kind, str(n), str(m), f"{share:.0%}", f"{far:g}"]
        for name, found in results.items():
            false, hit = np.mean(found, axis=0)
            error = 3.29 * np.std([f for f, _ in found]) / np.sqrt(REPETITIONS)
            cell.append(f"{hit:.0%}, {false:.1%}" + (" FAILS" if false - error > level else ""))
            if kind in ("loo", "full"):
                totals[name].append(hit)
        print(f"| {' | '.join(cell)} |", flush=True)
    means = [f"{np.mean(found):.1%}" for found in totals.values()]
    print(f"| mean found, `loo` and `full` | | | | | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
