"""OC-SVM: a hyperplane between the normal images and the origin (Schölkopf, Platt, Shawe-Taylor, Smola, Williamson,
"Estimating the Support of a High-Dimensional Distribution", Neural Computation 2001).

min 1/2 |w|^2 - rho + 1/(nu n) sum xi_i with <w, phi(x_i)> >= rho - xi_i and xi_i >= 0. The score is the distance to the
hyperplane in the kernel's space, (rho - <w, phi(x)>) / |w|, above 0 on the wrong side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError
from ..ops.kernels import Kernel, capped_simplex
from ._kernel import KernelMethod


@dataclass(kw_only=True)
class OneClassSVM(KernelMethod):
    """Distance beyond a hyperplane that separates normal images from the origin of a kernel's space. No map."""

    name: ClassVar[str] = "ocsvm"
    own: ClassVar[float] = 0.0

    def _solve(self, kernel: Kernel, points: Tensor, squared: Tensor) -> Tensor:
        if self.approximation == "none":
            alpha = self._smo(kernel, points, float(squared.mean()))
        else:
            n = len(points)
            alpha = capped_simplex(points.cpu().numpy(), np.zeros(n), 1 / (self.nu * n), rows=True)
        found = torch.from_numpy(alpha).to(points.device)
        length = float(found @ kernel.expansion(points, points, found))
        if not length > 1e-9 * float(squared.mean()):
            raise ArgumentError.about(
                "kernel",
                expected="a space where a hyperplane separates the normal images from the origin",
                got=f"{self.kernel}, and the origin among them",
                instead="Use kernel='rbf', or method svdd.",
            )
        return found.div_(math.sqrt(length))

    def _smo(self, kernel: Kernel, points: Tensor, scale: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Sequential minimal optimisation by libsvm, which scales the dual variables to a sum of nu n."""
        from sklearn.svm import OneClassSVM as LibSVM

        vectors = points.cpu().double().numpy()
        if self.nu == 1:  # only one solution is feasible, and libsvm finds no rho for it
            return np.full(len(vectors), 1 / len(vectors))
        weight = self.nu * len(vectors)
        solver = LibSVM(
            kernel=kernel.name,
            gamma=kernel.gamma,
            degree=kernel.degree,
            coef0=kernel.coef0,
            nu=self.nu,
            tol=1e-7 * weight * scale,  # of the gradient, which is made of float32
        ).fit(vectors)
        alpha = np.zeros(len(vectors))
        alpha[solver.support_] = solver.dual_coef_[0] / weight
        return alpha

    def _solver_cost(self, images: int, dimension: int) -> tuple[float, float]:
        # libsvm keeps the vectors and up to 200 MB of the kernel's rows.
        return 16.0 * images * dimension + min(4.0 * images**2, 2e8), 4.0 * images**2 * dimension
