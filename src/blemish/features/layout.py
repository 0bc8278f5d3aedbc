"""From whatever a network's module returns to a feature map `(batch, channels, h, w)`.

Three layouts occur: maps with channels first (convolutional networks), maps with channels last (Swin and its kin), and
tokens `(batch, tokens, channels)` (plain transformers and mixers), often with class and register tokens in front.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from ..types import Size

_MAX_PREFIX = 16
"""Tokens in front of the grid; known networks have up to 9."""


def main_output(output: Any) -> Any:
    """Of a module that returns several things, the first: the others are sizes, class tokens, side branches."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


class Reached(Exception):
    """Ends a forward pass early, from within a hook; never leaves `watching`."""


@contextmanager
def watching(handles: Iterable[Any]) -> Iterator[None]:
    """Take hooks, by their handles, off again after a pass, which may end with `Reached`."""
    try:
        yield
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class MapLayout:
    """What of an output's form is the same for images of any size, and best read from a square image."""

    channels_last: bool = False
    prefix: int | None = None
    """Tokens in front of the grid; None where it is unknown."""


def read_layout(output: object, *, image_size: Size, channels: int | None = None) -> MapLayout:
    """Tell `(batch, h, w, channels)` from `(batch, channels, h, w)`, by the channels where they are known.

    Else the reading whose h : w is nearer to the image's is taken, and channels first where both are equally near. Of
    tokens, the largest grid in the proportion of the image is taken.
    """
    if not isinstance(output, Tensor) or not output.numel():
        return MapLayout()
    if output.ndim == 3:
        fitting = (n for n in range(_MAX_PREFIX + 1) if _grid(output.shape[1] - n, image_size))
        return MapLayout(prefix=next(fitting, None))
    if output.ndim != 4:
        return MapLayout()
    first, last = output.shape[1] == channels, output.shape[3] == channels
    if first != last:
        return MapLayout(channels_last=last)
    return MapLayout(_mismatch(output.shape[1:3], image_size) < _mismatch(output.shape[2:4], image_size))


def as_map(output: object, *, tap: str, pixels: Tensor, layout: MapLayout | None = None) -> Tensor:
    """Return what the module `tap` made of `pixels` as `(batch, channels, h, w)`; a view, never a copy.

    >>> import torch
    >>> pixels = torch.zeros(2, 3, 128, 192)
    >>> as_map(torch.zeros(2, 1 + 8 * 12, 192), tap="blocks.3", pixels=pixels).shape
    torch.Size([2, 192, 8, 12])
    """
    size = (pixels.shape[2], pixels.shape[3])
    # Windows and other parts of an image may take the place of the images.
    if isinstance(output, Tensor) and output.ndim in (3, 4) and output.shape[0] == pixels.shape[0] and output.numel():
        known = layout or read_layout(output, image_size=size)
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if known.channels_last else output
        grid = None if known.prefix is None else _grid(output.shape[1] - known.prefix, size)
        if grid is not None:
            tokens: Tensor = output[:, known.prefix :].transpose(1, 2)
            return tokens.unflatten(2, grid)  # type: ignore[no-untyped-call, no-any-return]
    raise ArgumentError.about(
        f"tap {tap}",
        expected="a module with output (batch, channels, h, w), (batch, h, w, channels), or (batch, tokens, channels) "
        f"with a grid of tokens in the proportion of the images, {size[0]} : {size[1]}",
        got=output,
    )


def _mismatch(grid: tuple[int, ...], image_size: Size) -> float:
    return abs(math.log(grid[0] * image_size[1] / (grid[1] * image_size[0])))


def _grid(cells: int, image_size: Size) -> Size | None:
    """Arrange this many cells in the proportion of the image, where that is possible."""
    height, width = image_size
    h = round(math.sqrt(max(cells, 0) * height / width))
    # Strides that do not divide the image round each side of the grid: h may be one off, and so may the proportion.
    fitting = [
        (rows, cells // rows)
        for rows in (h - 1, h, h + 1)
        if rows > 0 and cells % rows == 0 and abs(rows * width - cells // rows * height) < max(image_size)
    ]
    return min(fitting, key=lambda grid: _mismatch(grid, image_size), default=None)
