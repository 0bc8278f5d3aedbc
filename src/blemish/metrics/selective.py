"""Selective prediction: how well an uncertainty tells which predictions to trust.

Each function takes `uncertainty`, `(n,)` of any float dtype, larger = less sure, and `wrong`, `(n,)` bool, True where
the prediction is not right. A threshold accepts all samples whose uncertainty is at most its own; equal uncertainties
are accepted together, or, where a figure needs an order, averaged over all orders. All right and all wrong are fine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .ranking import checked_flags, checked_scores


class RiskCoverage(NamedTuple):
    """What each threshold accepts, and how often that is wrong: one point a distinct uncertainty."""

    thresholds: NDArray[np.float64]
    """`(points,)` ascending; accepted is `uncertainty <= threshold`."""
    coverage: NDArray[np.float64]
    """`(points,)` share of all samples that is accepted, ascending to 1."""
    risk: NDArray[np.float64]
    """`(points,)` share of the accepted samples that is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Accuracy of the tails of a sample sorted by uncertainty, one tail a bin; each array is `(bins,)`.

    Tail i holds every sample with `uncertainty >= thresholds[i]`, so the tails are nested and their bounds depend on
    each other: each bound holds for its own tail, chosen beforehand, and not for all tails at once.
    """

    thresholds: NDArray[np.float64]
    """Smallest uncertainty of each bin, ascending; the first tail is the whole sample."""
    sizes: NDArray[np.int64]
    """Number of samples in each tail, descending."""
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    """Lower Clopper-Pearson bound on the accuracy."""
    high: NDArray[np.float64]
    """Upper Clopper-Pearson bound on the accuracy."""
    bootstrap_median: NDArray[np.float64]
    bootstrap_first_percentile: NDArray[np.float64]
    confidence: float
    """Of each pair of bounds."""


def risk_coverage(uncertainty: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """Trade the share of accepted samples against the share of wrong ones among them, without a threshold grid.

    El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 2010.

    >>> risk_coverage([0.1, 0.3, 0.3, 0.9], [False, True, False, True]).coverage
    array([0.25, 0.75, 1.  ])
    """
    groups = _groups(uncertainty, wrong)
    return RiskCoverage(groups.thresholds, groups.accepted / groups.accepted[-1], groups.wrong / groups.accepted)


def aurc(uncertainty: ArrayLike, wrong: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean over k of the risk of the k most certain samples.

    (1/n) sum_k (1/k) sum_{i <= k} wrong_i, the mean over all orders of equal uncertainties. In [0, 1], smaller is
    better; the error rate is its value for an uncertainty that says nothing. Geifman, Uziel, El-Yaniv,
    "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019.

    >>> aurc([0.1, 0.3, 0.3, 0.9], [False, True, False, True])
    0.2708333333333333
    """
    return _aurc(_groups(uncertainty, wrong))


def e_aurc(uncertainty: ArrayLike, wrong: ArrayLike) -> float:
    """Excess AURC: `aurc` less that of the best order, in which all wrong samples come last; 0 is perfect.

    The best order's AURC is summed exactly and not by the logarithm that Geifman et al. (2019) approximate it with.

    >>> e_aurc([0.1, 0.2, 0.2, 0.9], [False, False, False, True])
    0.0
    """
    _, errors = _checked(uncertainty, wrong)
    return aurc(uncertainty, wrong) - _aurc(_groups(errors.astype(np.float64), errors))


def augrc(uncertainty: ArrayLike, wrong: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve: mean over k of the wrong ones among the k most certain, over n.

    (1/n) sum_k (1/n) sum_{i <= k} wrong_i, the mean over all orders of equal uncertainties. In [0, 1], smaller is
    better: the chance that a sample is wrong and goes unnoticed, for a random threshold. Traub et al., "Overcoming
    common flaws in the evaluation of selective classification systems", NeurIPS 2024. Their code takes trapezoids
    instead of this sum, which gives `error rate / (2 n)` less.

    >>> augrc([0.1, 0.3, 0.3, 0.9], [False, True, False, True])
    0.21875
    """
    groups = _groups(uncertainty, wrong)
    size, errors = np.diff(groups.accepted, prepend=0), np.diff(groups.wrong, prepend=0)
    # In a tie of `size` samples each order's sums are as far above its straight line as the reverse order's below.
    twice = 2 * size @ (groups.wrong - errors) + (size + 1) @ errors
    return int(twice) / (2 * int(groups.accepted[-1]) ** 2)


def risk_at_coverage(uncertainty: ArrayLike, wrong: ArrayLike, coverage: float) -> float:
    """Share of wrong samples among the accepted, at the smallest threshold that accepts the share `coverage`.

    Equal uncertainties are accepted together, so more than `coverage` may be.

    >>> risk_at_coverage([0.1, 0.3, 0.3, 0.9], [False, True, False, True], 0.5)
    0.3333333333333333
    """
    if not 0 < coverage <= 1:
        raise ArgumentError.about("coverage", expected="a share in (0, 1]", got=coverage, instead="Write 0.8.")
    curve = risk_coverage(uncertainty, wrong)
    return float(curve.risk[np.searchsorted(curve.coverage, coverage, side="left")])


def coverage_at_risk(uncertainty: ArrayLike, wrong: ArrayLike, risk: float) -> float:
    """Give the largest share of samples that a threshold accepts with at most the share `risk` wrong among them.

    0.0 where no threshold does. The threshold is chosen on the labels it is judged on, so expect a higher risk on
    other samples.

    >>> coverage_at_risk([0.1, 0.3, 0.3, 0.9], [False, True, False, True], 0.4)
    0.75
    """
    if not 0 <= risk <= 1:
        raise ArgumentError.about("risk", expected="a share in [0, 1]", got=risk, instead="Write 0.05.")
    curve = risk_coverage(uncertainty, wrong)
    return float(np.max(curve.coverage, initial=0.0, where=curve.risk <= risk))


def reliability(
    uncertainty: ArrayLike, wrong: ArrayLike, *, bin_size: int = 500, confidence: float = 0.98
) -> Reliability:
    """Accuracy of all samples that are at least as uncertain as a bin's first one, for bins of `bin_size` samples.

    Sorted by uncertainty, every `bin_size`-th sample starts a bin; the last bin takes what is left over. An edge
    that falls into a run of equal uncertainties moves to the start of the run, and edges that meet there are one: no
    tail depends on the order of equal samples, and a bin may be larger than asked.

    The bounds are exact for a tail chosen beforehand: Clopper and Pearson, "The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 1934, with (1 - confidence) / 2 on each side. The default
    leaves 1 % below, so `low` compares with the first percentile of the bootstrap. That percentile and the median
    need no resampling: over all draws of a tail of size m with accuracy a, the drawn accuracy is Binomial(m, a) / m.
    They describe the sample and are no bounds: where every sample is right, both are 1.

    >>> tails = reliability([0.1, 0.2, 0.4, 0.4, 0.4, 0.9], [False, False, True, False, True, True], bin_size=2)
    >>> tails.thresholds, tails.sizes, tails.accuracy
    (array([0.1, 0.4]), array([6, 4]), array([0.5 , 0.25]))
    """
    if bin_size < 1:
        raise ArgumentError.about("bin_size", expected="at least 1", got=bin_size, instead="Write 500.")
    if not 0 < confidence < 1:
        raise ArgumentError.about("confidence", expected="a share in (0, 1)", got=confidence, instead="Write 0.98.")
    from scipy.stats import beta, binom  # slow to import, and only this function needs it

    values, errors = _checked(uncertainty, wrong)
    order = np.argsort(values)
    ranked = values[order]
    edges = np.arange(max(1, ranked.size // bin_size)) * bin_size
    starts = np.unique(np.searchsorted(ranked, ranked[edges], side="left"))
    right = np.cumsum(~errors[order][::-1])[::-1][starts]
    sizes = ranked.size - starts
    tail = (1 - confidence) / 2
    return Reliability(
        thresholds=ranked[starts],
        sizes=sizes,
        accuracy=right / sizes,
        low=np.where(right > 0, beta.ppf(tail, np.maximum(right, 1), sizes - right + 1), 0.0),
        high=np.where(right < sizes, beta.isf(tail, right + 1, np.maximum(sizes - right, 1)), 1.0),
        bootstrap_median=binom.ppf(0.5, sizes, right / sizes) / sizes,
        bootstrap_first_percentile=binom.ppf(0.01, sizes, right / sizes) / sizes,
        confidence=confidence,
    )


class _Groups(NamedTuple):
    """Counts up to and with each distinct uncertainty."""

    thresholds: NDArray[np.float64]
    """`(points,)` ascending."""
    accepted: NDArray[np.int64]
    wrong: NDArray[np.int64]


def _groups(uncertainty: ArrayLike, wrong: ArrayLike) -> _Groups:
    values, errors = _checked(uncertainty, wrong)
    order = np.argsort(values)
    ranked = values[order]
    last_of_tie = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)
    return _Groups(ranked[last_of_tie], last_of_tie + 1, np.cumsum(errors[order], dtype=np.int64)[last_of_tie])


def _aurc(groups: _Groups) -> float:
    """Take the mean of expected errors over k: within a tie each sample brings the tie's share of wrong ones."""
    size, errors = np.diff(groups.accepted, prepend=0), np.diff(groups.wrong, prepend=0)
    before, wrong_before = (np.repeat(x, size) for x in (groups.accepted - size, groups.wrong - errors))
    k = np.arange(1, groups.accepted[-1] + 1)
    expected = wrong_before + (k - before) * np.repeat(errors, size) / np.repeat(size, size)
    return float(np.mean(expected / k))


def _checked(uncertainty: ArrayLike, wrong: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, errors = checked_scores(uncertainty, "uncertainty"), checked_flags(wrong, "wrong")
    if errors.shape != values.shape:
        expected = f"one flag an uncertainty, {values.size} in all"
        raise ArgumentError.about("wrong", expected=expected, got=errors)
    return values, errors
