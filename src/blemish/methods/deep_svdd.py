"""Deep SVDD: a network that maps normal images into a small ball (Ruff, Vandermeulen, Goernitz, Deecke, Siddiqui,
Binder, Mueller, Kloft, "Deep One-Class Classification", ICML 2018).

Hard boundary (equation 4): mean ||f(x) - c||^2. Soft boundary (equation 3): R^2 + 1 / nu mean max(0, ||f(x) - c||^2 -
R^2). The centre c is the mean of f before the training, kept away from 0; a network without biases cannot then reach it
for every image (section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ArgumentError, TrainingError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..parameters import parameter
from ..tensors import check_tensors
from ..training.loop import Adam, Course, Drops, Recipe, Watch
from ..training.network import Network, settle_norms
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import FeatureMaps, Scores
from ._embedding import PartlyTrained

_WIDTHS = (32, 64, 128)
_CODE = 128
_MOMENTUM = 0.1
_WATCHED = 256
"""Images whose outputs tell whether all collapse to a point."""


@dataclass(kw_only=True)
class DeepSVDD(PartlyTrained):
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

    epochs: int = parameter(150, at_least=0)
    batch: int = parameter(200, at_least=1)
    network: Literal["lenet", "backbone"] = "lenet"
    side: int = parameter(32, at_least=8, at_most=256, multiple_of=8)
    contrast: bool = True
    boundary: Literal["hard", "soft"] = "hard"
    nu: float = parameter(0.1, above=0, at_most=1)
    warm_up: int = parameter(10, at_least=0)
    pretrain: int = parameter(0, at_least=0)
    rate: float = parameter(1e-4, above=0)
    weight_decay: float = parameter(5e-7, at_least=0)
    collapse: float = parameter(1e-4, at_least=0, below=1)

    def _check_together(self) -> None:
        if self.pretrain and (self.network != "lenet" or self.side not in (8, 16, 32, 64)):
            raise ArgumentError.about(
                "pretrain", expected="0, or network='lenet' with a side of 8, 16, 32 or 64", got=self.pretrain
            )

    def _own_row(self) -> Backbone | None:
        if self.network == "backbone":
            return None
        return Backbone(
            name="lenet",
            build=partial(LeNet, side=self.side, contrast=self.contrast),
            taps=("code",),
            channels=(_CODE,),
            strides=(0,),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            licence="Apache-2.0; part of blemish",
            source="",
            trace_size=self.side,
        )

    def _train(self, network: Network, pictures: Pictures, training: Training) -> Course:
        if isinstance(network.body, LeNet):
            network.body.measure(pictures)
            if self.pretrain:
                self._pretrain(network.body, pictures, training)
            settle_norms(network, pictures.batches())
        vectors = network.vectors(pictures.batches())
        self.centre_ = away_from_zero(vectors.mean(dim=0))
        network.register_buffer("radius", torch.zeros((), device=vectors.device))
        epoch = pictures.steps(self.batch)

        def objective(step: int) -> Tensor:
            network.body.train(self.network == "lenet")
            squared = distances(network(pictures.draw(step, self.batch, seed=self.seed)), self.centre_)
            if self.boundary == "hard":
                return squared.mean()
            loss = soft_boundary(squared, network.get_buffer("radius"), self.nu)
            if step >= self.warm_up * epoch:
                network.get_buffer("radius").copy_(radius(squared.detach(), self.nu))
            return loss

        course = training.run(
            objective,
            network,
            steps=self.epochs * epoch,
            recipe=Recipe(
                optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay),
                schedule=Drops(at=(self.epochs * epoch // 3,)),  # the paper: at 50 of 150 epochs
                precision=self.precision,
            ),
            content={"images": pictures.digest},
            every=epoch,
            watch=Watch(criterion=self._collapse(network, pictures), every=epoch, keep_best=False),
        )
        network.body.eval()
        self.radius_ = network.get_buffer("radius").clone()
        return course

    def _pretrain(self, encoder: LeNet, pictures: Pictures, training: Training) -> None:
        device, epoch = self._device(), pictures.steps(self.batch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            pair = Autoencoder(encoder).to(device).train()

        def objective(step: int) -> Tensor:
            return reconstruction_loss(*pair(pictures.draw(step, self.batch, seed=self.seed).to(device)))

        training.run(
            objective,
            pair,
            steps=self.pretrain * epoch,
            recipe=Recipe(
                optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay),
                schedule=Drops(at=(self.pretrain * epoch * 5 // 7,)),  # the paper: at 250 of 350 epochs
            ),
            content={"images": pictures.digest},
            every=epoch,
            stage=".autoencoder",
        )
        encoder.eval()

    def _collapse(self, network: Network, pictures: Pictures) -> partial[float]:
        """A criterion that raises where nothing is left of the variance that there is now."""
        shown = pictures.take(torch.arange(min(_WATCHED, len(pictures))))
        return partial(self._share_left, network, shown, variance_of_outputs(network, shown))

    def _share_left(self, network: Network, shown: Tensor, first: float, step: int) -> float:
        share = variance_of_outputs(network, shown) / max(first, torch.finfo(torch.float32).tiny)
        if share < self.collapse:
            raise TrainingError(
                f"step {step}: the network has collapsed: over {len(shown)} normal images the variance of its outputs "
                f"is {share:.1e} of what it was before the training, below collapse = {self.collapse:g}. It maps all "
                "images to one point, anomalies too. Train for fewer epochs, lower the rate, or use network='lenet', "
                "which has no biases."
            )
        return share

    def _score(self, features: FeatureMaps) -> Scores:
        squared = distances(pool(features.maps[0]), self.centre_)
        return Scores(squared if self.boundary == "hard" else squared - self.radius_.square(), None)

    def _check_state(self, state: dict[str, Tensor]) -> None:
        code = "backbone.code.weight"
        if self.network == "lenet":  # before it is made as large as `side` says
            side = self.side // 8
            types, shape = "float32|bfloat16", f"{_CODE} {_WIDTHS[-1]} {side} {side}"
            check_tensors({code: state[code]}, {code: f"{types} {shape}"})

    def _kept_bytes(self, vector: int, images: int) -> int | None:
        return vector  # the centre

    def _learned(self) -> dict[str, Tensor]:
        return {"centre": self.centre_, "radius": self.radius_}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        check_tensors(learned, {"centre": "float32 d", "radius": "float32"})
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


def variance_of_outputs(network: Network, pixels: Tensor) -> float:
    """Over images, the sum over their numbers, in eval mode."""
    was = network.body.training
    network.body.eval()
    vectors = network.vectors(pixels.split(64))  # type: ignore[no-untyped-call]
    network.body.train(was)
    return float(vectors.double().var(dim=0, correction=0).sum())


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
