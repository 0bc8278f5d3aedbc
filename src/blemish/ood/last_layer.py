"""Gradient norms of the last, linear layer in closed form: no backward pass.

With features phi, logits z = W phi + b, p = softmax(z / T), C classes and a loss whose gradient for the logits is g,
the gradient for W is the outer product g phi^T and that for b is g. Its norms are those of g times those of phi:

    |g phi^T|_1 = |g|_1 |phi|_1,   |g phi^T|_2 = |g|_2 |phi|_2,   |(g phi^T, g)|_2 = |g|_2 sqrt(|phi|_2^2 + 1).

All scores are logarithms. A norm of exactly 0 counts as the smallest normal float64, so that scores stay finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..ops.gradnorm import Norm
from ..parameters import check_parameters, parameter
from ..types import Floats
from ._base import Need, OODDetector, by_rows, check_floats, read_features, read_logits
from .classifier import Outputs
from .logits import log_complement, log_rest, log_softmax, logsumexp, without_top


def grad_norm(logits: NDArray[np.floating], features: NDArray[np.floating], *, temperature: float = 1.0) -> Floats:
    """-log |dL/dW|_1 for L = -(1/C) sum_c log p_c, the cross-entropy to the uniform target: dL/dz = (p - 1/C) / T.

    Huang, Geng and Li, "On the Importance of Gradients for Detecting Distributional Shifts in the Wild", NeurIPS 2021:
    GradNorm, the norm itself. It is larger in distribution; hence the sign. `features` are `(n, channels)`.
    """
    check_parameters(GradNorm(temperature=temperature))

    def score(z: Floats, phi: Floats) -> Floats:
        # p_c - 1/C from e_c = exp(z_c - max z) - 1, which keeps its digits where p is nearly uniform.
        e = np.expm1((z - z.max(axis=1, keepdims=True)) / temperature)
        uniform = np.abs(e - e.mean(axis=1, keepdims=True)).sum(axis=1) / (e + 1).sum(axis=1)
        return float(np.log(temperature)) - _log(uniform) - _log(np.abs(phi).sum(axis=1))

    return by_rows(score, *_pair(logits, features))


def last_layer_gradient(
    logits: NDArray[np.floating], features: NDArray[np.floating], *, temperature: float = 1.0, bias: bool = True
) -> Floats:
    """log of the L2 norm of d log p_y / d(W, b), y the predicted class: log(|p - e_y| sqrt(|phi|^2 + 1) / T).

    The gradient method ("GRODIN") restricted to the last layer, without perturbation of the image. Without `bias` the
    norm is over W alone, with |phi| in place of the root. `features` are `(n, channels)`.
    """
    check_parameters(LastLayerGradient(temperature=temperature, bias=bias))

    def score(z: Floats, phi: Floats) -> Floats:
        log_p = log_softmax(z / temperature)
        return _log_distance(log_p) + _log(_length(phi, bias)) - float(np.log(temperature))

    return by_rows(score, *_pair(logits, features))


def ex_grad(logits: NDArray[np.floating], features: NDArray[np.floating], *, norm: Norm = "l1") -> Floats:
    """log of the expected gradient norm, sum_y p_y |d log p_y / dW|, p at T = 1; `features` are `(n, channels)`.

    Igoe et al., "How Useful are Gradients for OOD Detection Really?", 2022: ExGrad on the last layer's weight. With
    the L1 norm it is 2 (1 - |p|_2^2) |phi|_1; with the L2 norm sum_y p_y |e_y - p|_2 |phi|_2.
    """
    check_parameters(ExGrad(norm=norm))

    def score(z: Floats, phi: Floats) -> Floats:
        log_p = log_softmax(z)
        if norm == "l1":  # |e_y - p|_1 = 2 (1 - p_y)
            return float(np.log(2)) + logsumexp(log_p + log_complement(log_p)) + _log(np.abs(phi).sum(axis=1))
        return logsumexp(log_p + _log_distances(log_p)) + _log(_length(phi, False))

    return by_rows(score, *_pair(logits, features))


@dataclass(kw_only=True)
class GradNorm(OODDetector):
    """Minus the log of the L1 norm of the last layer's weight gradient, uniform target; see `grad_norm`.

    Parameters
    ----------
    temperature: divides the logits (the paper: 1).
    """

    name: ClassVar[str] = "grad_norm"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})

    temperature: float = parameter(1.0, above=0)

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, minus a log norm."""
        return grad_norm(outputs.logits, read_features(outputs), temperature=self.temperature)


@dataclass(kw_only=True)
class LastLayerGradient(OODDetector):
    """Log of the L2 norm of the last layer's gradient of the predicted class; see `last_layer_gradient`.

    Parameters
    ----------
    temperature: divides the logits. At 1 the length of the features, larger in distribution, works against the score.
    bias: whether the bias counts among the weights.
    """

    name: ClassVar[str] = "last_layer"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})

    temperature: float = parameter(1.0, above=0)
    bias: bool = True

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a log norm."""
        features = read_features(outputs)
        return last_layer_gradient(outputs.logits, features, temperature=self.temperature, bias=self.bias)


@dataclass(kw_only=True)
class ExGrad(OODDetector):
    """Log of the expected norm of the last layer's weight gradient; see `ex_grad`.

    Parameters
    ----------
    norm: of the gradient.
    """

    name: ClassVar[str] = "ex_grad"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})

    norm: Norm = "l1"

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a log norm."""
        return ex_grad(outputs.logits, read_features(outputs), norm=self.norm)


def _log_distance(log_p: Floats) -> Floats:
    """log |p - e_y|_2 for the predicted y, whose entry 1 - p_y is the sum of the others."""
    others = without_top(log_p)
    return np.logaddexp(logsumexp(2 * others), 2 * log_rest(log_p)) / 2


def _log_distances(log_p: Floats) -> Floats:
    """log |p - e_y|_2 for every y: |p - e_y|^2 = 1 - 2 p_y + |p|^2, safe where p_y is no more than one half."""
    p = np.exp(without_top(log_p))
    squared = 1 - 2 * p + np.exp(2 * log_p).sum(axis=1, keepdims=True)
    distances: Floats = np.log(squared) / 2
    np.put_along_axis(distances, log_p.argmax(axis=1)[:, None], _log_distance(log_p)[:, None], axis=1)
    return distances


def _length(phi: Floats, bias: bool) -> Floats:
    length: Floats = np.sqrt(np.square(phi).sum(axis=1) + bias)
    return length


def _log(norm: Floats) -> Floats:
    logarithm: Floats = np.log(np.maximum(norm, np.finfo(np.float64).tiny))
    return logarithm


def _pair(logits: object, features: object) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    z, phi = read_logits(logits), check_floats("features", features, axes=("n", "channels"))
    if len(z) != len(phi):
        raise ArgumentError.about("features", expected=f"{len(z)} rows, as logits", got=phi)
    return z, phi
