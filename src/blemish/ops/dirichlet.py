"""Dirichlet distributions of probability vectors: the maximum of the likelihood, many at once.

Fixed point of Minka, "Estimating a Dirichlet distribution", 2000 (equation 9), from the beginning of Wicker, Muller,
Kalathur, Poch, "A maximum likelihood approximation method for Dirichlet's parameter estimation", 2008.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 1000
_ENOUGH = 1e-6
"""Largest relative change of a parameter in a round after which the rounds end."""
_EULER = 0.5772156649015329
_SMALLEST, _LARGEST = 1e-6, 1e6
"""Where all vectors are the same, the likelihood has no maximum: the parameters stay in these bounds."""


class DirichletSums:
    """What a fit needs of `(n, ..., k)` log-probabilities, summed up batch by batch: they, and the probabilities."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._log = torch.zeros((), dtype=torch.float64)

    def update(self, logs: Tensor) -> None:
        """Take in further vectors along the first axis."""
        logs = logs.double()
        self._mean, self._log = (
            total.to(logs.device) + part.sum(dim=0) for total, part in ((self._mean, logs.exp()), (self._log, logs))
        )
        self.count += len(logs)

    def estimate(self) -> Tensor:
        """The parameters alpha, `(..., k)` float64, that make the vectors most likely."""
        return most_likely(self._mean / self.count, self._log / self.count)


def most_likely(mean: Tensor, mean_log: Tensor) -> Tensor:
    """alpha, of the means `(..., k)` of probability vectors y and of log y, float64."""
    spread = (mean * (mean.clamp_min(torch.finfo(mean.dtype).tiny).log() - mean_log)).sum(dim=-1, keepdim=True)
    first = (mean.shape[-1] - 1) * _EULER / spread.clamp_min(torch.finfo(mean.dtype).tiny)
    alpha = (mean * first).clamp(_SMALLEST, _LARGEST)
    for _ in range(_ROUNDS):
        better = inverse_digamma(alpha.sum(dim=-1, keepdim=True).digamma() + mean_log).clamp(_SMALLEST, _LARGEST)
        change = float(((better - alpha).abs() / alpha).max())
        alpha = better
        if change < _ENOUGH:
            break
    return alpha


def inverse_digamma(values: Tensor) -> Tensor:
    """x > 0 with digamma(x) = value: five steps of Newton from Minka's beginning (his equations 148 and 149)."""
    x = torch.where(values >= -2.22, values.clamp_max(700).exp() + 0.5, -1 / (values + _EULER))
    for _ in range(5):
        x = x - (x.digamma() - values) / torch.polygamma(1, x)
    return x
