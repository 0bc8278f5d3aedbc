"""Two detectors on the same images: how far their figures differ, and whether chance explains it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata, t

from ..errors import ArgumentError
from .intervals import Interval, check_draws
from .ranking import checked_labels

Statistic = Callable[[NDArray[np.intp], NDArray[np.bool_]], NDArray[np.float64]]
"""Takes the positions of images, `(n,)` with repeats, and for each whether the detectors swap what they made of it,
`(n,)`; gives the figures of both detectors, `(2, figures)`, all finite."""


@dataclass(frozen=True, slots=True)
class FigureDifference:
    """One figure of two detectors on the same images."""

    a: float
    b: float
    interval: Interval
    """Of a - b: percentiles of the bootstrap, expanded where images or groups are few."""
    p_value: float
    """Two-sided, of the hypothesis that both detectors are as good as each other."""

    @property
    def difference(self) -> float:
        """a - b."""
        return self.a - self.b


def paired_differences(
    statistic: Statistic,
    anomalous: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    swaps: bool = True,
    repetitions: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[FigureDifference]:
    """Compare figures of two detectors, paired by image; images of one group stay together.

    `anomalous` `(n,)` bool with both classes, `groups` `(n,)` whole numbers; None: each image alone. The interval comes
    from groups drawn with replacement, within those that are all normal, all anomalous, or mixed. The p-value comes
    from swapping, in each group by the toss of a coin, what the two detectors made of its images: the share of swapped
    differences at least as large as the one at hand, itself counted. What is swapped must be of one scale: ranks
    (`ranks`), or verdicts. Without `swaps` the bootstrap gives it: twice the share of draws on the other side of 0.
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 15; Venkatraman and Begg, "A
    distribution-free procedure for comparing receiver operating characteristic curves from a paired experiment",
    Biometrika 1996.
    """
    labels = checked_labels(anomalous)
    check_draws(repetitions, confidence)
    given = np.arange(labels.size) if groups is None else np.asarray(groups)
    if given.shape != labels.shape:
        raise ArgumentError.about("groups", expected=f"{labels.size} whole numbers, one an image", got=given)
    numbers = np.unique(given, return_inverse=True)[1]
    everything, as_it_is = np.arange(labels.size), np.zeros(labels.size, dtype=bool)
    here = _figures(statistic, everything, as_it_is)
    difference = here[0] - here[1]

    random = np.random.default_rng(seed)
    draw = _Draw(numbers, labels, random)
    drawn = []
    for _ in range(repetitions):
        images = draw.images()
        a, b = _figures(statistic, images, np.zeros(images.size, dtype=bool))
        drawn.append(a - b)
    bootstrap = np.array(drawn)
    if swaps:
        tossed = random.random((repetitions, numbers.max() + 1)) < 0.5
        swapped = np.array([np.subtract(*_figures(statistic, everything, coins[numbers])) for coins in tossed])
        extreme = (np.abs(swapped) >= np.abs(difference) - 1e-12).sum(axis=0)  # equal but for rounding is equal
        p_values = (1 + extreme) / (repetitions + 1)
    else:
        sides = np.minimum((bootstrap <= 0).sum(axis=0), (bootstrap >= 0).sum(axis=0))
        p_values = np.minimum(1.0, 2 * (1 + sides) / (repetitions + 1))
    tail = _expanded((1 - confidence) / 2, draw.fewest)
    low, high = np.quantile(bootstrap, (tail, 1 - tail), axis=0)
    return [
        FigureDifference(
            float(here[0, i]), float(here[1, i]), Interval(float(low[i]), float(high[i]), confidence, repetitions),
            float(p_values[i]),
        )
        for i in range(difference.size)
    ]  # fmt: skip


def ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """The rank of each score among all, from 1; ties share the mean. Figures of the ranking stay as they are.

    >>> ranks([0.3, 10.0, 0.3])
    array([1.5, 3. , 1.5])
    """
    found: NDArray[np.float64] = rankdata(scores)
    return found


class _Draw:
    """Draws groups with replacement within strata, so that both classes are always there."""

    def __init__(self, numbers: NDArray[np.intp], anomalous: NDArray[np.bool_], random: np.random.Generator) -> None:
        self._random = random
        self._members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
        kinds = np.array([2 * anomalous[images].any() + (~anomalous[images]).any() for images in self._members])
        self._strata = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        self.fewest = min(len(groups) for groups in self._strata)

    def images(self) -> NDArray[np.intp]:
        chosen = [self._random.choice(groups, groups.size) for groups in self._strata]
        return np.concatenate([self._members[group] for group in np.concatenate(chosen)])


def _expanded(tail: float, n: int) -> float:
    """The tail that percentiles of n draws take: those of few are too narrow (Hesterberg, "What teachers should know
    about the bootstrap", The American Statistician 2015).
    """
    return tail if n < 2 else float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf(tail, n - 1)))


def _figures(statistic: Statistic, images: NDArray[np.intp], swapped: NDArray[np.bool_]) -> NDArray[np.float64]:
    found = np.asarray(statistic(images, swapped), dtype=np.float64)
    if not np.isfinite(found).all():
        raise ArgumentError.about("statistic", expected="finite numbers for every draw", got="NaN or infinity")
    return found
