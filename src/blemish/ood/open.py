"""Classifiers by name: torchvision, timm, the networks for CIFAR, a function of one's own, or an exported file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, WeightsError
from ..features.backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone
from ..features.extract import of_this_version
from ..features.packages import import_torchvision, timm_network
from ..features.weights import find_weights, read_weights
from ..images.preprocess import Preprocess
from .cifar_resnet import CifarResNet
from .classifier import Classifier

_CIFAR_DEPTHS = {f"cifar10_resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


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
