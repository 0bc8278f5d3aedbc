"""SVDD: the smallest ball around the normal images (Tax and Duin, "Support Vector Data Description", Machine Learning
2004).

min R^2 + 1/(nu n) sum xi_i with |phi(x_i) - C|^2 <= R^2 + xi_i and xi_i >= 0, through its dual: max sum a_i k(x_i, x_i)
- sum a_i a_j k(x_i, x_j) with sum a_i = 1 and 0 <= a_i <= 1/(nu n), where C = sum a_i phi(x_i). The score is
|phi(x) - C|^2 - R^2, above 0 outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..ops.kernels import Kernel, capped_simplex
from ._kernel import KernelMethod


@dataclass(kw_only=True)
class SVDD(KernelMethod):
    """Squared distance beyond the smallest ball around the normal images in a kernel's space. No map."""

    name: ClassVar[str] = "svdd"
    own: ClassVar[float] = 1.0

    @property
    def radius(self) -> float:
        """Radius of the ball in the kernel's space."""
        self._require_fit("radius")
        # The score's offset is |C|^2 - R^2.
        inner = self._kernel().expansion(self.vectors_, self.vectors_, self.coefficients_) @ self.coefficients_
        return math.sqrt(max(0.0, float(inner / 4 - self.offset_)))

    @property
    def centre(self) -> Tensor:
        """Centre of the ball, `(d,)` float64, in the space of the embedding (after `standardise` and `pca`), or in that
        of the approximation. The exact `rbf` and `poly` have none that is a vector.
        """
        self._require_fit("centre")
        if self._kernel().name != "linear":
            raise ArgumentError.about(
                "centre", expected="kernel='linear' or an approximation", got=f"kernel={self.kernel!r}, exact"
            )
        return self.vectors_[0] / 2

    def _solve(self, kernel: Kernel, points: Tensor, squared: Tensor) -> Tensor:
        (n, d), linear = points.shape, squared.cpu().numpy()
        if kernel.name == "linear" and d < n:
            alpha = capped_simplex(points.cpu().double().numpy(), linear, 1 / (self.nu * n), rows=True)
        else:
            alpha = capped_simplex(kernel(points, points).cpu().numpy(), linear, 1 / (self.nu * n))
        return 2 * torch.from_numpy(alpha).to(points.device)

    def _solver_cost(self, images: int, dimension: int) -> tuple[float, float]:
        if self.kernel == "linear" and dimension < images:
            return 110.0 * images * dimension, 60.0 * images * dimension**2
        # The kernel matrix and the solver's copies of it; about 12 Cholesky factorisations.
        return 40.0 * images**2, 4.0 * images**3 + 2.0 * images**2 * dimension
