"""Geometric transformations: a classifier that tells how a normal image was transformed, and is unsure of others
(Golan, El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", NeurIPS 2018).

Each normal image is learned under all compositions of a mirroring, a shift and a turn; the classifier's answer y(T(x))
to each of these is a probability vector. Normality is the log-likelihood of all the answers under a Dirichlet
distribution for each transformation (section 4.1), or simply the mean probability of the right answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ArgumentError, NotEnoughMemoryError
from ..features.backbones import Backbone
from ..features.patches import pool
from ..memory import spell_bytes
from ..ops.dirichlet import DirichletSums
from ..parameters import parameter
from ..tensors import check_tensors
from ..training.loop import Adam, Course, Recipe, Watch, batch_of
from ..training.network import Network, settle_norms
from ..training.pictures import Pictures, split_off
from ..training.run import Training
from ..types import FeatureMaps, Scores
from ._embedding import EmbeddingMethod

_PASSES = 200
"""Times that every image is learned, whatever the number of transformations; the paper's."""
_AT_ONCE = 64 * 32 * 32
"""Pixels in one pass of `wide`, of whole images."""
_SETTLED = 1024
"""Transformed images of whose statistics BatchNorm has its own in the end."""
_LOOKS = 25
"""How often the held-out images are looked at in a run."""
_WATCHED = 2048
"""Transformed held-out images that are looked at."""


@dataclass(kw_only=True)
class Geom(EmbeddingMethod):
    """How little a classifier that learned the transformations of normal images knows which one it sees. No map.

    Parameters
    ----------
    network: `wide`, a wide ResNet of 10 layers from scratch, on images averaged down to `side` pixels; or `backbone`,
        which stays as it is: the classifier is then one linear layer on its pooled features.
    side: of the input of `wide`, a multiple of 4.
    width: of `wide`: it has 16, 32 and 64 times so many channels (the paper: 4).
    mirror: whether mirrored images are among the transformed ones.
    shift: share of the side by which images are shifted up, down, left and right; 0: not at all.
    turns: how many of the four quarter turns are among the transformations. All three together make 72.
    normality: `dirichlet`, or `simple`, the mean probability of the transformation that it was.
    epochs: passes over all transformed images; None: so many that each image comes 200 times; 0: untrained, to be
        compared with.
    batch: transformed images a step.
    validation: share of the normal images that is held out; the classifier is kept whose cross-entropy on them was
        smallest (`course_.looks`), before it knew the others by heart. 0: none, and the last one (the paper).
    """

    name: ClassVar[str] = "geom"
    paper: ClassVar[dict[str, object]] = {"width": 4}

    epochs: int | None = parameter(None, at_least=0)
    batch: int = parameter(128, at_least=1)
    validation: float = parameter(0.0, at_least=0, below=1)
    network: Literal["wide", "backbone"] = "wide"
    side: int = parameter(32, at_least=8, at_most=256, multiple_of=4)
    width: int = parameter(1, at_least=1, at_most=16)
    mirror: bool = True
    shift: float = parameter(0.25, at_least=0, below=1)
    turns: Literal[1, 2, 4] = 4
    normality: Literal["dirichlet", "simple"] = "dirichlet"
    rate: float = parameter(1e-3, above=0)
    weight_decay: float = parameter(0.0, at_least=0)

    def _check_together(self) -> None:
        if len(self._views()) < 2:
            raise ArgumentError.about("turns", expected="more than 1 without mirror and shift", got=self.turns)

    def _parts(self) -> None:
        """None are named: all of `wide` is trained, and nothing of `backbone`."""

    def _own_row(self) -> Backbone | None:
        if self.network == "backbone":
            return None
        return Backbone(
            name="wide",
            build=partial(WideNet, side=self.side, width=self.width),
            taps=("last",),
            channels=(64 * self.width,),
            strides=(0,),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            licence="Apache-2.0; part of blemish",
            source="",
            trace_size=self.side,
        )

    def _views(self) -> list[Transformation]:
        """All compositions; the image as it is comes first."""
        ways = (0, -1, 1) if self.shift else (0,)
        mirrored = (False, True) if self.mirror else (False,)
        quarters = range(0, 4, 4 // self.turns)
        return [Transformation(*chosen) for chosen in product(mirrored, ways, ways, quarters)]

    def _train(self, network: Network, pictures: Pictures, training: Training) -> Course:
        views, trains = self._views(), self.network == "wide"
        small = torch.cat([self._shrunk(pixels) for pixels in pictures.batches()]) if trains else torch.empty(0)
        vectors = torch.empty(0) if trains else self._all_vectors(network, pictures)
        network.body.requires_grad_(trains)
        scaled = Standardised.of(vectors.flatten(0, 1)) if len(vectors) else None
        network.head = head = self._head(network, len(views))
        learned, held_out = torch.arange(len(pictures)), torch.arange(0)
        if self.validation:
            learned, held_out = split_off(len(pictures), self.validation, seed=self.seed)
        total, size = len(learned) * len(views), min(self.batch, len(learned) * len(views))
        epoch = -(-total // size)

        def loss(some: Tensor, chosen: Tensor) -> Tensor:
            """Of these views of some images, counted through."""
            images, which = some[chosen // len(views)], chosen % len(views)
            if scaled is None:
                network.body.train()
                found: Tensor = head(network(self._drawn(small[images], which, views)))
            else:
                found = head(scaled(vectors[images, which]))
            return functional.cross_entropy(found, which.to(found.device))

        def objective(step: int) -> Tensor:
            return loss(learned, batch_of(total, size, seed=self.seed, step=step))

        def held_out_loss(_step: int) -> float:
            # At every look the same views, in batches of a step's size: BatchNorm takes their statistics there too.
            there = len(held_out) * len(views)
            parts = batch_of(there, min(_WATCHED, there), seed=self.seed, step=0).split(self.batch)  # type: ignore[no-untyped-call]
            return float(sum(loss(held_out, part) * len(part) for part in parts)) / sum(map(len, parts))

        epochs = -(-_PASSES // len(views)) if self.epochs is None else self.epochs
        every = max(1, epochs * epoch // _LOOKS)
        course = training.run(
            objective,
            network,
            steps=epochs * epoch,
            recipe=Recipe(optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay), precision=self.precision),
            content={"images": pictures.digest},
            every=epoch,
            watch=Watch(criterion=held_out_loss, every=every) if len(held_out) else None,
        )
        if trains:
            some = batch_of(total, min(_SETTLED, total), seed=self.seed, step=0)
            parts = some.split(self.batch)  # type: ignore[no-untyped-call]
            settle_norms(network, (self._drawn(small[learned[p // len(views)]], p % len(views), views) for p in parts))
        weight, bias = head.weight.detach(), head.bias.detach()
        self.weight_, self.bias_ = (weight, bias) if scaled is None else scaled.undone(weight, bias)
        return course

    def _head(self, network: Network, classes: int) -> nn.Linear:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return nn.Linear(network.channels, classes).to(network.mean.device)

    def _drawn(self, pixels: Tensor, which: Tensor, views: Sequence[Transformation]) -> Tensor:
        """Each of these square images transformed by its own view."""
        made = torch.empty_like(pixels)
        for number in sorted(set(which.tolist())):
            made[which == number] = transformed(pixels[which == number], views[number], self.shift)
        return made

    def _shrunk(self, pixels: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(pixels, self.side) if self.network == "wide" else pixels

    def _all_vectors(self, network: Network, pictures: Pictures) -> Tensor:
        """What a frozen network makes of all views of all images: `(n, views, d)`."""
        views, left = self._views(), self._memory_left()
        needed = 2 * 4 * len(pictures) * len(views) * network.channels  # joined, and as they come
        if left is not None and needed > left:
            raise NotEnoughMemoryError(
                f"{self.name}: features of {len(pictures)} images under {len(views)} transformations take "
                f"{spell_bytes(needed)}; {spell_bytes(max(0, left))} are left. Use fewer (shift=0, mirror=false)."
            )
        with torch.no_grad():
            parts = ([network(transformed(p, view, self.shift)) for view in views] for p in pictures.batches())
            return torch.cat([torch.stack(part, dim=1) for part in parts])

    def _look(self, pixels: Tensor) -> FeatureMaps:
        """A map `(batch, d, views, 1)`: the pooled features of each view. Views of one shape go through together."""
        small, views = self._shrunk(pixels), self._views()
        found: dict[int, Tensor] = {}
        for upright in (True, False):
            alike = [i for i, view in enumerate(views) if (view.quarters % 2 == 0) == upright]
            if alike:
                made = torch.cat([transformed(small, views[i], self.shift) for i in alike])
                found |= dict(zip(alike, self._pooled(made).view(len(alike), len(pixels), -1).unbind(), strict=True))
        vectors = torch.stack([found[i] for i in range(len(views))], dim=2)
        return FeatureMaps((vectors[..., None],), (pixels.shape[2], pixels.shape[3]))

    def _pooled(self, pixels: Tensor) -> Tensor:
        if self.network == "backbone":
            return pool(self.extractor_(pixels).maps[0])
        with torch.no_grad():  # more at a time than the extractor takes, as these are small
            parts = pixels.split(max(1, _AT_ONCE // pixels[0, 0].numel()))  # type: ignore[no-untyped-call]
            return torch.cat([pool(self.extractor_.maps(part)[0]) for part in parts])

    def _learn(self, features: Iterator[FeatureMaps]) -> None:
        if self.normality == "dirichlet":
            sums = DirichletSums()
            for maps in features:
                sums.update(self._answers(maps))
            self.alpha_ = sums.estimate().float()

    def _answers(self, features: FeatureMaps) -> Tensor:
        """Log-probabilities, `(batch, view, view that it is taken for)` float64."""
        vectors = features.maps[0].squeeze(3).transpose(1, 2)
        return functional.log_softmax((vectors @ self.weight_.T + self.bias_).double(), dim=2)

    def _score(self, features: FeatureMaps) -> Scores:
        answers = self._answers(features)
        if self.normality == "simple":
            normal = answers.diagonal(dim1=1, dim2=2).exp().mean(dim=1)
        else:
            normal = ((self.alpha_.double() - 1) * answers).sum(dim=(1, 2))
        return Scores(-normal.float(), None)

    def _learned(self) -> dict[str, Tensor]:
        learned = {"head.weight": self.weight_, "head.bias": self.bias_}
        return learned if self.normality == "simple" else learned | {"alpha": self.alpha_}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        k = len(self._views())
        wanted = {"head.weight": f"float32 {k} d", "head.bias": f"float32 {k}"}
        check_tensors(learned, wanted if self.normality == "simple" else wanted | {"alpha": f"float32 {k} {k}"})
        self.weight_, self.bias_ = learned["head.weight"], learned["head.bias"]
        if self.normality == "dirichlet":
            self.alpha_ = learned["alpha"]


@dataclass(frozen=True)
class Transformation:
    """One transformation: mirrored, then shifted, then turned."""

    mirrored: bool
    down: int
    """1, 0 or -1: by a share of the height."""
    right: int
    quarters: int
    """Quarter turns, against the clock."""


def transformed(pixels: Tensor, view: Transformation, share: float) -> Tensor:
    """Transform `(n, 3, height, width)`; what a shift leaves open mirrors what is next to it."""
    made = pixels.flip(3) if view.mirrored else pixels
    for axis, way in ((2, view.down), (3, view.right)):
        if way:
            made = _shifted(made, axis, way * round(share * pixels.shape[axis]))
    return made.rot90(view.quarters, dims=(2, 3)) if view.quarters else made


def _shifted(pixels: Tensor, axis: int, by: int) -> Tensor:
    last = pixels.shape[axis] - 1
    index = (torch.arange(last + 1, device=pixels.device) - by).abs()
    return pixels.index_select(axis, torch.where(index > last, 2 * last - index, index))


@dataclass(frozen=True)
class Standardised:
    """Features with mean 0 and deviation 1, so that one rate fits every backbone."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Standardised:
        """By `(n, d)` vectors; a number that is always the same stays near 0."""
        deviation, mean = torch.std_mean(vectors, dim=0, correction=0)
        return cls(mean, deviation.clamp_min(1e-6))

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.deviation

    def undone(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The linear layer on the features as they are that does the same."""
        of_raw = weight / self.deviation
        return of_raw, bias - of_raw @ self.mean


class WideNet(nn.Module):
    """A wide ResNet of 10 layers without its last one (Zagoruyko, Komodakis, 2016), on images averaged down."""

    def __init__(self, *, side: int = 32, width: int = 1) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.blocks = nn.Sequential(
            *(_Block(given, made, 1 if i == 0 else 2) for i, (given, made) in enumerate(pairwise(widths)))
        )
        self.last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        """From `(batch, 3, height, width)` to `(batch, 64 width, side / 4, side / 4)`."""
        small = functional.adaptive_avg_pool2d(pixels, self.side)
        made: Tensor = self.last(self.blocks(self.first(small)))
        return made


class _Block(nn.Module):
    """Norm, ReLU, convolution, twice; beside it the input, by a 1 x 1 convolution where the shape changes."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.before, self.between = nn.BatchNorm2d(given), nn.BatchNorm2d(made)
        self.first = nn.Conv2d(given, made, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(made, made, 3, padding=1, bias=False)
        same = given == made and stride == 1
        self.beside = nn.Identity() if same else nn.Conv2d(given, made, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = functional.relu(self.before(x))
        beside = x if isinstance(self.beside, nn.Identity) else self.beside(ready)
        made: Tensor = beside + self.second(functional.relu(self.between(self.first(ready))))
        return made
