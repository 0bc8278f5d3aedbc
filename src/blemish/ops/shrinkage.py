"""Ledoit-Wolf covariance from sums, so that it can be learned batch by batch and merged exactly.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004: with the covariance
S = sum y y^T / n of centred vectors y and mu = trace(S) / d, the estimate is (1 - s) S + s mu I, where
s = min(b, a) / a,  a = |S - mu I|^2 / d,  b = sum |y y^T - S|^2 / (n^2 d) = (sum |y|^4 / n - |S|^2) / (n d).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class ShrinkageSums:
    """Sums over n vectors x of dimension d, float64: all that the mean and the estimate need."""

    count: Tensor
    """n, `()`."""
    linear: Tensor
    """Sum of x, `(d,)`."""
    outer: Tensor
    """Sum of x x^T, `(d, d)`."""
    cubic: Tensor
    """Sum of |x|^2 x, `(d,)`."""
    quartic: Tensor
    """Sum of |x|^4, `()`."""

    @classmethod
    def empty(cls, dimension: int, device: torch.device) -> ShrinkageSums:
        """Sums over nothing."""
        shapes: tuple[tuple[int, ...], ...] = ((), (dimension,), (dimension, dimension), (dimension,), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def update(self, rows: Tensor) -> None:
        """Take `(n, d)` vectors."""
        rows = rows.double()
        norms = rows.square().sum(dim=1)
        self.count += len(rows)
        self.linear += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)
        self.cubic += norms @ rows
        self.quartic += norms.square().sum()

    def merge(self, other: ShrinkageSums) -> None:
        """Take everything that `other` has seen."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))

    def estimate(self) -> tuple[Tensor, Tensor, float]:
        """Mean `(d,)`, shrunk covariance `(d, d)`, and the shrinkage s in [0, 1]."""
        n, d = float(self.count), len(self.linear)
        mean = self.linear / n
        covariance = self.outer / n - torch.outer(mean, mean)
        mu = covariance.trace() / d
        m2 = mean @ mean
        # |x - m|^4 = (|x|^2 - 2 m.x + |m|^2)^2, multiplied out and summed.
        fourth = self.quartic + 4 * (mean @ self.outer @ mean) + n * m2**2
        fourth = fourth - 4 * (mean @ self.cubic) + 2 * m2 * self.outer.trace() - 4 * m2 * (mean @ self.linear)
        spread = covariance.square().sum()
        a = (spread / d - mu**2).clamp_min(0)
        b = ((fourth / n - spread) / (n * d)).clamp_min(0)
        shrinkage = float(torch.minimum(a, b) / a) if float(a) > 0 else 0.0
        identity = torch.eye(d, dtype=torch.float64, device=mean.device)
        return mean, (1 - shrinkage) * covariance + shrinkage * mu * identity, shrinkage
