"""Scores from the logits alone. Logits z are `(n, classes)`, scores `(n,)` float64; p = softmax(z).

Everything starts from log p: a softmax in floating point rounds to 1 for confident images, and all of these would tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..parameters import check_parameters, parameter
from ..types import Floats
from ._base import OODDetector, by_rows, read_logits
from .classifier import Outputs


def msp(logits: NDArray[np.floating], *, temperature: float = 1.0) -> Floats:
    """log(1 - max p), p = softmax(z / T): ranks like one minus the maximum softmax probability.

    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017, where
    the score is max p and larger means in distribution.
    """
    check_parameters(MSP(temperature=temperature))
    return by_rows(lambda z: log_rest(z / temperature), read_logits(logits))


def max_logit(logits: NDArray[np.floating]) -> Floats:
    """-max z (Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022)."""
    return by_rows(lambda z: np.negative(z.max(axis=1)), read_logits(logits))


def energy(logits: NDArray[np.floating], *, temperature: float = 1.0) -> Floats:
    """-T log sum_c exp(z_c / T) (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, eq. 4).

    The paper thresholds the negative energy, where larger means in distribution.
    """
    check_parameters(Energy(temperature=temperature))
    return by_rows(lambda z: -temperature * logsumexp(z / temperature), read_logits(logits))


def entropy(logits: NDArray[np.floating]) -> Floats:
    """Entropy of p in nats, -sum_c p_c log p_c."""
    return by_rows(lambda z: _entropy(log_softmax(z)), read_logits(logits))


def generalised_entropy(logits: NDArray[np.floating], *, gamma: float = 0.1, top: int = 100) -> Floats:
    """sum_c p_c^gamma (1 - p_c)^gamma over the `top` most probable classes, or over all where there are fewer.

    Liu, Lochman and Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023,
    whose score is the negative of it, larger in distribution.
    """
    check_parameters(GeneralisedEntropy(gamma=gamma, top=top))
    checked = read_logits(logits)
    count = min(top, checked.shape[1])

    def score(z: Floats) -> Floats:
        log_p = log_softmax(z)
        terms = np.exp(gamma * (log_p + log_complement(log_p)))
        largest = np.argpartition(-log_p, count - 1, axis=1)[:, :count]
        total: Floats = np.take_along_axis(terms, largest, axis=1).sum(axis=1)
        return total

    return by_rows(score, checked)


@dataclass(kw_only=True)
class MSP(OODDetector):
    """Maximum softmax probability, as log(1 - max p); see `msp`.

    Parameters
    ----------
    temperature: divides the logits (the paper: 1).
    """

    name: ClassVar[str] = "msp"

    temperature: float = parameter(1.0, above=0)

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, log(1 - max p)."""
        return msp(outputs.logits, temperature=self.temperature)


@dataclass(kw_only=True)
class MaxLogit(OODDetector):
    """Minus the largest logit; see `max_logit`."""

    name: ClassVar[str] = "max_logit"

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, -max z."""
        return max_logit(outputs.logits)


@dataclass(kw_only=True)
class Energy(OODDetector):
    """Energy of the logits; see `energy`.

    Parameters
    ----------
    temperature: T (the paper: 1).
    """

    name: ClassVar[str] = "energy"

    temperature: float = parameter(1.0, above=0)

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in units of the logits."""
        return energy(outputs.logits, temperature=self.temperature)


@dataclass(kw_only=True)
class Entropy(OODDetector):
    """Entropy of the softmax; see `entropy`."""

    name: ClassVar[str] = "entropy"

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in nats."""
        return entropy(outputs.logits)


@dataclass(kw_only=True)
class GeneralisedEntropy(OODDetector):
    """GEN, an entropy that weighs small deviations from certainty more; see `generalised_entropy`.

    Parameters
    ----------
    gamma: exponent in (0, 1) (the paper: 0.1).
    top: how many of the most probable classes count, all where there are fewer (the paper, 1000 classes: 100).
    """

    name: ClassVar[str] = "gen"

    gamma: float = parameter(0.1, above=0, below=1)
    top: int = parameter(100, at_least=1)

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, from 0 to the number of classes that count."""
        return generalised_entropy(outputs.logits, gamma=self.gamma, top=self.top)


def logsumexp(z: Floats) -> Floats:
    """log sum exp along the last axis."""
    top = z.max(axis=-1, keepdims=True)
    total: Floats = (top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))[..., 0]
    return total


def log_softmax(z: Floats) -> Floats:
    """log p along the last axis, to full relative precision also where p rounds to 1."""
    shifted = z - z.max(axis=-1, keepdims=True)
    # Without its own exp(0) = 1 the top class has log p = -log1p(rest), whose digits survive a tiny rest.
    rest = np.exp(without_top(shifted)).sum(axis=-1, keepdims=True)
    log_p: Floats = shifted - np.log1p(rest)
    return log_p


def log_rest(z: Floats) -> Floats:
    """log(1 - max p) = -log(1 + exp(max z - log sum exp of the others)), along the last axis."""
    gap: Floats = z.max(axis=-1) - logsumexp(without_top(z))
    return -np.logaddexp(0, gap)


def log_complement(log_p: Floats) -> Floats:
    """log(1 - p_c) for every class, along the last axis."""
    # Exact for the others, as none of them passes one half.
    complement: Floats = np.log1p(-np.exp(without_top(log_p)))
    np.put_along_axis(complement, _top(log_p), log_rest(log_p)[..., None], axis=-1)
    return complement


def without_top(z: Floats) -> Floats:
    """The same with the largest of each row at minus infinity (the first one, of several)."""
    others: Floats = z.copy()
    np.put_along_axis(others, _top(z), -np.inf, axis=-1)
    return others


def _entropy(log_p: Floats) -> Floats:
    total: Floats = -(np.exp(log_p) * log_p).sum(axis=-1)
    return total


def _top(z: Floats) -> NDArray[np.intp]:
    top: NDArray[np.intp] = z.argmax(axis=-1, keepdims=True)
    return top
