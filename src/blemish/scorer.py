"""What scores a batch in a fitted detector: its method, or one a fold, in one piece or in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import ArgumentError
from .images.source import Reporting
from .images.tiling import Tiles, Tiling, scored_inside
from .methods import FrozenMethod, Method, ScoresBeside
from .types import ImageBatch, ImageBatches, Scores, Size


@dataclass(frozen=True)
class Scorer:
    """A method, what p-values take beside its scores, and the tiles in which it looks at an image."""

    method: Method
    others: tuple[Method, ...] = ()
    """With `cross`, the models of all folds but the first, which is `method`."""
    scales: tuple[float, ...] = ()
    """Of those models, where they are of several methods: by these their scores are divided."""
    kept: dict[str, Tensor] | None = None
    """With `full`, what the method remembers of the learned images."""
    tiling: Tiling | None = None
    at_once: int = 8
    """Tiles a forward pass."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """The models of all folds."""
        return (self.method, *self.others)

    def tiled(self, batches: Reporting, size: Size) -> Reporting | Tiles:
        """Batches to learn from, of images of this `(height, width)`, or of their tiles."""
        return batches if self.tiling is None else Tiles(batches, self.tiling, size=size, at_once=self.at_once)

    def score(self, batch: ImageBatch) -> Scores:
        """Scores, and what p-values need beside them; with `cross` the mean over the folds' models.

        Raises `ArgumentError` where there is NaN or infinity in a score or a map.
        """
        scores = self._mean_of_folds(batch) if self.others else self.alone(self.method, batch)
        bad = [name for name, is_finite in zip(batch.names, scores.are_finite(), strict=True) if not is_finite]
        if bad:
            raise ArgumentError.about(
                "method", expected="finite scores", got=f"NaN or infinity for {', '.join(bad)}",
                instead="Check the backbone's weights.",
            )  # fmt: skip
        if self.kept is None:
            return scores
        assert isinstance(self.method, ScoresBeside)
        return replace(scores, plus=self.method.beside(batch, self.kept))

    def alone(self, method: Method, batch: ImageBatch) -> Scores:
        """The scores by one of the models."""
        return self._in_tiles(batch, method.score)

    def each_alone(self, method: Method, batches: ImageBatches) -> Iterator[tuple[ImageBatch, Scores]]:
        """Each batch, and its scores by one of the models."""
        for batch in batches:
            yield batch, self.alone(method, batch)

    def measure(self, batch: ImageBatch) -> Scores:
        """Score a batch that was checked, by operations on tensors alone: an export traces them.

        Raises `ArgumentError` for a method that cannot be exported.
        """
        return self._in_tiles(batch, self._measure)

    def _measure(self, batch: ImageBatch) -> Scores:
        found = self.method.measure(batch)
        if found is None:
            raise ArgumentError.about("method", expected="one that scores by tensors alone", got=self.method.name)
        return found

    def _mean_of_folds(self, batch: ImageBatch) -> Scores:
        seen = self._seen_by(self.methods, batch)
        found = [self.alone(method, own) for method, own in zip(self.methods, seen, strict=True)]
        if self.scales:
            found = [in_units_of(scale, scores) for scale, scores in zip(self.scales, found, strict=True)]
        maps = [scores.maps for scores in found if scores.maps is not None]
        images = torch.stack([scores.images for scores in found], dim=1)
        mean = torch.stack(maps).mean(dim=0) if maps else None
        by_fold = torch.stack(maps, dim=1) if len(maps) == len(self.methods) else None
        return Scores(images.mean(dim=1), mean, plus=images, fold_maps=by_fold)

    def _seen_by(self, methods: Sequence[Method], batch: ImageBatch) -> Iterator[ImageBatch]:
        """The batch for each model: with the maps of the first one that reads the same layers."""
        known: dict[tuple[str, ...], ImageBatch] = {}
        for method in methods:
            if not isinstance(method, FrozenMethod) or self.tiling is not None:
                yield batch
                continue
            if method.tapped() not in known:
                known[method.tapped()] = method.with_maps(batch)
            yield known[method.tapped()]

    def _in_tiles(self, batch: ImageBatch, score: Callable[[ImageBatch], Scores]) -> Scores:
        if self.tiling is None:
            return score(batch)
        size = (batch.pixels.shape[2], batch.pixels.shape[3])
        cut = self.tiling.cut(batch, at_once=self.at_once)
        return self.tiling.join([scored_inside(score(tiles), tiles) for tiles in cut], size)


def in_units_of(scale: float, scores: Scores) -> Scores:
    """Scores and maps divided by a number above 0, so that those of several methods can be averaged."""
    return replace(scores, images=scores.images / scale, maps=None if scores.maps is None else scores.maps / scale)
