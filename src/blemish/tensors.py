"""Named tensors that came out of a file: what a reader asks of them before it takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import ModelFileError

_NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensors(tensors: Mapping[str, Tensor], patterns: Mapping[str, str]) -> dict[str, int]:
    """Refuse other tensors than these; gives the sizes that have names. Raises `ModelFileError`.

    A pattern is a type, or several with `|` between, and a size for each dimension: a number, or a name that stands for
    one size wherever it is used. A tensor whose name ends in `?` may be missing. All must be finite.

    >>> found = {"bank": torch.zeros(7, 3), "centre": torch.zeros(3)}
    >>> check_tensors(found, {"bank": "float32 vectors d", "centre": "float32 d", "scale?": "float32 d"})
    {'vectors': 7, 'd': 3}
    >>> check_tensors(found, {"bank": "float32 vectors d", "centre": "float32 vectors"})
    Traceback (most recent call last):
    blemish.errors.ModelFileError: tensor centre: expected float32 (vectors = 7), got float32 (3).
    """
    known = {name.removesuffix("?") for name in patterns}
    for name in tensors:
        if name not in known:
            raise ModelFileError(f"tensor {name}: not expected here.")
    sizes: dict[str, int] = {}
    for name, pattern in patterns.items():
        if name.removesuffix("?") in tensors:
            _check_tensor(name.removesuffix("?"), tensors[name.removesuffix("?")], pattern, sizes)
        elif not name.endswith("?"):
            raise ModelFileError(f"tensor {name}: missing.")
    return sizes


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity. Raises `ModelFileError`."""
    for name, tensor in tensors.items():
        if tensor.dtype in _NUMBERS and not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"tensor {name}: NaN or infinity in it.")


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_tensor(name: str, tensor: Tensor, pattern: str, sizes: dict[str, int]) -> None:
    types, *wanted = pattern.split()
    got = tuple(tensor.shape)
    right = str(tensor.dtype).removeprefix("torch.") in types.split("|") and len(got) == len(wanted)
    for size, given in zip(wanted, got, strict=False):
        right = right and given == (int(size) if size.isdecimal() else sizes.setdefault(size, given))
    if not right:
        spelled = ", ".join(f"{size} = {sizes[size]}" if size in sizes else size for size in wanted)
        found = f"{str(tensor.dtype).removeprefix('torch.')} ({', '.join(map(str, got))})"
        raise ModelFileError(f"tensor {name}: expected {types.replace('|', ' or ')} ({spelled}), got {found}.")
