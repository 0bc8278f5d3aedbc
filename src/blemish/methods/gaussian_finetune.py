"""Gaussian-AD, fine-tuned (Rippel, Chavan, Lei, Merhof, "Transfer Learning Gaussian Anomaly Detection by Fine-tuning
Representations", 2021).

Each level's feature map is averaged over all positions. Mean m and shrunk covariance C of the normal images under the
*initial* network stay fixed; the network is then trained so that normal images come closer to them: the loss is the
squared Mahalanobis distance (x - m)^T C^-1 (x - m). Trained for too long, everything comes closer: the network forgets.
That is noticed, without any anomalous image, when held-out normal images can no longer be told as well from the same
images with a small change (`augment.defects`); the network of the best epoch is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from time import perf_counter
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..augment.defects import FAMILIES, FamilyName
from ..errors import ArgumentError
from ..features.backbones import Backbone
from ..features.patches import cells_inside, pool
from ..ops.maps import enlarge_and_smooth
from ..ops.separation import separation
from ..ops.shrinkage import ShrinkageSums, of_full_rank
from ..parameters import parameter
from ..training.loop import SGD, Adam, Recipe, Watch, generator
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import FeatureMaps, ImageBatches, Scores
from ._base import FeatureMethod, FitPlan, announced

Whitening = tuple[Tensor, Tensor]
"""Of a Gaussian: mean `(d,)` and W `(d, d)` with C^-1 = W W^T, float32: the squared distance is |(x - m) W|^2."""
_AT_ONCE = 16
"""Images in one pass where no gradient is needed."""


@dataclass(kw_only=True)
class GaussianFinetune(FeatureMethod):
    """One Gaussian a level of pooled features, the network trained towards it until it begins to forget.

    Parameters
    ----------
    trained: names of the modules that are trained; None: all. BatchNorm keeps the statistics and weights that it has.
    epochs: passes over the normal images at most; 0 leaves the network as it is.
    batch: images a step.
    optimiser: `adam`, or `sgd` with a momentum of 0.9, whose rates are larger.
    rate: of the optimiser.
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
    reads_features = False

    trained: tuple[str, ...] | None = None
    epochs: int = parameter(20, at_least=0)
    precision: Literal["float32"] = "float32"
    batch: int = parameter(16, at_least=1)
    optimiser: Literal["adam", "sgd"] = "adam"
    rate: float = parameter(1e-5, above=0)
    covariance: Literal["full", "diagonal", "identity"] = "full"
    families: tuple[FamilyName, ...] | None = None
    patience: int = parameter(5, at_least=1)
    validation: float = parameter(0.2, above=0, below=1)
    sigma: float = parameter(4.0, at_least=0)
    checkpoint: str | None = parameter(None, role="place")
    time_limit: float | None = parameter(None, at_least=0, role="place")

    def _check_together(self) -> None:
        if self.families is not None and not self.families:
            raise ArgumentError.about("families", expected=f"some of {', '.join(FAMILIES)}", got=self.families)

    def _families(self) -> tuple[FamilyName, ...]:
        return tuple(FAMILIES) if self.families is None else tuple(self.families)

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps if not row.deepest or row.deepest in row.taps else (*row.taps, row.deepest)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        model = 4 * sum(2 * m.shape[1] ** 2 for m in first.maps)
        height, width = first.image_size
        # A byte a number, or four where that would lose something; the held-out images in floats, and once a family.
        pixels = 3 * height * width * images * (1 + 4 * self.validation * (1 + len(self._families())))
        return FitPlan(
            model_bytes=model,
            peak_bytes=int(pixels) + 12 * model,
            instead="Give fewer images, or a smaller size: all are held in memory.",
        )

    def _fit(self, images: ImageBatches) -> None:
        self.extractor_ = self._extractor(self._initial_weights())
        with self.extractor_.on_torch():
            self._tune(images)

    def _tune(self, images: ImageBatches) -> None:
        expected, start = announced(images), perf_counter()
        batches = self._checked(images)
        first = list(islice(batches, 1))
        if first and expected is not None:
            maps = self._maps(first[0])
            self._announce(self._plan(maps, expected), expected, (perf_counter() - start) / len(first[0]))
        pictures = Pictures.read(chain(first, batches), of=self.name, expected=expected, left=self._pictures_left())
        normal, held_out = pictures.split(self.validation, seed=self.seed)
        pooled = zip(*([pool(m) for m in maps] for maps in self._levels(normal.batches())), strict=True)
        self.gaussians_ = self._gaussians([[torch.cat(level) for level in pooled]])
        self._train(normal, held_out.all())
        rows = ([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps] for maps in self._levels(normal.batches()))
        self.positions_ = self._gaussians(rows)

    def _train(self, normal: Pictures, held_out: Tensor) -> None:
        """Fine-tune the extractor's network; nothing but normal images comes in."""
        module, taps = self.extractor_.module, self.extractor_.taps
        self._choose_parameters()
        changed = [FAMILIES[family](held_out, generator(self.seed, 0, family)) for family in self._families()]

        def objective(step: int) -> dict[str, Tensor]:
            maps = self.extractor_.maps(normal.draw(step, self.batch, seed=self.seed))  # with gradients
            squared = self._squared([pool(m) for m in maps])
            return {tap: s.mean() / m.shape[1] for tap, s, m in zip(taps, squared, maps, strict=True)}

        def criterion(_step: int) -> float:
            untouched = self._distances(held_out)
            return 1 - sum(separation(untouched, self._distances(view)) for view in changed) / len(changed)

        epoch = normal.steps(self.batch)
        self.course_ = Training.of(self).run(
            objective,
            module,
            steps=self.epochs * epoch,
            recipe=Recipe(
                optimiser=Adam(rate=self.rate) if self.optimiser == "adam" else SGD(rate=self.rate, momentum=0.9)
            ),
            content={"images": normal.digest, "held-out images": Pictures(list(held_out)).digest},
            every=epoch,
            watch=Watch(criterion=criterion, every=epoch, patience=self.patience),
        )
        module.requires_grad_(False)

    def _score(self, features: FeatureMaps) -> Scores:
        images = sum(s.sqrt() for s in self._squared([pool(m) for m in features.maps]))
        maps = torch.zeros((), device=features.maps[0].device)
        for m, whitening in zip(features.maps, self.positions_, strict=True):
            grid = _squared_distance(m.permute(0, 2, 3, 1), whitening).sqrt()
            inside = cells_inside(features, grid.shape[1:])
            maps = maps + enlarge_and_smooth(grid, features.image_size, sigma=self.sigma, inside=inside)
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
        for name, weights in module.named_parameters():
            weights.requires_grad_(self.trained is None or name.startswith(names))
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.requires_grad_(False)
        if not any(weights.requires_grad for weights in module.parameters()):
            able = ", ".join(
                name for name, part in module.named_children() if next(part.parameters(), None) is not None
            )
            raise ArgumentError.about(
                "backbone" if self.trained is None else "trained",
                expected=f"modules with parameters ({able or 'this backbone has none'})",
                got=self.trained or self.extractor_.backbone.name,
            )

    def _gaussians(self, levels: Iterable[list[Tensor]]) -> list[Whitening]:
        """One a level, of the rows `(n, d)` of all batches."""
        sums: list[ShrinkageSums] = []
        for of_batch in levels:
            sums = sums or [ShrinkageSums.empty(rows.shape[1], rows.device) for rows in of_batch]
            for of_level, rows in zip(sums, of_batch, strict=True):
                of_level.update(rows)
        return [self._whitening(of_level) for of_level in sums]

    def _whitening(self, sums: ShrinkageSums) -> Whitening:
        mean, covariance, _ = sums.estimate()
        if self.covariance == "identity":
            return mean.float(), torch.eye(len(mean), device=mean.device)
        if self.covariance == "diagonal":
            covariance = covariance.diagonal().diag()
        values, vectors = of_full_rank(covariance)
        return mean.float(), (vectors * values.rsqrt()).float().contiguous()  # as it comes from a file

    def _squared(self, pooled: list[Tensor]) -> list[Tensor]:
        return [_squared_distance(v, whitening) for v, whitening in zip(pooled, self.gaussians_, strict=True)]

    def _distances(self, pixels: Tensor) -> Tensor:
        """Image scores `(n,)` of `(n, 3, height, width)` pixels with the network as it is now."""
        parts = pixels.split(_AT_ONCE)  # type: ignore[no-untyped-call]
        found = [self._squared([pool(m) for m in maps]) for maps in self._levels(parts)]
        return torch.cat([torch.stack(levels).sqrt().sum(dim=0) for levels in found])

    def _levels(self, parts: Iterable[Tensor]) -> Iterable[tuple[Tensor, ...]]:
        return (self.extractor_(part).maps for part in parts)


def _squared_distance(vectors: Tensor, whitening: Whitening) -> Tensor:
    """Squared Mahalanobis distance of `(..., d)` vectors, `(...)`."""
    mean, factor = whitening
    return ((vectors - mean) @ factor).square().sum(dim=-1)
