"""Energy of the logits after the features were clipped, pruned or scaled. All of them need a linear last layer.

Each computes E = -log sum_c exp((W f(x) + b)_c) with its own f; the papers' score is -E, larger in distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..parameters import parameter
from ..types import Floats
from ._base import Need, OODDetector, by_rows, read_features, read_head
from .classifier import Outputs
from .logits import logsumexp

Variant = Literal["s", "b", "p"]
_PERCENTILES: dict[Variant, float] = {"s": 90.0, "b": 65.0, "p": 60.0}
_MOST = 99
"""Percentile beyond which exp(s1 / s2) soon leaves what float64 can hold."""


@dataclass(kw_only=True)
class ReAct(OODDetector):
    """Clip features at a percentile of those of the fit's images: f(x) = min(x, c).

    Sun, Guo and Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021. The threshold c
    is one number, over all channels and images.

    Parameters
    ----------
    percentile: of the features at which they are clipped (the paper: 90).
    """

    name: ClassVar[str] = "react"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})
    forms: ClassVar[Mapping[str, str]] = {"threshold": "float64", "channels": "int64"}

    percentile: float = parameter(90.0, above=0, at_most=100)

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> Mapping[str, Any]:
        features = read_features(outputs)
        return {"threshold": np.percentile(features, self.percentile), "channels": features.shape[1]}

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in units of the logits."""
        features = read_features(outputs, channels=int(self.learned_["channels"]))
        threshold = float(self.learned_["threshold"])
        return _energy(lambda x: np.minimum(x, threshold), outputs, features)


@dataclass(kw_only=True)
class ASH(OODDetector):
    """Activation shaping: keep the largest features of each image and simplify or scale these.

    Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023.
    With s1 the sum of an image's d features and s2 that of the kept ones, the others set to 0:

    - `p`: the kept ones as they are;
    - `b`: each kept one becomes s1 / (number kept);
    - `s`: the kept ones times exp(s1 / s2).

    Kept are the d - round(d percentile / 100) largest, at least one; ties with the smallest of them as well, but never
    a 0. Features must not be negative (they come after a ReLU): sums mean nothing otherwise.

    Parameters
    ----------
    variant: what becomes of the kept features.
    percentile: of an image's features that are removed; None takes the paper's for ImageNet: 90 for `s`, 65 for `b`, 60
        for `p`.
    """

    name: ClassVar[str] = "ash"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})

    variant: Variant = "s"
    percentile: float | None = parameter(None, at_least=0, at_most=_MOST)

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in units of the logits."""
        percentile = _PERCENTILES[self.variant] if self.percentile is None else self.percentile
        return _energy(lambda x: _shape(x, self.variant, percentile), outputs, _non_negative(outputs))


@dataclass(kw_only=True)
class SCALE(OODDetector):
    """Scale all features of an image by exp(s1 / s2); as `ASH` with variant `s`, but nothing is removed.

    Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement", ICLR 2024: s1 is
    the sum of an image's features and s2 that of its largest ones. Features must not be negative.

    Parameters
    ----------
    percentile: of an image's features that do not count in s2 (the paper: 85).
    """

    name: ClassVar[str] = "scale"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})

    percentile: float = parameter(85.0, at_least=0, at_most=_MOST)

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in units of the logits."""
        return _energy(lambda x: x * _ratio(x, _keep(x, self.percentile)), outputs, _non_negative(outputs))


def _energy(change: Callable[[Floats], Floats], outputs: Outputs, features: NDArray[np.floating]) -> Floats:
    weight, bias = read_head(outputs)
    return by_rows(lambda x: -logsumexp(change(x) @ weight.T + bias), features, beside=len(bias))


def _shape(x: Floats, variant: Variant, percentile: float) -> Floats:
    kept = _keep(x, percentile)
    if variant == "b":
        count = (kept > 0).sum(axis=1, keepdims=True)
        return np.where(kept > 0, x.sum(axis=1, keepdims=True) / np.maximum(count, 1), 0)
    return kept if variant == "p" else kept * _ratio(x, kept)


def _keep(x: Floats, percentile: float) -> Floats:
    """The largest features of each row, the others 0."""
    channels = x.shape[1]
    removed = min(round(channels * percentile / 100), channels - 1)
    smallest = np.partition(x, removed, axis=1)[:, removed, None]
    return np.where(x >= smallest, x, 0)


def _ratio(x: Floats, kept: Floats) -> Floats:
    """exp(s1 / s2), `(n, 1)`; 1 where all features are 0, which no factor changes."""
    s1, s2 = x.sum(axis=1, keepdims=True), kept.sum(axis=1, keepdims=True)
    ratio: Floats = np.exp(np.divide(s1, s2, out=np.zeros_like(s1), where=s2 > 0))
    return ratio


def _non_negative(outputs: Outputs) -> NDArray[np.floating]:
    features = read_features(outputs)
    if features.min() < 0:
        raise ArgumentError.about(
            "outputs.features",
            expected="numbers of at least 0, as a ReLU gives",
            got=f"a smallest one of {features.min():.3g}",
            instead="Use ReAct or Energy for this network.",
        )
    return features
