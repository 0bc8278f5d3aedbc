"""Gaussian-AD: one Gaussian a level of pooled features (Rippel, Mertens, Merhof, "Modeling the Distribution of Normal
Data in Pre-Trained Deep Features for Anomaly Detection", ICPR 2020).

Each level's feature map is averaged over all positions. Its Gaussian has a Ledoit-Wolf covariance; the score is the
Mahalanobis distance, summed over the levels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from ..errors import ArgumentError, ModelFileError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..ops.forget import without_rows
from ..ops.shrinkage import ShrinkageSums, of_full_rank
from ..parameters import parameter
from ..tensors import check_tensors
from ..types import FeatureMaps, ImageBatch, ImageBatches, Scores
from ._base import FitPlan, Keep, LeavingMethod, cannot_take_groups, one_by_one, require_kept


@dataclass(kw_only=True)
class GaussianAD(LeavingMethod):
    """One Gaussian a level of pooled features, Mahalanobis distance. No map; tiny, exact, and quick to update.

    Parameters
    ----------
    components: `all` directions; `pca`, the fewest of largest variance that hold the share `variance`; or `npca`,
        those of smallest variance that hold at most the share `variance` (at least one).
    variance: share of the variance for `pca` or `npca`; None takes the paper's, 0.99 or 0.01.
    keep: `sums` keeps the vectors of all images beside the sums, 4 bytes a channel and image, so that images can be
        forgotten.
    """

    name: ClassVar[str] = "gaussian"

    components: Literal["all", "pca", "npca"] = "all"
    variance: float | None = parameter(None, above=0, at_most=1)
    keep: Keep = parameter("factor", option=True)

    def forget(self, images: ImageBatches) -> GaussianAD:
        """Unlearn images that come again; what remains is a fit without them."""
        self._require_fit("forget")
        require_kept(self)
        left = without_rows(self.rows_, torch.cat([_vectors(maps) for maps in self._features(images)]))
        sums = [ShrinkageSums.empty(len(s.linear), left.device) for s in self.sums_]
        for of_level, rows in zip(sums, torch.split(left, [len(s.linear) for s in sums], dim=1), strict=True):
            of_level.update(rows)
        self._finish(sums, left)
        return self

    def unproven(self, groups: Sequence[int]) -> str:
        """Mean and covariance move either way without an image."""
        return "Mahalanobis distances may shrink without an image"

    def cannot_score_beside(self, groups: Sequence[int]) -> str:
        """Components that are chosen anew for each image would take an eigendecomposition for each pair of images."""
        return self.cannot_leave_out(groups) if self.components == "all" else f"components={self.components}"

    def remember(self, images: ImageBatches) -> dict[str, Tensor]:
        """The pooled features of every image: for each level `(n, channels)`."""
        with torch.inference_mode():
            pooled = [[pool(m) for m in self._maps(batch).maps] for batch in self._checked(images)]
        return {f"rows.{i}": torch.cat(level) for i, level in enumerate(zip(*pooled, strict=True))}

    def beside(self, batch: ImageBatch, kept: dict[str, Tensor]) -> Tensor:
        """One eigenbasis a new image: of the sums with it."""
        channels = enumerate(self.means_)
        check_tensors(kept, {f"rows.{i}": f"float32 {int(self.sums_[0].count)} {len(mean)}" for i, mean in channels})
        with torch.inference_mode():
            levels = [pool(m) for m in self._maps(batch).maps]
            return torch.stack([self._beside([m[i : i + 1] for m in levels], kept) for i in range(len(batch))])

    def _beside(self, new: list[Tensor], kept: dict[str, Tensor]) -> Tensor:
        found = torch.zeros(int(self.sums_[0].count), dtype=torch.float64, device=new[0].device)
        for i, (sums, row) in enumerate(zip(copy.deepcopy(self.sums_), new, strict=True)):
            sums.update(row)
            found += sums.squared_without(kept[f"rows.{i}"].to(row.device)).sqrt()
        return found.float()

    def _cannot(self, groups: Sequence[int]) -> str:
        return cannot_take_groups(groups)

    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        if self.components != "all":
            return one_by_one(features, members, self._without)
        levels = zip(features.maps, self.sums_, strict=True)
        return Scores(sum(sums.squared_without(pool(m)).sqrt() for m, sums in levels).float(), None)  # type: ignore[union-attr]

    def _without(self, members: Tensor, features: FeatureMaps) -> GaussianAD:
        """A new eigendecomposition, of the sums without the image's."""
        own = [ShrinkageSums.empty(m.shape[1], m.device) for m in features.maps]
        _update(own, features)
        sums, model = copy.deepcopy(self.sums_), copy.copy(self)
        for of_level, of_image in zip(sums, own, strict=True):
            of_level.subtract(of_image)
        model._finish(sums, self.rows_[:0])
        return model

    def _images(self, first: FeatureMaps) -> int:
        return int(self.sums_[0].count)

    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        sums, rows = copy.deepcopy(self.sums_), [self.rows_]
        for maps in features:
            rows.append(self._update(sums, maps))
        self._finish(sums, torch.cat(rows))

    def _absorb(self, other: GaussianAD) -> None:
        mine, theirs = ([len(s.linear) for s in method.sums_] for method in (self, other))
        if mine != theirs:
            raise ArgumentError.about("other", expected=f"levels of {mine} channels", got=theirs)
        merged = copy.deepcopy(self.sums_)
        for sums, others in zip(merged, other.sums_, strict=True):
            sums.merge(others)
        if self.keep != other.keep:
            raise ArgumentError.about("other", expected=f"a GaussianAD with keep {self.keep}", got=other.keep)
        self._finish(merged, torch.cat([self.rows_, other.rows_]))

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps if not row.deepest or row.deepest in row.taps else (*row.taps, row.deepest)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        size = sum(m.shape[1] ** 2 for m in first.maps)
        return FitPlan(model_bytes=size * 12, peak_bytes=size * 12 + max(m.shape[1] for m in first.maps) ** 2 * 32)

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        first = next(features)
        sums = [ShrinkageSums.empty(m.shape[1], m.device) for m in first.maps]
        rows = [self._update(sums, maps) for maps in chain([first], features)]
        self._finish(sums, torch.cat(rows))

    def _score(self, features: FeatureMaps) -> Scores:
        return Scores(torch.stack([squared.sqrt() for squared in self._squared(features)]).sum(dim=0), None)

    def _p_values(self, features: FeatureMaps) -> Tensor:
        tails = [
            chi2.sf(squared.cpu().double().numpy(), factor.shape[1])
            for squared, factor in zip(self._squared(features), self.factors_, strict=True)
        ]
        # Levels depend on each other, so their p-values are combined by Bonferroni's bound.
        return torch.from_numpy(np.minimum(1.0, np.minimum.reduce(tails) * len(tails))).float()

    def _squared(self, features: FeatureMaps) -> list[Tensor]:
        """Squared Mahalanobis distances, `(batch,)` a level."""
        levels = zip(features.maps, self.means_, self.factors_, strict=True)
        return [((pool(m) - mean) @ factor).square().sum(dim=1) for m, mean, factor in levels]

    def _learned(self) -> dict[str, Tensor]:
        learned: dict[str, Tensor] = {}
        for i, (sums, mean, factor) in enumerate(zip(self.sums_, self.means_, self.factors_, strict=True)):
            learned |= {f"{i}.{field.name}": getattr(sums, field.name) for field in fields(sums)}
            learned |= {f"{i}.mean": mean, f"{i}.factor": factor}
        return learned | ({"rows": self.rows_} if self.keep == "sums" else {})

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        levels = range(len(self.extractor_.taps))
        of_a_level = {
            "count": "float64", "linear": "float64 d", "outer": "float64 d d", "quartic": "float64",
            "cubic": "float64 d", "mean": "float32 d", "factor": "float32 d kept",
        }  # fmt: skip
        for i in levels:
            check_tensors({k: learned[f"{i}.{k}"] for k in of_a_level if f"{i}.{k}" in learned}, of_a_level)
        names = [field.name for field in fields(ShrinkageSums)]
        self.sums_ = [ShrinkageSums(*(learned[f"{i}.{name}"] for name in names)) for i in levels]
        self.means_ = [learned[f"{i}.mean"] for i in levels]
        self.factors_ = [learned[f"{i}.factor"] for i in levels]
        self.rows_ = learned.get("rows", self.means_[0].new_zeros(0, 0))
        if self.keep == "sums":
            own = {"rows": learned["rows"]}
            sizes = check_tensors(own, {"rows": "float32 images channels"})
            expected = {"images": int(self.sums_[0].count), "channels": sum(len(mean) for mean in self.means_)}
            if sizes != expected:
                raise ModelFileError.about("tensor rows", expected=f"{expected}", got=sizes)

    def _finish(self, sums: list[ShrinkageSums], rows: Tensor) -> None:
        if sums[0].count < 2:
            raise ArgumentError.about("images", expected="at least 2 normal images", got=int(sums[0].count))
        means, factors = [], []
        for level, of_level in enumerate(sums):
            mean, covariance, _ = of_level.estimate()
            values, vectors = of_full_rank(covariance, where=f" at level {level}")
            kept = self._kept(values)
            means.append(mean.float())
            factors.append((vectors[:, kept] * values[kept].rsqrt()).float())
        self.sums_, self.means_, self.factors_, self.rows_ = sums, means, factors, rows

    def _kept(self, values: Tensor) -> slice:
        """Which components to keep; `values` are variances in ascending order."""
        if self.components == "all":
            return slice(None)
        shares = values.cumsum(0) / values.sum()
        if self.components == "npca":
            return slice(0, max(1, int((shares <= (self.variance or 0.01)).sum())))
        return slice(int((shares <= 1 - (self.variance or 0.99) + 1e-12).sum()), None)

    def _update(self, sums: list[ShrinkageSums], features: FeatureMaps) -> Tensor:
        """Take more images; gives their vectors where these are kept."""
        _update(sums, features)
        return _vectors(features) if self.keep == "sums" else features.maps[0].new_zeros(0, 0)


def _update(sums: list[ShrinkageSums], features: FeatureMaps) -> None:
    for of_level, m in zip(sums, features.maps, strict=True):
        of_level.update(pool(m))


def _vectors(features: FeatureMaps) -> Tensor:
    """All levels of each image in one row."""
    return torch.cat([pool(m) for m in features.maps], dim=1)
