"""From a coarse grid of scores to a smooth map at image size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from ..types import Size

_LEAST_WEIGHT = 1e-6


def enlarge_and_smooth(grid: Tensor, size: Size, *, sigma: float, inside: Tensor | None = None) -> Tensor:
    """Enlarge `(batch, h, w)` to `(batch, *size)` bilinearly, then smooth with a Gaussian of `sigma` pixels.

    Equal to `interpolate(mode="bilinear", align_corners=False)` followed by `scipy.ndimage.gaussian_filter(sigma)`
    (mode `reflect`, truncated at 4 sigma). Both steps are linear and separable, so each axis is one small matrix.
    With `inside`, bool of the grid's shape, only those cells count, with weights that sum to 1; 0 where none is near.
    """
    if sigma > max(size):  # the kernel would be longer than 8 images
        raise ArgumentError.about("sigma", expected=f"at most the image's {max(size)} pixels", got=sigma)
    rows = _axis_matrix(grid.shape[1], size[0], sigma).to(grid)
    columns = _axis_matrix(grid.shape[2], size[1], sigma).to(grid)
    if inside is None:
        return rows @ grid @ columns.T
    weights = rows @ inside.to(grid) @ columns.T
    total = rows @ (grid * inside) @ columns.T
    return torch.where(weights > _LEAST_WEIGHT, total / weights, 0)


def mean_of_highest(maps: Tensor, share: float, inside: Tensor | None = None) -> Tensor:
    """Mean of the highest values of each map, that share of them, but at least one; `(batch, h, w)` to `(batch,)`.

    Of the values `inside`, bool of the maps' shape, where given: -inf where there are none.
    """
    values = maps.flatten(1)
    if inside is not None:
        kept = inside.flatten(1)
        values = values.masked_fill(~kept, -torch.inf)
        counts = (share * kept.sum(dim=1)).round().clamp_min(1).long().tolist()
        return torch.stack(
            [row.topk(count, sorted=False).values.mean() for row, count in zip(values, counts, strict=True)]
        )
    count = max(1, round(share * values.shape[1]))
    return values.amax(dim=1) if count == 1 else values.topk(count, sorted=False).values.mean(dim=1)


@lru_cache(maxsize=16)
def _axis_matrix(coarse: int, fine: int, sigma: float) -> Tensor:
    """`(fine, coarse)` float64: smoothing after enlargement along one axis."""
    eye = torch.eye(coarse, dtype=torch.float64)[None]
    enlarged = functional.interpolate(eye, fine, mode="linear", align_corners=False)[0].T
    if sigma > 0:
        enlarged = torch.from_numpy(np.asarray(gaussian_filter1d(enlarged.numpy(), sigma, axis=0)))
    return enlarged.contiguous()
