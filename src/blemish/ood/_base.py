"""The contract of out-of-distribution detectors: what a classifier gave for an image -> one raw score.

- Parameters are keyword-only dataclass fields, stored unchanged; the constructor does no work.
- `fit` takes outputs for in-distribution images, returns self, and forgets earlier fits.
- `score` is pure: an image's score does not depend on its batch-mates. Larger = more anomalous (out of distribution),
  whatever the orientation of the paper.
- What is learned is in `learned_`; `state` hands them out and `restore` takes them back with identical scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import persist
from ..errors import ArgumentError, NotFittedError
from ..parameters import Parameterised, check_parameters, plain_parameters
from ..types import Floats
from .classifier import Classifier, Outputs

Need = Literal["features", "head", "members", "network"]
"""What a detector reads beside the logits: features, the linear last layer, an ensemble, or the network itself."""
_D = TypeVar("_D", bound="OODDetector")

KIND = "ood"
"""What the manifest of a detector's file calls its kind."""
_NUMBERS = 1 << 22
"""Float64 numbers in one block of rows: 32 MB for each temporary of a score, whatever the number of images."""


class OODDetector(ABC, Parameterised):
    """A score for each image from the outputs of a classifier; a concrete one fills in the hooks."""

    name: ClassVar[str]
    """The detector's name in the registry and on the command line."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    forms: ClassVar[Mapping[str, str]] = {}
    """Type and axes of each array that `fit` learns, such as `{"means": "float64 classes channels"}`."""
    learns: ClassVar[bool]
    """Whether `fit` has to see outputs for in-distribution images first: whether there are `forms`."""
    learned_: dict[str, NDArray[Any]]
    """The arrays by name, once there are some."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.learns = bool(cls.forms)

    def fit(self: _D, outputs: Outputs, labels: NDArray[np.integer] | None = None) -> _D:
        """Learn from outputs for in-distribution images, without pixels; `labels` are classes `(n,)`, where known.

        Returns self and forgets earlier fits, also where it fails. Detectors that learn nothing only return themselves.
        """
        vars(self).pop("learned_", None)
        self._check(outputs)
        self._keep(self._learn(outputs, labels) or {})
        return self

    def score(self, outputs: Outputs) -> Floats:
        """`(n,)` float64, larger = more anomalous; raises `NotFittedError` and `ArgumentError`."""
        self._require_fit("score")
        self._check(outputs)
        return self._score(outputs)

    def state(self) -> dict[str, Tensor]:
        """Everything learned, by name; empty for detectors that learn nothing."""
        self._require_fit("state")
        return {name: torch.from_numpy(self.learned_[name]) for name in self.forms}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` handed out; raises `ArgumentError` for anything else."""
        if state.keys() != self.forms.keys():
            expected, got = (", ".join(names) or "no tensors" for names in (self.forms, state))
            raise ArgumentError.about("state", expected=expected, got=got)
        sizes: dict[str, int] = {}
        for name, form in self.forms.items():
            tensor, (dtype, *axes) = state[name], form.split()
            has_form = tensor.dtype == getattr(torch, dtype) and tensor.ndim == len(axes)
            if not has_form or any(sizes.setdefault(a, n) != n for a, n in zip(axes, tensor.shape, strict=True)):
                raise ArgumentError.about(f"state {name}", expected=f"{form}, equal axes of equal size", got=tensor)
            if not tensor.isfinite().all():
                raise ArgumentError.about(f"state {name}", expected="finite numbers", got="NaN or infinity")
        if self.learns:
            self._keep({name: tensor.cpu().numpy() for name, tensor in state.items()})

    def save(self, path: str | Path) -> None:
        """Write parameters and what was learned into one safetensors file, which `load_detector` reads."""
        manifest = {
            "kind": KIND,
            "name": self.name,
            "parameters": plain_parameters(self),
            "versions": {name: version(name) for name in ("blemish", "torch", "numpy")},
        }
        persist.save(path, self.state(), manifest)

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

    @abstractmethod
    def _score(self, outputs: Outputs) -> Floats:
        """Hook: `score`, of outputs that have all that the detector needs."""

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> Mapping[str, Any] | None:
        """Hook: the arrays of `forms` by name, from outputs that have all that the detector needs, or None."""

    def _keep(self, learned: Mapping[str, Any]) -> None:
        """In one layout in memory, whether just learned or from a file: products round by it."""
        self.learned_ = {name: np.asarray(learned[name], f.split()[0], order="C") for name, f in self.forms.items()}

    def _network(self, outputs: Outputs) -> tuple[Classifier, Tensor]:
        """The classifier, and the pixels on its device."""
        assert outputs.classifier is not None
        assert outputs.pixels is not None
        return outputs.classifier, outputs.pixels.to(outputs.classifier.device)

    def _check(self, outputs: Outputs) -> None:
        check_parameters(self)
        lacking = self.missing(outputs)
        if lacking:
            raise ArgumentError.about(
                "outputs",
                expected=f"{lacking} for {type(self).__name__}",
                got="outputs without",
                instead="Leave it out.",
            )

    def _require_fit(self, what: str) -> None:
        if self.learns and not hasattr(self, "learned_"):
            raise NotFittedError(
                f"{type(self).__name__}.{what} needs a fitted detector. Call fit(in_distribution_outputs) first."
            )


class Traced(np.ndarray[Any, Any]):
    """An array that remembers how it came about, as an export needs it (`export/arrays.py`): checks leave it so."""

    def through(self, function: Callable[[Tensor], Tensor]) -> Traced:
        """What a function of tensors makes of it."""
        raise NotImplementedError


def through_torch(function: Callable[[Tensor], Tensor], array: NDArray[np.floating]) -> Floats:
    """What a function of tensors makes of an array, as an array."""
    if isinstance(array, Traced):
        return array.through(function)
    return function(torch.from_numpy(array)).numpy()


def check_floats(name: str, values: object, *, axes: tuple[str, ...]) -> NDArray[np.floating]:
    """Check that `values` is a finite float array with such axes, none of them empty; it keeps its dtype."""
    array = np.asarray(values)
    if array.ndim != len(axes) or array.dtype.kind != "f" or array.size == 0:
        expected = f"a float array of shape ({', '.join(axes)}) without an empty axis"
        raise ArgumentError.about(name, expected=expected, got=array)
    if not all(np.isfinite(array[rows]).all() for rows in row_blocks(len(array), array[0].size)):
        raise ArgumentError.about(name, expected="finite numbers", got="NaN or infinity")
    return values if isinstance(values, Traced) else array


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
    parts = [score(*(array[rows].astype(np.float64) for array in arrays)) for rows in row_blocks(len(arrays[0]), width)]
    return np.concatenate(parts)


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows of `width` numbers into blocks of bounded size; where, depends on the width alone."""
    count = max(1, _NUMBERS // max(1, width))
    for start in range(0, rows, count):
        yield slice(start, min(start + count, rows))
