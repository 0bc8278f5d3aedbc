"""Finding and reading weights: pretrained ones, or random ones on request.

The order: an explicit file; a file named after the network in the folder `$BLEMISH_WEIGHTS`; those that ship with the
package; the hub of torchvision or timm or the address of the row, which downloads once, says so, and caches.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ArgumentError, WeightsError, log
from .backbones import Backbone

StateDict = dict[str, Tensor]
_BUILTIN = Path(__file__).with_name("builtin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th")


def find_weights(backbone: Backbone, weights: str | Path | None = None, *, seed: int = 0) -> StateDict | None:
    """Return the parameters of a row: those of a file, `pretrained` (or None), or `random`; None where it needs none.

    Raises `WeightsError` that names all places searched.
    """
    if is_random(weights):
        return _random_weights(backbone, seed)
    if weights is not None and str(weights) != "pretrained":
        return read_weights(weights)
    if not backbone.source:
        return None
    file = _file_of(backbone)
    return _from_hub(backbone) if file is None else read_weights(file)


def check_weights(weights: str | Path | None) -> None:
    """Refuse, before any work, a file that is not there. Raises `WeightsError`."""
    if weights is not None and not is_random(weights) and str(weights) != "pretrained" and not os.path.isfile(weights):
        raise WeightsError(f"weights {weights}: the file does not exist.")


def at_hand(backbone: Backbone) -> bool:
    """Tell whether a row has its pretrained weights here, or needs none: nothing has to be downloaded."""
    return not backbone.source or _file_of(backbone) is not None


def _file_of(backbone: Backbone) -> Path | None:
    """In the folder `$BLEMISH_WEIGHTS`, or in the package."""
    folder = os.environ.get("BLEMISH_WEIGHTS")
    named = [Path(folder) / f"{backbone.network}{suffix}" for suffix in _SUFFIXES] if folder else []
    files = (*named, _BUILTIN / f"{backbone.network}.safetensors")
    return next((path for path in files if path.is_file()), None)


def is_random(weights: str | Path | None) -> bool:
    """Tell whether the network shall be as before any training; the command line gives the word as a path."""
    return str(weights) == "random"


def _random_weights(backbone: Backbone, seed: int) -> StateDict:
    if not backbone.source:
        raise ArgumentError.about(
            "weights", expected=f"none for {backbone.name}, which brings its own", got="random",
            instead="Random weights are for rows with pretrained ones.",
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(backbone.build().state_dict())


def read_weights(path: str | Path) -> StateDict:
    """Read a state dict from `.safetensors` or from a PyTorch file (tensors only: nothing in it is executed).

    A dict nested under `state_dict` or `model` is unwrapped, and a prefix `module.` on every name is dropped.
    """
    path = Path(path)
    if not os.path.isfile(path):
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
    log.warning("Getting the weights of %s (%s) from the hub, once ...", backbone.name, backbone.source)
    try:
        return _download(backbone)
    except Exception as error:  # network, proxy, disk and hub errors share no base class
        raise WeightsError(
            f"weights of {backbone.name}: not given, not in $BLEMISH_WEIGHTS "
            f"({os.environ.get('BLEMISH_WEIGHTS') or 'not set'}), and the download failed ({error}). "
            f"Pass a file (--weights FILE), put {backbone.network}.pth into a folder and set "
            "BLEMISH_WEIGHTS to it, or use the backbone `compact`, whose weights ship with blemish."
        ) from error


def _download(backbone: Backbone) -> StateDict:
    from .packages import timm_network, torchvision_weights

    if backbone.source.startswith("https:"):
        return dict(
            torch.hub.load_state_dict_from_url(
                backbone.source, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        )
    if backbone.name.startswith("timm:"):
        pinned = backbone.source.removeprefix("timm ") if backbone.source.startswith("timm ") else backbone.name
        return dict(timm_network(pinned, pretrained=True).state_dict())
    return torchvision_weights(backbone.network)
