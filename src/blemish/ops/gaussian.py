"""Gaussians at many positions at once: streaming moments, and whitening factors for the Mahalanobis distance.

With the mean m and the sample covariance S of n vectors of dimension d, the regularised covariance is C = S + eps T and
the distance of x is sqrt((x - m)^T C^-1 (x - m)). T, the target, is one positive definite matrix for all positions: I
where nothing else is said. C^-1 is kept as a factor W, in the smaller of two exact forms:

- n > d, dense: C = L L^T (Cholesky) and W = L^-1, lower triangular d x d; distance^2 = |W z|^2 for z = x - m.
- n <= d, low rank (Woodbury), in coordinates A z where the target is I (T = L L^T, A = L^-1): there S is V^T diag(s) V
  with n - 1 orthonormal rows V, from the eigenvectors of the small n x n Gram matrix; W = V, and with z for A z and
  u = V z, distance^2 = |z - V^T u|^2 / eps + sum_i u_i^2 / (s_i + eps).
  The shorter (|z|^2 - |A^-1 X z|^2) / eps is the same in exact arithmetic but loses digits where z lies in the span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from scipy.linalg import helmert
from torch import Tensor

from ..errors import ArgumentError

_CHUNK_BYTES = 4 << 20
"""Working memory for one chunk of positions."""


_ENOUGH = 3e-7
"""Share of a squared distance, without the image, that the last step of an iteration may add."""
_MOST_LOST = 1e-6
"""Relative error of a covariance, in the direction where it is smallest, that removals may leave."""


class Moments:
    """Count, mean and scatter of d-vectors at many positions, one batch at a time; memory does not grow with the count.

    New rows collect in a buffer of at most d rows a position. A full buffer is folded into a float64 mean and scatter
    (sum of outer products of centred rows) with the exact merge of Chan, Golub and LeVeque (1983). While no more than
    d rows came in, the buffer itself is the smaller exact description and no scatter exists.
    """

    def __init__(
        self, positions: int, dimension: int, *, expected: int | None = None, device: str | torch.device = "cpu"
    ) -> None:
        capacity = max(1, dimension if expected is None else expected)
        if capacity > dimension:  # the scatter will exist anyway, so the buffer may be small
            capacity = max(1, dimension // 2)
        self.count = 0
        """Rows seen, those in the buffer included."""
        self._rows = torch.empty(positions, capacity, dimension, dtype=torch.float32, device=device)
        self._used = 0
        self._mean = torch.zeros(positions, dimension, dtype=torch.float64, device=device)
        self._scatter: Tensor | None = None
        self._lost = 0.0

    @classmethod
    def from_factor(cls, gaussian: Gaussian, *, expected: int) -> Moments:
        """Recover the moments from which a Gaussian was made; `expected` more rows are to come.

        Exact up to the precision in which the factor is stored.
        """
        positions, _, dimension = gaussian.factor.shape
        if gaussian.spectrum is not None and gaussian.count + expected <= dimension:
            return cls._rows_from_factor(gaussian, gaussian.spectrum, expected)
        moments = cls(positions, dimension, expected=expected, device=gaussian.factor.device)
        moments.count = gaussian.count
        moments._mean.copy_(gaussian.mean)
        moments._scatter = torch.empty(
            positions, dimension, dimension, dtype=torch.float64, device=gaussian.factor.device
        )
        eye = torch.eye(dimension, dtype=torch.float64, device=gaussian.factor.device)
        added = gaussian.eps * (eye if gaussian.target is None else gaussian.target)
        for part in _chunks(positions, dimension * dimension * 24):
            w = gaussian.factor[part].double()
            if gaussian.spectrum is not None:
                w = gaussian.back(w)
                covariance = w.mT @ (w * gaussian.spectrum[part, :, None])
            else:
                lower = torch.linalg.solve_triangular(w, eye.expand_as(w), upper=False)
                covariance = lower @ lower.mT - added
            moments._scatter[part] = covariance * (gaussian.count - 1)
        return moments

    @classmethod
    def _rows_from_factor(cls, gaussian: Gaussian, spectrum: Tensor, expected: int) -> Moments:
        """Make n rows with the Gaussian's mean and scatter: any such rows describe it, and no scatter is needed."""
        positions, rank, dimension = gaussian.factor.shape
        n = gaussian.count
        moments = cls(positions, dimension, expected=n + expected, device=gaussian.factor.device)
        # Orthonormal columns that are all orthogonal to (1, ..., 1): they keep the scatter and leave the mean alone.
        spread = torch.from_numpy(helmert(n).T).to(gaussian.factor.device)
        for part in _chunks(positions, (n + rank) * dimension * 16):
            rows = gaussian.factor[part].double() * (spectrum[part] * (n - 1)).sqrt()[:, :, None]
            moments._rows[part, :n] = (spread @ gaussian.back(rows) + gaussian.mean[part][:, None]).float()
        moments.count = moments._used = n
        return moments

    @property
    def dimension(self) -> int:
        """Length d of the vectors."""
        return self._rows.shape[2]

    def update(self, rows: Tensor) -> None:
        """Take `(batch, position, dimension)` float32 vectors."""
        while len(rows):
            if self._used == self._rows.shape[1]:
                self._fold()
            taken = rows[: self._rows.shape[1] - self._used]
            self._rows[:, self._used : self._used + len(taken)] = taken.transpose(0, 1)
            self._used += len(taken)
            self.count += len(taken)
            rows = rows[len(taken) :]

    def merge(self, other: Moments) -> None:
        """Take everything that `other` has seen; the order of merges does not matter beyond rounding."""
        if self._mean.shape != other._mean.shape:
            raise ArgumentError.about(
                "other", expected=f"moments of shape {tuple(self._mean.shape)}", got=f"shape {tuple(other._mean.shape)}"
            )
        self._fold()
        other._fold()
        if other._scatter is None:
            return
        if self._scatter is None:
            self._scatter = torch.zeros_like(other._scatter)
        for part in _chunks(len(self._mean), self.dimension**2 * 16):
            self._fold_chunk(part, self.count, other.count, other._mean[part], other._scatter[part])
        self.count += other.count

    def remove(self, index: int, row: Tensor) -> None:
        """Take one image away again: `row` is its `(position, dimension)` float32 vectors, the `index`-th that came.

        Exact while only rows are there. From the scatter it is subtracted, and refused where the digits that this
        leaves are too few: a strong outlier made the sums large, and their rounding with them. Raises `ArgumentError`.
        """
        if self.count < 3:
            raise ArgumentError.about("images", expected="at least 2 to remain", got=self.count - 1)
        if self._only_rows():
            self._rows[:, index : self.count - 1] = self._rows[:, index + 1 : self.count].clone()
            self.count, self._used = self.count - 1, self._used - 1
            return
        self._fold()
        assert self._scatter is not None
        before = self._scatter.diagonal(dim1=1, dim2=2).sum(dim=1)
        difference = row.double() - self._mean
        share = self.count / (self.count - 1)
        for part in _chunks(len(row), self.dimension**2 * 8):
            outer = difference[part, :, None]
            self._scatter[part].baddbmm_(outer, outer.mT, alpha=-share)
        self._mean -= difference / (self.count - 1)
        self.count -= 1
        self._lost = max(self._lost, float(before.max()) * 2.0**-52)

    def state(self) -> dict[str, Tensor]:
        """What `of_state` takes: the rows while only they are there, else mean and upper triangle of the scatter."""
        if self._only_rows():
            return {"rows": self._rows[:, : self.count].clone()}
        self._fold()
        assert self._scatter is not None
        rows, columns = torch.triu_indices(self.dimension, self.dimension, device=self._mean.device)
        return {"mean": self._mean.clone(), "scatter": self._scatter[:, rows, columns]}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], *, count: int, expected: int = 0) -> Moments:
        """The moments of so many images, from their `state`; `expected` more are to come."""
        if "rows" in state:
            rows = state["rows"]
            moments = cls(rows.shape[0], rows.shape[2], expected=count + expected, device=rows.device)
            moments.update(rows.transpose(0, 1))
            return moments
        positions, d = state["mean"].shape
        moments = cls(positions, d, expected=max(1, expected), device=state["mean"].device)
        moments.count = count
        moments._mean.copy_(state["mean"])
        rows, columns = torch.triu_indices(d, d, device=moments._mean.device)
        moments._scatter = state["scatter"].new_zeros(positions, d, d)
        moments._scatter[:, rows, columns] = moments._scatter[:, columns, rows] = state["scatter"]
        return moments

    def mean(self) -> Tensor:
        """`(position, dimension)` float64."""
        if self._only_rows():
            return self._rows[:, : self.count].mean(dim=1, dtype=torch.float64)
        self._fold()
        return self._mean

    def covariance(self) -> Tensor:
        """Sample covariance (divided by n - 1), `(position, dimension, dimension)` float64."""
        self._fold()
        if self._scatter is None or self.count < 2:
            raise ArgumentError.about("count", expected="at least 2 vectors", got=self.count)
        return self._scatter / (self.count - 1)

    def pooled(self) -> Tensor:
        """Mean over the positions of their sample covariances, `(dimension, dimension)` float64."""
        if self.count < 2:
            raise ArgumentError.about("count", expected="at least 2 vectors", got=self.count)
        positions, d = self._mean.shape
        total = torch.zeros(d, d, dtype=torch.float64, device=self._mean.device)
        if self._only_rows():  # all positions' rows in one product, and no scatter
            for part in _chunks(positions, self.count * d * 16):
                rows = self._rows[part, : self.count].double()
                rows = (rows - rows.mean(dim=1, keepdim=True)).flatten(0, 1)
                total.addmm_(rows.T, rows)
        else:
            self._fold()
            assert self._scatter is not None
            total += self._scatter.sum(dim=0)
        return total / (positions * (self.count - 1))

    def whiten(self, eps: float, target: Tensor | None = None) -> Gaussian:
        """Turn the moments into a Gaussian with covariance S + eps T. The moments are used up.

        `target` is T, `(dimension, dimension)` float64; None: I.
        """
        if self.count < 2:
            raise ArgumentError.about("count", expected="at least 2 vectors", got=self.count)
        if self._only_rows():
            return self._whiten_rows(eps, target)
        self._fold()
        self._rows = self._rows[:, :0].clone()  # free the buffer: the factor needs the room
        return self._whiten_scatter(eps, target)

    def _only_rows(self) -> bool:
        return self._scatter is None and self._used == self.count

    def _fold(self) -> None:
        if self._used == 0:
            return
        positions, _, dimension = self._rows.shape
        if self._scatter is None:
            self._scatter = torch.zeros(positions, dimension, dimension, dtype=torch.float64, device=self._rows.device)
        old = self.count - self._used
        for part in _chunks(positions, dimension * (dimension + 2 * self._used) * 8):
            rows = self._rows[part, : self._used].double()
            mean = rows.mean(dim=1)
            rows -= mean[:, None]
            self._fold_chunk(part, old, self._used, mean, None, rows)
        self._used = 0

    def _fold_chunk(  # noqa: PLR0917
        self, part: slice, old: int, new: int, mean: Tensor, scatter: Tensor | None, rows: Tensor | None = None
    ) -> None:
        assert self._scatter is not None
        target = self._scatter[part]
        if rows is not None:
            target.baddbmm_(rows.mT, rows)
        if scatter is not None:
            target += scatter
        difference = mean - self._mean[part]
        target.baddbmm_(difference[:, :, None], difference[:, None, :], alpha=old * new / (old + new))
        self._mean[part] += difference * (new / (old + new))

    def _whiten_scatter(self, eps: float, target: Tensor | None) -> Gaussian:
        assert self._scatter is not None
        positions, dimension = self._mean.shape
        factor = torch.empty(positions, dimension, dimension, dtype=torch.float32, device=self._mean.device)
        eye = torch.eye(dimension, dtype=torch.float64, device=self._mean.device)
        added = eps * (eye if target is None else target)
        self._require_digits(added)
        for part in _chunks(positions, dimension * dimension * 24):
            covariance = self._scatter[part] / (self.count - 1) + added
            factor[part] = _inverse_cholesky(covariance).float()
        self._scatter = None
        return Gaussian(self.count, self._mean, factor, eps, target=target)

    def _require_digits(self, added: Tensor) -> None:
        """Refuse a scatter that removals left without digits: `_lost` is the rounding of what was there before."""
        if not self._lost:
            return
        error = self._lost / (self.count - 1) / float(torch.linalg.eigvalsh(added)[0])
        if not error <= _MOST_LOST:
            raise ArgumentError.about(
                "images", expected=f"images whose removal leaves a relative error of at most {_MOST_LOST:g}",
                got=f"one that may leave {error:.1g}: it lies far from all others", instead="Fit again without.",
            )  # fmt: skip

    def _whiten_rows(self, eps: float, target: Tensor | None) -> Gaussian:
        positions, _, dimension = self._rows.shape
        n, axes = self.count, None if target is None else _inverse_cholesky(target)
        spectrum = torch.empty(positions, n - 1, dtype=torch.float64, device=self._rows.device)
        # In the room of the rows, which a copy would hold twice, and without gaps, as a file gives it back: a product
        # with gaps differs in its last digits. What is written lies before all that is still to be read.
        factor = self._rows.view(-1)[: positions * (n - 1) * dimension].view(positions, n - 1, dimension)
        for part in _chunks(positions, n * (2 * dimension + 2 * n) * 8):
            rows = self._rows[part, :n].double()
            self._mean[part] = rows.mean(dim=1)
            rows -= self._mean[part][:, None]
            if axes is not None:
                rows = rows @ axes.T
            values, vectors = torch.linalg.eigh(rows @ rows.mT)
            # The rows sum to zero, so the smallest eigenvalue is zero; so are those of repeated images.
            values, vectors = values[:, 1:], vectors[:, :, 1:]
            real = values > 1e-12 * values[:, -1:].clamp_min(1e-300)
            scale = torch.where(real, values, torch.inf).rsqrt()
            factor[part] = ((vectors * scale[:, None]).mT @ rows).float()
            spectrum[part] = torch.where(real, values, 0) / (n - 1)
        return Gaussian(n, self._mean, factor, eps, spectrum, target)


@dataclass(frozen=True)
class Gaussian:
    """One Gaussian a position, ready for distances."""

    count: int
    """Vectors that it was made from."""
    mean: Tensor
    """`(position, dimension)` float64."""
    factor: Tensor
    """W above: `(position, d, d)` lower triangular or `(position, count - 1, d)` orthonormal; float32 or float16."""
    eps: float
    spectrum: Tensor | None = None
    """s above, `(position, count - 1)` float64; None says that the factor is the dense form."""
    target: Tensor | None = None
    """T above, `(dimension, dimension)` float64; None: I."""

    @cached_property
    def _axes(self) -> Tensor | None:
        """A above."""
        return None if self.target is None else _inverse_cholesky(self.target)

    def back(self, rows: Tensor) -> Tensor:
        """Vectors `(..., dimension)` of the low-rank form's coordinates, in those of the data."""
        return rows if self.target is None else rows @ torch.linalg.cholesky(self.target).T

    def distances(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distance of `(batch, position, dimension)` float32 vectors: `(batch, position)` float32."""
        batch, positions, dimension = vectors.shape
        result = torch.empty(positions, batch, dtype=torch.float32, device=vectors.device)
        mean = self.mean.float()
        for part in _chunks(positions, (batch * 3 + self.factor.shape[1]) * dimension * 4):
            z = (vectors[:, part] - mean[part]).transpose(0, 1).contiguous()
            factor = self.factor[part].to(z.dtype)
            if self.spectrum is not None and self._axes is not None:
                z = z @ self._axes.T.to(z.dtype)
            # Rows times a column takes torch half of the time of the other order, and an exported graph twice of it.
            coordinates = z @ factor.mT if torch.compiler.is_compiling() else (factor @ z.mT).mT
            if self.spectrum is None:
                squared = coordinates.square_().sum(dim=2)
            else:
                outside = torch.baddbmm(z, coordinates, factor, alpha=-1).square_().sum(dim=2)
                weights = (self.spectrum[part] + self.eps).reciprocal_().to(z.dtype)
                squared = outside.div_(self.eps) + (coordinates.square_() @ weights[:, :, None])[:, :, 0]
            result[part] = squared.sqrt_()
        return result.mT

    def distances_without(self, vectors: Tensor, *, ridge: float = 0.0) -> Tensor:
        """Distances of vectors that it was made from, each image's by the Gaussian without that image.

        `(batch, position, dimension)` to `(batch, position)`, in float64. The target, where there is one, follows from
        the images too: it is E + `ridge` trace(E) / d I of the mean E of all positions' covariances.

        With y = x - m, the covariance without x is B - c y y^T, B = a C + D, a = (n - 1) / (n - 2), c = n / ((n - 1)
        (n - 2)), where D is what the change of the target adds. q = y^T B^-1 y gives the distance, by the formula of
        Sherman and Morrison: q / (1 - c q). The factor's float32 costs an image that is 30 times as far out as the
        others up to 1e-3 of its distance, and the others nothing.
        """
        n, positions = self.count, self.mean.shape[0]
        if n < 3:
            raise ArgumentError.about("images", expected="at least 3, to leave one out", got=n)
        y = vectors.double() - self.mean
        change, squared = self._change(y, ridge), torch.empty(y.shape[:2], dtype=y.dtype, device=y.device)
        if self.spectrum is not None and self._axes is not None:
            change = self._axes @ change @ self._axes.T
        _, c = self._shares()
        for part in _chunks(positions, (self.factor.shape[1] + 8 * len(y)) * y.shape[2] * 8):
            form = self._solved_dense if self.spectrum is None else self._solved_low_rank
            q = form(part, y[:, part].transpose(0, 1), change).T
            squared[:, part] = q / (1 - c * q).clamp_min(2.0**-52)
        return (n / (n - 1)) * squared.sqrt()

    def _shares(self) -> tuple[float, float]:
        """a and c above."""
        n = self.count
        return (n - 1) / (n - 2), n / ((n - 1) * (n - 2))

    def _change(self, y: Tensor, ridge: float) -> Tensor:
        """D above of each image, `(batch, dimension, dimension)`."""
        a, c = self._shares()
        eye = torch.eye(y.shape[2], dtype=y.dtype, device=y.device)
        if self.target is None:
            return self.eps * (1 - a) * eye.expand(len(y), -1, -1)
        narrow = y.float()  # the change is small
        pooled = (narrow.mT @ narrow).double() * (c / y.shape[1])
        traces = pooled.diagonal(dim1=1, dim2=2).sum(dim=1)
        return -self.eps * (pooled + ridge / y.shape[2] * traces[:, None, None] * eye)

    def _solved_dense(self, part: slice, y: Tensor, change: Tensor) -> Tensor:
        """q above of `(positions, batch, dimension)`, `(positions, batch)`: near a C, whose inverse is the factor's."""
        a, c = self._shares()
        w = self.factor[part].double()
        white = y @ w.mT
        narrow = w.float()

        def inverse(v: Tensor) -> Tensor:
            return (v @ narrow.mT) @ narrow / a

        return _near(y, change, c, first=(white @ w) / a, q=white.square().sum(dim=-1) / a, inverse=inverse)

    def _solved_low_rank(self, part: slice, y: Tensor, change: Tensor) -> Tensor:
        """The same where the target is I: near a S + e I, e of each image, which takes in the mean of its `change`."""
        a, c = self._shares()
        shift = change.diagonal(dim1=1, dim2=2).mean(dim=1)
        e = (a * self.eps + shift)[:, None]
        assert self.spectrum is not None
        weights = (a * self.spectrum[part][:, None] + e).reciprocal()
        w = self.factor[part].double()
        z = y if self._axes is None else y @ self._axes.T
        coordinates = z @ w.mT
        outside = z - coordinates @ w
        first = outside / e + (coordinates * weights) @ w
        q = (coordinates.square() * weights).sum(dim=-1) + (outside.square() / e).sum(dim=-1)
        narrow, own, others = w.float(), (weights - 1 / e).float(), (1 / e).float()

        def inverse(v: Tensor) -> Tensor:
            return v * others + ((v @ narrow.mT) * own) @ narrow

        eye = torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
        return _near(z, change - shift[:, None, None] * eye, c, first=first, q=q, inverse=inverse)

    def sample(self, *, seed: int) -> Tensor:
        """Draw one vector a position, `(1, position, dimension)` float32, about where normal vectors lie."""
        positions, rank, dimension = self.factor.shape
        generator = torch.Generator(self.factor.device).manual_seed(seed)
        drawn = torch.empty(positions, dimension, dtype=torch.float32, device=self.factor.device)
        for part in _chunks(positions, 2 * rank * dimension * 8):
            w, mean = self.factor[part].double(), self.mean[part]
            noise = torch.randn(*mean.shape, 1, generator=generator, dtype=torch.float64, device=w.device)
            if self.spectrum is None:
                z = torch.linalg.solve_triangular(w, noise, upper=False)
            else:
                z = (noise - w.mT @ (w @ noise)) * self.eps**0.5
                z += w.mT @ (noise[:, :rank] * (self.spectrum[part, :, None] + self.eps).sqrt())
                z = self.back(z.mT).mT
            drawn[part] = (mean + z[:, :, 0]).float()
        return drawn[None]

    def stored_as(self, dtype: torch.dtype) -> tuple[Gaussian, float]:
        """Keep the factor in another precision; also returns the largest relative error of a distance, all positions.

        The error is measured at one typical vector a position (`sample`).
        """
        stored = replace(self, factor=self.factor.to(dtype))
        if not bool(torch.isfinite(stored.factor).all()):
            raise ArgumentError.about(
                "storage",
                expected="a precision that holds the model",
                got=str(dtype).removeprefix("torch."),
                instead="Take float32.",
            )
        typical = self.sample(seed=0)
        exact = self.distances(typical)
        return stored, float(((stored.distances(typical) - exact).abs() / exact).max())


def _near(
    y: Tensor, change: Tensor, c: float, *, first: Tensor, q: Tensor, inverse: Callable[[Tensor], Tensor]
) -> Tensor:
    """y^T (M + `change`)^-1 y, `(positions, batch)` float64, where `first` = M^-1 y and `q` = y^T M^-1 y are known.

    `y` `(positions, batch, dimension)`, `change` `(batch, dimension, dimension)`, `inverse`: M^-1. Conjugate gradients,
    preconditioned by M: the value grows by a term a step, each the smaller the nearer both matrices are. All but the
    first term are small corrections, for which float32 does. Ends where value / (1 - `c` value) is known.
    """
    left, direction, change = y.float(), first.float(), change.float()
    size, total, known = q, torch.zeros_like(q), left  # M direction, and |left| in the norm of M^-1
    norm = q  # of the direction, in that of M
    for _ in range(2 * y.shape[2]):
        changed = (direction.transpose(0, 1) @ change).transpose(0, 1)
        length = torch.where(size > 0, size / (norm + _dot(direction, changed)), 0)
        term = length * size
        total = total + term
        enough = _ENOUGH * total * (1 - c * total).clamp_min(0)
        if bool((term <= enough).all()):
            break
        left = left - length.float()[..., None] * changed.add_(known)
        step = inverse(left)
        fresh = torch.where(term > enough, _dot(left, step), 0.0).double()
        turn = torch.where(size > 0, fresh / size, 0).float()[..., None]
        direction, known = step + turn * direction, left + turn * known
        size, norm = fresh, _dot(direction, known).double()
    return total


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def _inverse_cholesky(covariance: Tensor) -> Tensor:
    lower, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        raise ArgumentError.about(
            "eps",
            expected="a regularisation that makes every covariance positive definite",
            got=f"{int((info != 0).sum())} positions that are not",
            instead="Use a larger one, such as 0.01.",
        )
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return inverse


def _chunks(positions: int, bytes_each: int) -> Iterator[slice]:
    """Cut the positions so that a chunk's temporaries stay within the working memory."""
    step = max(1, _CHUNK_BYTES // max(1, bytes_each))
    if torch.compiler.is_compiling():  # a graph has its own memory, and a node for each operation on each chunk
        step = positions
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))
