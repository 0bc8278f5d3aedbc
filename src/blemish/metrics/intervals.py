"""Confidence intervals over images: the bootstrap for any figure, and DeLong's closed form for the AUROC.

All of them treat images as independent. Several crops of one part, or frames of one video, are not: their intervals
come out too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from ..errors import ArgumentError
from .ranking import Steps, checked_labels, checked_sample, steps_of

_Ints = NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that covers the true value of a statistic with about the probability `confidence`."""

    low: float
    high: float
    confidence: float
    repetitions: int
    """Of the bootstrap; 0 for a closed form."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much better detector a ranks than detector b on the same images, and whether chance explains it."""

    difference: float
    """AUROC of a minus AUROC of b, in [-1, 1]."""
    standard_error: float
    p_value: float
    """Two-sided, of the hypothesis that both AUROCs are equal."""


@dataclass(frozen=True, slots=True, eq=False)
class RankingBootstrap:
    """The ranking metrics of every bootstrap repetition, each `(repetitions,)`; index i of all arrays is one draw."""

    auroc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    average_precision_normal: NDArray[np.float64]
    fpr_at_95_tpr: NDArray[np.float64]
    fpr_at_95_tpr_normal: NDArray[np.float64]

    def means(self) -> dict[str, float]:
        """Average over the repetitions, by metric."""
        return {name: float(values.mean()) for name, values in self._arrays()}

    def standard_errors(self) -> dict[str, float]:
        """Standard deviation over the repetitions (divisor: one less), by metric."""
        return {name: float(values.std(ddof=1)) for name, values in self._arrays()}

    def intervals(self, confidence: float = 0.95) -> dict[str, Interval]:
        """Percentile intervals, by metric; for the tails of 95 % give it 1000 repetitions rather than 100."""
        check_draws(self.auroc.size, confidence)
        return {name: _percentiles(values, confidence) for name, values in self._arrays()}

    def _arrays(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))


def binomial_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Exact interval of a share, with at most (1 - confidence) / 2 on each side; all of [0, 1] without trials.

    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika
    1934.

    >>> interval = binomial_interval(0, 60)
    >>> interval.low, round(interval.high, 4)
    (0.0, 0.0596)
    """
    if not 0 <= successes <= trials:
        raise ArgumentError.about("successes", expected=f"0 to {trials}, the number of trials", got=successes)
    check_draws(1, confidence)
    tail, failures = (1 - confidence) / 2, trials - successes
    low = float(betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = 1 - float(betaincinv(failures, successes + 1, tail)) if failures else 1.0
    return Interval(low, high, confidence, 0)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float],
    anomalous: ArrayLike,
    *,
    repetitions: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over images, drawn with replacement within the normal and within the anomalous ones.

    `statistic` takes the positions of the drawn images, `(n,)` integers with repeats, and returns a finite number.
    `anomalous` is `(n,)` bool with both classes present; each repetition holds as many of each class as the data,
    so the interval speaks of other images at the same class balance. The same seed gives the same interval.
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    >>> from blemish.metrics import auroc
    >>> scores, anomalous = np.array([0.1, 0.4, 0.2, 0.3, 0.9, 0.6]), np.array([False] * 3 + [True] * 3)
    >>> interval = bootstrap_interval(lambda images: auroc(scores[images], anomalous[images]), anomalous)
    >>> interval.high
    1.0
    """
    labels = checked_labels(anomalous)
    check_draws(repetitions, confidence)
    classes = np.flatnonzero(~labels), np.flatnonzero(labels)
    random = np.random.default_rng(seed)
    values = np.empty(repetitions)
    for i in range(repetitions):
        values[i] = statistic(np.concatenate([random.choice(images, images.size) for images in classes]))
    if not np.isfinite(values).all():
        raise ArgumentError.about("statistic", expected="a finite number for every draw", got="NaN or infinity")
    return _percentiles(values, confidence)


def bootstrap_ranking(
    scores: ArrayLike, anomalous: ArrayLike, *, repetitions: int = 100, seed: int = 0
) -> RankingBootstrap:
    """Bootstrap all ranking metrics at once: each repetition equals, exactly, the metrics of the drawn images.

    `scores` `(n,)` float, larger = more anomalous; `anomalous` `(n,)` bool, both classes present. Drawn with
    replacement within each class, as in `bootstrap_interval`. The scores are sorted once: a draw is a multinomial
    weight for each distinct score, so a repetition costs O(n) and nothing is interpolated or binned.

    >>> draws = bootstrap_ranking([0.1, 0.4, 0.4, 0.9], [False, False, True, True], repetitions=20)
    >>> draws.auroc.shape, draws.intervals()["auroc"].high
    ((20,), 1.0)
    """
    if repetitions < 2:
        expected = "at least 2, for a standard error"
        raise ArgumentError.about("repetitions", expected=expected, got=repetitions, instead="Write 100.")
    values = np.array([_figures(drawn) for drawn in resamples(steps_of(scores, anomalous), repetitions, seed)])
    return RankingBootstrap(*np.ascontiguousarray(values.T))


def resamples(steps: Steps, repetitions: int, seed: int) -> Iterator[Steps]:
    """Give the steps of `repetitions` draws, each with as many images of each class as `steps`."""
    random = np.random.default_rng(seed)
    points = steps.thresholds.size
    classes = [np.repeat(np.arange(points), counts) for counts in steps.counts()]  # the step of every image
    for _ in range(repetitions):
        drawn = (images[random.integers(images.size, size=images.size)] for images in classes)
        anomalous, normal = (np.bincount(images, minlength=points) for images in drawn)
        yield Steps.of_counts(steps.thresholds, anomalous, normal)


def delong_interval(scores: ArrayLike, anomalous: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Interval for the AUROC without resampling: normal approximation with DeLong's variance, cut to [0, 1].

    `scores` `(n,)` float, larger = more anomalous; `anomalous` `(n,)` bool with at least two images of each class.
    Ties count one half. DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated receiver
    operating characteristic curves", Biometrics 1988; in O(n log n) by ranks as in Sun and Xu, "Fast implementation
    of DeLong's algorithm", IEEE Signal Processing Letters 2014.

    At an AUROC of 0 or 1 the variance is 0 and the interval is that one point. It then says only that this sample
    holds no pair in the wrong order, not that there are none; the same goes for a bootstrap. Near 0 and 1 the normal
    approximation covers less than it says.

    >>> interval = delong_interval([0.1, 0.4, 0.2, 0.3, 0.9, 0.6], [False] * 3 + [True] * 3)
    >>> round(interval.low, 4), interval.high
    (0.5809, 1.0)
    """
    check_draws(1, confidence)
    placements = _placements(scores, anomalous)
    area = placements.auroc()
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * placements.standard_error()
    return Interval(max(0.0, area - margin), min(1.0, area + margin), confidence, 0)


def delong_difference(scores_a: ArrayLike, scores_b: ArrayLike, anomalous: ArrayLike) -> PairedDifference:
    """Compare the AUROC of two detectors on the same images, by DeLong's test for correlated curves (see above).

    `scores_a` and `scores_b` are `(n,)` float, of any two scales; `anomalous` `(n,)` bool with at least two images of
    each class. Where the standard error is 0, as for equal rankings, the p-value is 1 without a difference and 0
    with one. Choosing the better of many detectors by this test needs a correction for their number.

    >>> delong_difference([0.1, 0.4, 0.2, 0.9], [0.1, 0.4, 0.5, 0.9], [False, False, True, True])
    PairedDifference(difference=-0.25, standard_error=0.35..., p_value=0.47...)
    """
    a, b = _placements(scores_a, anomalous, "scores_a"), _placements(scores_b, anomalous, "scores_b")
    gain = _Placements(a.anomalous - b.anomalous, a.normal - b.normal)
    difference, error = gain.auroc(), gain.standard_error()
    p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else float(difference == 0)
    return PairedDifference(difference, error, p_value)


class _Placements(NamedTuple):
    """For each image, twice the number of images of the other class that it stands on the right side of.

    DeLong's structural components, as whole numbers: a tie counts 1, so all sums are exact and equal placements have
    a variance of exactly 0. A difference of two detectors is one as well.
    """

    anomalous: _Ints
    normal: _Ints

    def auroc(self) -> float:
        return int(self.anomalous.sum()) / (2 * self.anomalous.size * self.normal.size)

    def standard_error(self) -> float:
        m, n = self.anomalous.size, self.normal.size
        variance = np.var(self.anomalous, ddof=1) / n**2 / m + np.var(self.normal, ddof=1) / m**2 / n
        return math.sqrt(variance) / 2  # placements count twice


def _placements(scores: ArrayLike, anomalous: ArrayLike, name: str = "scores") -> _Placements:
    values, labels = checked_sample(scores, anomalous, name)
    high, low = values[labels], values[~labels]
    if min(low.size, high.size) < 2:
        got = f"{low.size} normal and {high.size} anomalous"
        raise ArgumentError.about("anomalous", expected="at least two images of each class", got=got)
    return _Placements(_twice_below(high, low), 2 * high.size - _twice_below(low, high))


def _twice_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> _Ints:
    """For each value, twice the number of `others` below it, plus the number equal to it."""
    ranked = np.sort(others)
    return np.searchsorted(ranked, values, "left") + np.searchsorted(ranked, values, "right")


def _figures(steps: Steps) -> tuple[float, ...]:
    """In the order of `RankingBootstrap`."""
    normal = steps.mirrored()
    return (
        steps.auroc(),
        steps.average_precision(),
        normal.average_precision(),
        steps.fpr_at_tpr(0.95),
        normal.fpr_at_tpr(0.95),
    )


def _percentiles(values: NDArray[np.float64], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high), confidence, values.size)


def check_draws(repetitions: int, confidence: float) -> None:
    """Raise `ArgumentError` for what no interval can be made of."""
    if repetitions < 1:
        raise ArgumentError.about("repetitions", expected="at least 1", got=repetitions, instead="Write 1000.")
    if not 0 < confidence < 1:
        raise ArgumentError.about("confidence", expected="a share in (0, 1)", got=confidence, instead="Write 0.95.")
