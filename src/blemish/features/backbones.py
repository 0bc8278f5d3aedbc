"""THE TABLE of backbones: one row each, alike ones on one line. A new backbone is one line (docs/backbones.md).

`d` is the number of embedding dimensions that PaDiM keeps (None: all of them). Channels and strides are of the taps.
Weights are not part of a row: `weights.py` finds them. What a row costs is measured: `costs.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from typing import Any

from torch import nn

from ..errors import ArgumentError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENET = "trained on ImageNet (research terms)"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row: how to build a network, where to read its features, and what its input and weights are."""

    name: str
    """Before a colon stands what is not the network's own name: `timm:`, `custom:`, or `thesis:` for other taps."""
    build: Callable[[], nn.Module]
    """Makes the network with random weights."""
    taps: tuple[str, ...]
    """Names of the modules whose output is a feature map, shallow to deep."""
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    """Pixels a position; 0: one position, whatever the image's size."""
    deepest: str = ""
    """The last module whose output is a feature map, for pooled embeddings; empty where that is the last tap."""
    narrow: tuple[str, ...] = ()
    """Modules that say the same as `taps` in fewer channels, where there are such, for methods that need no more."""
    d: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = f"BSD-3-Clause; {_IMAGENET}"
    source: str = "torchvision IMAGENET1K_V1"
    """Which pretrained weights belong to the row: package and name, or address; empty where none are needed."""
    trace_size: int = 224
    """Side in pixels of the dummy image with which the network's structure is read."""

    @property
    def multiple(self) -> int:
        """What the sides of an image should be a multiple of: the pixels of a position of the coarsest tap, or 16."""
        return max(self.strides, default=0) or 16

    def __deepcopy__(self, memo: object) -> Backbone:
        return self  # nothing in it changes, and what `build` copies is a network's weights

    @property
    def network(self) -> str:
        """The network's own name; a file of its weights is called like that."""
        return self.name.rpartition(":")[2]


def _torchvision(names: str, **fields: Any) -> list[Backbone]:
    """A row for each of these networks of torchvision."""
    return [
        Backbone(name=name, build=partial(_built, "packages", "torchvision_network", name), **fields)
        for name in names.split()
    ]


def _timm(names: str, tag: str, **fields: Any) -> list[Backbone]:
    """A row for each of these networks of timm, with the weights `tag`; empty where the name of the row shall tell it.

    It does where timm itself would take other weights for the plain name.
    """
    fields = {"licence": f"Apache-2.0; {_IMAGENET}"} | fields
    return [
        Backbone(
            name=f"timm:{name}",
            build=partial(_built, "packages", "timm_network", full),
            source=f"timm {full}",
            **fields,
        )
        for name, full in ((name, f"{name}.{tag}" if tag else name) for name in names.split())
    ]


def _ibn(files: str, **fields: Any) -> list[Backbone]:
    """A row for each of these published checkpoints of IBN-Net, which comes in no package."""
    address = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0"
    return [
        Backbone(name=name, build=partial(_built, "ibn", "build_ibn", name), source=f"{address}/{file}.pth", **fields)
        for name, file in ((file.rpartition("-")[0], file) for file in files.split())
    ]


def _built(home: str, builder: str, *names: str, **shape: Any) -> nn.Module:
    """What a class or function of a module beside this one makes; no other row has to load that."""
    network: nn.Module = getattr(import_module(f"{__package__}.{home}"), builder)(*names, **shape)
    return network


_compact = partial(_built, "builtin.compact", "CompactNetwork")

# fmt: off
# What is the same in a family:
_PYRAMID = (4, 8, 16)
_RESNET = dict(taps=("layer1", "layer2", "layer3"), strides=_PYRAMID, deepest="layer4")
_BOTTLENECK = dict(_RESNET, channels=(256, 512, 1024), d=550)
_DENSENET = dict(
    taps=("features.denseblock1", "features.denseblock2", "features.denseblock3"), strides=_PYRAMID,
    deepest="features.norm5",
)
_MNASNET = dict(taps=("layers.8", "layers.9", "layers.10"), strides=_PYRAMID, deepest="layers.16")
_SHUFFLENET = dict(taps=("stage2", "stage3", "stage4"), strides=(8, 16, 32), deepest="conv5")
_FEATURES_1_2_3 = dict(taps=("features.1", "features.2", "features.3"))
_EFFICIENTNET = dict(_FEATURES_1_2_3, strides=(2, 4, 8), deepest="features.8")
_REGNET = dict(
    taps=("trunk_output.block1", "trunk_output.block2", "trunk_output.block3"), strides=_PYRAMID,
    deepest="trunk_output.block4",
)
_FEATURES_1_3_5 = dict(taps=("features.1", "features.3", "features.5"), strides=_PYRAMID, deepest="features.7")
_STAGES = dict(taps=("stages.0", "stages.1", "stages.2"), strides=_PYRAMID, deepest="stages.3")
_BLOCKS = dict(taps=("blocks.0", "blocks.1", "blocks.2"), strides=_PYRAMID, deepest="blocks.4")
_OF_12 = dict(taps=("blocks.2", "blocks.5", "blocks.8"), deepest="blocks.11")
_OF_24 = dict(taps=("blocks.5", "blocks.11", "blocks.17"), deepest="blocks.23")
_TINY = dict(_OF_12, channels=(192, 192, 192), d=170)
_SMALL = dict(_OF_12, channels=(384, 384, 384), d=350)
_BASE = dict(_OF_12, channels=(768, 768, 768), d=690)
_LARGE = dict(_OF_24, channels=(1024, 1024, 1024), d=920)
_16, _14 = dict(strides=(16, 16, 16)), dict(strides=(14, 14, 14))
_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
_OPENAI = dict(_CLIP, licence="Apache-2.0; trained on image-text pairs of the web")
_DINOV2 = dict(licence="Apache-2.0; trained on LVD-142M")
_DINOV3 = dict(licence="DINOv3-license; trained on LVD-1689M")
_NON_COMMERCIAL = dict(licence=f"CC-BY-NC-4.0; {_IMAGENET}")

_FILTERS = Backbone(
    name="filters", build=partial(_built, "filters", "FilterBank"), taps=("level1", "level2", "level3"),
    channels=(27, 27, 27), strides=_PYRAMID, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    licence="Apache-2.0; part of blemish", source="", trace_size=64,
)

_PIXELS = Backbone(
    name="pixels", build=partial(_built, "filters", "Pixels"), taps=("thumbnail",), channels=(3072,), strides=(0,),
    d=100, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), licence="Apache-2.0; part of blemish", source="",
)

_TAUGHT: dict[str, Any] = dict(
    taps=("stride4", "stride8", "stride16"), channels=(64, 128, 256), strides=_PYRAMID, d=100, source="built in",
    trace_size=64, licence=f"Apache-2.0; part of blemish, taught by resnet18, which was {_IMAGENET}",
)
_COMPACT = Backbone(name="compact", build=_compact, narrow=("stage4", "stage8", "stage16"), **_TAUGHT)
_COMPACT_LARGE = Backbone(
    name="compact_large", build=partial(_compact, stem=32, widths=(64, 128, 256)), **_TAUGHT
)

# The 71 networks of the thesis on backbone layers (2022) with its taps and its d; where it leaves d open, about 0.3 of
# the channels. Two of them have other taps as well, which were here first and which published figures name.
_THESIS = (
    *_torchvision("alexnet", taps=("features",), channels=(256,), strides=(32,), d=100),
    *_torchvision(
        "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
        taps=("features",), channels=(512,), strides=(32,), d=120,
    ),
    *_torchvision("resnet18 resnet34", channels=(64, 128, 256), d=100, **_RESNET),
    *_torchvision("resnet50 resnet101 resnet152", **_BOTTLENECK),
    *_torchvision("squeezenet1_0 thesis:squeezenet1_1", taps=("features",), channels=(512,), strides=(16,), d=100),
    *_torchvision("densenet121", channels=(256, 512, 1024), d=540, **_DENSENET),
    *_torchvision("densenet169", channels=(256, 512, 1280), d=610, **_DENSENET),
    *_torchvision("densenet161", channels=(384, 768, 2112), d=980, **_DENSENET),
    *_torchvision("densenet201", channels=(256, 512, 1792), d=770, **_DENSENET),
    *_torchvision(  # its weights expect another scaling than ImageNet's; torchvision converts inside the network
        "googlenet", taps=("inception3a", "inception3b", "inception4a"), channels=(256, 480, 512), strides=(8, 8, 16),
        deepest="inception5b", d=550, **_HALF,
    ),
    *_torchvision(
        "inception_v3", taps=("Mixed_5b", "Mixed_5c", "Mixed_5d"), channels=(256, 288, 288), strides=(8, 8, 8),
        deepest="Mixed_7c", d=220, **_HALF,
    ),
    *_torchvision("shufflenet_v2_x0_5", channels=(48, 96, 192), d=100, **_SHUFFLENET),
    *_torchvision("shufflenet_v2_x1_0", channels=(116, 232, 464), d=220, **_SHUFFLENET),
    *_torchvision(
        "thesis:mobilenet_v2", channels=(16, 24, 24), strides=(2, 4, 4), deepest="features.18", **_FEATURES_1_2_3
    ),
    *_torchvision(
        "mobilenet_v3_small", channels=(16, 24, 24), strides=(4, 8, 8), deepest="features.12", **_FEATURES_1_2_3
    ),
    *_torchvision(
        "mobilenet_v3_large", channels=(16, 24, 24), strides=(2, 4, 4), deepest="features.16", **_FEATURES_1_2_3
    ),
    *_torchvision("resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2", **_BOTTLENECK),
    *_timm("legacy_seresnet50 legacy_seresnet101 legacy_seresnet152", "in1k", **_BOTTLENECK),
    *_timm("legacy_seresnext50_32x4d legacy_seresnext101_32x4d legacy_senet154", "in1k", **_BOTTLENECK),
    *_timm("resnest50d resnest101e", "in1k", **_BOTTLENECK),
    *_ibn(
        "resnet50_ibn_a-d9d0bb7b resnet101_ibn_a-59ea0ac6 resnext101_ibn_a-6ace051d se_resnet101_ibn_a-fabed4e2",
        licence=f"MIT; {_IMAGENET}", **_BOTTLENECK,
    ),
    *_torchvision("mnasnet0_5", channels=(16, 24, 40), **_MNASNET),
    *_torchvision("mnasnet1_0", channels=(24, 40, 80), **_MNASNET),
    *_torchvision("efficientnet_b0 efficientnet_b1", channels=(16, 24, 40), **_EFFICIENTNET),
    *_torchvision("efficientnet_b2", channels=(16, 24, 48), **_EFFICIENTNET),
    *_torchvision("efficientnet_b3", channels=(24, 32, 48), d=100, **_EFFICIENTNET),
    *_torchvision("efficientnet_b4", channels=(24, 32, 56), d=100, **_EFFICIENTNET),
    *_torchvision("efficientnet_b5", channels=(24, 40, 64), d=100, **_EFFICIENTNET),
    *_torchvision("efficientnet_b6", channels=(32, 40, 72), d=100, **_EFFICIENTNET),
    *_torchvision("efficientnet_b7", channels=(32, 48, 80), d=100, **_EFFICIENTNET),
    *_torchvision("regnet_y_400mf", channels=(48, 104, 208), d=100, **_REGNET),
    *_torchvision("regnet_y_800mf", channels=(64, 144, 320), d=150, **_REGNET),
    *_torchvision("regnet_y_1_6gf", channels=(48, 120, 336), d=150, **_REGNET),
    *_torchvision("regnet_y_3_2gf", channels=(72, 216, 576), d=220, **_REGNET),
    *_torchvision("regnet_y_8gf", channels=(224, 448, 896), d=450, **_REGNET),
    *_torchvision("regnet_y_16gf", channels=(224, 448, 1232), d=600, **_REGNET),
    *_torchvision("regnet_y_32gf", channels=(232, 696, 1392), d=700, **_REGNET),
    *_torchvision("regnet_x_400mf", channels=(32, 64, 160), d=100, **_REGNET),
    *_torchvision("regnet_x_800mf", channels=(64, 128, 288), d=100, **_REGNET),
    *_torchvision("regnet_x_1_6gf", channels=(72, 168, 408), d=150, **_REGNET),
    *_torchvision("regnet_x_3_2gf", channels=(96, 192, 432), d=200, **_REGNET),
    *_torchvision("regnet_x_8gf", channels=(80, 240, 720), d=300, **_REGNET),
    *_torchvision("regnet_x_16gf", channels=(256, 512, 896), d=500, **_REGNET),
    *_torchvision("regnet_x_32gf", channels=(336, 672, 1344), d=700, **_REGNET),
    *_torchvision("convnext_tiny convnext_small", channels=(96, 192, 384), d=200, **_FEATURES_1_3_5),
    *_torchvision("convnext_base", channels=(128, 256, 512), d=270, **_FEATURES_1_3_5),
    *_torchvision("convnext_large", channels=(192, 384, 768), d=400, **_FEATURES_1_3_5),
)

_OTHERS = (
    *_torchvision(
        "mobilenet_v2", taps=("features.3", "features.6", "features.13"), channels=(24, 32, 96), strides=_PYRAMID,
        deepest="features.18", d=100,
    ),
    *_torchvision(
        "squeezenet1_1", taps=("features.4", "features.7", "features.12"), channels=(128, 256, 512), strides=_PYRAMID,
        d=100,
    ),
    *_torchvision("resnext101_64x4d", **_BOTTLENECK),
    *_torchvision("mnasnet0_75", channels=(24, 32, 64), **_MNASNET),
    *_torchvision("mnasnet1_3", channels=(32, 56, 104), d=100, **_MNASNET),
    *_torchvision("shufflenet_v2_x1_5", channels=(176, 352, 704), d=370, **_SHUFFLENET),
    *_torchvision("shufflenet_v2_x2_0", channels=(244, 488, 976), d=510, **_SHUFFLENET),
    *_torchvision(
        "efficientnet_v2_s", taps=("features.2", "features.3", "features.5"), channels=(48, 64, 160), strides=_PYRAMID,
        deepest="features.7", d=100,
    ),
    *_torchvision(
        "efficientnet_v2_m", taps=("features.2", "features.3", "features.5"), channels=(48, 80, 176), strides=_PYRAMID,
        deepest="features.8", d=100,
    ),
    *_torchvision(
        "efficientnet_v2_l", taps=("features.2", "features.3", "features.5"), channels=(64, 96, 224), strides=_PYRAMID,
        deepest="features.8", d=120, **_HALF,
    ),
    *_torchvision("swin_t swin_s swin_v2_t swin_v2_s", channels=(96, 192, 384), d=200, **_FEATURES_1_3_5),
    *_torchvision("swin_b swin_v2_b", channels=(128, 256, 512), d=270, **_FEATURES_1_3_5),
    *_timm("vit_tiny_patch16_224", "augreg_in21k_ft_in1k", **_TINY, **_16, **_HALF),
    *_timm("vit_small_patch16_224", "augreg_in21k_ft_in1k", **_SMALL, **_16, **_HALF),
    *_timm("vit_base_patch16_224", "augreg2_in21k_ft_in1k", **_BASE, **_16, **_HALF),
    *_timm("deit_tiny_patch16_224", "fb_in1k", **_TINY, **_16),
    *_timm("deit_small_patch16_224", "fb_in1k", **_SMALL, **_16),
    *_timm("vit_small_patch16_224.dino", "", **_SMALL, **_16),
    *_timm("vit_small_patch8_224", "dino", strides=(8, 8, 8), **_SMALL),
    *_timm("vit_base_patch16_224.dino", "", **_BASE, **_16),
    *_timm("vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2", "lvd142m", **_SMALL, **_14, **_DINOV2),
    *_timm("vit_base_patch14_dinov2 vit_base_patch14_reg4_dinov2", "lvd142m", **_BASE, **_14, **_DINOV2),
    *_timm("vit_large_patch14_dinov2", "lvd142m", **_LARGE, **_14, **_DINOV2),
    *_timm("vit_small_patch16_dinov3", "lvd1689m", **_SMALL, **_16, **_DINOV3),
    *_timm("vit_base_patch16_dinov3", "lvd1689m", **_BASE, **_16, **_DINOV3),
    *_timm("vit_large_patch16_dinov3", "lvd1689m", **_LARGE, **_16, **_DINOV3),
    *_timm("convnext_tiny.dinov3_lvd1689m", "", channels=(96, 192, 384), d=200, **_STAGES, **_DINOV3),
    *_timm("convnext_small.dinov3_lvd1689m", "", channels=(96, 192, 384), d=200, **_STAGES, **_DINOV3),
    *_timm("vit_base_patch16_clip_224.openai", "", **_BASE, **_16, **_OPENAI),
    *_timm("vit_base_patch32_clip_224.openai", "", strides=(32, 32, 32), **_BASE, **_OPENAI),
    *_timm("vit_large_patch14_clip_224.openai", "", **_LARGE, **_14, **_OPENAI),
    *_timm("vit_base_patch16_siglip_224", "v2_webli", licence="Apache-2.0; trained on WebLI", **_BASE, **_16, **_HALF),
    *_timm("eva02_small_patch14_224", "mim_in22k", licence=f"MIT; {_IMAGENET}", **_SMALL, **_14, **_CLIP),
    *_timm("convnextv2_atto", "fcmae_ft_in1k", channels=(40, 80, 160), d=80, **_STAGES, **_NON_COMMERCIAL),
    *_timm("convnextv2_pico", "fcmae_ft_in1k", channels=(64, 128, 256), d=130, **_STAGES, **_NON_COMMERCIAL),
    *_timm("convnextv2_nano", "fcmae_ft_in22k_in1k", channels=(80, 160, 320), d=170, **_STAGES, **_NON_COMMERCIAL),
    *_timm("convnextv2_tiny", "fcmae_ft_in22k_in1k", channels=(96, 192, 384), d=200, **_STAGES, **_NON_COMMERCIAL),
    *_timm("convnextv2_base", "fcmae_ft_in22k_in1k", channels=(128, 256, 512), d=270, **_STAGES, **_NON_COMMERCIAL),
    *_timm("mobilenetv4_conv_small", "e2400_r224_in1k", channels=(32, 64, 96), d=60, **_BLOCKS),
    *_timm("mobilenetv4_conv_medium", "e500_r256_in1k", channels=(48, 80, 160), d=90, **_BLOCKS),
    *_timm("mobilenetv4_conv_large", "e600_r384_in1k", channels=(48, 96, 192), d=100, **_BLOCKS),
    *_timm("mobilenetv4_hybrid_medium", "e200_r256_in12k_ft_in1k", channels=(48, 80, 160), d=90, **_BLOCKS),
    *_timm("efficientvit_b1", "r224_in1k", channels=(32, 64, 128), d=70, **_STAGES),
    *_timm("repvit_m1", "dist_in1k", channels=(48, 96, 192), d=100, **_STAGES),
    *_timm("pvt_v2_b2", "in1k", channels=(64, 128, 320), d=150, **_STAGES),
    *_timm("mambaout_tiny", "in1k", channels=(96, 192, 384), d=200, **_STAGES),
    *_timm("hgnetv2_b0", "ssld_stage2_ft_in1k", channels=(64, 256, 512), d=250, **_STAGES),
)
# fmt: on

BACKBONES = {row.name: row for row in (_COMPACT, _COMPACT_LARGE, _FILTERS, _PIXELS, *_THESIS, *_OTHERS)}
THESIS = tuple(row.name for row in _THESIS)
"""The rows of the thesis, for a study of all of them."""


def find_backbone(backbone: str | Backbone) -> Backbone:
    """Look a row up by name; `timm:NAME` makes a row for any timm network; a `Backbone` passes through.

    >>> find_backbone("resnet18").channels
    (64, 128, 256)
    >>> find_backbone("resnet81")
    Traceback (most recent call last):
    blemish.errors.ArgumentError: backbone: expected a name of the table, such as resnet18, ... got resnet81. ...
    """
    if isinstance(backbone, Backbone):
        return backbone
    if backbone in BACKBONES:
        return BACKBONES[backbone]
    if backbone.startswith("timm:"):
        return _timm_row(backbone)
    close = get_close_matches(backbone, BACKBONES, n=4) or ["compact", "resnet18"]
    raise ArgumentError.about(
        "backbone",
        expected=f"a name of the table, such as {', '.join(close)}, or timm:NAME",
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
    return Backbone(
        name=f"custom:{name}",
        build=partial(copy.deepcopy, module),
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
    from .find_taps import choose_levels
    from .packages import timm_network

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
        build=partial(_built, "packages", "timm_network", name),
        taps=tuple(level.module for level in levels),
        channels=channels,
        strides=tuple(level.stride for level in levels),
        deepest=deepest.module,
        d=None if sum(channels) <= 100 else 100,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        licence=settings.get("license") or "see the model card",
        source=f"timm {settings['architecture']}.{settings.get('tag', '')}".rstrip("."),
        trace_size=settings["input_size"][-1],
    )
