"""THE TABLE of backbones: one row each. A new backbone is one row.

`d` is the number of embedding dimensions that PaDiM keeps (None: all of them). Channels and strides are of the taps.
Weights are not part of a row: `weights.py` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from .._compat import import_torchvision
from ..errors import ArgumentError, MissingPackageError
from .levels import choose_levels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row: how to build a network, where to read its features, and what its input and weights are."""

    name: str
    build: Callable[[], nn.Module]
    """Makes the network with random weights."""
    taps: tuple[str, ...]
    """Names of the modules whose output is a feature map, shallow to deep."""
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    deepest: str = ""
    """The last module whose output is a feature map, for pooled embeddings; empty where that is the last tap."""
    d: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = "BSD-3-Clause; trained on ImageNet (research terms)"
    source: str = "torchvision IMAGENET1K_V1"
    """Which pretrained weights belong to the row; empty where none are needed."""
    trace_size: int = 224
    """Side in pixels of the dummy image with which the network's structure is read."""


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = import_torchvision().models
        module: nn.Module = models.get_model(name, weights=None)
        return module

    return build


def _filter_bank() -> nn.Module:
    from .filters import FilterBank

    return FilterBank()


_RESNET_TAPS = ("layer1", "layer2", "layer3")

_ROWS = (
    Backbone(
        name="filters",
        build=_filter_bank,
        taps=("level1", "level2", "level3"),
        channels=(27, 27, 27),
        strides=(4, 8, 16),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="Apache-2.0 (part of blemish)",
        source="",
    ),
    Backbone(
        name="resnet18",
        build=_torchvision("resnet18"),
        taps=_RESNET_TAPS,
        channels=(64, 128, 256),
        strides=(4, 8, 16),
        deepest="layer4",
        d=100,
    ),
    Backbone(
        name="wide_resnet50_2",
        build=_torchvision("wide_resnet50_2"),
        taps=_RESNET_TAPS,
        channels=(256, 512, 1024),
        strides=(4, 8, 16),
        deepest="layer4",
        d=550,
    ),
    Backbone(
        name="mobilenet_v2",
        build=_torchvision("mobilenet_v2"),
        taps=("features.3", "features.6", "features.13"),
        channels=(24, 32, 96),
        strides=(4, 8, 16),
        deepest="features.18",
        d=100,
    ),
    Backbone(
        name="squeezenet1_1",
        build=_torchvision("squeezenet1_1"),
        taps=("features.4", "features.7", "features.12"),
        channels=(128, 256, 512),
        strides=(4, 8, 16),
        d=100,
    ),
)

BACKBONES = {row.name: row for row in _ROWS}


def find_backbone(backbone: str | Backbone) -> Backbone:
    """Look a row up by name; `timm:NAME` makes a row for any timm network; a `Backbone` passes through.

    >>> find_backbone("resnet18").channels
    (64, 128, 256)
    >>> find_backbone("resnet81")
    Traceback (most recent call last):
    blemish.errors.ArgumentError: backbone: expected one of filters, resnet18, ... or timm:NAME, got resnet81. ...
    """
    if isinstance(backbone, Backbone):
        return backbone
    if backbone in BACKBONES:
        return BACKBONES[backbone]
    if backbone.startswith("timm:"):
        return _timm_row(backbone)
    raise ArgumentError.about(
        "backbone",
        expected=f"one of {', '.join(BACKBONES)} or timm:NAME",
        got=backbone,
        instead="`blemish list backbones` shows them all.",
    )


def custom_backbone(
    module: nn.Module,
    *,
    taps: Sequence[str],
    name: str = "custom",
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    d: int | None = None,
    trace_size: int = 224,
) -> Backbone:
    """Make a row from a network of your own, which brings its weights; `taps` are names from `module.named_modules()`.

    The module itself is copied, never changed. Its name is stored in model files; `Detector.load` needs the row again.
    """
    import copy

    return Backbone(
        name=f"custom:{name}",
        build=lambda: copy.deepcopy(module),
        taps=tuple(taps),
        channels=(),
        strides=(),
        d=d,
        mean=mean,
        std=std,
        licence="the user's own",
        source="",
        trace_size=trace_size,
    )


@cache  # to read a row off a network takes as long as to build the network
def _timm_row(name: str) -> Backbone:
    model = timm_network(name)
    if hasattr(model, "reroll"):  # the tokens of Hiera's blocks lie in the order of its masks, not row by row
        raise ArgumentError.about("backbone", expected="a network with tokens row by row", got=name)
    settings = model.pretrained_cfg
    levels, deepest = choose_levels(model, getattr(model, "feature_info", ()), side=settings["input_size"][-1])
    if deepest is None:
        raise ArgumentError.about("backbone", expected="a timm network that makes feature maps", got=name)
    channels = tuple(level.channels for level in levels)
    return Backbone(
        name=name,
        build=lambda: timm_network(name),
        taps=tuple(level.module for level in levels),
        channels=channels,
        strides=tuple(level.stride for level in levels),
        deepest=deepest.module,
        d=None if sum(channels) <= 100 else 100,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        licence=settings.get("license") or "see the model card",
        source=f"timm {settings.get('hf_hub_id') or settings.get('url') or 'no pretrained weights'}",
        trace_size=settings["input_size"][-1],
    )


# Transformers are made for one image size unless told otherwise, and the flags differ: plain ones resample their
# position embeddings (and pad up to whole patches), windowed ones recompute their masks.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


def timm_network(name: str, *, pretrained: bool = False) -> Any:
    """Build `timm:NAME` so that it takes any image size, where timm can; the parameters are those of the plain one."""
    import_torchvision()  # timm imports torchvision at once
    try:
        import timm
    except ImportError:
        raise MissingPackageError(f"backbone {name}: timm is not installed. Run `pip install blemish[timm]`.") from None
    model_name = name.removeprefix("timm:")
    if not timm.is_model(model_name):
        close = ", ".join(timm.list_models(f"*{model_name}*")[:5]) or "no similar name"
        raise ArgumentError.about("backbone", expected=f"a timm model ({close})", got=name)
    for flags in _ANY_SIZE[:-1]:
        with suppress(TypeError):  # the network does not know a flag
            return timm.create_model(model_name, pretrained=pretrained, **flags)
    return timm.create_model(model_name, pretrained=pretrained)
