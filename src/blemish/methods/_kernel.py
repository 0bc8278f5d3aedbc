"""What the one-class methods with kernels share: embedding, kernel, and a score that is an expansion in it.

Score = w k(x, x) - sum of c_j k(v_j, x) + offset, with w = 1 for a ball and 0 for a hyperplane. Given the rest, the
offset that solves either problem is an order statistic: at most a share `nu` of the normal images scores above 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..ops.kernels import (
    FeatureMap,
    FourierFeatures,
    Kernel,
    KernelName,
    Nystroem,
    default_gamma,
    learn_reduction,
    reduce,
)
from ..parameters import count_of, parameter
from ..tensors import check_tensors
from ..types import FeatureMaps, Scores
from ._base import FitPlan, FrozenMethod


@dataclass(kw_only=True)
class KernelMethod(FrozenMethod):
    """A boundary around pooled features in the space of a kernel; a concrete one says how it is found.

    Parameters
    ----------
    nu: at most this share of the normal images lies outside the boundary, and at least this share is on or outside it.
    kernel: `rbf`, `linear` or `poly`.
    gamma: scale of the kernel; None: for `rbf` 1 / (2 m^2) with m the median distance of normal images, for `poly`
        1 / the median of their squared length. The one that was taken is the fitted method's `gamma_`.
    degree, coef0: of `poly`.
    normalise: bring each embedding to length 1 first; how strongly a network fires says little about normality.
    standardise: divide each number of the embedding by its standard deviation.
    pca: keep the fewest principal components that hold this share of the variance; None: the embedding as it is.
    approximation: `fourier` (for `rbf`) or `nystroem` maps the embedding to where the kernel is a plain product, and
        the cost becomes linear in the number of images; `none` is exact, with a quadratic cost or more.
    components: random frequencies (two numbers each), or images, that the approximation takes; the default takes all
        images where there are fewer.
    """

    nu: float = parameter(0.1, above=0, at_most=1)
    kernel: KernelName = "rbf"
    gamma: float | None = parameter(None, above=0)
    degree: int = parameter(3, at_least=1)
    coef0: float = parameter(1.0, at_least=0)
    normalise: bool = True
    standardise: bool = False
    pca: float | None = parameter(None, above=0, at_most=1)
    approximation: Literal["none", "fourier", "nystroem"] = "none"
    components: int = parameter(256, at_least=1)

    own: ClassVar[float]
    """Weight of k(x, x) in the score."""

    @abstractmethod
    def _solve(self, kernel: Kernel, points: Tensor, squared: Tensor) -> Tensor:
        """Hook: the coefficients of `(n, d)` points in the score, `(n,)` float64; `squared` are k(x, x)."""

    @abstractmethod
    def _solver_cost(self, images: int, dimension: int) -> tuple[float, float]:
        """Hook: bytes and operations of an exact `_solve`."""

    def _check_together(self) -> None:
        if self.approximation == "fourier" and self.kernel != "rbf":
            raise ArgumentError.about("kernel", expected="rbf with approximation='fourier'", got=self.kernel)

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return (row.deepest or row.taps[-1],)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        dimension = sum(m.shape[1] for m in first.maps)
        vectors = images * dimension * 4
        prepared = 0 if self.pca is None and not self.standardise else 8 * vectors
        if self.approximation == "none":
            size, (needed, operations) = vectors, self._solver_cost(images, dimension)
        else:
            if self.approximation == "fourier":
                mapped, size = 2 * self.components, 4 * dimension * self.components
            else:
                mapped = self._landmarks(images)
                size = 4 * dimension * mapped + 8 * mapped**2
            size += 8 * mapped  # the hyperplane or centre
            # Measured: about 110 bytes a number of the mapped points, and 60 operations times their length.
            needed, operations = 110.0 * images * mapped, 60.0 * images * mapped**2
        if self.pca is not None:
            size += 4 * dimension * min(images, dimension)
        return FitPlan(
            model_bytes=size,
            peak_bytes=int(2 * vectors + max(prepared, needed)) + size + 65536 * min(images, 4096),  # kernel's blocks
            operations=operations,
            instead="Use approximation='nystroem', which is linear in the number of images, or pca=0.95.",
        )

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        vectors = torch.cat([self._embed(maps) for maps in features])
        if len(vectors) < 2:
            raise ArgumentError.about("images", expected="at least 2 normal images", got=len(vectors))
        if expected is None and self.approximation == "nystroem":
            self._landmarks(len(vectors))
        self.reduction_ = learn_reduction(vectors, standardise=self.standardise, share=self.pca)
        vectors = reduce(vectors, self.reduction_)
        gamma = self.gamma or default_gamma(self.kernel, vectors, seed=self.seed)
        self.gamma_ = torch.tensor(gamma, dtype=torch.float64)
        self._map: FeatureMap | None = self._draw_map(vectors)
        kernel, (points, squared) = self._kernel(), self._placed(vectors)
        coefficients = self._solve(kernel, points, squared)
        supporting = coefficients > 0
        self.vectors_, self.coefficients_ = points[supporting], coefficients[supporting]
        if kernel.name == "linear":  # then the expansion is one product
            self.vectors_ = (self.coefficients_ @ self.vectors_.double())[None]
            self.coefficients_ = torch.ones_like(self.coefficients_[:1])
        self.offset_ = torch.zeros((), dtype=torch.float64, device=points.device)
        ordered = self._expand(points, squared).sort(descending=True).values
        self.offset_ = -ordered[min(int(self.nu * len(points)), len(points) - 1)]

    def _score(self, features: FeatureMaps) -> Scores:
        return Scores(self._expand(*self._placed(reduce(self._embed(features), self.reduction_))).float(), None)

    def _learned(self) -> dict[str, Tensor]:
        learned = {name: getattr(self, f"{name}_") for name in ("gamma", "vectors", "coefficients", "offset")}
        if self.reduction_ is not None:
            learned["reduction"] = self.reduction_
        return learned if self._map is None else learned | self._map.state()

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        patterns = {"gamma": "float64", "offset": "float64", "coefficients": "float64 supporting"}
        patterns["vectors"] = "float32|float64 supporting d"
        if self.pca is not None:
            patterns["reduction"] = "float32 channels components"
        elif self.standardise:
            patterns["reduction"] = "float32 components"
        if self.approximation == "fourier":
            patterns["frequencies"] = "float32|float64 components frequencies"
        elif self.approximation == "nystroem":
            patterns |= {"landmarks": "float32 landmarks components", "whitening": "float64 landmarks d"}
        check_tensors(learned, patterns)
        for name in ("gamma", "vectors", "coefficients", "offset"):
            setattr(self, f"{name}_", learned[name])
        self.reduction_ = learned.get("reduction")
        self._map = None
        if self.approximation == "fourier":
            self._map = FourierFeatures(learned["frequencies"])
        elif self.approximation == "nystroem":
            self._map = Nystroem(self._chosen_kernel(), learned["landmarks"], learned["whitening"])

    def _embed(self, features: FeatureMaps) -> Tensor:
        vectors = torch.cat([pool(m) for m in features.maps], dim=1)
        return functional.normalize(vectors) if self.normalise else vectors

    def _placed(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Where vectors lie, `(n, d)`, and k(x, x), `(n,)`: exact, as some of it may lie outside the mapped space."""
        return vectors if self._map is None else self._map(vectors), self._chosen_kernel().diagonal(vectors)

    def _expand(self, points: Tensor, squared: Tensor) -> Tensor:
        expansion = self._kernel().expansion(points, self.vectors_, self.coefficients_)
        return self.own * squared - expansion + self.offset_

    def _landmarks(self, images: int) -> int:
        return count_of(self, "components", images, "the normal images")

    def _draw_map(self, vectors: Tensor) -> FeatureMap | None:
        if self.approximation == "none":
            return None
        if self.approximation == "nystroem":
            return Nystroem.draw(self._chosen_kernel(), vectors, self.components, seed=self.seed)
        gamma = float(self.gamma_)
        drawn = FourierFeatures.draw(vectors.shape[1], self.components, gamma=gamma, seed=self.seed)
        return FourierFeatures(drawn.frequencies.to(vectors.device))

    def _chosen_kernel(self) -> Kernel:
        return Kernel(self.kernel, float(self.gamma_), self.degree, self.coef0)

    def _kernel(self) -> Kernel:
        """The kernel of the points, which are mapped to where it is linear, or are not."""
        return self._chosen_kernel() if self.approximation == "none" else Kernel("linear")
