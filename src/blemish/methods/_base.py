"""The contract of a method.

- Parameters are keyword-only dataclass fields, stored unchanged; the constructor does no work. `fit` checks them.
- `fit` takes a re-iterable source of normal images, returns self, and forgets earlier fits. Labels never enter.
- `score` is pure: an image's score does not depend on its batch-mates. Larger = more anomalous.
- Learned tensors end in `_`; `state` hands them out and `restore` takes them back with identical scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..device import find_device
from ..errors import ArgumentError, NotEnoughMemoryError, NotFittedError, log
from ..features.backbones import Backbone, find_backbone
from ..features.extract import Extractor, OtherRuntime, RunPrecision, build_extractor
from ..features.weights import StateDict, find_weights
from ..memory import MOST_GB, available_bytes, resident_bytes, spell_bytes
from ..ops.maps import mean_of_highest
from ..parameters import Parameterised, check_parameters, parameter
from ..tensors import below
from ..types import FeatureMaps, ImageBatch, ImageBatches, Scores, Size

_M = TypeVar("_M", bound="Method")
_F = TypeVar("_F", bound="FeatureMethod")
_G = TypeVar("_G", bound="GrowingMethod")
_L = TypeVar("_L", bound="LeavingMethod")


class Method(ABC, Parameterised):
    """A model of normality: learns from normal images, scores any image."""

    name: ClassVar[str]
    """The method's name in the registry and on the command line."""
    paper: ClassVar[dict[str, object]] = {}
    """Parameters with which the method is the paper's, where our defaults differ."""
    exact_update: ClassVar[bool] = True
    """Of an `Incremental` method: whether parts give the model of the whole up to rounding, or only a close one."""

    @abstractmethod
    def fit(self: _M, images: ImageBatches) -> _M:
        """Learn from normal images; forgets earlier fits. `len(images)`, where there is one, saves memory."""

    @abstractmethod
    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch; pure."""

    def measure(self, batch: ImageBatch) -> Scores | None:
        """Hook: what `score` makes of a batch that was checked, by operations on tensors alone: an export traces them.

        Without `p_values`. None: the method cannot be exported.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything learned, by name, contiguous and on the CPU or the method's device."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` handed out."""

    def check(self) -> None:
        """Refuse wrong parameters, and a checkpoint of others, as `fit` does before the work.

        Raises `ArgumentError`, `ModelFileError`.
        """
        check_parameters(self)
        self._check_together()
        checkpoint = getattr(self, "checkpoint", None)
        if checkpoint is not None:
            from ..training.run import check_checkpoint

            check_checkpoint(checkpoint, self)

    def _check_together(self) -> None:
        """Hook: refuse parameters that are right by themselves, but do not go together."""


@dataclass(kw_only=True)
class MapMethod:
    """What methods share whose image score is made from their map.

    Parameters
    ----------
    top_share: share of the map whose mean, of the highest values, is the score of an image; 0: the maximum.
    """

    top_share: float = parameter(0.0, at_least=0, at_most=1)

    def _image_scores(self, maps: Tensor, inside: Tensor | None) -> Tensor:
        """`(batch, h, w)` to `(batch,)`; of the positions `inside` alone, where given."""
        return mean_of_highest(maps, self.top_share, inside)


@runtime_checkable
class Incremental(Protocol):
    """A method that can learn more normal images, or another model's, without starting again."""

    def partial_fit(self, images: ImageBatches) -> object:
        """Learn from further normal images."""

    def merge(self, other: Any) -> object:
        """Take in what `other`, of the same class and parameters, has learned."""


@runtime_checkable
class KeepsReserve(Protocol):
    """A method that keeps something for later fits alone, beside what it scores by."""

    def drop_reserve(self) -> None:
        """Keep it no longer: what is learned later is learned without it."""


@runtime_checkable
class LeavesOut(Protocol):
    """A method that scores the images that it has learned by the model without each of them, and fits nothing again."""

    def cannot_leave_out(self, groups: Sequence[int]) -> str:
        """Why it cannot, with these parameters and groups of images; empty where it can."""

    def unproven(self, groups: Sequence[int]) -> str:
        """Why a score may be smaller by the model without an image than with it; empty where that cannot be.

        Then plain leave-one-out p-values are at least those of jackknife+, and have its bound.
        """

    def left_out(self, images: ImageBatches, groups: Sequence[int]) -> Iterator[tuple[ImageBatch, Scores]]:
        """Each batch of the images of the fit, in its order, and their scores by the model without their group."""


@runtime_checkable
class ScoresBeside(Protocol):
    """A method that scores the images that it has learned as if a new one were among them."""

    def cannot_score_beside(self, groups: Sequence[int]) -> str:
        """Why it cannot, with these parameters and groups of images; empty where it can."""

    def remember(self, images: ImageBatches) -> dict[str, Tensor]:
        """What `beside` needs to know of the images of the fit, by name, for a model file."""

    def beside(self, batch: ImageBatch, kept: dict[str, Tensor]) -> Tensor:
        """`(batch, n)`: each learned image's score by a model of all the others and the new image."""


@runtime_checkable
class Forgetful(Protocol):
    """A method that can unlearn images, as if they had never been there."""

    def forget(self, images: ImageBatches) -> object:
        """Unlearn images that were learned, and come again. Raises `ArgumentError`, and then forgets none of them."""


Keep = Literal["factor", "sums"]
"""What a method keeps of what it learned: what scoring needs, or also what forgetting needs."""


def require_kept(method: Any) -> None:
    """Refuse to forget where only the factor is there: subtracting from it would leave no digits (docs/forget.md)."""
    if method.keep != "sums":
        raise ArgumentError.about(
            "keep", expected="sums, without which nothing can be forgotten", got=method.keep,
            instead="Fit with keep='sums' (--keep sums).",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What a fit will need, known from shapes before it begins."""

    model_bytes: int
    """What stays in memory after the fit, beside the backbone."""
    peak_bytes: int
    """The most that the fit holds at once, beside the backbone."""
    operations: float = 0.0
    """Floating-point operations after the forward passes."""
    instead: str = ""
    """What to write where this does not fit."""

    def seconds(self) -> float:
        """What the operations take on this machine, roughly."""
        return self.operations / _operations_a_second() if self.operations else 0.0


@dataclass(kw_only=True)
class FeatureMethod(Method):
    """A method on the feature maps of a network; a concrete one fills in the hooks of this class, and of one below it.

    Parameters
    ----------
    backbone: name of a row (`blemish list backbones`), `timm:NAME`, or a `Backbone` made by `custom_backbone`.
    weights: file of pretrained weights; None looks in `$BLEMISH_WEIGHTS`, then in the hub; `random` draws them by the
        seed.
    taps: names of the modules to read; None takes those that the method recommends for the backbone.
    seed: for everything random.
    device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
    precision: of the backbone: `float32`, or `bfloat16` for half its memory and file, and more speed where the hardware
        has it; `int8` with a detector's `runtime` (docs/runtimes.md). What the method learns stays as it is.
    memory_gb: what the whole program may hold on a CPU, in 10^9 bytes; None: nine tenths of what is there, as on a GPU.
        A fit that would need more is refused before it begins.
    """

    backbone: str | Backbone = parameter("compact", option=True)
    weights: str | Path | None = parameter(None, role="place", option=True)
    taps: tuple[str, ...] | None = parameter(None, option=True)
    seed: int = parameter(0, option=True)
    device: str = parameter("auto", role="place", option=True)
    precision: RunPrecision = "float32"
    memory_gb: float | None = parameter(None, above=0, at_most=MOST_GB, role="place", option=True)

    larger_pays: ClassVar[bool] = False
    """Whether a larger input than that of 256 x 256 finds more in images that have more pixels."""
    _runner: OtherRuntime | None = field(default=None, init=False, repr=False, compare=False)
    announces: bool = field(default=True, init=False, repr=False, compare=False)
    """Whether a fit says what it will take; one of several alike says it for all."""

    def run_on(self, runner: OtherRuntime | None) -> None:
        """Let the network run as `runner` does, in later fits too; None: on torch."""
        self._runner = runner
        if hasattr(self, "extractor_"):
            for extractor in (self.extractor_, *(self._further_extractors() or ())):
                extractor.runner = runner

    @contextmanager
    def on_torch(self) -> Iterator[None]:
        """Leave the runner aside: torch runs the networks as they were recorded."""
        with ExitStack() as stack:
            for extractor in (self.extractor_, *(self._further_extractors() or ())):
                stack.enter_context(extractor.on_torch())
            yield

    @property
    def reads_features(self) -> bool:
        """Whether the feature maps that a batch may bring will do; else it needs the pixels."""
        return self._directions() == 1

    @property
    def brings_network(self) -> bool:
        """Whether it reads a network of its own, whatever `backbone` and `weights` say."""
        return self._own_row() is not None

    def fit(self: _F, images: ImageBatches) -> _F:
        """Learn from normal images; forgets earlier fits."""
        self.check()
        self._forget()
        try:
            self._fit(images)
        except BaseException:
            self._forget()  # half a model must not score
            raise
        return self

    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch of images."""
        self._require_fit("score")
        self._check_batch(batch)
        with torch.inference_mode():
            features = self._maps(batch)
            return replace(self._score(features), p_values=self._p_values(features))

    def measure(self, batch: ImageBatch) -> Scores:
        """Score a batch of images that was checked."""
        return self._score(self._maps(batch))

    def tapped(self) -> tuple[str, ...]:
        """Names of the modules whose outputs it reads: `taps`, or what it recommends for the backbone."""
        return self._taps(self._row())

    def plan(self, first: FeatureMaps, images: int) -> FitPlan:
        """What a fit on so many images will need, `first` being the maps of some of them."""
        self.check()
        return self._plan(first, images * self._directions())

    def state(self) -> dict[str, Tensor]:
        """The backbone's folded parameters and input scaling (`backbone.*`, `input.*`), and what the method learned."""
        self._require_fit("state")
        backbone = {f"backbone.{name}": value for name, value in self.extractor_.state().items()}
        return backbone | _input_scaling(self.extractor_.backbone) | self._learned()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Rebuild the backbone from its folded parameters, then the method."""
        row, device = self._row(), self._device()
        if not all(torch.equal(state[name], value) for name, value in _input_scaling(row).items()):
            raise ArgumentError.about(
                "backbone", expected="the mean and std of the fit", got=f"mean {row.mean}, std {row.std}"
            )
        self._check_state(state)
        self.extractor_ = self._extractor(folded=below(state, "backbone."))
        self._relearn({k: v.to(device) for k, v in state.items() if not k.startswith(("backbone.", "input."))})

    def _turns(self) -> int | None:
        """Hook: in how many directions each image is learned, where in more than its own."""

    def _turned(self, pixels: Tensor) -> Iterable[Tensor] | None:
        """Hook: the images in each of the further directions."""

    def _p_values(self, features: FeatureMaps) -> Tensor | None:
        """Hook: `(batch,)` by the method's own model of normality, where it has one."""

    def _check_state(self, state: dict[str, Tensor]) -> None:
        """Hook: refuse a state before a network is built for it."""

    def _own_row(self) -> Backbone | None:
        """Hook: a network of the method's own, which brings its parameters, in place of `backbone`."""

    def _further_tap(self, row: Backbone) -> str | None:
        """Hook: a layer that is read beside `taps`."""

    def _look(self, pixels: Tensor) -> FeatureMaps | None:
        """Hook: what the method sees of pixels, where that is not one pass of each network over them as they are."""

    def _further_extractors(self) -> Sequence[Extractor] | None:
        """Hook: networks whose maps come behind those of `extractor_`."""

    @abstractmethod
    def _fit(self, images: ImageBatches) -> None:
        """Hook of the classes below: set `extractor_`, and learn."""

    @abstractmethod
    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        """Hook: the layers that the method reads where `taps` does not say."""

    @abstractmethod
    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        """Hook: what a fit on so many images will need, `first` being the maps of the first batch."""

    @abstractmethod
    def _score(self, features: FeatureMaps) -> Scores:
        """Hook: score one batch of feature maps."""

    @abstractmethod
    def _learned(self) -> dict[str, Tensor]:
        """Hook: the learned tensors by name."""

    @abstractmethod
    def _relearn(self, learned: dict[str, Tensor]) -> None:
        """Hook: take back what `_learned` handed out."""

    def _directions(self) -> int:
        return self._turns() or 1

    def _row(self) -> Backbone:
        return self._own_row() or find_backbone(self.backbone)

    def _taps(self, row: Backbone) -> tuple[str, ...]:
        chosen, further = tuple(self.taps or self._default_taps(row)), self._further_tap(row)
        return chosen if further is None or further in chosen else (*chosen, further)

    def _initial_weights(self) -> StateDict | None:
        """The parameters with which a fit begins; None: those that the network is built with."""
        own = self._own_row() is not None
        return None if own else find_weights(self._row(), self.weights, seed=self.seed)

    def _extractor(self, weights: StateDict | None = None, *, folded: StateDict | None = None) -> Extractor:
        row, precision = self._row(), self.precision
        if self._runner is not None and self._runner.name != "torch" and precision != "float32":
            precision = "float32"  # of what is recorded; the runtime computes in less
        extractor = build_extractor(
            row, weights=weights, folded=folded, taps=self._taps(row), device=self._device(),
            precision=precision,
        )  # fmt: skip
        extractor.runner = self._runner
        return extractor

    def _seconds_since(self, start: float) -> float:
        """Without those that went into preparing a runtime, which came since as well."""
        preparing = 0.0 if self._runner is None else self._runner.preparing
        return max(0.0, perf_counter() - start - preparing)

    def _announce(self, plan: FitPlan, images: int, seconds_an_image: float) -> None:
        """Say in one line what the fit will take; refuse it where that is not there."""
        left = self._memory_left()
        seconds = images * seconds_an_image + plan.seconds()
        line = (
            f"{self.name}: {images} inputs of the network; model {spell_bytes(plan.model_bytes)}, "
            f"peak {spell_bytes(plan.peak_bytes)} beside the backbone"
        )
        if left is not None and plan.peak_bytes > left:
            raise NotEnoughMemoryError(f"{line}; {spell_bytes(max(0, left))} are left for it. {plan.instead}".rstrip())
        if self.announces:
            log.info("%s; about %s", line, f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min")

    def _checked(self, images: ImageBatches) -> Iterator[ImageBatch]:
        for batch in images:
            self._check_batch(batch)
            yield batch

    def _check_batch(self, batch: ImageBatch) -> None:
        check_batch(batch)
        if batch.features is not None and not self.reads_features:
            raise ArgumentError.about(
                "features", expected=f"none: {self.name} reads the pixels itself", got="maps that are there already"
            )

    def _maps(self, batch: ImageBatch) -> FeatureMaps:
        """The feature maps that a batch brings, or else the networks'."""
        extractor, given = self.extractor_, batch.features
        if given is None:
            inside = None if batch.inside is None else batch.inside.to(extractor.device)
            return replace(self._seen(batch.pixels), inside=inside)
        if not given.keys() >= set(extractor.taps):
            raise ArgumentError.about("features", expected=f"maps of {', '.join(extractor.taps)}", got=", ".join(given))
        size = (batch.pixels.shape[2], batch.pixels.shape[3])
        inside = None if batch.inside is None else batch.inside.to(extractor.device)
        return FeatureMaps(tuple(given[tap].to(extractor.device) for tap in extractor.taps), size, inside)

    def _seen(self, pixels: Tensor) -> FeatureMaps:
        """What the networks make of pixels."""
        own = self._look(pixels)
        if own is not None:
            return own
        first, *more = (extractor(pixels) for extractor in (self.extractor_, *(self._further_extractors() or ())))
        return FeatureMaps(tuple(m for maps in (first, *more) for m in maps.maps), first.image_size)

    def _device(self) -> torch.device:
        return find_device(self.device)

    def _memory_left(self) -> int | None:
        """Bytes that the method may still take; None where nothing says."""
        return memory_left(self._device(), self.memory_gb)

    def _pictures_left(self) -> int | None:
        """The same for images, which lie in the memory of the CPU wherever the network runs."""
        return memory_left(torch.device("cpu"), self.memory_gb)

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _require_fit(self, what: str) -> None:
        require_fit(self, "extractor_", what)


@dataclass(kw_only=True)
class FrozenMethod(FeatureMethod):
    """A `FeatureMethod` that leaves the network as it is; a concrete one says how it learns from the maps."""

    @abstractmethod
    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """Hook: learn from the feature maps of all batches; `expected` is the number of images, where known."""

    def _fit(self, images: ImageBatches) -> None:
        self.extractor_ = self._extractor(self._initial_weights())
        expected, start = self._coming(images), perf_counter()
        if self._runner is not None:
            self._runner.learn_ranges(self.extractor_, (batch.pixels for batch in self._checked(images)))
        features = self._features(images)
        first = next(features, None)
        if first is None:
            raise ArgumentError.about("images", expected="at least 2 normal images", got="none")
        if expected is not None:
            self._announce(self._plan(first, expected), expected, self._seconds_since(start) / len(first.maps[0]))
        self._learn(chain([first], features), expected=expected)

    def with_maps(self, batch: ImageBatch) -> ImageBatch:
        """The same images with their feature maps, for other models on the same network, where these can read them."""
        if batch.features is not None or not self.reads_features or self._further_extractors():
            return batch
        with torch.inference_mode():
            maps = self._maps(batch).maps
        return replace(batch, features=dict(zip(self.extractor_.taps, maps, strict=True)))

    @property
    def keeps_maps(self) -> bool:
        """Whether a fit may read its images with the maps of `with_maps`, which then serve further passes as well."""
        return self.reads_features and not self._further_extractors() and not self._reads_singly()

    def _coming(self, images: ImageBatches) -> int | None:
        expected = announced(images)
        return None if expected is None else expected * self._directions()

    def _reads_singly(self) -> bool | None:
        """Hook: whether images go through the network one by one, so that one gives the same numbers in any batch."""

    def _features(self, images: ImageBatches) -> Iterator[FeatureMaps]:
        batches = self._checked(images)
        for batch in _singly(batches) if self._reads_singly() else batches:
            yield self._maps(batch)
            for pixels in self._turned(batch.pixels) or ():
                yield self._seen(pixels)


def _singly(batches: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
    """The same images in batches of one."""
    for batch in batches:
        for i in range(len(batch)):
            yield replace(
                batch, pixels=batch.pixels[i : i + 1], names=batch.names[i : i + 1], sizes=batch.sizes[i : i + 1],
                features=None if batch.features is None else {k: v[i : i + 1] for k, v in batch.features.items()},
                inside=None if batch.inside is None else batch.inside[i : i + 1],
            )  # fmt: skip


def announced(images: ImageBatches) -> int | None:
    """How many images a source says will come; the length of a plain list or tuple counts batches."""
    return len(images) if isinstance(images, Sized) and not isinstance(images, list | tuple) else None


@dataclass(kw_only=True)
class GrowingMethod(FrozenMethod):
    """A `FrozenMethod` of the `Incremental` kind; a concrete one fills in three more hooks.

    The last two make all that is new before they keep any of it, so that a bad image in the last batch changes nothing.
    """

    def partial_fit(self: _G, images: ImageBatches) -> _G:
        """Learn from further normal images; on an unfitted method, `fit`."""
        if not hasattr(self, "extractor_"):
            return self.fit(images)
        expected, start = self._coming(images), perf_counter()
        features = self._features(images)
        first = next(features, None)
        if first is None:
            return self
        if expected is not None:
            plan = self._plan(first, self._images(first) + expected)
            self._announce(plan, expected, self._seconds_since(start) / len(first.maps[0]))
        self._learn_more(chain([first], features), expected=expected)
        return self

    def merge(self: _G, other: _G) -> _G:
        """Take in what another method, fitted with the same parameters on other images, has learned."""
        self._require_fit("merge")
        other._require_fit("merge")
        self._absorb(other)
        return self

    @abstractmethod
    def _images(self, first: FeatureMaps) -> int:
        """Hook: how many images were learned so far; `first` is the first new batch."""

    @abstractmethod
    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """Hook: learn from further feature maps, of at least one batch."""

    @abstractmethod
    def _absorb(self, other: Any) -> None:
        """Hook: take in what `other` has learned; refuse one with other parameters."""


@dataclass(kw_only=True)
class LeavingMethod(GrowingMethod):
    """A `GrowingMethod` that `LeavesOut`; a concrete one fills in the hooks. Equal to refits up to rounding."""

    def cannot_leave_out(self, groups: Sequence[int]) -> str:
        """Why it cannot, with these parameters and groups of images; empty where it can."""
        if self._directions() > 1:
            return f"images that are learned turned as well (turns={self._directions()})"
        return self._cannot(groups)

    @abstractmethod
    def unproven(self, groups: Sequence[int]) -> str:
        """Why a score may be smaller by the model without an image than with it; empty where that cannot be."""

    def left_out(self, images: ImageBatches, groups: Sequence[int]) -> Iterator[tuple[ImageBatch, Scores]]:
        """Each batch of the images of the fit, in its order, and their scores by the model without their group."""
        self._require_fit("left_out")
        if reason := self.cannot_leave_out(groups):
            raise ArgumentError.about("groups", expected="what can be left out", got=reason)
        numbers, done = torch.tensor(groups), 0
        for batch in self._checked(images):
            own = numbers[done : done + len(batch)]
            done += len(batch)
            with torch.inference_mode():
                scores = self._left_out(self._maps(batch), [(numbers == group).nonzero()[:, 0] for group in own])
            yield batch, scores

    @abstractmethod
    def _cannot(self, groups: Sequence[int]) -> str:
        """Hook: what else stands against it; empty: nothing."""

    @abstractmethod
    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        """Hook: scores of learned images, each without the images of the numbers `members`, `(n,)` int64."""


def one_by_one(
    features: FeatureMaps, members: Sequence[Tensor], without: Callable[[Tensor, FeatureMaps], FeatureMethod]
) -> Scores:
    """Scores of images, each by the model that `without` gives for what is left out and the maps of the image."""
    found = []
    for i, numbers in enumerate(members):
        one = _one_image(features, i)
        found.append(without(numbers, one)._score(one))
    maps = [scores.maps for scores in found if scores.maps is not None]
    return Scores(torch.cat([scores.images for scores in found]), torch.cat(maps) if maps else None)


def _one_image(features: FeatureMaps, i: int) -> FeatureMaps:
    inside = None if features.inside is None else features.inside[i : i + 1]
    return FeatureMaps(tuple(m[i : i + 1] for m in features.maps), features.image_size, inside)


def cannot_take_groups(groups: Sequence[int]) -> str:
    """Why a method that knows the maps of one image at a time cannot leave these groups out; empty where it can."""
    images, largest = counts_of(groups)
    return f"groups of up to {largest} of the {images} images, such as copies of a picture" if largest > 1 else ""


def require_size(features: FeatureMaps, size: Size, why: str) -> None:
    """Refuse images of another size than those of the fit."""
    if features.image_size != size:
        raise ArgumentError.about(
            "images", expected=f"preprocessed images of size {size}, as in the fit", got=f"size {features.image_size}",
            instead=f"{why}; use one Preprocess for all images.",
        )  # fmt: skip


def counts_of(groups: Sequence[int]) -> tuple[int, int]:
    """How many images there are, and how many of them belong together at most."""
    return len(groups), max(Counter(groups).values(), default=0)


def memory_left(device: torch.device, memory_gb: float | None = None) -> int | None:
    """Bytes that a fit may still take on a device, of `memory_gb` on a CPU where given; None where nothing says."""
    if device.type != "cpu":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    if memory_gb is not None:
        return int(memory_gb * 1e9) - (resident_bytes() or 0)
    available = available_bytes()
    return None if available is None else int(available * 0.9)


def require_fit(method: Method, learned: str, what: str) -> None:
    """Refuse a method that lacks what it learns."""
    if not hasattr(method, learned):
        raise NotFittedError(f"{type(method).__name__}.{what} needs a fitted method. Call fit(normal_images) first.")


def _operations_a_second() -> float:
    """A small matrix product tells how fast this machine is, well enough for an estimate: every fit waits for it."""
    matrix = torch.ones(256, 256, dtype=torch.float64)
    start = perf_counter()
    for _ in range(4):
        matrix @ matrix
    return 4 * 2 * 256**3 / (perf_counter() - start)


def _input_scaling(row: Backbone) -> dict[str, Tensor]:
    return {"input.mean": torch.tensor(row.mean), "input.std": torch.tensor(row.std)}


def check_batch(batch: ImageBatch) -> None:
    """Refuse anything but a batch of finite `(batch, 3, height, width)` float32 pixels in [0, 1]."""
    if not isinstance(batch, ImageBatch):
        raise ArgumentError.about(
            "images", expected="batches of type ImageBatch", got=batch, instead="Use blemish.Batches, or a Detector."
        )
    pixels = batch.pixels
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.float32 or 0 in pixels.shape:
        raise ArgumentError.about(
            "pixels", expected="shape (batch, 3, height, width) and dtype torch.float32", got=pixels
        )
    if batch.features is not None:
        return  # nothing reads the pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise ArgumentError.about(
            "pixels", expected="finite values in [0, 1]", got=f"values from {low} to {high}", instead="Divide by 255."
        )
