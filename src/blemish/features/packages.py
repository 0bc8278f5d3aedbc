"""What torchvision and timm are asked: networks, and the weights that belong to them. Loaded where a row needs one."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, MissingPackageError

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # the declarations live only as long as the library object that made them


def import_torchvision() -> ModuleType:
    """Import torchvision, also where a CPU build of torch meets a CUDA build of torchvision.

    Importing torchvision registers shape functions for operators of its extension. Where that extension cannot
    load, the operators do not exist and the import fails; blemish needs none of them, so declaring them is enough.
    """
    if not _declared and not _extension_loads():
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _MISSING_OPERATORS:
            library.define(schema)
        _declared.append(library)
    import torchvision

    module: ModuleType = torchvision
    return module


def _extension_loads() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return True  # nothing to declare: the import itself will say that torchvision is missing
    for library in Path(package.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
        return True
    return False


def torchvision_network(name: str) -> nn.Module:
    """Build a network of torchvision with random weights; what stands before a colon in its name is ours."""
    # These two warn where nothing says that they shall draw their weights as published.
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = import_torchvision().models.get_model(name.rpartition(":")[2], weights=None, **options)
    return module


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """The weights `IMAGENET1K_V1` of a network, from the hub, which keeps them."""
    weights = import_torchvision().models.get_model_weights(name)["IMAGENET1K_V1"]
    return dict(weights.get_state_dict(progress=False, check_hash=True))


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
