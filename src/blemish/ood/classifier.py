"""A trained classifier as the detectors see it: preprocessing, logits, and what goes into its last layer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._compat import import_torchvision
from ..errors import ArgumentError, WeightsError
from ..features.backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, timm_network
from ..features.extract import of_this_version
from ..features.weights import find_weights, read_weights
from ..images.preprocess import Preprocess
from ..ops.gradnorm import GradNorms, Norm
from ._base import Head, Outputs

_CIFAR_DEPTHS = {f"cifar10_resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
_SAME = 1e-4
"""Relative difference up to which the last layer's output counts as the logits."""


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

    def normalised(self, pixels: Tensor) -> Tensor:
        """`(batch, 3, height, width)` in [0, 1] -> what the network takes."""
        return (pixels.to(self.device) - self._mean) / self._std

    def logits(self, pixels: Tensor) -> Tensor:
        """`(batch, classes)`; differentiable where gradients are enabled."""
        with _evaluating(self.model):
            logits = self.model(self.normalised(pixels))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            raise ArgumentError.about(
                "model", expected="a network that gives logits (batch, classes), at least 2 classes", got=logits
            )
        return logits

    def outputs(self, pixels: Tensor) -> Outputs:
        """One forward pass of `(batch, 3, height, width)` pixels in [0, 1], and one of each member."""
        with torch.inference_mode():
            logits, features = self._with_features(pixels)
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

    def _with_features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._head_path is None:
            return self.logits(pixels), None
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self._head_path).register_forward_hook(lambda _, a, __: seen.append(a[0]))
        try:
            logits = self.logits(pixels)
        finally:
            hook.remove()
        return logits, seen[-1].flatten(2).mean(2) if seen[-1].ndim > 2 else seen[-1]

    def _find_head(self) -> tuple[str | None, Head | None]:
        """The last layer called, and its matrix where the logits are nothing but its output."""
        called: list[tuple[str, Any, Tensor]] = []
        handles = [
            module.register_forward_hook(lambda m, _, out, path=path: called.append((path, m, out)))
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ]
        try:
            with torch.inference_mode():
                logits = self.logits(
                    torch.rand(1, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0))
                )
        finally:
            for handle in handles:
                handle.remove()
        if not called:
            return None, None
        path, layer, out = called[-1]
        is_linear = isinstance(layer, nn.Linear) and out.shape == logits.shape
        if not is_linear or not torch.allclose(out, logits, rtol=_SAME, atol=_SAME):
            return path, None
        weight = layer.weight.detach().float().cpu().numpy()
        bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().float().cpu().numpy()
        return path, Head(weight, bias)


def open_classifier(
    name: str,
    *,
    weights: str | Path | None = None,
    preprocess: Preprocess | None = None,
    members: Sequence[str] = (),
    device: str = "cpu",
) -> Classifier:
    """Build a classifier by name.

    name: a torchvision model, `timm:NAME`, `cifar10_resnet20` (32, 44, 56, 110), `module:factory` for a function that
        returns a network or a `Classifier`, or a `.pt2` file written by `torch.export.save`.
    weights: a state dict; None: `$BLEMISH_WEIGHTS`, then the hub. A factory brings its own, unless a file is given.
    preprocess: None: what belongs to the network; resize 256, crop 224 where nothing is known.
    members: further networks of an ensemble, by name.
    """
    found = _open_one(name, weights, preprocess, device)
    if members:
        others = [_open_one(member, None, found.preprocess, device) for member in members]
        found = Classifier(
            found.model, found.preprocess, found.mean, found.std,
            name=" + ".join([name, *members]), device=device, members=others,
        )  # fmt: skip
    return found


def _open_one(name: str, weights: str | Path | None, preprocess: Preprocess | None, device: str) -> Classifier:
    if name.endswith(".pt2"):
        return Classifier(_exported(name), preprocess or Preprocess(256, 224), name=name, device=device)
    if ":" in name and not name.startswith("timm:"):
        return _from_factory(name, weights, preprocess, device)
    build, size, mean, std = _recipe(name)
    model = build()
    row = Backbone(name=name, build=build, taps=(), channels=(), strides=())
    _load(model, find_weights(row, weights) or {}, name)
    return Classifier(model, preprocess or size, mean, std, name=name, device=device)


_Recipe = tuple[Callable[[], nn.Module], Preprocess, tuple[float, float, float], tuple[float, float, float]]


def _recipe(name: str) -> _Recipe:
    if name in _CIFAR_DEPTHS:
        from .cifar_resnet import CifarResNet

        return lambda: CifarResNet(_CIFAR_DEPTHS[name]), Preprocess(32), IMAGENET_MEAN, IMAGENET_STD
    if name.startswith("timm:"):
        settings = timm_network(name).pretrained_cfg
        side = settings["input_size"][-1]
        size = Preprocess(max(side, round(side / settings.get("crop_pct", 0.875))), side)
        return lambda: timm_network(name), size, tuple(settings["mean"]), tuple(settings["std"])
    models = import_torchvision().models
    if name not in models.list_models(module=models):
        raise ArgumentError.about(
            "model",
            expected=f"a torchvision classifier, timm:NAME, {', '.join(_CIFAR_DEPTHS)}, module:factory or FILE.pt2",
            got=name,
        )
    size = _torchvision_size(models, name)
    if name in BACKBONES:  # some weights were trained on inputs scaled in another way
        row = BACKBONES[name]
        return row.build, size, row.mean, row.std
    return lambda: models.get_model(name, weights=None), size, IMAGENET_MEAN, IMAGENET_STD


def _torchvision_size(models: Any, name: str) -> Preprocess:
    transform = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    return Preprocess(transform.resize_size[0], transform.crop_size[0])


def _from_factory(name: str, weights: str | Path | None, preprocess: Preprocess | None, device: str) -> Classifier:
    module_name, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError) as error:
        raise ArgumentError.about(
            "model", expected="module:factory, importable from here", got=f"{name} ({error})",
            instead="Set PYTHONPATH to the folder of the module.",
        ) from error  # fmt: skip
    if isinstance(made, Classifier):
        return made
    if not isinstance(made, nn.Module):
        raise ArgumentError.about("model", expected="a factory that returns a torch module or a Classifier", got=made)
    if weights is not None:
        _load(made, read_weights(weights), name)
    return Classifier(made, preprocess or Preprocess(256, 224), name=name, device=device)


def _exported(path: str) -> nn.Module:
    try:
        module: nn.Module = torch.export.load(path).module()
    except Exception as error:  # the reader raises many unrelated types
        raise WeightsError(f"{path}: cannot be read as a file of torch.export.save ({error}).") from error
    return module


def _load(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    wanted = {key: value.shape for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key, shape in wanted.items() if key not in state or state[key].shape != shape]
    if missing:
        raise WeightsError(
            f"weights of {name}: {len(missing)} of {len(wanted)} tensors are missing or of another shape, such as "
            f"{', '.join(missing[:3])}. A classifier needs all of them; pass a complete file (--weights FILE)."
        )
    model.load_state_dict(of_this_version(model, {key: state[key] for key in wanted}), strict=False)


def _is_part(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        # An exported network refuses `eval()`: it is in the mode that it was exported in.
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
