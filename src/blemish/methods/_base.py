"""The contract of a method.

- Parameters are keyword-only dataclass fields, stored unchanged; the constructor does no work.
- `fit` takes a re-iterable source of normal images, returns self, and forgets earlier fits. Labels never enter.
- `score` is pure: an image's score does not depend on its batch-mates. Larger = more anomalous.
- Learned tensors end in `_`; `state` hands them out and `restore` takes them back with identical scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..errors import ArgumentError, NotFittedError
from ..features.backbones import Backbone, find_backbone
from ..features.extract import Precision, build_extractor
from ..features.weights import find_weights
from ..types import FeatureMaps, ImageBatch, ImageBatches, Scores

_M = TypeVar("_M", bound="Method")
_F = TypeVar("_F", bound="FeatureMethod")


class Method(ABC):
    """A model of normality: learns from normal images, scores any image."""

    name: ClassVar[str]
    """The method's name in the registry and on the command line."""
    paper: ClassVar[dict[str, object]] = {}
    """Parameters with which the method is the paper's, where our defaults differ."""

    @abstractmethod
    def fit(self: _M, images: ImageBatches) -> _M:
        """Learn from normal images; forgets earlier fits. `len(images)`, where there is one, saves memory."""

    @abstractmethod
    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch; pure."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything learned, by name, contiguous and on the CPU or the method's device."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` handed out."""


@runtime_checkable
class Incremental(Protocol):
    """A method that can learn more normal images, or another model's, without starting again."""

    def partial_fit(self, images: ImageBatches) -> object:
        """Learn from further normal images: the same model as one `fit` on all of them."""

    def merge(self, other: Any) -> object:
        """Take in what `other`, of the same class and parameters, has learned."""


@dataclass(kw_only=True)
class FeatureMethod(Method):
    """A method on the features of a frozen backbone; a concrete one fills in four hooks.

    Parameters
    ----------
    backbone: name of a row (`blemish list backbones`), `timm:NAME`, or a `Backbone` made by `custom_backbone`.
    weights: file of pretrained weights; None looks in `$BLEMISH_WEIGHTS`, then in the hub.
    taps: names of the modules to read; None takes the row's.
    seed: for everything random.
    device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
    precision: of the backbone: `float32`, or `bfloat16` for half its memory and file, and more speed where the hardware
        has it. What the method learns stays as it is.
    """

    backbone: str | Backbone = "resnet18"
    weights: str | Path | None = None
    taps: tuple[str, ...] | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"

    def fit(self: _F, images: ImageBatches) -> _F:
        """Learn from normal images; forgets earlier fits."""
        row = find_backbone(self.backbone)
        self.extractor_ = build_extractor(
            row,
            weights=find_weights(row, self.weights),
            taps=self.taps,
            device=self._device(),
            precision=self.precision,
        )
        try:
            self._learn(self._features(images), expected=len(images) if isinstance(images, Sized) else None)
        except BaseException:
            del self.extractor_  # half a model must not score
            raise
        return self

    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch of images."""
        self._require_fit("score")
        check_batch(batch)
        with torch.inference_mode():
            return self._score(self.extractor_(batch.pixels))

    def state(self) -> dict[str, Tensor]:
        """The backbone's folded parameters and input scaling (`backbone.*`, `input.*`), and what the method learned."""
        self._require_fit("state")
        backbone = {f"backbone.{name}": value for name, value in self.extractor_.state().items()}
        return backbone | _input_scaling(self.extractor_.backbone) | self._learned()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Rebuild the backbone from its folded parameters, then the method."""
        folded = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        row, device = find_backbone(self.backbone), self._device()
        if not all(torch.equal(state[name], value) for name, value in _input_scaling(row).items()):
            raise ArgumentError.about(
                "backbone", expected="the mean and std of the fit", got=f"mean {row.mean}, std {row.std}"
            )
        self.extractor_ = build_extractor(row, folded=folded, taps=self.taps, device=device, precision=self.precision)
        self._relearn({k: v.to(device) for k, v in state.items() if not k.startswith(("backbone.", "input."))})

    @abstractmethod
    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """Hook: learn from the feature maps of all batches; `expected` is the number of images, where known."""

    @abstractmethod
    def _score(self, features: FeatureMaps) -> Scores:
        """Hook: score one batch of feature maps."""

    @abstractmethod
    def _learned(self) -> dict[str, Tensor]:
        """Hook: the learned tensors by name."""

    @abstractmethod
    def _relearn(self, learned: dict[str, Tensor]) -> None:
        """Hook: take back what `_learned` handed out."""

    def _features(self, images: ImageBatches) -> Iterator[FeatureMaps]:
        for batch in images:
            check_batch(batch)
            yield self.extractor_(batch.pixels)

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.zeros((), dtype=torch.float64, device=self.device).device
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError.about(
                "device", expected="auto, cpu, cuda or cuda:N, present here", got=f"{self.device} ({reason})"
            ) from None

    def _require_fit(self, what: str) -> None:
        if not hasattr(self, "extractor_"):
            raise NotFittedError(f"{type(self).__name__}.{what} needs a fitted method. Call fit(normal_images) first.")


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
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise ArgumentError.about(
            "pixels", expected="finite values in [0, 1]", got=f"values from {low} to {high}", instead="Divide by 255."
        )
