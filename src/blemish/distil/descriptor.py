"""Patch descriptors taught by a pretrained network on any images (Bergmann, Fauser, Sattlegger, Steger, "Uninformed
Students", CVPR 2020, section 3.1).

The loss of the network T on random crops is lambda_k L_k + lambda_m L_m + lambda_c L_c: what P says of the crop must be
readable from the descriptor (knowledge), crops alike must lie nearer than others (metric), and descriptors must not say
the same twice (compactness). docs/distil.md names the deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .. import persist
from ..augment.crops import Boxes, ImageCache, cut, draw_boxes, greyed, move_boxes
from ..device import find_device
from ..errors import ArgumentError
from ..features.backbones import find_backbone
from ..features.descriptors import DIMENSION, PatchDescriptor
from ..features.extract import Extractor, build_extractor
from ..features.patches import pool
from ..features.weights import find_weights
from ..parameters import check_parameters, parameter
from ..training.loop import Adam, Cosine, Course, Recipe, TrainingProgress, batch_of, generator
from ..training.run import Training
from .card import make_card, round_to_half

_TARGET_CROPS, _HELD_OUT_CROPS = 2048, 1024


@dataclass(frozen=True, kw_only=True)
class DescriptorRecipe:
    """How a patch descriptor is taught; the defaults are the paper's for MVTec AD, where it names them.

    Parameters
    ----------
    patch, width: of the network, see `PatchDescriptor`.
    backbone, tap: the network P, and the module whose output, averaged over positions, is taught; None: its deepest.
    teacher_side: pixels to which a crop of `patch` pixels is enlarged for P. Its time grows with the square.
    variance: share of the variance of P's output that is kept by principal components.
    steps, batch, rate, weight_decay: of the training, with Adam.
    clip_norm: gradients with a joint norm above this are scaled down to it; None: as they are (the paper).
    cosine: let the rate fall to 0 along half a cosine, else it is constant.
    batches: after this many the same crops come again, so that P, which costs most, describes each crop only once;
        0: each step has new ones.
    knowledge, metric, compactness: the weights lambda; a term with weight 0 is not computed.
    margin: delta of the triplet loss.
    zoom: the short side of an image is this many times the side of a crop, drawn uniformly between the two.
    grey: share of the crops that are made grey.
    shift, light, noise: the crop alike is shifted by up to this share of its side, its brightness is changed by up to
        this factor, and Gaussian noise of up to this deviation is added.
    image_side: pixels to which the short side of an image is reduced when it is read.
    held_out: share of the images on which the result is judged.
    precision: of the forward passes: `float32`, or `bfloat16` where the hardware has it.
    seed: for everything random.
    """

    patch: Literal[17, 33, 65] = 33
    width: float = parameter(1.0, above=0, at_most=4)
    backbone: str = "resnet18"
    tap: str | None = None
    teacher_side: int = parameter(64, at_least=16, at_most=4096)
    variance: float = parameter(0.95, at_least=0.01, at_most=1)
    steps: int = parameter(50_000, at_least=0, role="place")  # at a constant rate, a run may be prolonged
    batch: int = parameter(64, at_least=2)
    rate: float = parameter(2e-4, above=0)
    weight_decay: float = parameter(1e-5, at_least=0)
    clip_norm: float | None = parameter(None, above=0)
    cosine: bool = False
    batches: int = parameter(0, at_least=0)
    knowledge: float = parameter(1.0, at_least=0, at_most=1e6)
    metric: float = parameter(0.0, at_least=0, at_most=1e6)
    compactness: float = parameter(1.0, at_least=0, at_most=1e6)
    margin: float = 1.0
    zoom: tuple[float, float] = parameter((4.0, 16.0), at_least=1)
    grey: float = parameter(0.1, at_least=0, at_most=1)
    shift: float = parameter(0.125, at_least=0, at_most=1)
    light: float = parameter(0.2, at_least=0, at_most=1)
    noise: float = parameter(0.05, at_least=0, at_most=1)
    image_side: int = parameter(256, at_least=16, at_most=4096)
    held_out: float = parameter(0.05, at_least=0, at_most=0.5)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Targets:
    """What is taught: P's output, each channel divided by its deviation, on its principal components.

    Scaled so that the kept variance is 1: predicting the mean has the loss 1, whatever P is.
    """

    mean: Tensor
    """`(channels,)`."""
    basis: Tensor
    """`(channels, components)`."""

    def __call__(self, features: Tensor) -> Tensor:
        """From `(crop, channels)` to `(crop, components)`."""
        return (features - self.mean) @ self.basis


@dataclass(frozen=True)
class Quality:
    """What descriptors of crops from held-out images are worth."""

    unexplained: float
    """Share of the variance of the targets that the decoder leaves; 1: it knows no more than the mean."""
    triplet_accuracy: float
    """Share of the crops that lie nearer to the crop alike than that and they lie to a crop of another image."""
    retrieval: float
    """Share of the crops that lie nearer to the crop alike than any of about a thousand other crops does."""
    correlation: float
    """Mean absolute correlation of two of the descriptor's numbers."""


@dataclass(frozen=True)
class Distilled:
    """A trained descriptor network, and how it came about."""

    network: PatchDescriptor
    course: Course
    quality: Quality
    card: dict[str, Any]
    """JSON types only."""


# The three losses, on (crop, number) tensors


def knowledge_loss(decoded: Tensor, targets: Tensor) -> Tensor:
    """L_k = ||D(T(p)) - P(p)||^2, mean over the crops."""
    return (decoded - targets).square().sum(dim=1).mean()


def triplet_distances(anchors: Tensor, similar: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """delta+ = ||T(p) - T(p+)||^2 and delta- = min(||T(p) - T(p-)||^2, ||T(p+) - T(p-)||^2), each `(crop,)`."""
    near = (anchors - similar).square().sum(dim=1)
    far = torch.minimum((anchors - others).square().sum(dim=1), (similar - others).square().sum(dim=1))
    return near, far


def triplet_loss(anchors: Tensor, similar: Tensor, others: Tensor, *, margin: float = 1.0) -> Tensor:
    """L_m = max(0, delta + delta+ - delta-), mean over the crops."""
    near, far = triplet_distances(anchors, similar, others)
    return (margin + near - far).clamp_min(0).mean()


def compactness_loss(descriptors: Tensor) -> Tensor:
    """L_c: mean of |c_ij| over i != j, c the correlation matrix of the descriptors' numbers over the crops.

    The paper sums c_ij itself; that would reward numbers that are each other's opposite.
    """
    centred = descriptors - descriptors.mean(dim=0)
    unit = centred / centred.square().sum(dim=0).clamp_min(1e-12).sqrt()
    correlations = (unit.T @ unit).abs()
    d = len(correlations)
    return (correlations.sum() - correlations.diagonal().sum()) / (d * (d - 1))


def fit_targets(features: Tensor, *, variance: float) -> Targets:
    """Standardise `(crop, channels)` features and keep the fewest components that hold this share of the variance."""
    wide = features.double()
    mean, deviation = wide.mean(dim=0), wide.std(dim=0)
    alive = deviation > 1e-6 * deviation.max()
    scale = torch.where(alive, 1 / deviation.clamp_min(1e-300), 0)
    unit = (wide - mean) * scale
    values, vectors = torch.linalg.eigh(unit.T @ unit / (len(unit) - 1))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    kept = int((values.cumsum(0) < variance * values.sum() * (1 - 1e-12)).sum()) + 1
    basis = scale[:, None] * vectors[:, :kept] / values[:kept].sum().sqrt()
    return Targets(mean.float(), basis.float())


def distil_descriptor(
    images: ImageCache,
    recipe: DescriptorRecipe,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    time_limit: float | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Distilled:
    """Train a descriptor network on crops of these images. With a checkpoint, an interrupted run goes on.

    Raises `TrainingError` with the cause as soon as a loss is not a number.
    """
    _check(recipe, len(images))
    chosen = find_device(device)
    crops, unseen = (PatchCrops(part, recipe, chosen) for part in images.split(recipe.held_out, seed=recipe.seed))
    teacher = _teacher(recipe, weights, chosen)
    targets = _targets(crops, teacher, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = PatchDescriptor(recipe.patch, width=recipe.width)
        decoder = nn.Linear(DIMENSION, targets.basis.shape[1])
    pair = nn.ModuleDict({"network": network, "decoder": decoder}).to(chosen)

    answers: dict[int, Tensor] = {}

    def taught(step: int, anchors: Tensor) -> Tensor:
        if not recipe.batches:
            return targets(_describe(teacher, anchors, recipe))
        number = step % recipe.batches
        if number not in answers:
            answers[number] = targets(_describe(teacher, anchors, recipe))
        return answers[number]

    def objective(step: int) -> Mapping[str, Tensor]:
        anchors, similar = crops.draw(step, alike=recipe.metric > 0)
        descriptors = network(anchors).float()
        terms = {}
        if recipe.knowledge:
            terms["knowledge"] = recipe.knowledge * knowledge_loss(decoder(descriptors), taught(step, anchors))
        if similar is not None:
            alike, others = network(similar).float(), descriptors.roll(1, dims=0)
            terms["metric"] = recipe.metric * triplet_loss(descriptors, alike, others, margin=recipe.margin)
        if recipe.compactness:
            terms["compactness"] = recipe.compactness * compactness_loss(descriptors)
        return terms

    digest = persist.digest(teacher.state())
    training = Training(recipe, name="descriptor", checkpoint=checkpoint, time_limit=time_limit, progress=progress)
    course = training.run(
        objective,
        pair,
        steps=recipe.steps,
        recipe=Recipe(
            optimiser=Adam(rate=recipe.rate, weight_decay=recipe.weight_decay),
            schedule=Cosine(steps=recipe.steps) if recipe.cosine else None,
            clip_norm=recipe.clip_norm,
            precision=recipe.precision,
        ),
        content={"images": lambda: images.digest, "P": lambda: digest},
        every=checkpoint_every,
    )
    round_to_half(pair)
    quality = judge_descriptor(pair, unseen, teacher, targets)
    network.cpu()
    row = teacher.backbone
    card = make_card("patch descriptor", recipe, images=images, network=network, course=course) | {
        "p": {
            "backbone": row.name, "tap": teacher.taps[0], "weights": row.source, "licence": row.licence,
            "digest": digest,
        },
        "components": targets.basis.shape[1],
        "held_out": {name: round(value, 6) for name, value in asdict(quality).items()},
    }  # fmt: skip
    return Distilled(network, course, quality, card)


class PatchCrops:
    """Draws batches of crops; a function of the recipe's seed and of the step alone."""

    def __init__(self, images: ImageCache, recipe: DescriptorRecipe, device: torch.device) -> None:
        self.images, self.recipe, self.device = images, recipe, device

    def draw(self, step: int, *, alike: bool, use: str = "crops") -> tuple[Tensor, Tensor | None]:
        """A batch `(crop, 3, patch, patch)`, each of another image as long as there are enough, and one `alike`.

        Crops that come again have other crops alike each time.
        """
        recipe = self.recipe
        number = step % recipe.batches if recipe.batches else step
        random = generator(recipe.seed, number, use)
        order = batch_of(len(self.images), recipe.batch, seed=recipe.seed, step=number)
        boxes = draw_boxes(self.images, order, zoom=recipe.zoom, generator=random)
        grey = torch.rand(recipe.batch, 1, 1, 1, generator=random) < recipe.grey
        anchors = self._cut(boxes, grey)
        if not alike:
            return anchors.to(self.device), None
        if recipe.batches:
            random = generator(recipe.seed, step, f"{use} alike")
        moved = self._cut(move_boxes(self.images, boxes, share=recipe.shift, generator=random), grey)
        light = 1 + recipe.light * (2 * torch.rand(recipe.batch, 1, 1, 1, generator=random) - 1)
        noise = recipe.noise * torch.rand(recipe.batch, 1, 1, 1, generator=random)
        similar = moved * light + noise * torch.randn(moved.shape, generator=random)
        return anchors.to(self.device), similar.clamp(0, 1).to(self.device)

    def _cut(self, boxes: Boxes, grey: Tensor) -> Tensor:
        patches = cut(self.images, boxes, self.recipe.patch)
        return greyed(patches, grey)


@torch.no_grad()
def judge_descriptor(pair: nn.ModuleDict, crops: PatchCrops, teacher: Extractor, targets: Targets) -> Quality:
    """Measure network and decoder on crops of images that they have not seen."""
    anchors, similar, taught = [], [], []
    for step in range(-(-_HELD_OUT_CROPS // crops.recipe.batch)):
        first, second = crops.draw(step, alike=True, use="held out")
        assert second is not None
        taught.append(targets(_describe(teacher, first, crops.recipe)))
        anchors.append(pair["network"](first))
        similar.append(pair["network"](second))
    descriptors, alike, wanted = torch.cat(anchors), torch.cat(similar), torch.cat(taught)
    near, far = triplet_distances(descriptors, alike, descriptors.roll(1, dims=0))
    apart = torch.cdist(descriptors, descriptors).square().fill_diagonal_(torch.inf).amin(dim=1)
    spread = (wanted - wanted.mean(dim=0)).square().sum(dim=1).mean()
    return Quality(
        unexplained=float(knowledge_loss(pair["decoder"](descriptors), wanted) / spread),
        triplet_accuracy=float((near < far).float().mean()),
        retrieval=float((near < apart).float().mean()),
        correlation=float(compactness_loss(descriptors)),
    )


def _check(recipe: DescriptorRecipe, images: int) -> None:
    check_parameters(recipe)
    if images < 4:
        raise ArgumentError.about("images", expected="at least 4 images", got=images)
    if not recipe.knowledge + recipe.metric + recipe.compactness > 0:
        raise ArgumentError.about("knowledge, metric, compactness", expected="one above 0", got="none")
    if recipe.zoom[0] > recipe.zoom[1]:
        raise ArgumentError.about("zoom", expected="two factors, the smaller first", got=recipe.zoom)


def _teacher(recipe: DescriptorRecipe, weights: str | Path | None, device: torch.device) -> Extractor:
    row = find_backbone(recipe.backbone)
    tap = recipe.tap or row.deepest or row.taps[-1]
    found = find_weights(row, weights, seed=recipe.seed)
    return build_extractor(row, weights=found, taps=(tap,), device=device, precision=recipe.precision)


def _describe(teacher: Extractor, patches: Tensor, recipe: DescriptorRecipe) -> Tensor:
    """What P says of `(crop, 3, patch, patch)`: its feature map, averaged over positions, `(crop, channels)`."""
    side = (recipe.teacher_side, recipe.teacher_side)
    return pool(teacher(interpolate(patches, side, mode="bilinear")).maps[0])


def _targets(crops: PatchCrops, teacher: Extractor, recipe: DescriptorRecipe) -> Targets:
    batches = range(-(-_TARGET_CROPS // recipe.batch))
    seen = [_describe(teacher, crops.draw(step, alike=False, use="targets")[0], recipe) for step in batches]
    return fit_targets(torch.cat(seen), variance=recipe.variance)
