"""SPADE: anomalies by correspondence (Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid
Correspondences", 2020).

The image score is the mean squared distance of the pooled deepest features to those of the k nearest normal images. The
map compares each activation vector with all activation vectors, at all positions, of these k images: per layer the
mean squared distance to the kappa nearest ones, enlarged bilinearly, averaged over the layers, smoothed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ArgumentError, ModelFileError
from ..features.backbones import Backbone, find_backbone
from ..features.patches import cells_inside, pool
from ..ops.maps import enlarge_and_smooth, mean_of_highest
from ..ops.neighbours import Exact, nearest_squared
from ..parameters import count_of, parameter
from ..tensors import check_tensors
from ..types import FeatureMaps, Scores
from ._base import FitPlan, LeavingMethod, counts_of, one_by_one


@dataclass(kw_only=True)
class SPADE(LeavingMethod):
    """Correspondence with the nearest normal images. No training; keeps all features of all images; slow to score.

    The layers of the gallery are `taps`.

    Parameters
    ----------
    retrieval: the layer that, pooled, finds the nearest images; None takes the backbone's deepest.
    k: how many nearest images (the paper: 50); the default takes all of them where there are fewer.
    kappa: how many activation vectors, the nearest ones of those images, a value of the map is the mean distance to
        (the paper: 1).
    sigma: smoothing of the map, in pixels of the network's input (the paper: 4).
    storage: `float32`, or `float16` for half the file and memory.
    top_share: None: an image's score is that of its pooled features, as in the paper. A number: the mean of that share
        of the map, the highest values; 0: its maximum.
    """

    name: ClassVar[str] = "spade"

    retrieval: str | None = None
    k: int = parameter(50, at_least=1)
    kappa: int = parameter(1, at_least=1)
    sigma: float = parameter(4.0, at_least=0)
    storage: Literal["float32", "float16"] = "float32"
    top_share: float | None = parameter(None, at_least=0, at_most=1)

    def unproven(self, groups: Sequence[int]) -> str:
        """Distances to the nearest of fewer images can only grow, as long as there are k of them."""
        images, largest = counts_of(groups)
        return f"k={self.k} is more than the other images" if self.k > images - largest else ""

    def _cannot(self, groups: Sequence[int]) -> str:
        """The score of a map depends on which images are near, and more of them may make it smaller or larger."""
        return "" if self.top_share is None else f"scores of maps (top_share={self.top_share:g})"

    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        return one_by_one(features, members, self._without)

    def _without(self, members: Tensor, features: FeatureMaps) -> SPADE:
        """Without maps: a copy of the gallery for each image would be too much."""
        model = copy.copy(self)
        kept = torch.ones(len(self.pooled_), dtype=torch.bool, device=self.pooled_.device)
        kept[members.to(kept.device)] = False
        model.pooled_, model.gallery_ = self.pooled_[kept], []
        return model

    def _images(self, first: FeatureMaps) -> int:
        return len(self.pooled_)

    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        self._append([self._embed(maps) for maps in features])

    def _absorb(self, other: SPADE) -> None:
        self._append([(other.pooled_, other.gallery_)])

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps

    def _further_tap(self, row: Backbone) -> str:
        return self.retrieval or row.deepest or row.taps[-1]

    def _layers(self, features: FeatureMaps) -> tuple[Tensor, ...]:
        return features.maps[: len(self.taps or find_backbone(self.backbone).taps)]

    def _pooled(self, features: FeatureMaps) -> Tensor:
        row = find_backbone(self.backbone)
        return pool(features.maps[self._taps(row).index(self._further_tap(row))])

    def _check_counts(self, images: int, layers: tuple[Tensor, ...]) -> None:
        positions = min(m.shape[2] * m.shape[3] for m in layers)
        k = count_of(self, "k", images, "the normal images")
        count_of(self, "kappa", k * positions, "the activation vectors of the k nearest images")

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        self._check_counts(images, self._layers(first))
        numbers = sum(m[0].numel() for m in self._layers(first)) + self._pooled(first).shape[1]
        size = images * numbers * (2 if self.storage == "float16" else 4)
        return FitPlan(
            model_bytes=size,
            peak_bytes=size + 2 * len(first.maps[0]) * numbers * 4,
            instead="Write storage=float16 for half of it, give fewer layers (taps), or use patchcore, which keeps a "
            "small part.",
        )

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        first = next(features)
        pooled, gallery = self._embed(first)
        if expected is None:
            parts = [(pooled, gallery), *(self._embed(maps) for maps in features)]
            self.pooled_ = torch.cat([part[0] for part in parts])
            self.gallery_ = [torch.cat(layer) for layer in zip(*(part[1] for part in parts), strict=True)]
            self._check_counts(len(self.pooled_), self._layers(first))
        else:
            self.pooled_ = pooled.new_empty(expected, *pooled.shape[1:])
            self.gallery_ = [layer.new_empty(expected, *layer.shape[1:]) for layer in gallery]
            done = 0
            for maps in chain([first], features):
                pooled, gallery = self._embed(maps)
                _check_shapes(self.gallery_, gallery)
                if done + len(pooled) > expected:
                    raise ArgumentError.about("images", expected=f"{expected}, as len(images) said", got="more")
                part = slice(done, done + len(pooled))
                self.pooled_[part] = pooled
                for whole, layer in zip(self.gallery_, gallery, strict=True):
                    whole[part] = layer
                done += len(pooled)
            self.pooled_, self.gallery_ = self.pooled_[:done], [layer[:done] for layer in self.gallery_]

    def _score(self, features: FeatureMaps) -> Scores:
        k = min(self.k, len(self.pooled_))
        squared, neighbours = Exact().build(self.pooled_).search(self._pooled(features), k)
        if not self.gallery_:  # of a model without some images
            return Scores(squared.mean(dim=1), None)
        layers = self._layers(features)
        maps: Tensor = sum(
            enlarge_and_smooth(
                self._distances(layer, gallery, neighbours),
                features.image_size,
                sigma=self.sigma,
                inside=cells_inside(features, layer.shape[2:]),
            )
            for layer, gallery in zip(layers, self.gallery_, strict=True)
        )  # type: ignore[assignment]
        maps = maps / len(layers)
        images = (
            squared.mean(dim=1) if self.top_share is None else mean_of_highest(maps, self.top_share, features.inside)
        )
        return Scores(images, maps)

    def _distances(self, layer: Tensor, gallery: Tensor, neighbours: Tensor) -> Tensor:
        """Mean squared distance of each activation vector to the kappa nearest of the image's neighbours: maps."""
        kappa = min(self.kappa, neighbours.shape[1] * gallery.shape[1])
        grids = []
        for vectors, images in zip(_vectors(layer), neighbours, strict=True):
            # One image at a time: a small copy, and products of bounded size.
            banks = (gallery.index_select(0, image[None])[0].float() for image in images)
            found = nearest_squared(vectors, banks, kappa)
            grids.append(found.mean(dim=1))
        return torch.stack(grids).reshape(-1, *layer.shape[2:])

    def _learned(self) -> dict[str, Tensor]:
        return {"pooled": self.pooled_} | {f"gallery.{i}": layer for i, layer in enumerate(self.gallery_)}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        layers = range(len(learned) - 1)
        gallery = {f"gallery.{i}": f"{self.storage} images positions{i} channels{i}" for i in layers}
        sizes = check_tensors(learned, {"pooled": "float32 images d"} | gallery)
        if min(sizes.values()) < 1 or len(layers) != len(self.taps or find_backbone(self.backbone).taps):
            raise ModelFileError("tensors gallery.*: expected one for each tap, and none of them empty.")
        self.pooled_ = learned["pooled"]
        self.gallery_ = [learned[f"gallery.{i}"] for i in layers]

    def _append(self, parts: list[tuple[Tensor, list[Tensor]]]) -> None:
        for _, gallery in parts:
            _check_shapes(self.gallery_, gallery)
        # Both are made before either is kept: running out of memory must not leave half an update.
        pooled = torch.cat([self.pooled_, *(pooled for pooled, _ in parts)])
        gallery = [
            torch.cat([layer, *(gallery[i].to(layer.dtype) for _, gallery in parts)])
            for i, layer in enumerate(self.gallery_)
        ]
        self.pooled_, self.gallery_ = pooled, gallery

    def _embed(self, features: FeatureMaps) -> tuple[Tensor, list[Tensor]]:
        dtype = torch.float16 if self.storage == "float16" else torch.float32
        layers = (
            _kept(_vectors(layer), cells_inside(features, layer.shape[2:])).to(dtype)
            for layer in self._layers(features)
        )
        return self._pooled(features), list(layers)


def _vectors(layer: Tensor) -> Tensor:
    return layer.permute(0, 2, 3, 1).flatten(1, 2)


def _kept(vectors: Tensor, cells: Tensor | None) -> Tensor:
    """The gallery has as many vectors an image as ever: in place of one from outside the region, one from inside."""
    if cells is None:
        return vectors
    inside = cells.flatten(1)
    first = vectors[torch.arange(len(vectors)), inside.int().argmax(dim=1)]
    return torch.where(inside[:, :, None], vectors, first[:, None])


def _check_shapes(gallery: list[Tensor], new: list[Tensor]) -> None:
    mine, theirs = ([tuple(layer.shape[1:]) for layer in layers] for layers in (gallery, new))
    if mine != theirs:
        raise ArgumentError.about(
            "images", expected=f"the same size as before (layers of {mine})", got=f"layers of {theirs}"
        )
