"""A few cheap numbers of a picture: light, focus and position move them where scores hardly move."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Look


def looks_of(pixels: Tensor) -> list[Look | None]:
    """The look of each picture of `(batch, 3, height, width)`; None where pixels are NaN, as maps that were kept have.

    A picture without any difference has sharpness 0, and its place in the middle.
    """
    grey = pixels.mean(dim=1, dtype=torch.float64)
    across, down = grey.diff(dim=2).abs(), grey.diff(dim=1).abs()
    first = across.mean(dim=(1, 2)) + down.mean(dim=(1, 2))
    second = sum(grey.diff(n=2, dim=axis).abs().mean(dim=(1, 2)) for axis in (1, 2))
    columns = (
        grey.mean(dim=(1, 2)), grey.std(dim=(1, 2), correction=0), torch.where(first > 0, second / first, 0),
        _mean_place(across.sum(dim=1)), _mean_place(down.sum(dim=2)),
    )  # fmt: skip
    rows = torch.stack(columns, dim=1)
    return [Look(*row.tolist()) if bool(row.isfinite().all()) else None for row in rows]


def _mean_place(weights: Tensor) -> Tensor:
    """Of `(batch, places)`, from 0 to 1."""
    places = torch.linspace(0, 1, weights.shape[1], dtype=weights.dtype, device=weights.device)
    total = weights.sum(dim=1)
    return torch.where(total == 0, 0.5, weights @ places / total)
