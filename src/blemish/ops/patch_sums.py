"""Mean and covariance of patches that several layers make together, without making the patches.

A patch is what all layers say at one position of a common grid: x_l(p) = sum_q E_l(p, q) a_l(q), where E_l enlarges
layer l bilinearly. Sums over positions then need products at the coarser grid of two layers only,

    sum_p x_l(p) x_m(p)^T = a_l^T (E_l^T E_m) a_m,

and E_l^T E_m is separable: one small matrix an axis, that brings the finer map a_l to the grid of a_m.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from ..types import Size
from .shrinkage import Sums


class PatchSums(Sums):
    """Sums over n patches of d channels."""

    def update(self, maps: Sequence[Tensor], size: Size) -> None:
        """Take `(batch, channels, h, w)` layers, enlarged to `size`."""
        layers = [m.double() for m in maps]
        sides = [(m.shape[2], m.shape[3]) for m in maps]
        starts = [sum(m.shape[1] for m in maps[:i]) for i in range(len(maps))]
        ones = torch.ones(1, *size, dtype=torch.float64, device=self.linear.device)
        self.count += len(maps[0]) * size[0] * size[1]
        for i, first in enumerate(layers):
            rows = slice(starts[i], starts[i] + first.shape[1])
            self.linear[rows] += (_moved(ones, size, sides[i], size) * first).sum(dim=(0, 2, 3))
            for j, second in enumerate(layers[: i + 1]):
                columns = slice(starts[j], starts[j] + second.shape[1])
                fine, coarse = (first, second) if sides[i] >= sides[j] else (second, first)
                brought = _moved(fine, fine.shape[2:], coarse.shape[2:], size)
                block = brought.transpose(0, 1).flatten(1) @ coarse.transpose(0, 1).flatten(1).T
                block = block if fine is first else block.T
                self.outer[rows, columns] += block
                if i != j:
                    self.outer[columns, rows] += block.T


def _moved(maps: Tensor, fine: Sequence[int], coarse: Sequence[int], size: Size) -> Tensor:
    """E_fine^T E_coarse applied: from the grid `fine` to the grid `coarse`, both enlarged to `size`."""
    rows, columns = (_overlap(fine[i], coarse[i], size[i]).to(maps.device) for i in (0, 1))
    return rows.T @ maps @ columns


@lru_cache(maxsize=64)
def _overlap(fine: int, coarse: int, size: int) -> Tensor:
    """E_fine^T E_coarse along one axis, `(fine, coarse)` float64."""
    first, second = (
        functional.interpolate(torch.eye(n, dtype=torch.float64)[None], size, mode="linear", align_corners=False)[0]
        for n in (fine, coarse)
    )
    return first @ second.T
