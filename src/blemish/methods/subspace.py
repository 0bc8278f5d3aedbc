"""The residual outside the principal subspace of normal patches (Lendering, Akdag, Bondarev, "SubspaceAD: Training-Free
Few-Shot Anomaly Detection via Subspace Modeling", CVPR 2026).

All patch features x of all normal images, wherever they lie, give one mean m and one covariance C. Its leading
eigenvectors V, the fewest that hold a share of the total variance, span what normal patches do; the anomaly map is the
squared distance from there,

    S(x) = |z - V V^T z|^2 = |U^T z|^2,   z = x - m,

where U are the other eigenvectors. Mean and covariance come from sums, so the model grows and merges exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError, ModelFileError
from ..features.backbones import Backbone
from ..features.patches import average_patches, averaged, cells_inside, project
from ..ops.maps import enlarge_and_smooth
from ..ops.patch_sums import PatchSums
from ..parameters import parameter
from ..tensors import check_tensors
from ..types import FeatureMaps, Scores
from ._base import FitPlan, LeavingMethod, MapMethod, cannot_take_groups, one_by_one
from ._turned import TurnedMethod


@dataclass(kw_only=True)
class Subspace(MapMethod, TurnedMethod, LeavingMethod):
    """Residual outside the principal subspace of normal patches, wherever they lie. Tiny, exact; from one image on.

    Parameters
    ----------
    variance: share of the patches' variance that the subspace holds at least (the paper: 0.99).
    sigma: smoothing of the map, in pixels of the network's input.
    """

    name: ClassVar[str] = "subspace"

    variance: float = parameter(0.98, above=0, below=1)
    sigma: float = parameter(4.0, at_least=0)

    def unproven(self, groups: Sequence[int]) -> str:
        """Mean and directions move either way without an image."""
        return "scores of a subspace may shrink without an image"

    def _cannot(self, groups: Sequence[int]) -> str:
        return cannot_take_groups(groups)

    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        return one_by_one(features, members, self._without)

    def _without(self, members: Tensor, features: FeatureMaps) -> Subspace:
        """A new eigendecomposition, of the sums without the image's."""
        sums, model = copy.deepcopy(self.sums_), copy.copy(self)
        sums.subtract(_added(PatchSums.empty(len(self.mean_), self.mean_.device), iter([features])))
        model._finish(sums, self.channels_)
        return model

    def _images(self, first: FeatureMaps) -> int:
        return int(self.sums_.count) // (first.maps[0].shape[2] * first.maps[0].shape[3])

    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """The same model as one fit on all images, up to rounding."""
        self._finish(_added(copy.deepcopy(self.sums_), features), self.channels_)

    def _absorb(self, other: Subspace) -> None:
        if self.channels_ != other.channels_:
            raise ArgumentError.about("other", expected=f"layers of {self.channels_} channels", got=other.channels_)
        sums = copy.deepcopy(self.sums_)
        sums.merge(other.sums_)
        self._finish(sums, self.channels_)

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps[-2:]

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        sizes = [(m.shape[1], m.shape[2] * m.shape[3]) for m in first.maps]
        d = sum(channels for channels, _ in sizes)
        an_image = sum(c * e * min(p, q) for i, (c, p) in enumerate(sizes) for e, q in sizes[: i + 1])
        return FitPlan(
            model_bytes=d * d * 12,  # the sums, and at most as many directions as channels
            peak_bytes=d * d * 60,
            operations=2.0 * images * an_image + 10.0 * d**3,
        )

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        first = next(features)
        channels = tuple(m.shape[1] for m in first.maps)
        sums = PatchSums.empty(sum(channels), first.maps[0].device)
        self._finish(_added(sums, chain([first], features)), channels)

    def _score(self, features: FeatureMaps) -> Scores:
        grid = self._residuals(features)
        inside = cells_inside(features, grid.shape[1:])
        maps = enlarge_and_smooth(grid, features.image_size, sigma=self.sigma, inside=inside)
        return Scores(self._image_scores(maps, features.inside), maps)

    def _residuals(self, features: FeatureMaps) -> Tensor:
        """|U^T z|^2 at every position, `(batch, h, w)`; U is applied before layers are enlarged, which is the same."""
        around = averaged(features)
        means = torch.split(self.mean_, list(self.channels_))
        centred = tuple(m - mean[:, None, None] for m, mean in zip(around.maps, means, strict=True))
        height, width = features.maps[0].shape[2:]
        outside = project(FeatureMaps(centred, features.image_size), self.directions_, size=(height, width))
        return outside.square_().sum(dim=2).reshape(-1, height, width)

    def _finish(self, sums: PatchSums, channels: tuple[int, ...]) -> None:
        mean, covariance = sums.moments()
        values, vectors = torch.linalg.eigh(covariance)
        if not float(values[-1]) > 1e-12 * float(sums.outer.trace() / sums.count):
            raise ArgumentError.about(
                "images", expected="normal images with patches that differ", got="patches that are all the same"
            )
        self.directions_ = vectors[:, : self._outside(values)].float().contiguous()
        self.sums_, self.mean_, self.channels_ = sums, mean.float(), channels

    def _outside(self, values: Tensor) -> int:
        """How many directions are outside the subspace, at least one; `values` are variances in ascending order."""
        within = values.clamp_min(0).flip(0).cumsum(0)
        inside = int((within < (self.variance - 1e-12) * within[-1]).sum()) + 1
        return max(1, len(values) - inside)

    def _learned(self) -> dict[str, Tensor]:
        rows, columns = torch.triu_indices(len(self.mean_), len(self.mean_), device=self.mean_.device)
        return {
            "channels": torch.tensor(self.channels_),
            "count": self.sums_.count,
            "linear": self.sums_.linear,
            "outer": self.sums_.outer[rows, columns],
            "directions": self.directions_,
        }

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        patterns = {"channels": "int64 maps", "count": "float64", "linear": "float64 d", "outer": "float64 triangle"}
        sizes = check_tensors(learned, patterns | {"directions": "float32 d outside"})
        d, count, linear, channels = sizes["d"], learned["count"], learned["linear"], learned["channels"].tolist()
        if sizes["triangle"] != d * (d + 1) // 2:
            raise ModelFileError.about("tensor outer", expected=f"{d * (d + 1) // 2} numbers", got=sizes["triangle"])
        if sum(channels) != d or min(channels) < 1 or float(count) < 1:
            raise ModelFileError("tensors channels, count: expected the channels of linear, and at least 1 patch.")
        rows, columns = torch.triu_indices(d, d, device=linear.device)
        outer = linear.new_zeros(d, d)
        outer[rows, columns] = outer[columns, rows] = learned["outer"]
        self.sums_ = PatchSums(count, linear, outer)
        self.mean_, self.directions_ = (linear / count).float(), learned["directions"]
        self.channels_ = tuple(channels)


def _added(sums: PatchSums, features: Iterator[FeatureMaps]) -> PatchSums:
    for maps in features:
        height, width = maps.maps[0].shape[2:]
        cells = cells_inside(maps, (height, width))
        if cells is None:
            sums.update(averaged(maps).maps, (height, width))
        else:  # patches from outside the region would make what fills it normal anywhere
            rows = average_patches(maps).flatten(0, 1)[cells.flatten()].double()
            sums.merge(PatchSums(torch.tensor(len(rows)).to(rows), rows.sum(dim=0), rows.T @ rows))
    return sums
