"""The contract of out-of-distribution detectors: what a classifier gave for an image -> one raw score.

Larger = more anomalous (out of distribution), everywhere, whatever the orientation of the paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, NotFittedError

if TYPE_CHECKING:
    from torch import Tensor

    from .classifier import Classifier

Need = Literal["features", "head", "members", "network"]
"""What a detector reads beside the logits: features, the linear last layer, an ensemble, or the network itself."""
Floats = NDArray[np.float64]
_D = TypeVar("_D", bound="OODDetector")

_NUMBERS = 1 << 22
"""Float64 numbers in one block of rows: 32 MB for each temporary of a score, whatever the number of images."""


@dataclass(frozen=True, slots=True)
class Head:
    """The linear last layer: logits = features @ weight.T + bias."""

    weight: NDArray[np.floating]
    """`(classes, channels)`."""
    bias: NDArray[np.floating]
    """`(classes,)`."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one forward pass gave for n images; every detector of an evaluation reads the same one."""

    logits: NDArray[np.floating]
    """`(n, classes)`, as the network gives them."""
    features: NDArray[np.floating] | None = None
    """`(n, channels)`: what goes into the last layer, averaged over positions where it still has some."""
    head: Head | None = None
    """None where the last layer is not linear in `features`."""
    members: tuple[NDArray[np.floating], ...] = ()
    """Logits of all networks of an ensemble, each `(n, classes)`, the classifier's own first; empty for one network."""
    pixels: Tensor | None = None
    """`(n, 3, height, width)` float32 in [0, 1], for detectors that run the network again."""
    classifier: Classifier | None = None

    def __len__(self) -> int:
        return len(self.logits)


class OODDetector(ABC):
    """A score for each image from the outputs of a classifier.

    Subclasses are keyword-only dataclasses that store their parameters unchanged. The score of an image depends on
    that image (and on what `fit` learned) only: not on its batch-mates.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    learns: ClassVar[bool] = False
    """Whether `fit` has to see outputs for in-distribution images first."""

    def fit(self: _D, outputs: Outputs, labels: NDArray[np.integer] | None = None) -> _D:
        """Learn from outputs for in-distribution images, without pixels; `labels` are classes `(n,)`, where known.

        Returns self and forgets earlier fits, also where it fails. Detectors that learn nothing only return themselves.
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        self._check(outputs)
        self._learn(outputs, labels)
        return self

    @abstractmethod
    def score(self, outputs: Outputs) -> Floats:
        """`(n,)` float64, larger = more anomalous; raises `NotFittedError` and `ArgumentError`."""

    def missing(self, outputs: Outputs) -> str | None:
        """Say in words what these outputs lack for this detector; None where nothing is missing."""
        reasons: dict[Need, tuple[bool, str]] = {
            "features": (outputs.features is None, "the features before the last layer"),
            "head": (outputs.head is None, "a last layer that is linear in the features"),
            "members": (len(outputs.members) < 2, "an ensemble of at least 2 networks"),
            "network": (outputs.classifier is None or outputs.pixels is None, "the network and the pixels"),
        }
        lacking = [words for need, (lacks, words) in reasons.items() if need in self.needs and lacks]
        return " and ".join(lacking) or None

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> None:  # noqa: B027 - most learn nothing
        """Set attributes whose names end in `_`, from outputs that have all that the detector needs."""

    def _network(self, outputs: Outputs) -> tuple[Classifier, Tensor]:
        """The classifier, and the pixels on its device."""
        self._check(outputs)
        assert outputs.classifier is not None
        assert outputs.pixels is not None
        return outputs.classifier, outputs.pixels.to(outputs.classifier.device)

    def _check(self, outputs: Outputs) -> None:
        lacking = self.missing(outputs)
        if lacking:
            raise ArgumentError.about(
                "outputs",
                expected=f"{lacking} for {type(self).__name__}",
                got="outputs without",
                instead="Leave it out.",
            )

    def _require_fit(self, learned: str) -> None:
        if not hasattr(self, learned):
            raise NotFittedError(f"{type(self).__name__}: `score` before `fit`. Fit on in-distribution images first.")


def as_floats(name: str, values: object, *, ndim: int = 2) -> Floats:
    """Check that `values` is a finite float array of `ndim` axes and give it in float64."""
    axes = ("n", "classes") if ndim == 2 else ("members", "n", "classes")
    return check_floats(name, values, axes=axes).astype(np.float64, copy=False)


def check_floats(name: str, values: object, *, axes: tuple[str, ...]) -> NDArray[np.floating]:
    """Check that `values` is a finite float array with such axes, none of them empty; it keeps its dtype."""
    array = np.asarray(values)
    if array.ndim != len(axes) or array.dtype.kind != "f" or array.size == 0:
        expected = f"a float array of shape ({', '.join(axes)}) without an empty axis"
        raise ArgumentError.about(name, expected=expected, got=array)
    if not all(np.isfinite(array[rows]).all() for rows in blocks(len(array), array[0].size)):
        raise ArgumentError.about(name, expected="finite numbers", got="NaN or infinity")
    return array


def read_logits(logits: object, *, name: str = "logits") -> NDArray[np.floating]:
    """Logits `(n, classes)`, checked: finite, and of at least 2 classes, since one leaves nothing to be unsure of."""
    checked = check_floats(name, logits, axes=("n", "classes"))
    if checked.shape[1] < 2:
        raise ArgumentError.about(name, expected="at least 2 classes", got=checked)
    return checked


def read_features(outputs: Outputs, *, channels: int | None = None) -> NDArray[np.floating]:
    """Features `(n, channels)`, checked: finite, a row for each row of logits, and as many channels as in the fit."""
    features = check_floats("outputs.features", outputs.features, axes=("n", "channels"))
    if len(features) != len(outputs.logits):
        raise ArgumentError.about("outputs.features", expected=f"{len(outputs.logits)} rows, as logits", got=features)
    if channels is not None and features.shape[1] != channels:
        raise ArgumentError.about("outputs.features", expected=f"{channels} channels, as in the fit", got=features)
    return features


def read_head(outputs: Outputs) -> tuple[Floats, Floats]:
    """Weight `(classes, channels)` and bias `(classes,)` of the last layer, checked against logits and features."""
    assert outputs.head is not None
    weight = check_floats("outputs.head.weight", outputs.head.weight, axes=("classes", "channels"))
    bias = check_floats("outputs.head.bias", outputs.head.bias, axes=("classes",))
    shape = (read_logits(outputs.logits).shape[1], read_features(outputs).shape[1])
    if weight.shape != shape:
        raise ArgumentError.about("outputs.head.weight", expected=f"shape {shape}, (classes, channels)", got=weight)
    if len(bias) != len(weight):
        raise ArgumentError.about("outputs.head.bias", expected=f"shape ({len(weight)},)", got=bias)
    return weight.astype(np.float64, copy=False), bias.astype(np.float64, copy=False)


def by_rows(score: Callable[..., Floats], *arrays: NDArray[np.floating], beside: int = 0) -> Floats:
    """Apply `score`, rows -> one number each, to blocks of rows in float64, so that memory stays bounded.

    `score` gets copies. `beside` is how many numbers it makes for each row beyond those of the arrays.
    """
    width = beside + sum(array.shape[1] for array in arrays)
    parts = [score(*(array[rows].astype(np.float64) for array in arrays)) for rows in blocks(len(arrays[0]), width)]
    return np.concatenate(parts)


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows of `width` numbers into blocks of bounded size; where, depends on the width alone."""
    step = max(1, _NUMBERS // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
