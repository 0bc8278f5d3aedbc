"""A compact backbone taught by a larger one on any images: each of its maps shall be the teacher's map of that stride.

The loss is the mean squared error of each map, every channel divided by its deviation over natural images, so that a
map that knows nothing but the mean has the loss 1 (regression of intermediate features: Romero et al., "FitNets: Hints
for Thin Deep Nets", ICLR 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import persist
from ..augment.crops import ImageCache, cut, draw_boxes, greyed
from ..device import find_device
from ..errors import ArgumentError
from ..features.backbones import find_backbone
from ..features.builtin.compact import CompactNetwork
from ..features.extract import Extractor, build_extractor
from ..features.weights import find_weights, read_weights
from ..files import whole_file
from ..parameters import check_parameters, parameter
from ..training.loop import Adam, Cosine, Course, Recipe, TrainingProgress, batch_of, generator
from ..training.run import Training
from .card import in_half, make_card, round_to_half

_STATISTICS_CROPS = 512
LAYERS = ("stride4", "stride8", "stride16")


@dataclass(frozen=True, kw_only=True)
class BackboneRecipe:
    """How a compact backbone is taught.

    Parameters
    ----------
    stem, widths, blocks: of the network, see `CompactNetwork`.
    teacher: a row with three taps at strides 4, 8 and 16.
    side: pixels of a crop.
    zoom: the short side of an image is this many times the side of a crop before it is resized.
    steps, batch, rate, weight_decay, warmup: of the training: AdamW, the rate along half a cosine.
    grey: share of the crops that are made grey.
    light, contrast: largest relative change of brightness and of contrast.
    mix: share of the crops that are laid over another one of the batch, with a random weight; the teacher sees the
        same. New images without end, where photographs are few (Beyer et al., "Knowledge distillation: A good teacher
        is patient and consistent", CVPR 2022).
    settled: BatchNorm keeps the statistics with which the run begins, and normalises as it will in use. Within a batch,
        an odd crop is drawn back to the others; alone, it is not.
    image_side: pixels to which the short side of an image is reduced when it is read.
    held_out: share of the images on which the result is judged.
    precision: of the forward passes: `float32`, or `bfloat16` where the hardware has it.
    seed: for everything random.
    """

    stem: int = parameter(16, at_least=1)
    widths: tuple[int, int, int] = parameter((32, 64, 128), at_least=1)
    blocks: tuple[int, int, int] = parameter((1, 2, 2), at_least=0)
    teacher: str = "resnet18"
    side: int = parameter(128, at_least=16)
    zoom: tuple[float, float] = parameter((1.0, 2.5), at_least=1)
    steps: int = parameter(8000, at_least=0)
    batch: int = parameter(32, at_least=1)
    rate: float = parameter(3e-3, above=0)
    weight_decay: float = parameter(1e-4, at_least=0)
    warmup: int = parameter(200, at_least=0)
    grey: float = parameter(0.3, at_least=0, at_most=1)
    light: float = parameter(0.3, at_least=0, at_most=1)
    contrast: float = parameter(0.3, at_least=0, at_most=1)
    mix: float = parameter(0.0, at_least=0, at_most=1)
    settled: bool = False
    image_side: int = parameter(256, at_least=16, at_most=4096)
    held_out: float = parameter(0.03, at_least=0, at_most=0.5)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(frozen=True)
class DistilledBackbone:
    """A trained compact backbone, and how it came about."""

    network: CompactNetwork
    course: Course
    unexplained: tuple[float, float, float]
    """Share of the variance of each of the teacher's maps that is missed, on images that were held out."""
    card: dict[str, Any]
    """JSON types only."""


def distil_backbone(
    images: ImageCache,
    recipe: BackboneRecipe,
    *,
    weights: str | Path | None = None,
    start: str | Path | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    time_limit: float | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> DistilledBackbone:
    """Train a compact backbone on crops of these images. With a checkpoint, an interrupted run goes on.

    `weights` are the teacher's; `start` are those of an earlier run with the same network, to begin with. Raises
    `TrainingError` with the cause as soon as a loss is not a number.
    """
    check_parameters(recipe)
    if recipe.settled and start is None:
        raise ArgumentError.about("settled", expected="False without start: a new network has no statistics", got=True)
    chosen = find_device(device)
    teacher = _teacher(recipe, weights, chosen)
    learned, held_out = images.split(recipe.held_out, seed=recipe.seed)
    crops, unseen = VariedCrops(learned, recipe), VariedCrops(held_out, replace(recipe, mix=0.0))
    mean, deviation = _statistics(crops, teacher)
    network = _new_network(recipe, mean, deviation)
    first = None if start is None else _begin_with(network, start)
    network.to(chosen).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scaling = [torch.tensor(values).view(1, 3, 1, 1) for values in (teacher.backbone.mean, teacher.backbone.std)]

    def objective(step: int) -> Mapping[str, Tensor]:
        pixels = crops.draw(step)
        wanted = teacher(pixels.to(chosen)).maps
        given = network(_normalised(pixels, scaling).to(chosen))
        return {
            layer: map_loss(mine.float(), theirs, spread.to(chosen))
            for layer, mine, theirs, spread in zip(LAYERS, given, wanted, deviation, strict=True)
        }

    digest = persist.digest(teacher.state())
    training = Training(recipe, name="backbone", checkpoint=checkpoint, time_limit=time_limit, progress=progress)
    course = training.run(
        objective,
        network.train(not recipe.settled),
        steps=recipe.steps,
        recipe=Recipe(
            optimiser=Adam(rate=recipe.rate, weight_decay=recipe.weight_decay, decoupled=True),
            schedule=Cosine(steps=recipe.steps, end=0.01, warmup=recipe.warmup),
            clip_norm=5.0,
            precision=recipe.precision,
        ),
        content={"images": lambda: images.digest, "teacher's weights": lambda: digest},
        every=checkpoint_every,
    )
    round_to_half(network)
    unexplained = judge_backbone(network, unseen, teacher, scaling)
    network.cpu()
    row = teacher.backbone
    card = make_card("compact backbone", recipe, images=images, network=network, course=course) | {
        "start": first,
        "teacher": {"backbone": row.name, "weights": row.source, "licence": row.licence, "digest": digest},
        "held_out": {
            f"unexplained, {layer}": round(share, 4) for layer, share in zip(LAYERS, unexplained, strict=True)
        },
    }
    return DistilledBackbone(network, course, unexplained, card)


def map_loss(given: Tensor, wanted: Tensor, deviation: Tensor) -> Tensor:
    """Mean over everything of ((given - wanted) / deviation)^2; `(batch, channels, h, w)` and `(channels,)`."""
    return ((given - wanted) / deviation[:, None, None]).square().mean()


def write_backbone(network: CompactNetwork, path: str | Path) -> None:
    """Write the parameters in half precision, under the names that `--weights` expects."""
    with whole_file(path) as file:
        save_file(in_half(network), file)


class VariedCrops:
    """Draws batches of crops; a function of the recipe's seed and of the step alone."""

    def __init__(self, images: ImageCache, recipe: BackboneRecipe) -> None:
        self.images, self.recipe = images, recipe

    def draw(self, step: int, use: str = "crops") -> Tensor:
        """A batch `(crop, 3, side, side)` in [0, 1], turned and mirrored, in all kinds of light."""
        recipe = self.recipe
        random = generator(recipe.seed, step, use)
        order = batch_of(len(self.images), recipe.batch, seed=recipe.seed, step=step)
        pixels = cut(self.images, draw_boxes(self.images, order, zoom=recipe.zoom, generator=random), recipe.side)
        for crop, turns, mirrored in zip(
            pixels,
            torch.randint(4, (recipe.batch,), generator=random).tolist(),
            torch.randint(2, (recipe.batch,), generator=random).tolist(),
            strict=True,
        ):
            turned = torch.rot90(crop, turns, (1, 2))
            crop.copy_((turned.flip(2) if mirrored else turned).clone())
        chance = torch.rand(3, recipe.batch, 1, 1, 1, generator=random)
        pixels = greyed(pixels, chance[0] < recipe.grey)
        middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
        pixels = middle + (pixels - middle) * (1 + recipe.contrast * (2 * chance[1] - 1))
        pixels = (pixels * (1 + recipe.light * (2 * chance[2] - 1))).clamp_(0, 1)
        weight, mixed = torch.rand(2, recipe.batch, 1, 1, 1, generator=random)
        return torch.where(mixed < recipe.mix, weight * pixels + (1 - weight) * pixels.roll(1, 0), pixels)


@torch.no_grad()
def judge_backbone(
    network: CompactNetwork, crops: VariedCrops, teacher: Extractor, scaling: list[Tensor]
) -> tuple[float, float, float]:
    """Share of the teacher's variance that each map misses, channels weighted by 1 / variance, on unseen images."""
    missed: list[list[Tensor]] = [[], [], []]
    total: list[list[Tensor]] = [[], [], []]
    for step in range(4):
        pixels = crops.draw(step, use="held out")
        wanted = teacher(pixels).maps
        given = network(_normalised(pixels, scaling).to(teacher.device))
        for i, (mine, theirs) in enumerate(zip(given, wanted, strict=True)):
            missed[i].append((mine - theirs).square().mean(dim=(0, 2, 3)))
            total[i].append(theirs.var(dim=(0, 2, 3)))
    shares = [
        float((torch.stack(a).mean(0) / torch.stack(b).mean(0).clamp_min(1e-12)).mean())
        for a, b in zip(missed, total, strict=True)
    ]
    return shares[0], shares[1], shares[2]


def _teacher(recipe: BackboneRecipe, weights: str | Path | None, device: torch.device) -> Extractor:
    row = find_backbone(recipe.teacher)
    found = find_weights(row, weights, seed=recipe.seed)
    teacher = build_extractor(row, weights=found, taps=row.taps, device=device, precision=recipe.precision)
    sides = [m.shape[2] for m in teacher(torch.zeros(1, 3, recipe.side, recipe.side)).maps]
    if sides != [recipe.side // stride for stride in (4, 8, 16)]:
        raise ArgumentError.about(
            "teacher",
            expected=f"a row with taps at strides 4, 8 and 16, and a side that 16 divides ({recipe.side})",
            got=f"{recipe.teacher}, with maps of {', '.join(map(str, sides))} positions a side",
        )
    return teacher


def _statistics(crops: VariedCrops, teacher: Extractor) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and deviation `(channels,)` of each of the teacher's maps over some crops."""
    seen = [
        teacher(crops.draw(step, use="statistics")).maps for step in range(-(-_STATISTICS_CROPS // crops.recipe.batch))
    ]
    means, deviations = [], []
    for maps in zip(*seen, strict=True):
        first = torch.stack([m.double().mean(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
        second = torch.stack([m.double().square().mean(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
        deviation = (second - first.square()).clamp_min(0).sqrt()
        means.append(first.float())
        deviations.append(deviation.clamp_min(1e-3 * float(deviation.max())).float())
    return means, deviations


@torch.no_grad()
def _new_network(recipe: BackboneRecipe, mean: list[Tensor], deviation: list[Tensor]) -> CompactNetwork:
    """A network whose maps begin with the means and about the spreads that they shall have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = CompactNetwork(
            stem=recipe.stem, widths=recipe.widths, blocks=recipe.blocks, outputs=[len(m) for m in mean]
        )
    for layer, middle, spread in zip(LAYERS, mean, deviation, strict=True):
        convolution = network.get_submodule(layer)[0]  # type: ignore[index]
        convolution.weight.mul_(spread.view(-1, 1, 1, 1))
        convolution.bias.copy_(middle)
    return network


def _begin_with(network: CompactNetwork, path: str | Path) -> str:
    """Take the weights of an earlier run; returns their digest."""
    tensors = read_weights(path)
    own = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
        raise ArgumentError.about(
            "start",
            expected="weights of a compact network with the same stem, widths, blocks and teacher's channels",
            got=f"{Path(path).name} with other parameters",
        )
    network.load_state_dict(tensors, strict=False)  # a file leaves out the counters of BatchNorm
    return persist.digest(tensors)


def _normalised(pixels: Tensor, scaling: list[Tensor]) -> Tensor:
    return ((pixels - scaling[0]) / scaling[1]).contiguous(memory_format=torch.channels_last)
