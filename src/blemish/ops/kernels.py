"""Kernels, maps into spaces where a kernel is a plain product, and the quadratic programme of one-class methods.

Everything is computed in float64: distances come from |a|^2 + |b|^2 - 2 a.b, and differences of large numbers decide
which vector supports a boundary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError

KernelName = Literal["rbf", "linear", "poly"]

_VECTORS, _QUERIES = 4096, 1024
"""Size of one product: 32 MB."""
_PAIRED = 2000
"""Vectors whose distances to each other the median is taken of."""


@dataclass(frozen=True)
class Kernel:
    """`linear`: a.b. `rbf`: exp(-gamma |a - b|^2). `poly`: (gamma a.b + coef0)^degree."""

    name: KernelName
    gamma: float = 1.0
    degree: int = 3
    coef0: float = 1.0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """All pairs of `(n, d)` and `(m, d)`: `(n, m)` float64."""
        a, b = a.double(), b.double()
        products = a @ b.T
        if self.name == "rbf":
            squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * products
            return squared.clamp_min_(0).mul_(-self.gamma).exp_()
        return products if self.name == "linear" else (self.gamma * products + self.coef0).pow_(self.degree)

    def diagonal(self, a: Tensor) -> Tensor:
        """Each vector of `(n, d)` with itself: `(n,)` float64."""
        squared = a.double().square().sum(1)
        if self.name == "rbf":
            return torch.ones_like(squared)
        return squared if self.name == "linear" else (self.gamma * squared + self.coef0).pow_(self.degree)

    def expansion(self, queries: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
        """Sum of c_j k(v_j, q) over `(m, d)` vectors for each of `(n, d)` queries, in chunks: `(n,)` float64."""
        total = torch.zeros(len(queries), dtype=torch.float64, device=queries.device)
        for q, v in product(range(0, len(queries), _QUERIES), range(0, len(vectors), _VECTORS)):
            block = self(queries[q : q + _QUERIES], vectors[v : v + _VECTORS])
            total[q : q + _QUERIES] += block @ coefficients[v : v + _VECTORS]
        return total


def default_gamma(name: KernelName, vectors: Tensor, *, seed: int) -> float:
    """The scale of a kernel from `(n, d)` vectors; of more than 2000, a random 2000 decide.

    `rbf`: 1 / (2 median^2), the median over the distances of all pairs. `poly`: 1 / median of |a|^2.
    """
    if name == "linear":
        return 1.0
    some = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:_PAIRED].to(vectors.device)
    chosen = vectors[some].double()
    products = chosen @ chosen.T
    norms = products.diagonal()
    if name == "poly":
        median = float(norms.median())
    else:
        squared = norms[:, None] + norms - 2 * products
        pairs = torch.triu_indices(len(chosen), len(chosen), offset=1, device=vectors.device)
        median = 2 * float(squared[pairs[0], pairs[1]].median())
    if not median > 1e-12 * float(norms.mean()):
        raise ArgumentError.about(
            "gamma",
            expected="a number, as the images do not differ enough to tell one",
            got="None",
            instead="Give one.",
        )
    return 1 / median


class FeatureMap(Protocol):
    """Takes vectors `(n, d)` where the plain product is close to a kernel: `(n, components)` float64."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map vectors."""

    def state(self) -> dict[str, Tensor]:
        """What it was made of."""


@dataclass(frozen=True)
class FourierFeatures:
    """A cosine and a sine for each random frequency; for `rbf` (Rahimi and Recht, NIPS 2007)."""

    frequencies: Tensor
    """`(d, count)` float32."""

    @classmethod
    def draw(cls, dimension: int, count: int, *, gamma: float, seed: int) -> FourierFeatures:
        """The Fourier transform of exp(-gamma |x|^2) is a Gaussian of variance 2 gamma."""
        normal = torch.randn(dimension, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return cls((normal * (2 * gamma) ** 0.5).float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """`(n, 2 count)`."""
        angles = vectors.double() @ self.frequencies.double()
        return torch.cat([angles.cos(), angles.sin()], dim=1).div_(math.sqrt(self.frequencies.shape[1]))

    def state(self) -> dict[str, Tensor]:
        """`frequencies`."""
        return {"frequencies": self.frequencies}


@dataclass(frozen=True)
class Nystroem:
    """The kernel with some training vectors, whitened; for any kernel (Williams and Seeger, NIPS 2000)."""

    kernel: Kernel
    landmarks: Tensor
    """`(m, d)`."""
    whitening: Tensor
    """`(m, components)` float64: k(landmarks, landmarks) to the power -1/2, directions without variance left out."""

    @classmethod
    def draw(cls, kernel: Kernel, vectors: Tensor, count: int, *, seed: int) -> Nystroem:
        """Take `count` of the `(n, d)` vectors at random."""
        some = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:count]
        landmarks = vectors[some.to(vectors.device)].contiguous()
        values, directions = torch.linalg.eigh(kernel(landmarks, landmarks))
        kept = values > 1e-10 * values[-1]
        return cls(kernel, landmarks, (directions[:, kept] * values[kept].rsqrt()).contiguous())

    def __call__(self, vectors: Tensor) -> Tensor:
        """`(n, components)`."""
        return self.kernel(vectors, self.landmarks) @ self.whitening

    def state(self) -> dict[str, Tensor]:
        """`landmarks`, `whitening`."""
        return {"landmarks": self.landmarks, "whitening": self.whitening}


def learn_reduction(vectors: Tensor, *, standardise: bool, share: float | None) -> Tensor | None:
    """What `reduce` shall do with `(n, d)` vectors such as these: float32; None where there is nothing to do.

    `(d,)` divides them by their standard deviations. `(d, k)` does so where wanted, and turns them to their fewest
    principal components that hold this share of the variance.
    """
    if not standardise and share is None:
        return None
    centred = vectors.double() - vectors.double().mean(dim=0)
    scale = torch.ones(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    if standardise:
        deviation = centred.square().mean(dim=0).sqrt()
        constant = deviation <= 1e-6 * deviation.max()  # such as a channel that never fires
        scale = torch.where(constant, torch.zeros_like(deviation), 1 / deviation.masked_fill(constant, 1.0))
    if share is None:
        return scale.float()
    _, values, directions = torch.linalg.svd(centred * scale, full_matrices=False)
    shares = values.square().cumsum(0) / values.square().sum()
    count = min(int((shares < share - 1e-12).sum()) + 1, len(values))
    turned: Tensor = scale[:, None] * directions[:count].T
    return turned.float().contiguous()


def reduce(vectors: Tensor, reduction: Tensor | None) -> Tensor:
    """Scale and turn `(n, d)` vectors: `(n, k)` float32.

    Nothing is shifted: distances do not care, and the origin, from which a hyperplane separates, stays where it is.
    """
    if reduction is None:
        return vectors
    wide, factor = vectors.double(), reduction.double()
    return (wide * factor if factor.ndim == 1 else wide @ factor).float()


def capped_simplex(
    matrix: NDArray[np.float64], linear: NDArray[np.float64], cap: float, *, rows: bool = False
) -> NDArray[np.float64]:
    """Minimise a'Ka - b'a over a `(n,)` with sum 1 and 0 <= a <= cap.

    `matrix` is K `(n, n)`: n^3 operations a step and 8 n^2 bytes a copy. With `rows` it is Z `(n, k)` of K = Z Z',
    which is not multiplied out (a'Ka = |y|^2 with y = Z'a): n k^2 operations a step, for k below n.
    """
    n = len(linear)
    if cap * n <= 1:
        return np.full(n, 1 / n)
    scale = float(np.abs(linear).mean()) or float((matrix**2).sum() / n if rows else np.trace(matrix) / n)
    solve = _solve_rows if rows else _solve_dense
    found, status = solve(matrix, linear / scale, cap, scale)
    if status != "solved" or not np.isfinite(found).all():
        raise ArgumentError.about(
            "kernel", expected="a problem that the solver can solve", got=status, instead="Try kernel='rbf'."
        )
    found = np.clip(found, 0, cap)
    found[found < 1e-8 * min(cap, 1)] = 0
    return np.asarray(found / found.sum())


def _solve_dense(
    matrix: NDArray[np.float64], linear: NDArray[np.float64], cap: float, scale: float
) -> tuple[NDArray[np.float64], str]:
    import piqp

    n, solver = len(linear), piqp.DenseSolver()
    _set(solver)
    bounds = np.zeros(n), np.full(n, cap)
    solver.setup(2 / scale * matrix, -linear, np.ones((1, n)), np.ones(1), None, None, None, *bounds)
    return _result(solver, n)


def _solve_rows(
    rows: NDArray[np.float64], linear: NDArray[np.float64], cap: float, scale: float
) -> tuple[NDArray[np.float64], str]:
    import piqp
    from scipy import sparse

    (n, k), solver = rows.shape, piqp.SparseSolver()
    _set(solver)
    quadratic = sparse.diags(np.repeat([0.0, 2.0], [n, k]), format="csc")
    sums = sparse.hstack([sparse.csc_matrix(np.ones((1, n))), sparse.csc_matrix((1, k))])
    products = sparse.hstack([sparse.csc_matrix(rows.T / scale**0.5), -sparse.identity(k)])
    unbounded = np.full(k, 1e30)  # what the solver takes for infinite
    solver.setup(
        quadratic,
        np.concatenate([-linear, np.zeros(k)]),
        sparse.vstack([sums, products], format="csc"),
        np.concatenate([[1.0], np.zeros(k)]),
        None,
        None,
        None,
        np.concatenate([np.zeros(n), -unbounded]),
        np.concatenate([np.full(n, cap), unbounded]),
    )
    return _result(solver, n)


def _set(solver: Any) -> None:
    solver.settings.verbose = False
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-10


def _result(solver: Any, n: int) -> tuple[NDArray[np.float64], str]:
    status = solver.solve().name
    return np.array(solver.result.x[:n]), "solved" if status == "PIQP_SOLVED" else status
