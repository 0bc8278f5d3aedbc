"""CFLOW-AD: one conditional normalising flow a layer (Gudovskiy, Ishizaka, Kozuka, "CFLOW-AD: Real-Time Unsupervised
Anomaly Detection with Localization via Conditional Normalizing Flows", WACV 2022).

A feature vector x of C channels at a position with code c has the log-density log p(x | c) under the flow of its layer
(`ops.flows`). The flows learn from vectors drawn at random positions of the normal images; some of those images are
held out. They tell which state of the flows to keep, and where log p / C of each layer lies for normal images, so that
layers can be added up without looking at any image that is scored later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import persist
from ..errors import ArgumentError, log
from ..features.backbones import Backbone
from ..features.patches import cells_inside
from ..ops.flows import ConditionalFlow, position_code
from ..ops.maps import enlarge_and_smooth
from ..ops.scaling import position_moments
from ..parameters import parameter
from ..tensors import below, check_tensors
from ..training.loop import Adam, Cosine, Course, Recipe, Watch, generator
from ..training.pictures import split_off
from ..training.run import Training
from ..types import FeatureMaps, Scores, Size
from ._base import FitPlan, FrozenMethod, MapMethod, require_size

_Scale = Literal["position", "global", "none"]
_LOOKS = 20
"""How often the held-out images are looked at in a run."""
_WATCHED = 4096
"""Vectors a layer that are looked at."""
_AT_ONCE = 1 << 10
"""Vectors that go through a flow at once where no gradient is needed: what lies between products fits in a cache."""


@dataclass(kw_only=True)
class CFlow(MapMethod, FrozenMethod):
    """Conditional flows on the feature vectors of each layer. Exact densities; minutes of training.

    Parameters
    ----------
    steps: training steps; each draws `positions` vectors of every layer. 0: the flows as they begin.
    positions: vectors a layer and step (the paper: 256).
    rate: of Adam at the end of the warm-up; it falls along a cosine to a thousandth. The paper's suits hundreds of
        passes over all vectors; a run of some hundred steps gets hardly anywhere with it.
    blocks, clamp: coupling blocks a flow, and their soft clamping.
    permutation: between blocks, fixed and random: `soft`, an orthogonal matrix, or `hard`.
    condition: length of the position codes, a multiple of 4.
    loss: `nll`, -log p / C; or the paper's `logsigmoid`, -log sigmoid(log p / C), which leaves likely vectors alone.
    scale: bring each channel to mean 0 and deviation 1 on the training images first: at each `position`, or `global`,
        over all of them; `none` leaves it (the paper). With `position`, scores are of the vectors so scaled. `auto`
        trains with either, in twice the time, and keeps the one by which held-out images are likelier (`scale_`).
    combine: `standardised` adds up (m - log p / C) / s of the layers, m and s being mean and deviation on the held-out
        images; `likelihood` is the paper's number of layers - sum of exp(log p / C - M), but M is the maximum on the
        held-out images, not on the test images.
    validation: share of the normal images that is held out.
    sigma: smoothing of the map, in pixels of the network's input (the paper: none).
    checkpoint: file to which the state of the training is written, and from which it goes on; None: none.
    time_limit: seconds after which the training ends with what is there, of which `scale=auto` gives each scale half;
        None: never.
    """

    name: ClassVar[str] = "cflow"
    paper: ClassVar[dict[str, object]] = {
        "rate": 2e-4, "loss": "logsigmoid", "scale": "none", "combine": "likelihood", "sigma": 0.0,
    }  # fmt: skip

    steps: int = parameter(2000, at_least=0)
    positions: int = parameter(256, at_least=1)
    rate: float = parameter(3e-3, above=0)
    blocks: int = parameter(8, at_least=1)
    clamp: float = parameter(1.9, above=0)
    permutation: Literal["soft", "hard"] = "soft"
    condition: int = parameter(128, at_least=4, multiple_of=4)
    loss: Literal["nll", "logsigmoid"] = "nll"
    scale: Literal["auto", "position", "global", "none"] = "global"
    combine: Literal["standardised", "likelihood"] = "standardised"
    validation: float = parameter(0.1, above=0, below=1)
    sigma: float = parameter(4.0, at_least=0)
    checkpoint: str | None = parameter(None, role="place")
    time_limit: float | None = parameter(None, at_least=0, role="place")

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        layers = [images * m[0].numel() * 4 for m in first.maps]
        model = sum(self._size(m.shape[1]) for m in first.maps)
        scales = self._scales(len(split_off(images, self.validation, seed=self.seed)[0]))
        scalings = sum(2 * (m[0].numel() if "position" in scales else m.shape[1]) for m in first.maps)
        trainings = len(scales)
        return FitPlan(
            model_bytes=4 * (model + scalings),
            # A layer is there twice while its batches are joined; training holds gradients, moments and the best state.
            # Flows that were trained before are kept until the better ones are known.
            peak_bytes=sum(layers) + max(layers) + (20 + 4 * (trainings - 1)) * model + 4 * scalings,
            operations=6.0 * model * self.positions * self.steps * trainings,  # forward and twice that backward
            instead="Give fewer images, a smaller size, or fewer taps.",
        )

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        layers, self.image_size_ = _joined(features)
        train, held_out = split_off(len(layers[0].maps), self.validation, seed=self.seed)
        scales = self._scales(len(train))
        found = {}
        for scale in scales:
            stage, training = "" if scale == scales[0] else f".{scale}", Training.of(self, share=1 / len(scales))
            found[scale] = self._train(scale, layers, train, held_out, training=training, stage=stage)
        figures = {scale: min(figure for _, figure in course.looks) for scale, (_, _, course) in found.items()}
        self.scale_: _Scale = min(figures, key=lambda scale: figures[scale])
        if len(figures) > 1:
            said = " and ".join(f"{figure:.3f} with {scale}" for scale, figure in figures.items())
            log.info("%s: held-out -log p / C is %s; scale=%s is kept", self.name, said, self.scale_)
        self.scalings_, self.flows_, self.course_ = found[self.scale_]
        self.flows_.requires_grad_(False)
        self.normal_ = torch.stack([self._figures(i, layer, held_out) for i, layer in enumerate(layers)])

    def _scales(self, learned: int) -> tuple[_Scale, ...]:
        """Those that are tried; of one image alone nothing is known of how much a position varies."""
        if self.scale == "position" and learned < 2:
            raise ArgumentError.about(
                "images", expected="at least 2 to learn from beside those held out, with scale=position",
                got=learned, instead="Give more images, or take scale=global.",
            )  # fmt: skip
        if self.scale == "auto":
            return ("global", "position") if learned > 1 else ("global",)
        return (self.scale,)

    def _train(
        self, scale: _Scale, layers: list[_Layer], train: Tensor, held_out: Tensor, *, training: Training, stage: str
    ) -> tuple[list[Tensor], nn.ModuleList, Course]:
        """Scalings and flows by the images of `train`, and how the training went; they are the method's then."""
        self.scalings_ = [self._scaling(scale, layer, train) for layer in layers]
        self.flows_ = self._build([layer.maps.shape[1] for layer in layers])
        codes = [self._code(layer.maps) for layer in layers]

        def log_density(i: int, images: Tensor, count: int, random: torch.Generator) -> Tensor:
            vectors, position = layers[i].draw(images, count, random)
            return self._log_density(i, vectors, codes[i], position)

        def objective(step: int) -> dict[str, Tensor]:
            terms = {}
            for i, tap in enumerate(self.extractor_.taps):
                density = log_density(i, train, self.positions, generator(self.seed, step, tap))
                terms[tap] = -(functional.logsigmoid(density) if self.loss == "logsigmoid" else density).mean()
            return terms

        def held_out_loss(_step: int) -> float:
            # At every look the same vectors; their density is that before they were scaled, so that scales compare.
            densities = []
            for i, layer in enumerate(layers):
                count = min(_WATCHED, len(held_out) * len(codes[i]))
                vectors, position = layer.draw(held_out, count, generator(self.seed, 0, f"watch {i}"))
                density = self._log_density(i, vectors, codes[i], position)
                densities.append((density + self._scaled_by(i, position)[1].log().mean(dim=-1)).mean())
            return -float(torch.stack(densities).mean())

        every = max(1, self.steps // _LOOKS)
        course = training.run(
            objective,
            self.flows_,
            steps=self.steps,
            recipe=Recipe(
                optimiser=Adam(rate=self.rate),
                schedule=Cosine(steps=self.steps, end=1e-3, warmup=round(0.08 * self.steps)),
            ),
            content={"features": lambda: _digest(dict(zip(self.extractor_.taps, layers, strict=True)))},
            every=every,
            watch=Watch(criterion=held_out_loss, every=every),
            stage=stage,
        )
        return self.scalings_, self.flows_, course

    def _score(self, features: FeatureMaps) -> Scores:
        require_size(features, self.image_size_, "CFlow knows the positions of one size")
        total = torch.zeros((), device=features.maps[0].device)
        for i, m in enumerate(features.maps):
            grid = self._density_map(i, m)
            mean, deviation, most = self.normal_[i]
            likely = (grid - most).exp() - 1 if self.combine == "likelihood" else (grid - mean) / deviation
            inside = cells_inside(features, grid.shape[1:])
            total = total - enlarge_and_smooth(likely, features.image_size, sigma=self.sigma, inside=inside)
        return Scores(self._image_scores(total, features.inside), total)

    def _learned(self) -> dict[str, Tensor]:
        learned = {f"flow.{name}": value for name, value in self.flows_.state_dict().items()}
        learned |= {f"scaling.{i}": scaling for i, scaling in enumerate(self.scalings_)}
        return learned | {"normal": self.normal_, "image_size": torch.tensor(self.image_size_)}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        layers = range(len(self.extractor_.taps))
        own = {name: value for name, value in learned.items() if not name.startswith("flow.")}
        if self.scale != "auto":
            self.scale_ = self.scale
        else:  # the file says which
            self.scale_ = "position" if own.get("scaling.0", torch.empty(0)).ndim == 3 else "global"
        each = "positions{0} channels{0}" if self.scale_ == "position" else "channels{0}"
        scalings = {f"scaling.{i}": f"float32 2 {each.format(i)}" for i in layers}
        sizes = check_tensors(own, scalings | {"normal": f"float32 {len(layers)} 3", "image_size": "int64 2"})
        for i in layers:
            # The flow is made before its tensors are given to it, and takes as much memory as these two say.
            first = {name: learned.get(f"flow.{i}.{name}", torch.zeros(())) for name in ("of_condition", "mixings")}
            c = sizes[f"channels{i}"]
            width = 2 * (c - c // 2 + self.condition)
            condition, mixings = f"float32 {self.blocks} {self.condition} {width}", f"float32 {self.blocks} {c} {c}"
            check_tensors(first, {"of_condition": condition, "mixings": mixings})
        self.scalings_ = [learned[f"scaling.{i}"] for i in layers]
        self.flows_ = self._build([scaling.shape[-1] for scaling in self.scalings_]).requires_grad_(False)
        self.flows_.load_state_dict(below(learned, "flow."))
        self.normal_ = learned["normal"]
        height, width = learned["image_size"].tolist()
        self.image_size_ = (height, width)

    def _build(self, channels: list[int]) -> nn.ModuleList:
        random = torch.Generator().manual_seed(self.seed)
        flows = [
            ConditionalFlow(
                c, self.condition, blocks=self.blocks, clamp=self.clamp, soft=self.permutation == "soft",
                generator=random,
            )
            for c in channels
        ]  # fmt: skip
        return nn.ModuleList(flows).to(self._device())

    def _size(self, channels: int) -> int:
        """Numbers in a flow, which is also about how often it multiplies for a vector."""
        kept = channels - channels // 2
        width = 2 * (kept + self.condition)
        return self.blocks * (width * (kept + self.condition + 2 * (channels - kept)) + channels**2)

    def _scaling(self, scale: _Scale, layer: _Layer, train: Tensor) -> Tensor:
        """What to subtract from each channel, and to multiply with: `(2, channels)`, or `(2, positions, channels)`."""
        channels = layer.maps.shape[1]
        if scale == "none":
            return torch.stack([layer.maps.new_zeros(channels), layer.maps.new_ones(channels)])
        if scale == "position":
            parts = (layer.maps[i : i + 1] for i in train.tolist())
            mean, deviation = (m.flatten(1).mT for m in position_moments(parts, inside=layer.ever_inside()))
        else:
            seen = [cells for i in train.tolist() if (cells := layer.cells(i).double()).numel()]
            mean = torch.stack([cells.mean(dim=1) for cells in seen]).mean(dim=0)
            squares = torch.stack([cells.square().mean(dim=1) for cells in seen]).mean(dim=0)
            deviation = (squares - mean.square()).clamp_min(0).sqrt()
        # A channel that hardly ever fires would turn a small change into a giant one.
        deviation = deviation.clamp_min(max(0.01 * float(deviation.mean()), 1e-12))
        return torch.stack([mean, 1 / deviation]).float()

    def _code(self, maps: Tensor) -> Tensor:
        return position_code(maps.shape[2], maps.shape[3], self.condition).to(maps.device)

    def _log_density(self, number: int, vectors: Tensor, code: Tensor, at: Tensor | slice) -> Tensor:
        """Log-density per channel of `(..., n, channels)` vectors of a layer, which are scaled, at n positions."""
        (shift, factor), flow = self._scaled_by(number, at), self.flows_[number]
        assert isinstance(flow, ConditionalFlow)
        return flow.log_density((vectors - shift) * factor, code[at]) / vectors.shape[-1]

    def _scaled_by(self, number: int, at: Tensor | slice) -> Tensor:
        """What to subtract at these positions, and to multiply with: `(2, n, channels)`, or one pair for all."""
        scaling = self.scalings_[number]
        return scaling[:, at] if scaling.ndim == 3 else scaling

    def _density_map(self, number: int, maps: Tensor) -> Tensor:
        """Log-density per channel at each position: `(batch, h, w)` from `(batch, channels, h, w)`."""
        code, vectors = self._code(maps), maps.flatten(2).mT
        positions = max(1, _AT_ONCE // len(maps))
        parts = [slice(start, start + positions) for start in range(0, len(code), positions)]
        densities = torch.cat([self._log_density(number, vectors[:, at], code, at) for at in parts], dim=1)
        return densities.reshape(len(maps), *maps.shape[2:])

    def _figures(self, number: int, layer: _Layer, images: Tensor) -> Tensor:
        """Mean, deviation and maximum of the log-density per channel on these images, `(3,)`."""
        with torch.no_grad():
            grid = self._density_map(number, layer.maps[images]).double()
        if layer.inside is not None:
            grid = grid[layer.inside[images]]
        return torch.stack([grid.mean(), grid.std().clamp_min(1e-6), grid.max()]).float()


@dataclass(frozen=True)
class _Layer:
    """The maps of one tap for all images, `(images, channels, h, w)`, and what is in the region of interest."""

    maps: Tensor
    inside: Tensor | None
    """bool `(images, h, w)`; None: everything."""

    def cells(self, image: int) -> Tensor:
        """The vectors of an image that are learned, `(channels, n)`."""
        cells = self.maps[image].flatten(1)
        return cells if self.inside is None else cells[:, self.inside[image].flatten()]

    def ever_inside(self) -> Tensor | None:
        """The positions that are learned of some image, `(h, w)`."""
        return None if self.inside is None else self.inside.any(dim=0)

    def draw(self, images: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Vectors `(count, channels)` at random positions of some of the images, and the positions, row by row."""
        height, width = self.maps.shape[2:]
        if self.inside is None:
            image = images[torch.randint(len(images), (count,), generator=random)]
            position = torch.randint(height * width, (count,), generator=random)
        else:
            which, where = self.inside[images].flatten(1).nonzero().T.cpu()
            drawn = torch.randint(len(which), (count,), generator=random)
            image, position = images[which[drawn]], where[drawn]
        image, position = image.to(self.maps.device), position.to(self.maps.device)
        return self.maps[image, :, position // width, position % width], position


def _digest(layers: dict[str, _Layer]) -> str:
    tensors = {tap: layer.maps for tap, layer in layers.items()}
    return persist.digest(tensors | {f"{t} inside": x.inside for t, x in layers.items() if x.inside is not None})


def _joined(features: Iterator[FeatureMaps]) -> tuple[list[_Layer], Size]:
    """All maps of each layer, and the size of the images."""
    batches: list[list[Tensor]] = []
    inside: list[list[Tensor | None]] = []
    image_size: Size | None = None
    for maps in features:
        if image_size is None:
            image_size, batches, inside = maps.image_size, [[] for _ in maps.maps], [[] for _ in maps.maps]
        if maps.image_size != image_size:
            raise ArgumentError.about("images", expected=f"all of size {image_size}", got=f"size {maps.image_size}")
        for of_layer, within, m in zip(batches, inside, maps.maps, strict=True):
            of_layer.append(m)
            within.append(cells_inside(maps, m.shape[2:]))
    assert image_size is not None  # `fit` looked at the first batch
    layers = []
    while batches:
        cells = [c for c in inside.pop(0) if c is not None]
        # A layer's batches are freed before the next is joined.
        layers.append(_Layer(torch.cat(batches.pop(0)), torch.cat(cells) if cells else None))
    return layers, image_size
