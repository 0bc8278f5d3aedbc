"""DN2: distance to the nearest normal images (Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020).

An image is one vector, the backbone's deepest feature map averaged over all positions. Its score is the mean of the
squared distances to the k nearest normal images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..ops.forget import without_rows
from ..ops.neighbours import Exact, ExactIndex, IndexFactory, midpoints, recall
from ..parameters import parameter
from ..tensors import check_tensors
from ..types import FeatureMaps, ImageBatch, ImageBatches, Scores
from ._base import FitPlan, LeavingMethod, cannot_take_groups, counts_of, one_by_one

_RECALL_QUERIES = 2048


@dataclass(kw_only=True)
class KNN(LeavingMethod):
    """Distance to the nearest normal images, one vector an image. No map; no training; the honest baseline.

    Parameters
    ----------
    k: how many neighbours (the paper: 2).
    normalise: bring each embedding to length 1 first; how strongly a network fires says little about normality.
    index: what searches the bank, such as `blemish.edges.faiss.Faiss('ivf256')`; None searches all of it. `recall_` is
        the share of the k nearest that it finds, measured at fit on midpoints of learned vectors.
    """

    name: ClassVar[str] = "knn"

    k: int = parameter(2, at_least=1)
    normalise: bool = False
    index: IndexFactory | None = parameter(None, option=True)

    def unproven(self, groups: Sequence[int]) -> str:
        """Distances to the nearest of fewer images can only grow."""
        return ""

    def cannot_score_beside(self, groups: Sequence[int]) -> str:
        """Images that belong together would have to be judged together."""
        return self.cannot_leave_out(groups) or cannot_take_groups(groups)

    def remember(self, images: ImageBatches) -> dict[str, Tensor]:
        """The squared distances of each image to its k nearest others, `(n, k)`."""
        vectors = self.bank_.vectors()
        alone = (self._bank_without(torch.tensor([i])).search(vectors[i : i + 1], self.k) for i in range(len(vectors)))
        return {"nearest": torch.cat([squared for squared, _ in alone])}

    def beside(self, batch: ImageBatch, kept: dict[str, Tensor]) -> Tensor:
        """A new image that is nearer than the last of an image's k nearest takes its place."""
        check_tensors(kept, {"nearest": f"float32 {len(self.bank_)} {self.k}"})
        self._require_fit("beside")
        self._check_batch(batch)
        nearest, bank = kept["nearest"].to(self._device()), self.bank_.vectors()
        with torch.inference_mode():
            squared = torch.stack([(bank - new).square_().sum(dim=1) for new in self._embed(self._maps(batch))])
        return nearest.mean(dim=1) - (nearest[:, -1] - squared).clamp_min(0) / self.k

    def _cannot(self, groups: Sequence[int]) -> str:
        images, largest = counts_of(groups)
        if self.index is not None:
            return "an index of its own"
        return f"k={self.k} neighbours of {images - largest} images" if self.k > images - largest else ""

    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        return one_by_one(features, members, self._without)

    def _without(self, members: Tensor, features: FeatureMaps) -> KNN:
        model = copy.copy(self)
        model.bank_ = self._bank_without(members)
        return model

    def _bank_without(self, members: Tensor) -> ExactIndex:
        assert isinstance(self.bank_, ExactIndex)
        rows = torch.zeros(len(self.bank_), dtype=torch.bool)
        rows[members] = True
        return self.bank_.without(rows.to(self._device()))

    def forget(self, images: ImageBatches) -> KNN:
        """Unlearn images that come again; what remains is exactly a fit without them."""
        self._require_fit("forget")
        left = without_rows(self.bank_.vectors(), torch.cat([self._embed(maps) for maps in self._features(images)]))
        if len(left) < self.k:
            raise ArgumentError.about("images", expected=f"at least k = {self.k} images to remain", got=len(left))
        self._build(left)
        return self

    def _images(self, first: FeatureMaps) -> int:
        return len(self.bank_)

    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        self._append([self._embed(maps) for maps in features])

    def _absorb(self, other: KNN) -> None:
        if self.normalise != other.normalise:
            raise ArgumentError.about("other", expected=f"a KNN with normalise {self.normalise}", got=other.normalise)
        mine, theirs = self.bank_.vectors(), other.bank_.vectors()
        if mine.shape[1] != theirs.shape[1]:
            raise ArgumentError.about("other", expected=f"vectors of {mine.shape[1]} numbers", got=theirs.shape[1])
        self._append([theirs])

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return (row.deepest or row.taps[-1],)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        size = images * sum(m.shape[1] for m in first.maps) * 4
        return FitPlan(model_bytes=size, peak_bytes=2 * size)

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        first = next(features)
        self._factory().check(sum(m.shape[1] for m in first.maps), expected or 2**31)
        vectors = torch.cat([self._embed(maps) for maps in chain([first], features)])
        if len(vectors) < self.k:
            raise ArgumentError.about("images", expected=f"at least k = {self.k} normal images", got=len(vectors))
        self._build(vectors)

    def _score(self, features: FeatureMaps) -> Scores:
        squared, _ = self.bank_.search(self._embed(features), self.k)
        return Scores(squared.mean(dim=1), None)

    def _learned(self) -> dict[str, Tensor]:
        return self.bank_.state() | {"recall": torch.tensor(self.recall_, dtype=torch.float64)}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        check_tensors({"recall": learned["recall"]}, {"recall": "float64"})
        self.bank_, self.recall_ = self._factory().restore(learned), float(learned["recall"])

    def _append(self, parts: list[Tensor]) -> None:
        self._build(torch.cat([self.bank_.vectors(), *parts]))

    def _build(self, vectors: Tensor) -> None:
        bank, found = self._factory().build(vectors), 1.0
        if self.index is not None:
            queries = midpoints(vectors, _RECALL_QUERIES, seed=self.seed)
            found = recall(bank, Exact().build(vectors), queries, self.k)
        self.bank_, self.recall_ = bank, found

    def _factory(self) -> IndexFactory:
        return self.index or Exact()

    def _embed(self, features: FeatureMaps) -> Tensor:
        vectors = torch.cat([pool(m) for m in features.maps], dim=1)
        return functional.normalize(vectors) if self.normalise else vectors
