"""Finding and reading pretrained weights.

The order: an explicit file; a file named after the backbone in the folder `$BLEMISH_WEIGHTS`; the hub of torchvision
or timm, which downloads once, says so, and caches.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .._compat import import_torchvision
from ..errors import WeightsError
from .backbones import Backbone, timm_network

StateDict = dict[str, Tensor]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th")
_log = logging.getLogger("blemish")


def find_weights(backbone: Backbone, weights: str | Path | None = None) -> StateDict | None:
    """Return the pretrained parameters of a row, or None where the row needs none.

    Raises `WeightsError` that names all places searched.
    """
    if weights is not None:
        return read_weights(weights)
    if not backbone.source:
        return None
    folder = os.environ.get("BLEMISH_WEIGHTS")
    if folder:
        stem = backbone.name.removeprefix("timm:")
        for suffix in _SUFFIXES:
            path = Path(folder) / f"{stem}{suffix}"
            if path.is_file():
                return read_weights(path)
    return _from_hub(backbone)


def read_weights(path: str | Path) -> StateDict:
    """Read a state dict from `.safetensors` or from a PyTorch file (tensors only: nothing in it is executed).

    A dict nested under `state_dict` or `model` is unwrapped, and a prefix `module.` on every name is dropped.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path}: the file does not exist.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # the readers raise many unrelated types on damaged or unsafe files
        raise WeightsError(f"weights {path}: cannot be read as a state dict of tensors ({error}).") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"weights {path}: expected names mapped to tensors, as `module.state_dict()` gives them.")
    prefixed = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if prefixed else name: value for name, value in content.items()}


def _from_hub(backbone: Backbone) -> StateDict:
    _log.warning("Getting the weights of %s (%s) from the hub, once ...", backbone.name, backbone.source)
    try:
        if backbone.name.startswith("timm:"):
            return dict(timm_network(backbone.name, pretrained=True).state_dict())
        models = import_torchvision().models
        weights = models.get_model_weights(backbone.name)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # network, proxy, disk and hub errors share no base class
        raise WeightsError(
            f"weights of {backbone.name}: not given, not in $BLEMISH_WEIGHTS "
            f"({os.environ.get('BLEMISH_WEIGHTS') or 'not set'}), and the download failed ({error}). "
            f"Pass a file (--weights FILE), put {backbone.name.removeprefix('timm:')}.pth into a folder and set "
            "BLEMISH_WEIGHTS to it, or use the backbone `filters`, which needs no weights."
        ) from error
