"""What is usual at each position of maps: mean and deviation over images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import ArgumentError

PRIOR = 10
"""Images whose worth of the channel's mean variance is put to that of a position, so that a few images, or a channel
that never fired there, do not make a small change a giant one."""


def position_moments(parts: Iterable[Tensor], *, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel at each position of `(batch, channels, h, w)` maps: two `(channels, h, w)`.

    The variance is (n s^2 + 10 t) / (n + 10): s^2 is that of the n images there, t its mean over the positions, or over
    those `inside`, bool `(h, w)`: what is painted over does not vary.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        if count and part.shape[1:] != total.shape:
            raise ArgumentError.about("images", expected=f"maps of {tuple(total.shape)}", got=tuple(part.shape[1:]))
        values = part.double()
        count, total, squares = count + len(values), total + values.sum(dim=0), squares + values.square().sum(dim=0)
    mean = total / count
    own = (squares / count - mean.square()).clamp_min(0)
    typical = (own.flatten(1) if inside is None else own[:, inside]).mean(dim=1)[:, None, None]
    return mean.float(), ((count * own + PRIOR * typical) / (count + PRIOR)).sqrt().float()
