"""Gaussian-AD, fine-tuned (Rippel, Chavan, Lei, Merhof, "Transfer Learning Gaussian Anomaly Detection by Fine-tuning
Representations", 2021).

Each level's feature map is averaged over all positions. Mean m and shrunk covariance C of the normal images under the
*initial* network stay fixed; the network is then trained so that normal images come closer to them: the loss is the
squared Mahalanobis distance (x - m)^T C^-1 (x - m). Trained for too long, everything comes closer: the network forgets.
That is noticed, without any anomalous image, when held-out normal images can no longer be told as well from the same
images with a small change (`images.augment_defects`); the network of the best epoch is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .. import persist
from ..augment.defects import FAMILIES
from ..errors import ArgumentError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..ops.maps import enlarge_and_smooth
from ..ops.separation import separation
from ..ops.shrinkage import ShrinkageSums
from ..training.loop import Adam, Checkpoint, Recipe, Watch, batch_of, generator, optimise
from ..types import FeatureMaps, ImageBatch, ImageBatches, Scores
from ._base import FeatureMethod, FitPlan, check_batch
from ._training import check_training, log_progress, split_off

_M = TypeVar("_M", bound="GaussianFinetune")
Gaussian = tuple[Tensor, Tensor]
"""Mean `(d,)` and W `(d, d)` with C^-1 = W W^T, float32: the squared distance of x is |(x - m) W|^2."""
_AT_ONCE = 16
"""Images in one pass where no gradient is needed."""


@dataclass(kw_only=True)
class GaussianFinetune(FeatureMethod):
    """One Gaussian a level of pooled features, the network trained towards it until it begins to forget.

    Parameters
    ----------
    trained: names of the modules that are trained; None: all. BatchNorm keeps the statistics and weights that it has.
    epochs: passes over the normal images at most.
    batch: images a step.
    rate: of Adam.
    covariance: of the Gaussians: `full`, its `diagonal`, or `identity`, which makes the loss the squared distance to
        the centre.
    families: small changes from which held-out normal images shall be told, some of `augmix`, `cutout`, `cutpaste` and
        `scar`; None: all.
    patience: stop after this many epochs in a row in which that went no better.
    validation: share of the normal images that is held out.
    sigma: smoothing of the map, in pixels of the network's input.
    checkpoint: file to which the state of the training is written, and from which it goes on; None: none.
    time_limit: seconds after which the training ends with what is there; None: never.
    """

    name: ClassVar[str] = "gaussian_finetune"
    reads_features: ClassVar[bool] = False

    trained: tuple[str, ...] | None = None
    epochs: int = 20
    batch: int = 16
    rate: float = 1e-5
    covariance: Literal["full", "diagonal", "identity"] = "full"
    families: tuple[str, ...] | None = None
    patience: int = 5
    validation: float = 0.2
    sigma: float = 4.0
    checkpoint: str | None = None
    time_limit: float | None = None

    def fit(self: _M, images: ImageBatches) -> _M:
        """Learn from normal images; forgets earlier fits."""
        self._pixels: list[Tensor] = []
        try:
            return super().fit(images)
        finally:
            self._pixels = []

    def _check_together(self) -> None:
        check_training(self)
        if self.covariance not in ("full", "diagonal", "identity"):
            raise ArgumentError.about("covariance", expected="full, diagonal or identity", got=self.covariance)
        families = self._families()
        if not families or not set(families) <= set(FAMILIES):
            raise ArgumentError.about("families", expected=f"some of {', '.join(FAMILIES)}", got=self.families)
        if self.precision != "float32":
            raise ArgumentError.about("precision", expected="float32, as the network is trained", got=self.precision)

    def _families(self) -> tuple[str, ...]:
        return tuple(FAMILIES) if self.families is None else tuple(self.families)

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps if not row.deepest or row.deepest in row.taps else (*row.taps, row.deepest)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        model = 4 * sum(2 * m.shape[1] ** 2 for m in first.maps)
        height, width = first.image_size
        # The pixels are there twice while they are joined; the held-out ones once more a family.
        pixels = 12 * height * width * images * (2 + self.validation * len(self._families()))
        return FitPlan(
            model_bytes=model,
            peak_bytes=int(pixels) + 12 * model,
            instead="Give fewer images, or a smaller size: all are held in memory.",
        )

    def _features(self, images: ImageBatches) -> Iterator[FeatureMaps]:
        for batch in images:
            check_batch(batch)
            maps = self._maps(batch)
            if self._pixels and batch.pixels.shape[1:] != self._pixels[0].shape[1:]:
                size = tuple(self._pixels[0].shape[2:])
                raise ArgumentError.about("images", expected=f"all of size {size}", got=f"size {maps.image_size}")
            self._pixels.append(batch.pixels)
            yield maps

    def _maps(self, batch: ImageBatch) -> FeatureMaps:
        if batch.features is not None:
            raise ArgumentError.about(
                "features", expected=f"none with {self.name}, which trains its own network", got="maps of another one"
            )
        return super()._maps(batch)

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        levels = zip(*([pool(m) for m in maps.maps] for maps in features), strict=True)
        initial = [torch.cat(level) for level in levels]
        pixels = torch.cat(self._pixels)
        train, held_out = split_off(len(pixels), self.validation, seed=self.seed)
        pooled, positions = ([ShrinkageSums.empty(v.shape[1], v.device) for v in initial] for _ in range(2))
        for sums, vectors in zip(pooled, initial, strict=True):
            sums.update(vectors[train])
        self.gaussians_ = [self._gaussian(sums) for sums in pooled]
        self._train(pixels[train], pixels[held_out])
        for maps in self._seen(pixels[train]):
            for sums, m in zip(positions, maps.maps, strict=True):
                sums.update(m.permute(0, 2, 3, 1).flatten(0, 2))
        self.positions_ = [self._gaussian(sums) for sums in positions]

    def _train(self, normal: Tensor, held_out: Tensor) -> None:
        """Fine-tune the extractor's network; nothing but normal images comes in."""
        module, taps = self.extractor_.module, self.extractor_.taps
        self._choose_parameters()
        changed = [FAMILIES[family](held_out, generator(self.seed, 0, family)) for family in self._families()]

        def objective(step: int) -> dict[str, Tensor]:
            chosen = normal[batch_of(len(normal), size, seed=self.seed, step=step)]
            maps = self.extractor_.maps(chosen)  # with gradients
            squared = self._squared([pool(m) for m in maps])
            return {tap: s.mean() / m.shape[1] for tap, s, m in zip(taps, squared, maps, strict=True)}

        def criterion(_step: int) -> float:
            untouched = self._distances(held_out)
            return 1 - sum(separation(untouched, self._distances(view)) for view in changed) / len(changed)

        size = min(self.batch, len(normal))
        epoch = -(-len(normal) // size)
        self.course_ = optimise(
            objective,
            module,
            steps=self.epochs * epoch,
            recipe=Recipe(optimiser=Adam(rate=self.rate)),
            seed=self.seed,
            watch=Watch(criterion=criterion, every=epoch, patience=self.patience),
            checkpoint=None if self.checkpoint is None else self._checkpoint(self.checkpoint, normal, held_out),
            time_limit=self.time_limit,
            progress=log_progress(self.name),
        )
        module.requires_grad_(False)

    def _score(self, features: FeatureMaps) -> Scores:
        images = sum(s.sqrt() for s in self._squared([pool(m) for m in features.maps]))
        maps = torch.zeros((), device=features.maps[0].device)
        for m, gaussian in zip(features.maps, self.positions_, strict=True):
            grid = _squared_distance(m.permute(0, 2, 3, 1), gaussian).sqrt()
            maps = maps + enlarge_and_smooth(grid, features.image_size, sigma=self.sigma)
        assert isinstance(images, Tensor)
        return Scores(images, maps)

    def _learned(self) -> dict[str, Tensor]:
        learned: dict[str, Tensor] = {}
        for kind, gaussians in (("pooled", self.gaussians_), ("position", self.positions_)):
            for i, (mean, factor) in enumerate(gaussians):
                learned |= {f"{kind}.{i}.mean": mean, f"{kind}.{i}.factor": factor}
        return learned

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        levels = range(len(self.extractor_.taps))
        for name, factor in learned.items():
            mean = learned[name.replace(".factor", ".mean")]
            if name.endswith(".factor") and (mean.ndim != 1 or factor.shape != (len(mean), len(mean))):
                raise ArgumentError.about(f"tensor {name}", expected=f"a square of {tuple(mean.shape)}", got=factor)
        self.gaussians_, self.positions_ = (
            [(learned[f"{kind}.{i}.mean"], learned[f"{kind}.{i}.factor"]) for i in levels]
            for kind in ("pooled", "position")
        )

    def _choose_parameters(self) -> None:
        """Let gradients reach the modules to train. What was folded into a convolution is trained with it."""
        module = self.extractor_.module
        names = tuple(f"{name}." for name in self.trained or ())
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self.trained is None or name.startswith(names))
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            able = ", ".join(
                name for name, part in module.named_children() if next(part.parameters(), None) is not None
            )
            raise ArgumentError.about(
                "backbone" if self.trained is None else "trained",
                expected=f"modules with parameters ({able or 'this backbone has none'})",
                got=self.trained or self.extractor_.backbone.name,
            )

    def _gaussian(self, sums: ShrinkageSums) -> Gaussian:
        mean, covariance, _ = sums.estimate()
        if self.covariance == "identity":
            return mean.float(), torch.eye(len(mean), device=mean.device)
        if self.covariance == "diagonal":
            covariance = covariance.diagonal().diag()
        values, vectors = torch.linalg.eigh(covariance)
        if not float(values[-1]) > 0 or float(values[0]) < 1e-12 * float(values[-1]):
            raise ArgumentError.about(
                "images",
                expected="normal images that differ from each other",
                got="a covariance without full rank",
                instead="Give more, or different, images.",
            )
        return mean.float(), (vectors * values.rsqrt()).float()

    def _squared(self, pooled: list[Tensor]) -> list[Tensor]:
        return [_squared_distance(v, gaussian) for v, gaussian in zip(pooled, self.gaussians_, strict=True)]

    def _distances(self, pixels: Tensor) -> Tensor:
        """Image scores `(n,)` of `(n, 3, height, width)` pixels with the network as it is now."""
        found = [self._squared([pool(m) for m in maps.maps]) for maps in self._seen(pixels)]
        return torch.cat([torch.stack(levels).sqrt().sum(dim=0) for levels in found])

    def _seen(self, pixels: Tensor) -> Iterator[FeatureMaps]:
        return (self.extractor_(part) for part in pixels.split(_AT_ONCE))  # type: ignore[no-untyped-call]

    def _checkpoint(self, path: str, normal: Tensor, held_out: Tensor) -> Checkpoint:
        identity: dict[str, str | int | float | None] = {
            "method": self.name,
            "images": persist.digest({"normal": normal, "held out": held_out}),
            "batch": self.batch,
            "covariance": self.covariance,
            "families": ", ".join(self._families()),
            "trained": None if self.trained is None else ", ".join(self.trained),
        }
        return Checkpoint(path=Path(path), every=-(-len(normal) // min(self.batch, len(normal))), identity=identity)


def _squared_distance(vectors: Tensor, gaussian: Gaussian) -> Tensor:
    """Squared Mahalanobis distance of `(..., d)` vectors, `(...)`."""
    mean, factor = gaussian
    return ((vectors - mean) @ factor).square().sum(dim=-1)
