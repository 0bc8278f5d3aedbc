"""What the methods that train a network share: images in memory, a network with gradients, the loop.

A fit decodes every image once, trains, and freezes what came out: everything is scored, saved and restored through the
same extractor as in a method that trains nothing. The images do not change from step to step but for what a pure
function of (seed, step) does to them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .. import persist
from ..errors import ArgumentError, NotEnoughMemoryError, WeightsError
from ..features.backbones import Backbone, find_backbone
from ..features.extract import Extractor, build_extractor, of_this_version
from ..features.layout import as_map, main_output, read_layout
from ..features.patches import pool
from ..features.weights import StateDict, find_weights
from ..ops.neighbours import Exact, ExactIndex
from ..training.loop import Checkpoint, Course, Objective, Recipe, Watch, batch_of, optimise
from ..types import FeatureMaps, ImageBatch, ImageBatches, Scores
from ._base import FeatureMethod, FitPlan, announced, check_batch
from ._training import log_progress

_T = TypeVar("_T", bound="TrainedMethod")
_AT_ONCE = 16
"""Images in one pass of a network that is not being trained."""
_NOT_OF_A_RUN = ("backbone", "weights", "device", "memory_gb", "checkpoint", "time_limit")


class Pictures:
    """Preprocessed images in memory: a byte a number where that loses nothing, which is so for 8-bit images."""

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept
        """Each `(3, height, width)`, uint8 or float32."""

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of every image."""
        return self._kept[0].shape[1], self._kept[0].shape[2]

    def take(self, indices: Tensor) -> Tensor:
        """Some images, `(n, 3, height, width)` float32 in [0, 1], bit for bit as they came."""
        return torch.stack([as_pixels(self._kept[i]) for i in indices.tolist()])

    def batches(self) -> Iterator[Tensor]:
        """All images in their order, a few at a time."""
        for some in torch.arange(len(self)).split(_AT_ONCE):  # type: ignore[no-untyped-call]
            yield self.take(some)

    def digest(self) -> str:
        """Tells these images from others."""
        return persist.digest({str(i): image for i, image in enumerate(self._kept)})


def as_bytes(pixels: Tensor) -> Tensor:
    """`pixels` as uint8 where `as_pixels` gives back the same, else a copy."""
    small = (pixels * 255).round().to(torch.uint8)
    return small if torch.equal(as_pixels(small), pixels) else pixels.clone()


def as_pixels(kept: Tensor) -> Tensor:
    """Undo `as_bytes`."""
    return kept.float().div_(255.0) if kept.dtype == torch.uint8 else kept


class Network(nn.Module):
    """A row's network up to one module, with gradients: pixels in [0, 1] become the mean of that module's map."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, row: Backbone, *, tap: str, channels: int) -> None:
        super().__init__()
        self.body, self._row, self._tap, self._channels = body, row, tap, channels
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """From `(batch, 3, height, width)` to `(batch, channels)`."""
        return self._run(pixels, to_the_end=False)[0]

    def classify(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the logits of the whole network, `(batch, classes)`."""
        vectors, logits = self._run(pixels, to_the_end=True)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ArgumentError.about("backbone", expected="a classifier, with logits at its end", got=self._row.name)
        return vectors, logits

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that a fit changes."""
        return {name: p for name, p in self.body.named_parameters() if p.requires_grad}

    def _run(self, pixels: Tensor, *, to_the_end: bool) -> tuple[Tensor, Any]:
        pixels = pixels.to(self.mean.device)
        given = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []

        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            reached: Tensor = main_output(output)
            found.append(reached.clone() if to_the_end else reached)  # the next layer may write to it
            if not to_the_end:
                raise _Reached

        handle, end = self.body.get_submodule(self._tap).register_forward_hook(catch), None
        try:
            end = self.body(given)
        except _Reached:
            pass
        finally:
            handle.remove()
        layout = read_layout(found[0], image_size=(given.shape[2], given.shape[3]), channels=self._channels)
        return pool(as_map(found[0], tap=self._tap, pixels=given, layout=layout)), end


class _Reached(Exception):
    """Ends a forward pass at the tap; never leaves this file."""


@dataclass(kw_only=True)
class TrainedMethod(FeatureMethod):
    """A method that trains a network on normal images; a concrete one fills in the hooks. No map.

    Parameters
    ----------
    taps: the one module whose output, averaged over positions, is the embedding; None: the backbone's deepest.
    trained: names of the modules that are trained; None: the last two stages up to the tap.
    epochs: passes over the normal images.
    batch: images a step.
    checkpoint: a file to which the state goes after each epoch; a fit that finds it there goes on with it, and ends
        with the same scores as one that was never interrupted. Another one for each fit.
    time_limit: seconds after which the training ends with what is there.
    """

    reads_features: ClassVar[bool] = False

    trained: tuple[str, ...] | None = None
    epochs: int | None = 15
    batch: int = 32
    checkpoint: str | None = None
    time_limit: float | None = None

    def fit(self: _T, images: ImageBatches) -> _T:
        """Learn from normal images; forgets earlier fits."""
        self._forget()
        self.check()
        start = monotonic()
        try:
            with torch.inference_mode(False):
                pictures = self._read(images)
                network = self._build()
                self.course_ = self._train(network, pictures, start=start)
                self.extractor_ = self._freeze(network.body.state_dict())
                self._conclude(pictures)
        except BaseException:
            self._forget()  # half a model must not score
            raise
        return self

    def tapped(self) -> tuple[str, ...]:
        """Name of the module whose output it reads."""
        return self._taps(self._row())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Rebuild the trained network from its folded parameters, then the method."""
        row, device = self._row(), self._device()
        scaling = {"input.mean": torch.tensor(row.mean), "input.std": torch.tensor(row.std)}
        if not all(torch.equal(state[name], value) for name, value in scaling.items()):
            raise ArgumentError.about(
                "backbone", expected="the mean and std of the fit", got=f"mean {row.mean}, std {row.std}"
            )
        self.extractor_ = self._freeze(folded=below(state, "backbone."))
        self._relearn({k: v.to(device) for k, v in state.items() if not k.startswith(("backbone.", "input."))})

    @abstractmethod
    def _train(self, network: Network, pictures: Pictures, *, start: float) -> Course:
        """Hook: train the network, by `_optimise`; `start` is when the fit began."""

    def _conclude(self, pictures: Pictures) -> None:
        """Hook: learn what scoring needs, `extractor_` being the trained network."""
        self._learn(self._seen(self.extractor_, pictures), expected=len(pictures))

    def _row(self) -> Backbone:
        """Hook: the network that is trained."""
        return find_backbone(self.backbone)

    def _check_together(self) -> None:
        for name, right in (("epochs", self.epochs is None or _whole(self.epochs)), ("batch", _whole(self.batch))):
            if not right:
                raise ArgumentError.about(name, expected="a whole number of at least 1", got=getattr(self, name))
        if self.taps is not None and len(self.taps) != 1:
            raise ArgumentError.about("taps", expected="one module", got=", ".join(self.taps))

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return (row.deepest or row.taps[-1],)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        height, width = first.image_size
        vectors = images * sum(m.shape[1] for m in first.maps) * 4
        return FitPlan(model_bytes=vectors, peak_bytes=3 * height * width * images + 2 * vectors)

    def _maps(self, batch: ImageBatch) -> FeatureMaps:
        if batch.features is not None:
            raise ArgumentError.about(
                "features", expected=f"none with {self.name}, which trains its own network", got="maps of another one"
            )
        return super()._maps(batch)

    def _forget(self) -> None:
        for name in ("extractor_", "course_"):
            self.__dict__.pop(name, None)

    # What the hooks use

    def _epochs(self) -> int:
        return self.epochs or 1

    def _optimise(
        self,
        objective: Objective,
        network: nn.Module,
        pictures: Pictures,
        *,
        recipe: Recipe,
        start: float,
        epochs: int | None = None,
        watch: Watch | None = None,
        stage: str = "",
    ) -> Course:
        """Run the loop for these epochs; a checkpoint of a further `stage` of the fit lies beside that of the last."""
        checkpoint = None
        if self.checkpoint is not None:
            path = Path(self.checkpoint)
            identity: dict[str, str | int | float | None] = {
                f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in _NOT_OF_A_RUN
            }
            identity |= {"method": self.name, "backbone": self._row().name, "images": pictures.digest()}
            checkpoint = Checkpoint(
                path=path.with_name(path.name + stage), every=self._steps(len(pictures)), identity=identity
            )
        return optimise(
            objective,
            network,
            steps=(epochs or self._epochs()) * self._steps(len(pictures)),
            recipe=recipe,
            seed=self.seed,
            watch=watch,
            checkpoint=checkpoint,
            time_limit=None if self.time_limit is None else max(0.0, self.time_limit - (monotonic() - start)),
            progress=log_progress(self.name + stage),
        )

    def _steps(self, images: int) -> int:
        """Of an epoch."""
        return -(-images // min(self.batch, images))

    def _draw(self, pictures: Pictures, step: int, *, among: Tensor | None = None) -> Tensor:
        """The images of a step."""
        count = len(pictures) if among is None else len(among)
        chosen = batch_of(count, min(self.batch, count), seed=self.seed, step=step)
        return pictures.take(chosen if among is None else among[chosen])

    def _seen(self, extractor: Extractor, pictures: Pictures) -> Iterator[FeatureMaps]:
        return (extractor(pixels) for pixels in pictures.batches())

    def _vectors(self, network: Network, pictures: Pictures) -> Tensor:
        """What a network in eval mode makes of all images now, `(n, channels)`."""
        with torch.no_grad():
            return torch.cat([network(pixels) for pixels in pictures.batches()])

    def _freeze(self, weights: StateDict | None = None, *, folded: StateDict | None = None) -> Extractor:
        row = self._row()
        return build_extractor(
            row, weights=weights, folded=folded, taps=self._taps(row), device=self._device(), precision=self.precision
        )

    def _build(self) -> Network:
        """The network as it is before the training, in eval mode: BatchNorm keeps the statistics that it has."""
        row, device = self._row(), self._device()
        (tap,) = self._taps(row)
        weights = self._initial(row)
        first = self._freeze(weights)  # which tells what is missing
        side = (row.trace_size, row.trace_size)
        channels = first(torch.zeros(1, 3, *side)).maps[0].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the layers behind the tap, which may have no weights
            body = row.build().eval()
        self.incomplete_: tuple[str, ...] = ()
        if weights is not None:
            own = body.state_dict()
            fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
            body.load_state_dict(of_this_version(body, fitting), strict=False)
            self.incomplete_ = tuple(n for n in own if n not in fitting and not n.endswith("num_batches_tracked"))
        body.requires_grad_(False)
        for name in self._trained_names(row, body, tap):
            body.get_parameter(name).requires_grad_(True)
        body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Network(body, row, tap=tap, channels=channels).to(device)

    def _initial(self, row: Backbone) -> StateDict | None:
        """Hook: the parameters with which the training begins; None: those that the network is built with."""
        return find_weights(row, self.weights, seed=self.seed)

    def _require_classifier(self) -> None:
        """Refuse weights that end before the network does."""
        if self.incomplete_:
            raise WeightsError(
                f"weights of {self._row().name}: {len(self.incomplete_)} parameters of the classifier are missing: "
                f"{', '.join(self.incomplete_[:4])} ... Give the weights of the whole network."
            )

    def _trained_names(self, row: Backbone, body: nn.Module, tap: str) -> list[str]:
        """Names of the parameters to train."""
        names = [name for name, _ in body.named_parameters()]
        if self.trained is not None:
            chosen = [name for name in names if name.startswith(tuple(f"{part}." for part in self.trained))]
            if not chosen:
                top = ", ".join(name for name, _ in body.named_children())
                raise ArgumentError.about(
                    "trained", expected=f"modules with parameters ({top}, or below)", got=", ".join(self.trained)
                )
            return chosen
        stages = [*row.taps, *([row.deepest] if row.deepest else [])]
        at = stages.index(tap) if tap in stages else 0
        chosen = names[_behind(names, stages[at - 2]) if at >= 2 else 0 : _behind(names, tap)]
        if not chosen:
            raise ArgumentError.about("backbone", expected="a network with parameters to train", got=row.name)
        return chosen

    def _read(self, images: ImageBatches) -> Pictures:
        """Decode all images once."""
        expected, left = announced(images), self._memory_left()
        kept: list[Tensor] = []
        for batch in images:
            check_batch(batch)
            if batch.features is not None:
                self._maps(batch)
            small = as_bytes(batch.pixels)
            if kept and small.shape[1:] != kept[0].shape:
                raise ArgumentError.about("images", expected=f"{tuple(kept[0].shape[1:])} pixels", got=batch.pixels)
            needed = small[0].numel() * small.element_size() * max(expected or 0, len(kept) + len(small))
            if self._device().type == "cpu" and left is not None and needed > left:
                raise NotEnoughMemoryError(
                    f"{self.name}: {expected or len(kept)} images in memory take {needed / 1e9:.2f} GB; "
                    f"{max(0, left) / 1e9:.2f} GB are left for it. Use smaller images (--resize), or fewer."
                )
            kept += small.unbind()
        if len(kept) < 2:
            raise ArgumentError.about("images", expected="at least 2 normal images", got=len(kept) or "none")
        return Pictures(kept)


@dataclass(kw_only=True)
class TrainedNeighbours(TrainedMethod):
    """A `TrainedMethod` whose score is the mean of the squared distances to the k nearest normal embeddings.

    Parameters
    ----------
    k: how many neighbours.
    """

    k: int = 2

    def _check_together(self) -> None:
        super()._check_together()
        if not _whole(self.k):
            raise ArgumentError.about("k", expected="a whole number of at least 1", got=self.k)

    def _embed(self, vectors: Tensor) -> Tensor:
        """Hook: from what the network gives to what is compared, both `(n, channels)`."""
        return vectors

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        vectors = torch.cat([self._embed(pool(maps.maps[0])) for maps in features])
        if len(vectors) < self.k:
            raise ArgumentError.about("images", expected=f"at least k = {self.k} normal images", got=len(vectors))
        self.bank_: ExactIndex = Exact().build(vectors)

    def _score(self, features: FeatureMaps) -> Scores:
        squared, _ = self.bank_.search(self._embed(pool(features.maps[0])), self.k)
        return Scores(squared.mean(dim=1), None)

    def _learned(self) -> dict[str, Tensor]:
        return self.bank_.state()

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        self.bank_ = Exact().restore(learned)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _behind(names: list[str], module: str) -> int:
    """Position after the last of these parameters that lies in the module, or before it where it has none."""
    return max((i + 1 for i, name in enumerate(names) if name.startswith(f"{module}.")), default=0)


def _whole(value: object) -> bool:
    return type(value) is int and value >= 1
