"""Model files: one safetensors file whose header holds a JSON manifest. No pickle, nothing in a file is executed.

The header's metadata have one entry, `blemish`: the manifest, a JSON object. Format 3 says of every file:

| key | holds |
|---|---|
| `format` | 3 |
| `digest` | SHA-256 over the rest of the manifest and over names, types, shapes and content of all tensors |
| anything else | sections of the writer, who checks them: `model_file.ModelManifest`, the `run` of a checkpoint, ... |

So one flipped bit is noticed wherever it is. The digest finds accidents; whoever can write a file can write its digest.
Format 2, whose digest covers the tensors alone, is still read; `blemish upgrade` makes format 3 of it.

A file may be damaged or made by anybody, so this module bounds what it reads: the header, the manifest and its nesting.
What the sections and tensors must be is for their reader to check, with `check_tensors` and `parameters.read_plain`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import ModelFileError, OutputError
from .files import whole_file

FORMAT = 3
READ_FORMATS = (2, 3)
Manifest = dict[str, Any]

_HEADER_BYTES = 16 << 20
"""A network of 5000 tensors has a header of half a megabyte."""
_MANIFEST_CHARACTERS = 4 << 20
_DEPTH = 16
"""How deep lists and objects of a manifest may lie in each other; ours take 5."""
_EMPTY = 1 << 24
"""What the sizes of a tensor without numbers may multiply to, but for the zeros: a reader may make others of them."""
_PLAIN = re.compile(r'"(?:[^"\\]|\\.?)*"?|[^][{}"]+', re.DOTALL)
"""All of a JSON text but its brackets. It never fails once begun, so it takes no more than one pass."""
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""What safetensors calls the types that we write."""


def save(path: str | Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    """Write a model file, in one step: see `files.whole_file`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    manifest = json.loads(json.dumps({**manifest, "format": FORMAT}, allow_nan=False))  # as it will be read
    manifest["digest"] = _content_digest(tensors, manifest)
    with whole_file(path) as file:
        try:
            save_file(tensors, file, metadata={"blemish": json.dumps(manifest, sort_keys=True)})
        except SafetensorError as error:
            raise OutputError(f"{path}: cannot be written ({_reason(error)}).") from error


def load(path: str | Path) -> tuple[dict[str, Tensor], Manifest]:
    """Read a model file and check its digest. Raises `ModelFileError`, which says what is wrong with which file."""
    path = Path(path)
    try:
        _check_file(path)
        with safe_open(path, framework="pt") as file:
            manifest = _read_manifest(path, (file.metadata() or {}).get("blemish"))
            tensors = {name: _read_tensor(path, file, name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ModelFileError(f"{path}: damaged ({_reason(error)}). Copy or save it again.") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found = digest(tensors) if manifest["format"] == 2 else _content_digest(tensors, manifest)
    if manifest.get("digest") != found:
        raise ModelFileError(f"{path}: damaged, the content does not match its digest. Copy or save it again.")
    return tensors, manifest


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and content, whatever the order and the device."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def _check_file(path: Path) -> None:
    """Tell what is no safetensors file, by its first bytes, and bound its header. Raises `OSError` too."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a null byte
        raise ModelFileError(f"{path}: the file does not exist. Check its name and its folder.") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
        raise ModelFileError(f"{path}: expected a model file, got {kind}.")
    with path.open("rb") as file:
        start = file.read(9)
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if start[8:] != b"{":
        raise ModelFileError(f"{path}: not a model file, it is no safetensors file. Choose another file.")
    if length > min(_HEADER_BYTES, status.st_size - 8):
        raise ModelFileError(
            f"{path}: damaged, its header would have {length} bytes: the file is cut off, or no model file. "
            "Copy or save it again."
        )


def _read_tensor(path: Path, file: Any, name: str) -> Tensor:
    """A copy: a tensor that maps the file would change with it, and would keep it from being replaced."""
    kind = file.get_slice(name).get_dtype()
    if kind not in _TYPES:
        raise ModelFileError(f"{path}: tensor {name[:80]!r}: type {kind}, which no version of blemish writes.")
    tensor: Tensor = file.get_tensor(name).clone()
    if not tensor.numel() and math.prod(size for size in tensor.shape if size) > _EMPTY:
        raise ModelFileError(f"{path}: tensor {name[:80]!r}: {tuple(tensor.shape)}, which no number is behind.")
    return tensor


def _read_manifest(path: Path, text: str | None) -> Manifest:
    if text is None:
        raise ModelFileError(f"{path}: a safetensors file, but not written by blemish: it has no manifest.")
    try:
        if len(text) > _MANIFEST_CHARACTERS or _depth(text) > _DEPTH:
            raise ValueError("too large, or too deeply nested")
        manifest = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_refuse, parse_float=_finite, parse_int=_whole
        )
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ModelFileError(f"{path}: damaged, its manifest cannot be read ({error}).") from error
    known = manifest.get("format")
    if type(known) is not int or known not in READ_FORMATS:
        raise ModelFileError(
            f"{path}: format {str(known)[:20]}, this version reads formats {' and '.join(map(str, READ_FORMATS))}. "
            f"Use blemish {_writer(manifest)}, or fit again."
        )
    return manifest


def _writer(manifest: Manifest) -> str:
    """The version of blemish that wrote a file, where that can be told."""
    versions = manifest.get("versions")
    version = versions.get("blemish") if isinstance(versions, dict) else None
    return version if isinstance(version, str) and version.isprintable() and len(version) < 20 else "(unknown)"


def _depth(text: str) -> int:
    """How deep a JSON text is nested, at most."""
    deepest = depth = 0
    for bracket in _PLAIN.sub("", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant[:20]} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _whole(text: str) -> int:
    number = int(text) if len(text) < 20 else 1 << 63
    return number if -(1 << 63) <= number < 1 << 63 else int(_refuse(text))


def _content_digest(tensors: Mapping[str, Tensor], manifest: Manifest) -> str:
    """SHA-256 of a manifest, but for its digest, and of all tensors."""
    described = {key: value for key, value in manifest.items() if key != "digest"}
    table = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in sorted(tensors)]
    # One JSON text, so that nothing in it can be taken for something else; the content has the lengths that it says.
    found = hashlib.sha256(json.dumps([described, table], sort_keys=True, allow_nan=False).encode())
    for name, _, _ in table:
        found.update(_bytes(tensors[name]))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _reason(error: SafetensorError) -> str:
    """What the system said, without the type names of another language around it."""
    found = re.search(r'message: "([^"]+)"', str(error))
    return found[1] if found else str(error)
