"""A trained classifier as the detectors see it: preprocessing, logits, and what goes into its last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ArgumentError
from ..features.backbones import IMAGENET_MEAN, IMAGENET_STD
from ..features.layout import watching
from ..images.preprocess import Preprocess
from ..ops.gradnorm import GradNorms, Norm, evaluating

_SAME = 1e-4
"""Relative difference up to which the last layer's output counts as the logits."""


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


@dataclass(eq=False)
class Classifier:
    """A network that gives logits, and how its images are made.

    The network is used as it is, in eval mode; its mode and gradients are left as they were.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    >>> classifier = Classifier(network, preprocess=Preprocess(16))
    >>> outputs = classifier.outputs(torch.rand(2, 3, 16, 16))
    >>> outputs.logits.shape, outputs.features.shape
    ((2, 5), (2, 768))
    """

    model: nn.Module
    """`(batch, 3, height, width)`, normalised -> `(batch, classes)`."""
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(256, 224))
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    name: str = "custom"
    device: str = "cpu"
    members: Sequence[Classifier] = ()
    """Further networks that make it an ensemble; they see the same pixels."""

    def __post_init__(self) -> None:
        self.model.to(self.device)
        self._engines: dict[Any, GradNorms] = {}
        self._mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(self.std, device=self.device).view(3, 1, 1)
        self._head_path, self._head = self._find_head()

    @property
    def head(self) -> str | None:
        """Path of the last layer; None where the network does not show one, as an exported file."""
        return self._head_path

    def probe(self) -> Tensor:
        """An image to try things on, `(1, 3, height, width)`: seeded noise."""
        return torch.rand(1, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0))

    def normalised(self, pixels: Tensor) -> Tensor:
        """`(batch, 3, height, width)` in [0, 1] -> what the network takes."""
        return (pixels.to(self.device) - self._mean) / self._std

    def logits(self, pixels: Tensor) -> Tensor:
        """`(batch, classes)`; differentiable where gradients are enabled."""
        with evaluating(self.model):
            logits = self.model(self.normalised(pixels))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            raise ArgumentError.about(
                "model", expected="a network that gives logits (batch, classes), at least 2 classes", got=logits
            )
        return logits

    def outputs(self, pixels: Tensor) -> Outputs:
        """One forward pass of `(batch, 3, height, width)` pixels in [0, 1], and one of each member."""
        with torch.inference_mode():
            logits, features = self.with_features(pixels)
            members = [member.logits(pixels).float().cpu().numpy() for member in self.members]
        array = logits.float().cpu().numpy()
        return Outputs(
            logits=array,
            features=None if features is None else features.float().cpu().numpy(),
            head=self._head,
            members=(array, *members) if members else (),
            pixels=pixels,
            classifier=self,
        )

    def grad_norms(self, parameters: Sequence[str] | None = None, norm: Norm = "l2") -> GradNorms:
        """The engine for norms of gradients over parameters by full name or prefix (None: all), made once."""
        key = (None if parameters is None else tuple(parameters), norm)
        if key not in self._engines:
            names = [name for name, _ in self.model.named_parameters()]
            chosen = [n for n in names if parameters is None or any(_is_part(n, p) for p in parameters)]
            unknown = [p for p in parameters or () if not any(_is_part(n, p) for n in names)]
            if unknown:
                raise ArgumentError.about("parameters", expected="names of parameters or modules", got=unknown)
            self._engines[key] = GradNorms(self.model, parameters=chosen, norm=norm)
        return self._engines[key]

    def with_features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """`logits`, and what goes into the last layer, `(batch, channels)`, where the network shows one."""
        if self._head_path is None:
            return self.logits(pixels), None
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self._head_path).register_forward_hook(lambda _, a, __: seen.append(a[0]))
        with watching([hook]):
            logits = self.logits(pixels)
        return logits, seen[-1].flatten(2).mean(2) if seen[-1].ndim > 2 else seen[-1]

    def _find_head(self) -> tuple[str | None, Head | None]:
        """The last layer called, and its matrix where the logits are nothing but its output."""
        called: list[tuple[str, Any, Tensor]] = []
        handles = [
            module.register_forward_hook(lambda m, _, out, path=path: called.append((path, m, out)))
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ]
        with watching(handles), torch.inference_mode():
            logits = self.logits(self.probe())
        if not called:
            return None, None
        path, layer, out = called[-1]
        is_linear = isinstance(layer, nn.Linear) and out.shape == logits.shape
        if not is_linear or not torch.allclose(out, logits, rtol=_SAME, atol=_SAME):
            return path, None
        weight = layer.weight.detach().float().cpu().numpy()
        bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().float().cpu().numpy()
        return path, Head(weight, bias)


def _is_part(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
