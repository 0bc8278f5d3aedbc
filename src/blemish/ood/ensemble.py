"""Six measures of the uncertainty of an ensemble of classifiers.

Malinin and Gales, "Uncertainty Estimation in Autoregressive Structured Prediction", ICLR 2021; Malinin, Mlodozeniec and
Gales, "Ensemble Distribution Distillation", ICLR 2020.

Logits are `(members, n, classes)`; P_m are the members' probabilities, P their mean; scores are `(n,)`, in nats, larger
for more uncertain. Total uncertainty: `confidence`, `entropy_of_expected`. Data uncertainty: `expected_entropy`.
Knowledge uncertainty, the members' disagreement: `mutual_information`, `epkl`, `mkl`, which one member alone leaves 0.

Probabilities enter as log-softmax. Adding a small number before the logarithm, as is often done, truncates: for members
that disagree with certainty it loses half of `epkl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..types import Floats
from ._base import Need, OODDetector, by_rows, check_floats, read_logits
from .classifier import Outputs
from .logits import log_rest, log_softmax

Measure = Literal["confidence", "entropy_of_expected", "expected_entropy", "mutual_information", "epkl", "mkl"]


def confidence(logits: NDArray[np.floating]) -> Floats:
    """log(1 - max_c P(c)): ranks like minus the confidence of the paper, without ties at certainty."""
    return _measure("confidence", check_floats("logits", logits, axes=("members", "n", "classes")))


def entropy_of_expected(logits: NDArray[np.floating]) -> Floats:
    """H[P]."""
    return _measure("entropy_of_expected", check_floats("logits", logits, axes=("members", "n", "classes")))


def expected_entropy(logits: NDArray[np.floating]) -> Floats:
    """mean_m H[P_m]."""
    return _measure("expected_entropy", check_floats("logits", logits, axes=("members", "n", "classes")))


def mutual_information(logits: NDArray[np.floating]) -> Floats:
    """H[P] - mean_m H[P_m] = mean_m KL(P_m | P), between the class and the member."""
    return _measure("mutual_information", check_floats("logits", logits, axes=("members", "n", "classes")))


def epkl(logits: NDArray[np.floating]) -> Floats:
    """Expected pairwise KL divergence, (1 / members^2) sum_{m, l} KL(P_m | P_l)."""
    return _measure("epkl", check_floats("logits", logits, axes=("members", "n", "classes")))


def mkl(logits: NDArray[np.floating]) -> Floats:
    """Reverse mutual information, mean_m KL(P | P_m) = `epkl` - `mutual_information`."""
    return _measure("mkl", check_floats("logits", logits, axes=("members", "n", "classes")))


@dataclass(kw_only=True)
class Ensemble(OODDetector):
    """Uncertainty of an ensemble of classifiers.

    Parameters
    ----------
    measure: see the functions of these names. To take the best one on the test data is to tune on the test data.
    """

    name: ClassVar[str] = "ensemble"
    needs: ClassVar[frozenset[Need]] = frozenset({"members"})

    measure: Measure = "mutual_information"

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, larger = more uncertain."""
        shape = read_logits(outputs.logits).shape
        members = [read_logits(member, name="outputs.members") for member in outputs.members]
        for member in members:
            if member.shape != shape:
                raise ArgumentError.about("outputs.members", expected=f"shape {shape}, as logits", got=member)
        return _measure(self.measure, members)


def _measure(name: Measure, members: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> Floats:
    def score(*logits: Floats) -> Floats:
        log_p = log_softmax(np.stack(logits))
        return MEASURES[name](log_p, _log_mean(log_p))

    return by_rows(score, *(read_logits(member) for member in members))


def _log_mean(log_p: Floats) -> Floats:
    """log P, `(n, classes)`."""
    top = log_p.max(axis=0)
    mean: Floats = top + np.log(np.exp(log_p - top).mean(axis=0))
    return log_softmax(mean)  # P sums to 1 already; this gives the top class its digits where P rounds to 1


def _epkl(log_p: Floats, _: Floats) -> Floats:
    # The double sum over pairs is, class by class, the covariance over the members of P_m and log P_m.
    p = np.exp(log_p)
    return np.maximum(_sum(((p - p.mean(axis=0)) * (log_p - log_p.mean(axis=0))).mean(axis=0)), 0)


def _divergence(log_p: Floats, log_ratio: Floats) -> Floats:
    """Mean over the members of the sum of p times the logarithm of a ratio; rounding makes it no less than 0."""
    return np.maximum(_sum((np.exp(log_p) * log_ratio).mean(axis=0)), 0)


def _sum(terms: Floats) -> Floats:
    total: Floats = terms.sum(axis=-1)
    return total


MEASURES: dict[Measure, Callable[[Floats, Floats], Floats]] = {
    "confidence": lambda _, log_mean: log_rest(log_mean),
    "entropy_of_expected": lambda _, log_mean: -_sum(np.exp(log_mean) * log_mean),
    "expected_entropy": lambda log_p, _: -_sum((np.exp(log_p) * log_p).mean(axis=0)),
    # As a divergence: the difference of two entropies would lose the digits of a small disagreement.
    "mutual_information": lambda log_p, log_mean: _divergence(log_p, log_p - log_mean),
    "epkl": _epkl,
    "mkl": lambda log_p, log_mean: _divergence(log_mean, log_mean - log_p),
}
