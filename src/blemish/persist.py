"""Model files: one safetensors file whose header holds a JSON manifest. No pickle, nothing in a file is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import ModelFileError, OutputError
from .files import whole_file

FORMAT = 2
Manifest = dict[str, Any]


def save(path: str | Path, tensors: dict[str, Tensor], manifest: Manifest) -> None:
    """Write a model file, in one step: see `files.whole_file`."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    manifest = {"format": FORMAT, **manifest, "digest": digest(tensors)}
    with whole_file(path) as file:
        try:
            save_file(tensors, file, metadata={"blemish": json.dumps(manifest, sort_keys=True)})
        except SafetensorError as error:
            raise OutputError(f"{path}: cannot be written ({error}).") from error


def load(path: str | Path) -> tuple[dict[str, Tensor], Manifest]:
    """Read a model file and check its digest."""
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: the file does not exist. `blemish fit DATA --out {path}` makes one.")
    try:
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {}).get("blemish", "null"))
            # Copies: a tensor that maps the file would change with it, and would keep it from being replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path}: not a model file, or damaged ({error}). Save or copy it again.") from error
    if not isinstance(manifest, dict):
        raise ModelFileError(f"{path}: a safetensors file, but not written by blemish: it has no manifest.")
    if manifest.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: format {manifest.get('format')}, this version reads format {FORMAT}. "
            f"Use blemish {manifest.get('versions', {}).get('blemish', '(unknown)')}, or fit again."
        )
    if manifest["digest"] != digest(tensors):
        raise ModelFileError(f"{path}: damaged, the content does not match its digest. Copy or save it again.")
    return tensors, manifest


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and content, whatever the order and the device."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
