"""Greedy k-centre: the few vectors that cover all others with the smallest radius, up to a factor of two.

The greedy algorithm (Gonzalez, 1985) takes, again and again, the vector that is farthest from those already taken:

    c_t = argmax_i min_{s < t} |x_i - c_s|,    lowest index where several are equally far.

Literally, each step is one pass over all vectors. Here the passes are batched, with the same choices (`k_center`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError
from .neighbours import midpoints

_CANDIDATES = 1024
_ROWS = 2048
"""Vectors whose distances are updated at a time: the products stay in the processor's cache."""

_PART = 131_072
"""Vectors that a stream reduces at a time."""
_KEEP = 8
"""Vectors that a stream keeps for each one that it will choose, where there is room."""
_RESERVE_PART = 4096
"""Vectors from which a reserve is chosen at a time: much less work than one choice from all."""

Projection = Callable[[Tensor], Tensor]
"""Maps `(n, dimension)` vectors to those between which distances are taken."""


@dataclass(frozen=True)
class Coreset:
    """What a greedy selection chose."""

    indices: Tensor
    """`(count,)` int64, in the order of choice."""
    radius: float
    """Every vector lies within this Euclidean distance of a chosen one."""


def k_center(
    vectors: Tensor,
    count: int,
    *,
    radius: float = 0.0,
    initial: Tensor | None = None,
    centres: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Coreset:
    """Choose up to `count` of `(n, dimension)` float32 vectors by the greedy rule; all arithmetic is in float64.

    Stops early where every vector lies within `radius` of a chosen one: with the default 0, where only duplicates are
    left. `initial` `(n,)` are distances to begin with, as if to centres that are not chosen; None begins with vector 0.
    `centres` `(m, dimension)` are there already: they cover, and count neither as chosen nor in `count`.

    Between two passes the stored distances are upper bounds, for distances to centres only shrink. So the M vectors
    with the largest bounds are taken as candidates; as long as the farthest candidate, with distances among candidates
    up to date, is farther than the largest bound outside, it is the choice of the plain algorithm. Then one pass
    brings in all new centres with matrix products.
    """
    if vectors.ndim != 2 or not len(vectors):
        raise ArgumentError.about("vectors", expected="shape (n, dimension) with n of at least 1", got=vectors)
    if count < 1:
        raise ArgumentError.about("count", expected="at least 1", got=count)
    state = _Distances(vectors, initial)
    if centres is not None:
        for part in centres.split(_CANDIDATES):  # type: ignore[no-untyped-call]
            state.cover(part)
    target = max(radius**2, state.tolerance)
    # With `initial`, bounds say who is next but not who is covered, so that has to be looked at after each choice.
    at_once = 1 if initial is not None and radius > 0 else len(vectors)
    while len(state.chosen) < min(count, len(vectors)) and state.squared.max() > target:
        most = min(count - len(state.chosen), at_once)
        state.take(_choose(state, state.bounds(), most, target))
        if progress is not None:
            progress(len(state.chosen), count)
    farthest = state.squared.max()
    return Coreset(
        torch.tensor(state.chosen, dtype=torch.int64), float(np.sqrt(farthest)) if farthest > state.tolerance else 0.0
    )


def _choose(state: _Distances, bounds: NDArray[np.float64], most: int, target: float) -> list[int]:
    """Choose greedily among the farthest vectors for as long as no other vector can be farther."""
    first = int(np.argmax(bounds >= bounds.max() - state.tolerance))
    if len(bounds) > _CANDIDATES:
        order = np.argpartition(bounds, -_CANDIDATES - 1)
        outside = bounds[order[-_CANDIDATES - 1]]
        candidates = np.sort(order[-_CANDIDATES:])
    else:
        outside, candidates = -np.inf, np.arange(len(bounds))
    limit = max(outside + state.tolerance, target)
    position = int(np.searchsorted(candidates, first))
    if bounds[first] <= limit or position == len(candidates) or candidates[position] != first:
        return [first]  # as many vectors as there are candidates lie equally far
    among, current = state.between(candidates), bounds[candidates].copy()
    chosen: list[int] = []
    while len(chosen) < most:
        best = current.max()
        if best <= limit:
            break
        # Equal distances may come out of a matrix product with different last digits. Candidates are in order of index.
        taken = int(np.argmax(current >= best - state.tolerance))
        chosen.append(int(candidates[taken]))
        np.minimum(current, among[taken], out=current)
        current[taken] = -np.inf
    return chosen


class CoresetStream:
    """Vectors that arrive in parts and leave as a coreset, in a buffer of fixed size (merge and reduce).

    As long as the buffer holds everything that comes, `finish` is `k_center` on all of it. Where more is announced, or
    comes, each new part is reduced to its own coreset at once. A vector within r of a kept one, which lies within R of
    a finally chosen one, lies within r + R of that (triangle inequality): `finish` reports this bound as the radius.

    Parameters
    ----------
    capacity: vectors that the buffer holds.
    total: vectors that will come; None: unknown.
    wanted: vectors that will be chosen in the end, so that the parts keep several times as many, where they can.
    project: maps `(n, dimension)` vectors to those between which distances are taken.
    like: a tensor of the dtype and device wanted.
    """

    def __init__(
        self, capacity: int, dimension: int, *, total: int | None, wanted: int, project: Projection, like: Tensor
    ) -> None:
        self._buffer = like.new_empty(capacity, dimension)
        self._numbers = torch.empty(capacity, dtype=torch.int64)
        self._came = 0
        self.chosen = self._numbers[:0]
        """`(count,)`: which of the vectors that came `finish` has given, from 0; below 0 those of `add_coreset`."""
        self._project = project
        self._used = self._reduced = 0
        self._slack = 0.0
        self._total, self._wanted = total, wanted
        self._divide()

    def _divide(self) -> None:
        """Share out what room there is between what reduced parts keep and the next part."""
        room = len(self._buffer) - self._reduced
        coming = room if self._total is None else max(1, self._total - self._reduced)
        # The work of a reduction grows with the square of the part.
        self._part = max(1, min(room // 4, _PART))
        self._limit = max(1, room if self._total is None or coming <= room else self._part)
        fitting = 0.5 if self._total is None else (room - self._part) / coming
        self._share = min(0.5, fitting, _KEEP * self._wanted / coming)

    def __len__(self) -> int:
        return self._used

    def add(self, vectors: Tensor) -> None:
        """Take `(n, dimension)` float32 vectors."""
        while len(vectors):
            if self._used == len(self._buffer) or self._used - self._reduced >= self._limit:
                self._reduce()
            taken = vectors[: min(len(self._buffer) - self._used, self._limit - (self._used - self._reduced))]
            self._buffer[self._used : self._used + len(taken)] = taken
            self._numbers[self._used : self._used + len(taken)] = torch.arange(self._came, self._came + len(taken))
            self._used += len(taken)
            self._came += len(taken)
            vectors = vectors[len(taken) :]

    def add_coreset(self, vectors: Tensor, radius: float) -> None:
        """Take the reserve of an earlier stream, which covers its vectors within `radius`; before any `add`."""
        self._buffer[: len(vectors)] = vectors
        self._numbers[: len(vectors)] = -1
        self._used = self._reduced = len(vectors)
        self._slack = radius
        self._divide()

    def finish(
        self,
        count: int,
        *,
        radius: float = 0.0,
        starts: int = 0,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, float]:
        """Choose up to `count` vectors: `(vectors, radius)`.

        `starts` > 0 begins with the mean distance to that many random vectors, as PatchCore's published code does.
        """
        held = self._buffer[: self._used]
        if count >= self._used and radius == 0:  # everything is kept
            self.chosen = self._numbers[: self._used].clone()
            # A copy where the buffer is larger, or all of it would stay in memory.
            return held if self._used == len(self._buffer) else held.clone(), self._slack
        projected = self._project(held)
        initial = _mean_distance(projected, starts, seed) if starts else None
        chosen = k_center(projected, count, radius=max(0.0, radius - self._slack), initial=initial, progress=progress)
        self.chosen = self._numbers[chosen.indices]
        return held[chosen.indices.to(held.device)], chosen.radius + self._slack

    def reserve(self, count: int) -> tuple[Tensor, float]:
        """About `count` vectors from which a later stream can go on, and the radius within which they cover all.

        What was reduced stays as it is; of the rest each part gives its own coreset.
        """
        if count >= self._used:
            return self._buffer[: self._used], self._slack
        share = max(0, count - self._reduced) / max(1, self._used - self._reduced)
        starts = range(self._reduced, self._used, _RESERVE_PART)
        parts = [self._buffer[start : min(start + _RESERVE_PART, self._used)] for start in starts]
        sizes = [max(1, round(share * len(part))) for part in parts]
        vectors = self._buffer.new_empty(self._reduced + sum(sizes), self._buffer.shape[1])
        vectors[: self._reduced] = self._buffer[: self._reduced]
        end, radius = self._reduced, self._slack
        for part, size in zip(parts, sizes, strict=True):
            chosen = k_center(self._project(part), size)
            vectors[end : end + len(chosen.indices)] = part[chosen.indices.to(part.device)]
            end, radius = end + len(chosen.indices), max(radius, chosen.radius)
        if end <= 2 * count:
            return vectors[:end], radius
        thinned = k_center(self._project(vectors[:end]), count)  # `count` did not grow with what came
        return vectors[thinned.indices.to(vectors.device)], radius + thinned.radius

    def midpoints(self, count: int, *, seed: int) -> Tensor:
        """Up to `count` points half-way between random pairs of the vectors held: `(n, dimension)`."""
        return midpoints(self._buffer[: self._used], count, seed=seed)

    def _reduce(self) -> None:
        start = self._reduced
        if self._used - start < max(2, self._part // 2):  # more came than was announced: begin again with everything
            start, keep, before = 0, len(self._buffer) // 2, self._slack
        else:
            keep, before = max(1, int((self._used - start) * self._share)), 0.0
        chosen = k_center(self._project(self._buffer[start : self._used]), keep)
        kept = self._buffer[chosen.indices.to(self._buffer.device) + start]
        self._buffer[start : start + len(kept)] = kept
        self._numbers[start : start + len(kept)] = self._numbers[chosen.indices + start]
        self._used = self._reduced = start + len(kept)
        self._slack = max(self._slack, before + chosen.radius)


def _mean_distance(vectors: Tensor, starts: int, seed: int) -> Tensor:
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:starts]
    centres = vectors[drawn.to(vectors.device)]
    return torch.cat([torch.cdist(part, centres).mean(dim=1) for part in vectors.split(_ROWS)])  # type: ignore[no-untyped-call]


def reducing_capacity(wanted: int) -> int:
    """How many vectors a stream needs to hold that reduces its parts: more would not be used."""
    return _KEEP * wanted + 2 * _PART


class _Distances:
    """Squared distances of all vectors to their nearest chosen one."""

    def __init__(self, vectors: Tensor, initial: Tensor | None) -> None:
        self._vectors = vectors
        self._device = vectors.device
        # Distances are unchanged by a shift, and |x|^2 - 2 x.c + |c|^2 loses fewer digits near the origin.
        self._centre = vectors.new_zeros(vectors.shape[1], dtype=torch.float64)
        self._centre = sum((rows.sum(dim=0) for _, rows in self._chunks()), self._centre) / len(vectors)
        # Written in place: small results kept between the chunks would hold on to the chunks' memory.
        self._norms = vectors.new_empty(len(vectors), dtype=torch.float64)
        for part, rows in self._chunks():
            self._norms[part] = rows.square_().sum(dim=1)
        self.tolerance = 1e-13 * max(float(self._norms.max()), 1e-300)
        """Squared distances that differ by less are equal up to rounding."""
        self._squared = torch.full_like(self._norms, torch.inf)
        self.squared: NDArray[np.float64] = self._squared.cpu().numpy()
        self._initial = None if initial is None else initial.double().cpu().numpy() ** 2
        self.chosen: list[int] = []

    def bounds(self) -> NDArray[np.float64]:
        """How far each vector is from the chosen ones, exactly; chosen ones are at minus infinity."""
        bounds: NDArray[np.float64] = self.squared.copy()
        if self._initial is not None:
            np.minimum(bounds, self._initial, out=bounds)
        bounds[self.chosen] = -np.inf
        return bounds

    def take(self, indices: list[int]) -> None:
        """Bring in new centres, with one pass over all vectors."""
        self.chosen += indices
        self.cover(self._vectors[indices])
        self._squared[indices] = 0
        self.squared = self._squared.cpu().numpy()

    def cover(self, vectors: Tensor) -> None:
        """Bring in centres that need not be among the vectors."""
        centres = vectors.double() - self._centre
        norms = centres.square().sum(dim=1)
        transposed = centres.mul_(-2).T
        for part, rows in self._chunks():
            nearest = torch.addmm(norms, rows, transposed).amin(dim=1).add_(self._norms[part]).clamp_(min=0)
            torch.minimum(self._squared[part], nearest, out=self._squared[part])
        self.squared = self._squared.cpu().numpy()

    def between(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Squared distances of some vectors to each other."""
        rows = self._rows(indices.tolist())
        norms = rows.square().sum(dim=1)
        squared = torch.addmm(norms, rows, rows.T, alpha=-2).add_(norms[:, None]).clamp_(min=0)
        return np.asarray(squared.cpu().numpy())

    def _rows(self, indices: list[int]) -> Tensor:
        return self._vectors[indices].double() - self._centre

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self._vectors), _ROWS):
            part = slice(start, start + _ROWS)
            yield part, self._vectors[part].double() - self._centre
