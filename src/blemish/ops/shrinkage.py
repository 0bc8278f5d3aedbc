"""Ledoit-Wolf covariance from sums, so that it can be learned batch by batch and merged exactly.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004: with the covariance
S = sum y y^T / n of centred vectors y and mu = trace(S) / d, the estimate is (1 - s) S + s mu I, where
s = min(b, a) / a,  a = |S - mu I|^2 / d,  b = sum |y y^T - S|^2 / (n^2 d) = (sum |y|^4 / n - |S|^2) / (n d).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError

_S = TypeVar("_S", bound="Sums")
_AXES = {"count": 0, "linear": 1, "outer": 2, "cubic": 1, "quartic": 0}


@dataclass
class Sums:
    """Sums over n vectors x of dimension d, float64, that add up: images in any order, parts, other models."""

    count: Tensor
    """n, `()`."""
    linear: Tensor
    """Sum of x, `(d,)`."""
    outer: Tensor
    """Sum of x x^T, `(d, d)`."""

    @classmethod
    def empty(cls: type[_S], dimension: int, device: torch.device) -> _S:
        """Sums over nothing."""
        shapes = ((dimension,) * _AXES[field.name] for field in fields(cls))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def merge(self, other: Sums) -> None:
        """Take everything that `other` has seen."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))

    def subtract(self, other: Sums) -> None:
        """Forget what `other` has seen, which was seen here."""
        for field in fields(self):
            getattr(self, field.name).sub_(getattr(other, field.name))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean `(d,)` and covariance `(d, d)`, not shrunk."""
        mean = self.linear / self.count
        return mean, self.outer / self.count - torch.outer(mean, mean)


@dataclass
class ShrinkageSums(Sums):
    """All that the mean and the estimate need."""

    cubic: Tensor
    """Sum of |x|^2 x, `(d,)`."""
    quartic: Tensor
    """Sum of |x|^4, `()`."""

    def update(self, rows: Tensor) -> None:
        """Take `(n, d)` vectors."""
        rows = rows.double()
        norms = rows.square().sum(dim=1)
        self.count += len(rows)
        self.linear += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)
        self.cubic += norms @ rows
        self.quartic += norms.square().sum()

    def estimate(self) -> tuple[Tensor, Tensor, float]:
        """Mean `(d,)`, shrunk covariance `(d, d)`, and the shrinkage s in [0, 1]."""
        n, d = float(self.count), len(self.linear)
        mean, covariance = self.moments()
        mu = covariance.trace() / d
        m2 = mean @ mean
        # |x - m|^4 = (|x|^2 - 2 m.x + |m|^2)^2, multiplied out and summed.
        fourth = self.quartic + 4 * (mean @ self.outer @ mean) + n * m2**2
        fourth = fourth - 4 * (mean @ self.cubic) + 2 * m2 * self.outer.trace() - 4 * m2 * (mean @ self.linear)
        shrinkage = _shrinkage(covariance.square().sum() / d, mu, fourth / n / d, n)
        identity = torch.eye(d, dtype=torch.float64, device=mean.device)
        return mean, (1 - shrinkage) * covariance + shrinkage * mu * identity, float(shrinkage)

    def squared_without(self, rows: Tensor) -> Tensor:
        """Squared Mahalanobis distances of some of the vectors, each by the estimate without it: `(m, d)` to `(m,)`.

        With y = x - mean and the covariance S of all n vectors, the covariance without x is a S - c y y^T, a = n/(n-1),
        c = n/(n-1)^2, and x lies n/(n-1) y from the mean without it. The shrinkage comes from the sums without x. In
        the eigenvectors of S, the shrunk covariance is diagonal plus rank one (Sherman and Morrison).
        """
        rows, n, d = rows.double(), float(self.count), len(self.linear)
        mean, covariance = self.moments()
        values, vectors = torch.linalg.eigh(covariance)
        y = rows - mean
        norms, own = y.square().sum(dim=1), rows.square().sum(dim=1)
        a, c = n / (n - 1), n / (n - 1) ** 2
        mu = (a * covariance.trace() - c * norms) / d
        spread = a**2 * covariance.square().sum() - 2 * a * c * ((y @ covariance) * y).sum(dim=1) + c**2 * norms**2
        others = mean - y / (n - 1)  # the mean of the others
        m2, across = others.square().sum(dim=1), (others * rows).sum(dim=1)
        fourth = self.quartic - own**2 + 4 * ((others @ self.outer * others).sum(dim=1) - across**2) + (n - 1) * m2**2
        fourth = fourth - 4 * (others @ self.cubic - own * across) + 2 * m2 * (self.outer.trace() - own)
        fourth = fourth - 4 * m2 * (others @ self.linear - across)
        s = _shrinkage(spread / d, mu, fourth / (n - 1) / d, n - 1)
        diagonal = (1 - s)[:, None] * a * values + (s * mu)[:, None]
        squared = ((y @ vectors).square() / diagonal).sum(dim=1)
        found: Tensor = a**2 * squared / (1 - (1 - s) * c * squared)
        return found


def _shrinkage(spread: Tensor, mu: Tensor, fourth: Tensor, n: float) -> Tensor:
    """s in [0, 1] from |S|^2 / d, the mean variance and the mean of |y|^4 / d over n vectors; of any shape."""
    a = (spread - mu**2).clamp_min(0)
    b = ((fourth - spread) / n).clamp_min(0)
    return torch.where(a > 0, torch.minimum(a, b) / a, 0.0)


def of_full_rank(covariance: Tensor, *, where: str = "") -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a covariance; raises `ArgumentError` where some variance is 0."""
    values, vectors = torch.linalg.eigh(covariance)
    if not float(values[-1]) > 0 or float(values[0]) < 1e-12 * float(values[-1]):
        raise ArgumentError.about(
            "images", expected="normal images that differ from each other",
            got=f"a covariance without full rank{where}", instead="Give more, or different, images.",
        )  # fmt: skip
    return values, vectors
