"""Deep SVDD: a network that maps normal images into a small ball (Ruff, Vandermeulen, Goernitz, Deecke, Siddiqui,
Binder, Mueller, Kloft, "Deep One-Class Classification", ICML 2018).

Hard boundary (equation 4): mean ||f(x) - c||^2. Soft boundary (equation 3): R^2 + 1 / nu mean max(0, ||f(x) - c||^2 -
R^2). The centre c is the mean of f before the training, kept away from 0; a network without biases cannot then reach it
for every image (section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import persist
from ..errors import ArgumentError, TrainingError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..features.weights import StateDict
from ..training.loop import Adam, Course, Drops, Recipe, Watch
from ..types import FeatureMaps, Scores
from ._trained import Network, Pictures, TrainedMethod

_WIDTHS = (32, 64, 128)
_CODE = 128
_MOMENTUM = 0.1
_WATCHED = 256
"""Images whose outputs tell whether all collapse to a point."""


@dataclass(kw_only=True)
class DeepSVDD(TrainedMethod):
    """Distance to the centre of a small ball into which a network was trained to map the normal images. No map.

    Parameters
    ----------
    network: `lenet`, the paper's for CIFAR-10, from scratch on images averaged down to `side` pixels; or `backbone`.
    side: of `lenet`'s input; a multiple of 8.
    contrast: for `lenet`: each image minus its mean, over its mean absolute value, then scaled so that the normal
        images run from 0 to 1.
    boundary: `hard`, or `soft` with a radius outside which a share `nu` of the normal images lies; scores of `soft` are
        above 0 outside.
    nu: that share.
    warm_up: epochs before the radius of `soft` leaves 0.
    pretrain: epochs in which `lenet` is first trained as the encoder of an autoencoder.
    collapse: the training stops with an error where the variance of the outputs over the normal images falls below
        this share of what it was at first.
    """

    name: ClassVar[str] = "deep_svdd"
    paper: ClassVar[dict[str, object]] = {"pretrain": 350}

    epochs: int | None = 150
    batch: int = 200
    network: Literal["lenet", "backbone"] = "lenet"
    side: int = 32
    contrast: bool = True
    boundary: Literal["hard", "soft"] = "hard"
    nu: float = 0.1
    warm_up: int = 10
    pretrain: int = 0
    rate: float = 1e-4
    weight_decay: float = 5e-7
    collapse: float = 1e-4

    def _check_together(self) -> None:
        super()._check_together()
        for name, expected, right in (
            ("network", "lenet or backbone", self.network in ("lenet", "backbone")),
            ("boundary", "hard or soft", self.boundary in ("hard", "soft")),
            ("side", "a multiple of 8", type(self.side) is int and self.side >= 8 and self.side % 8 == 0),
            ("nu", "a share in (0, 1]", 0 < self.nu <= 1),
            ("pretrain", "a whole number", type(self.pretrain) is int and self.pretrain >= 0),
            ("collapse", "a share in [0, 1)", 0 <= self.collapse < 1),
        ):
            if not right:
                raise ArgumentError.about(name, expected=expected, got=getattr(self, name))
        if self.pretrain and (self.network != "lenet" or self.side not in (8, 16, 32, 64)):
            raise ArgumentError.about(
                "pretrain", expected="0, or network='lenet' with a side of 8, 16, 32 or 64", got=self.pretrain
            )

    def _row(self) -> Backbone:
        if self.network == "backbone":
            return super()._row()
        return Backbone(
            name="lenet",
            build=partial(self._lenet, side=self.side, contrast=self.contrast),
            taps=("code",),
            channels=(_CODE,),
            strides=(0,),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            licence="Apache-2.0; part of blemish",
            source="",
            trace_size=self.side,
        )

    @staticmethod
    def _lenet(*, side: int, contrast: bool) -> nn.Module:
        """Hook: the paper's network."""
        return LeNet(side=side, contrast=contrast)

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return ("code",) if self.network == "lenet" else super()._default_taps(row)

    def _initial(self, row: Backbone) -> StateDict | None:
        if self.network == "backbone":
            return super()._initial(row)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return dict(row.build().state_dict())

    def _centre(self, vectors: Tensor) -> Tensor:
        """Hook: from the outputs before the training."""
        return away_from_zero(vectors.mean(dim=0))

    def _train(self, network: Network, pictures: Pictures, *, start: float) -> Course:
        schedule = Drops(at=(self._epochs() * self._steps(len(pictures)) // 3,))  # the paper: at 50 of 150 epochs
        recipe = Recipe(
            optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay), schedule=schedule, precision=self.precision
        )
        if isinstance(network.body, LeNet):
            network.body.measure(pictures)
            if self.pretrain:
                self._pretrain(network.body, pictures, start=start)
            calibrate(network, pictures)
        vectors = self._vectors(network, pictures)
        self.centre_ = self._centre(vectors)
        network.register_buffer("radius", torch.zeros((), device=vectors.device))
        warm_up = self.warm_up * self._steps(len(pictures))

        def objective(step: int) -> Tensor:
            network.body.train(self.network == "lenet")
            squared = distances(network(self._draw(pictures, step)), self.centre_)
            if self.boundary == "hard":
                return squared.mean()
            loss = soft_boundary(squared, network.get_buffer("radius"), self.nu)
            if step >= warm_up:
                network.get_buffer("radius").copy_(radius(squared.detach(), self.nu))
            return loss

        course = self._optimise(
            objective,
            network,
            pictures,
            recipe=recipe,
            start=start,
            watch=Watch(criterion=self._collapse(network, pictures), every=self._steps(len(pictures)), keep_best=False),
        )
        network.body.eval()
        self.radius_ = network.get_buffer("radius").clone()
        return course

    def _pretrain(self, encoder: LeNet, pictures: Pictures, *, start: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            pair = Autoencoder(encoder).to(self._device()).train()
        schedule = Drops(at=(self.pretrain * self._steps(len(pictures)) * 5 // 7,))  # the paper: at 250 of 350 epochs
        self._optimise(
            lambda step: reconstruction_loss(*pair(self._draw(pictures, step).to(self._device()))),
            pair,
            pictures,
            recipe=Recipe(optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay), schedule=schedule),
            start=start,
            epochs=self.pretrain,
            stage=".autoencoder",
        )
        encoder.eval()

    def _collapse(self, network: Network, pictures: Pictures) -> partial[float]:
        """A criterion that raises where nothing is left of the variance that there is now."""
        shown = pictures.take(torch.arange(min(_WATCHED, len(pictures))))
        return partial(self._share_left, network, shown, spread(network, shown))

    def _share_left(self, network: Network, shown: Tensor, first: float, step: int) -> float:
        share = spread(network, shown) / max(first, torch.finfo(torch.float32).tiny)
        if share < self.collapse:
            raise TrainingError(
                f"step {step}: the network has collapsed: over {len(shown)} normal images the variance of its outputs "
                f"is {share:.1e} of what it was before the training, below collapse = {self.collapse:g}. It maps all "
                "images to one point, anomalies too. Train for fewer epochs, lower the rate, or use network='lenet', "
                "which has no biases."
            )
        return share

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """Nothing is left to learn: centre and radius came with the training."""

    def _score(self, features: FeatureMaps) -> Scores:
        squared = distances(pool(features.maps[0]), self.centre_)
        return Scores(squared if self.boundary == "hard" else squared - self.radius_.square(), None)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` handed out."""
        code = "backbone.code.weight"
        if self.network == "lenet":  # before it is made as large as `side` says
            side = self.side // 8
            types, shape = "float32|bfloat16", f"{_CODE} {_WIDTHS[-1]} {side} {side}"
            persist.check_tensors({code: state[code]}, {code: f"{types} {shape}"})
        super().restore(state)

    def _learned(self) -> dict[str, Tensor]:
        return {"centre": self.centre_, "radius": self.radius_}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        persist.check_tensors(learned, {"centre": "float32 d", "radius": "float32"})
        self.centre_, self.radius_ = learned["centre"], learned["radius"]


def away_from_zero(centre: Tensor, *, least: float = 0.1) -> Tensor:
    """Each |c_i| at least this, with its sign: near 0 a coordinate is reached by weights of 0."""
    return torch.where(centre.abs() < least, torch.where(centre < 0, -least, least), centre)


def distances(vectors: Tensor, centre: Tensor) -> Tensor:
    """||f - c||^2 of each of `(n, d)` vectors."""
    return (vectors - centre).square().sum(dim=1)


def soft_boundary(squared: Tensor, radius: Tensor, nu: float) -> Tensor:
    """R^2 + 1 / nu mean max(0, ||f - c||^2 - R^2)."""
    limit = radius.square()
    return limit + (squared - limit).clamp_min(0).mean() / nu


def radius(squared: Tensor, nu: float) -> Tensor:
    """The distance beyond which a share `nu` lies: given the rest, the minimum of `soft_boundary`."""
    return squared.sqrt().quantile(1 - nu)


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of an image, mean over images."""
    return (made - wanted).square().sum(dim=(1, 2, 3)).mean()


def spread(network: Network, pixels: Tensor) -> float:
    """Variance of the outputs over images, sum over their numbers, in eval mode."""
    was = network.body.training
    network.body.eval()
    with torch.no_grad():
        vectors = torch.cat([network(part) for part in pixels.split(64)])  # type: ignore[no-untyped-call]
    network.body.train(was)
    return float(vectors.double().var(dim=0, correction=0).sum())


@torch.no_grad()
def calibrate(network: Network, pictures: Pictures) -> None:
    """Give BatchNorm the statistics of the images: a new one passes them through as if they had variance 1."""
    norms = [layer for layer in network.body.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None  # the plain mean over all batches
    network.body.train()
    for pixels in pictures.batches():
        network(pixels)
    network.body.eval()
    for layer in norms:
        layer.momentum = _MOMENTUM


class LeNet(nn.Module):
    """Three convolutions of 5 x 5 with 32, 64 and 128 channels, each halved after it, and a layer to 128 numbers."""

    low: Tensor
    high: Tensor

    def __init__(self, *, side: int = 32, contrast: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.side, self.contrast = side, contrast
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        layers: list[nn.Module] = []
        for given, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(given, width, 5, padding=2, bias=bias), _norm(width), nn.LeakyReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)
        self.code = nn.Conv2d(_WIDTHS[-1], _CODE, side // 8, bias=bias)
        """A dense layer, written so that its output is a map of one position."""

    def forward(self, pixels: Tensor) -> Tensor:
        """From `(batch, 3, height, width)` to `(batch, 128, 1, 1)`."""
        made: Tensor = self.code(self.layers(self.prepare(pixels)))
        return made

    def prepare(self, pixels: Tensor) -> Tensor:
        """Average down to `side`, and normalise the contrast where that is wanted."""
        small = functional.adaptive_avg_pool2d(pixels, self.side)
        return (contrast_normalised(small) - self.low) / (self.high - self.low) if self.contrast else small

    def measure(self, pictures: Pictures) -> None:
        """Learn the range of the normalised images."""
        if self.contrast:
            small = [functional.adaptive_avg_pool2d(pixels, self.side) for pixels in pictures.batches()]
            ranges = [contrast_normalised(some).aminmax() for some in small]
            self.low.copy_(torch.stack([found.min for found in ranges]).min())
            self.high.copy_(torch.stack([found.max for found in ranges]).max().clamp_min(self.low.cpu() + 1e-6))


def contrast_normalised(pixels: Tensor) -> Tensor:
    """Each image minus its mean, over the mean of what is left in absolute value; a plain image is 0."""
    centred = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)
    return centred / centred.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


class Autoencoder(nn.Module):
    """A `LeNet` and its mirror image, which gives back its prepared input."""

    def __init__(self, encoder: LeNet) -> None:
        super().__init__()
        self.encoder = encoder
        self.code_norm = _norm(_CODE)
        self.grid = encoder.side // 8
        layers: list[nn.Module] = [nn.LeakyReLU()]
        for given, width in zip((_CODE // self.grid**2, *reversed(_WIDTHS)), reversed(_WIDTHS), strict=False):
            layers += [nn.ConvTranspose2d(given, width, 5, padding=2, bias=False), _norm(width)]
            layers += [nn.LeakyReLU(), nn.Upsample(scale_factor=2)]
        layers += [nn.ConvTranspose2d(_WIDTHS[0], 3, 5, padding=2, bias=False), nn.Sigmoid()]
        self.decoder = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of the images, and the images as the encoder sees them, `(batch, 3, side, side)`."""
        code = self.code_norm(self.encoder(pixels))
        return self.decoder(code.reshape(len(code), -1, self.grid, self.grid)), self.encoder.prepare(pixels)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-4, momentum=_MOMENTUM, affine=False)
