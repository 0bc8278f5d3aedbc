"""Exact nearest neighbours in chunks: memory beside the bank is bounded, whatever the number of queries and vectors.

Squared distances come from |b|^2 - 2 q.b + |q|^2, one matrix product a chunk; those of the neighbours found are
computed again from differences, which loses no digits where query and neighbour nearly agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import ArgumentError, ModelFileError
from ..tensors import check_tensors

Storage = Literal["float32", "float16", "int8"]

_QUERIES, _BANK = 1024, 4096
"""Size of one product: 16 MB of distances."""
_PRODUCTS = 1 << 21
"""Distances at once where only the smallest is wanted: 8 MB."""
_SPARE = 8
"""Further neighbours that are looked at, so that ties and rounding cannot hide a nearer one."""


class Index(Protocol):
    """Finds nearest neighbours in a bank of vectors."""

    def __len__(self) -> int:
        """Number of vectors in the bank."""

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances and indices of the k nearest, nearest first: two `(queries, k)` tensors."""

    def vectors(self, indices: Tensor | None = None) -> Tensor:
        """Vectors of the bank as float32, all of them or some."""

    def state(self) -> dict[str, Tensor]:
        """The bank by name, for a model file."""


class IndexFactory(Protocol):
    """Makes an `Index`; a method takes one as a parameter."""

    @property
    def name(self) -> str:
        """Under which the factory is found again, such as `exact` or `faiss:ivf256`."""

    def check(self, dimension: int, count: int) -> None:
        """Refuse, before the work begins, a bank of so many vectors that cannot be indexed."""

    def build(self, vectors: Tensor) -> Index:
        """Index `(n, dimension)` float32 vectors."""

    def restore(self, state: dict[str, Tensor]) -> Index:
        """Take back what `Index.state` handed out."""


def midpoints(vectors: Tensor, count: int, *, seed: int) -> Tensor:
    """Up to `count` points half-way between random pairs of `(n, dimension)` vectors: queries like those to come."""
    pairs = torch.randint(len(vectors), (2, min(count, len(vectors))), generator=torch.Generator().manual_seed(seed))
    first, second = pairs.to(vectors.device)
    return (vectors[first] + vectors[second]) / 2


def recall(index: Index, exact: Index, queries: Tensor, k: int) -> float:
    """Share of the k nearest by `exact` that `index`, over the same vectors in the same order, finds as well."""
    found, expected = index.search(queries, k)[1], exact.search(queries, k)[1]
    return float((found[:, :, None] == expected[:, None]).any(dim=1).float().mean())


@dataclass(frozen=True)
class Exact:
    """Factory of exact indices; `float16` and `int8` store the bank in a half or a quarter of the memory."""

    storage: Storage = "float32"

    @property
    def name(self) -> str:
        """`exact`, with the storage where that is not float32."""
        return "exact" if self.storage == "float32" else f"exact:{self.storage}"

    def check(self, dimension: int, count: int) -> None:
        """Any bank can be searched completely."""

    def build(self, vectors: Tensor) -> ExactIndex:
        """Index `(n, dimension)` float32 vectors."""
        if vectors.ndim != 2 or not len(vectors):
            raise ArgumentError.about("vectors", expected="shape (n, dimension) with n of at least 1", got=vectors)
        if self.storage not in ("float32", "float16", "int8"):
            raise ArgumentError.about("storage", expected="float32, float16 or int8", got=self.storage)
        if self.storage == "float32":
            return ExactIndex(vectors.contiguous(), vectors.mean(dim=0), None)
        lowest, highest = vectors.amin(dim=0), vectors.amax(dim=0)
        centre = (lowest + highest) / 2
        steps, dtype = (1.0, torch.float16) if self.storage == "float16" else (127.0, torch.int8)
        scale = (torch.maximum(highest - centre, centre - lowest) / steps).clamp_min(torch.finfo(torch.float32).tiny)
        stored = torch.empty_like(vectors, dtype=dtype)
        for start in range(0, len(vectors), _BANK):
            values = (vectors[start : start + _BANK] - centre) / scale
            stored[start : start + _BANK] = values if self.storage == "float16" else values.round_()
        return ExactIndex(stored, centre, scale)

    def restore(self, state: dict[str, Tensor]) -> ExactIndex:
        """Take back what `ExactIndex.state` handed out."""
        stored = {name: tensor for name, tensor in state.items() if name in ("bank", "centre", "scale")}
        scale = {} if self.storage == "float32" else {"scale": "float32 d"}
        sizes = check_tensors(stored, {"bank": f"{self.storage} vectors d", "centre": "float32 d", **scale})
        if not sizes["vectors"]:
            raise ModelFileError("tensor bank: no vector in it.")
        return ExactIndex(state["bank"], state["centre"], state.get("scale"))


class ExactIndex:
    """A bank that is searched completely."""

    def __init__(self, stored: Tensor, centre: Tensor, scale: Tensor | None) -> None:
        self._stored, self._centre, self._scale = stored, centre, scale

    def __len__(self) -> int:
        return len(self._stored)

    def state(self) -> dict[str, Tensor]:
        """`bank`, `centre`, and `scale` where the storage is not float32."""
        state = {"bank": self._stored, "centre": self._centre}
        return state if self._scale is None else state | {"scale": self._scale}

    def vectors(self, indices: Tensor | None = None) -> Tensor:
        """Vectors of the bank as float32, all of them or some: `(n, dimension)`."""
        return self._decode(self._stored if indices is None else self._stored[indices])

    def without(self, rows: Tensor) -> ExactIndex:
        """The bank without some of its vectors, `rows` being `(vectors,)` bool: it finds what one of the rest does."""
        return ExactIndex(self._stored[~rows], self._centre, self._scale)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances `(queries, k)` float32 and indices int64 of the k nearest, nearest first.

        Of several equally near ones the lowest index comes first. For k = 1 the neighbour is the nearest one up to
        float32 rounding of the squared norms, without a rule for ties.
        """
        if queries.ndim != 2 or queries.shape[1] != self._stored.shape[1]:
            raise ArgumentError.about("queries", expected=f"shape (n, {self._stored.shape[1]})", got=queries)
        if not 1 <= k <= len(self):
            raise ArgumentError.about("k", expected=f"1 to {len(self)}, the vectors in the bank", got=k)
        if k == 1:
            _, indices = self._scan(queries, 1)
            return self._distances(queries, indices), indices
        if torch.compiler.is_compiling():  # a graph cannot look again where a value is doubtful, so it takes all pairs
            squared = torch.cat([self._distances_to_all(query) for query in queries])
            return squared.topk(k, largest=False)  # of which, in ONNX, equal ones come lowest index first
        spare = min(k + _SPARE, len(self))
        bounds, indices = self._scan(queries, spare)
        squared, indices = _sorted(self._distances(queries, indices), indices)
        if spare < len(self):
            self._settle_ties(queries, bounds, squared, indices)
        return squared[:, :k].contiguous(), indices[:, :k].contiguous()

    def _scan(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest by matrix products, squared distance and index: right up to rounding, in any order."""
        n = len(queries)
        queries = queries - self._centre  # near the origin products lose fewer digits
        best = torch.full((n, k), torch.inf, device=queries.device)
        indices = torch.zeros(n, k, dtype=torch.int64, device=queries.device)
        doubled = queries * -2
        products = queries.new_empty(0)  # one buffer: fresh memory for every product costs as much as the product
        for start in range(0, len(self), _BANK):
            bank = self._decode(self._stored[start : start + _BANK]) - self._centre
            norms, transposed = bank.square().sum(dim=1), bank.T
            if products.shape != (min(n, _QUERIES), len(bank)):
                products = queries.new_empty(min(n, _QUERIES), len(bank))
            for rows in range(0, n, _QUERIES):
                part = slice(rows, min(n, rows + _QUERIES))
                values = torch.addmm(norms, doubled[part], transposed, out=products[: part.stop - rows])
                if k == 1:
                    found, at = values.min(dim=1)
                    nearer = found < best[part, 0]
                    best[part, 0] = torch.where(nearer, found, best[part, 0])
                    indices[part, 0] = torch.where(nearer, at + start, indices[part, 0])
                else:
                    found, at = values.topk(min(k, len(bank)), dim=1, largest=False)
                    found, at = torch.cat([best[part], found], 1), torch.cat([indices[part], at + start], 1)
                    best[part], kept = found.topk(k, dim=1, largest=False)
                    indices[part] = at.gather(1, kept)
        return best + queries.square().sum(dim=1, keepdim=True), indices

    def _distances(self, queries: Tensor, indices: Tensor) -> Tensor:
        squared = torch.empty(indices.shape, dtype=torch.float32, device=queries.device)
        step = max(1, _QUERIES // indices.shape[1])
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            difference = self._decode(self._stored[indices[part]]) - queries[part, None]
            squared[part] = difference.square_().sum(dim=2)
        return squared

    def _settle_ties(self, queries: Tensor, bounds: Tensor, squared: Tensor, indices: Tensor) -> None:
        """Search again, by differences, where a vector that was not looked at may be as near as one that was taken."""
        k = squared.shape[1] - _SPARE
        rounding = 1e-5 * (squared[:, k - 1] + (queries - self._centre).square().sum(dim=1))
        doubtful = (bounds.amax(dim=1) <= squared[:, k - 1] + rounding).nonzero()[:, 0]
        for row in doubtful.tolist():
            everything = torch.arange(len(self), device=queries.device)[None]
            exact, order = _sorted(self._distances_to_all(queries[row]), everything)
            squared[row], indices[row] = exact[0, : squared.shape[1]], order[0, : squared.shape[1]]

    def _distances_to_all(self, query: Tensor) -> Tensor:
        parts = self._stored.split(_BANK)  # type: ignore[no-untyped-call]
        return torch.cat([(self._decode(part) - query).square_().sum(dim=1) for part in parts])[None]

    def _decode(self, stored: Tensor) -> Tensor:
        return stored if self._scale is None else torch.addcmul(self._centre, stored.float(), self._scale)


def _sorted(squared: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row by distance, then by index."""
    indices, order = indices.sort(dim=1)
    squared, order = squared.gather(1, order).sort(dim=1, stable=True)
    return squared, indices.gather(1, order)


def nearest_squared(queries: Tensor, banks: Iterable[Tensor], k: int = 1) -> Tensor:
    """Squared distances of each of `(n, dimension)` queries to the k nearest vectors of all banks: `(n, k)` float32.

    In any order; infinity where the banks hold fewer. The cheapest way where the neighbours themselves do not matter;
    right up to float32 rounding of the squared norms.
    """
    extended = torch.cat([queries * -2, queries.new_ones(len(queries), 1)], dim=1)
    nearest = queries.new_full((len(queries), k), torch.inf)
    products = queries.new_empty(0)  # one buffer for all: fresh memory for every product costs more than the product
    for bank in banks:
        transposed = torch.cat([bank, bank.square().sum(dim=1, keepdim=True)], dim=1).T
        rows = max(1, _PRODUCTS // len(bank))
        if products.shape != (min(rows, len(queries)), len(bank)):
            products = queries.new_empty(min(rows, len(queries)), len(bank))
        for start in range(0, len(queries), rows):
            part = extended[start : start + rows]
            found = _smallest(torch.mm(part, transposed, out=products[: len(part)]), min(k, len(bank)))
            own = nearest[start : start + rows]
            own.copy_(_smallest(torch.cat([own, found], dim=1), k))
    return nearest.add_(queries.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k smallest of each row."""
    return values.amin(dim=1, keepdim=True) if k == 1 else values.topk(k, dim=1, largest=False, sorted=False).values
