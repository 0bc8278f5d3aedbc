"""FAISS indices for the banks of `patchcore` and `knn` (Johnson et al., "Billion-scale similarity search", 2017).

    PatchCore(index=Faiss("ivf256"))         blemish fit part --method patchcore --index faiss:ivf256

`flat` is exact. `ivfN` looks into the nearest sixteenth of N cells, `hnswM` follows a graph with M links a vector,
`pqM` keeps M bytes a vector; `ivfN,pqM` does both. `patchcore` and `knn` measure at fit what they miss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, MissingPackageError
from ..ops.neighbours import Exact, IndexFactory

_SPEC = re.compile(r"flat|hnsw[1-9]\d*|ivf[1-9]\d*(,pq[1-9]\d*)?|pq[1-9]\d*")


def index_from_name(name: str) -> IndexFactory:
    """Make the factory that has this name: `exact`, or `faiss:` and a description."""
    kind, _, description = name.partition(":")
    if name == "exact":
        return Exact()
    if kind != "faiss":
        raise ArgumentError.about("index", expected="exact or faiss:DESCRIPTION", got=name)
    return Faiss(description)


@dataclass(frozen=True)
class Faiss:
    """Factory of FAISS indices; see the module for the descriptions. Deterministic, for it builds with one thread."""

    description: str

    def __post_init__(self) -> None:
        if not _SPEC.fullmatch(self.description):
            raise ArgumentError.about(
                "index", expected="faiss:flat, ivfN, hnswM, pqM or ivfN,pqM, such as faiss:ivf256", got=self.description
            )
        _import_faiss()  # find out now, not after a fit

    @property
    def name(self) -> str:
        """`faiss:` and the description."""
        return f"faiss:{self.description}"

    def check(self, dimension: int, count: int) -> None:
        """Refuse a bank that is too small to train on, or whose vectors cannot be cut into M parts."""
        cells = re.search(r"ivf(\d+)", self.description)
        least = max(int(cells[1]) if cells else 1, 256 if "pq" in self.description else 1)
        if count < least:
            raise ArgumentError.about(
                "index", expected=f"a description that suits {count} vectors", got=f"{self.name} (needs {least})"
            )
        self._empty(dimension)

    def _empty(self, dimension: int) -> Any:
        parts = re.sub(r"ivf(\d+)$", r"IVF\1,Flat", self.description).replace("ivf", "IVF")
        # np: no polysemous codes, whose annealing takes a hundred times as long and which our searches never use.
        parts = re.sub(r"pq(\d+)", r"PQ\1np", parts)
        key = parts.replace("flat", "Flat").replace("hnsw", "HNSW")
        try:
            return _import_faiss().index_factory(dimension, key)
        except RuntimeError as error:
            reason = str(error).rpartition(":")[2].strip()
            raise ArgumentError.about(
                "index", expected=f"a description that suits {dimension} dimensions", got=f"{self.name} ({reason})"
            ) from error

    def build(self, vectors: Tensor) -> FaissIndex:
        """Index `(n, dimension)` float32 vectors."""
        self.check(vectors.shape[1], len(vectors))
        faiss = _import_faiss()
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # a graph built by several threads is another one each time
        try:
            index = self._empty(vectors.shape[1])
            array = np.ascontiguousarray(vectors.cpu().numpy())
            index.train(array)
            index.add(array)
        finally:
            faiss.omp_set_num_threads(threads)
        return FaissIndex(index, vectors.device)

    def restore(self, state: dict[str, Tensor]) -> FaissIndex:
        """Take back what `FaissIndex.state` handed out."""
        stored = state["faiss"]
        return FaissIndex(_import_faiss().deserialize_index(stored.cpu().numpy()), stored.device)


class FaissIndex:
    """A bank that FAISS searches."""

    def __init__(self, index: Any, device: torch.device) -> None:
        self._index, self._device = index, device
        if hasattr(index, "nprobe"):
            index.nprobe = max(1, index.nlist // 16)
            index.make_direct_map()
        if hasattr(index, "hnsw"):
            index.hnsw.efSearch = 64

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances and indices of the k nearest, nearest first: two `(queries, k)` tensors."""
        if not 1 <= k <= len(self):
            raise ArgumentError.about("k", expected=f"1 to {len(self)}, the vectors in the bank", got=k)
        array = np.ascontiguousarray(queries.cpu().numpy())
        squared, indices = self._index.search(array, k)
        short = indices[:, -1] < 0  # the cells that were looked at hold fewer than k
        if short.any():
            probes, self._index.nprobe = self._index.nprobe, self._index.nlist
            squared[short], indices[short] = self._index.search(array[short], k)
            self._index.nprobe = probes
        return torch.from_numpy(squared).to(queries.device), torch.from_numpy(indices).to(queries.device)

    def vectors(self, indices: Tensor | None = None) -> Tensor:
        """Vectors of the bank as float32, all of them or some, as exactly as the index keeps them."""
        if indices is None:
            return torch.from_numpy(self._index.reconstruct_n(0, len(self))).to(self._device)
        return torch.from_numpy(self._index.reconstruct_batch(indices.cpu().numpy())).to(self._device)

    def state(self) -> dict[str, Tensor]:
        """`faiss`: the index as bytes."""
        return {"faiss": torch.from_numpy(_import_faiss().serialize_index(self._index))}


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingPackageError(
            "index faiss: faiss-cpu is not installed. Run `pip install blemish[faiss]`."
        ) from None
    return faiss
