"""From feature maps to one embedding vector a position: alignment, concatenation, and choice of dimensions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from ..types import FeatureMaps


def concatenate(features: FeatureMaps, channels: Sequence[Tensor] | None = None) -> Tensor:
    """Align all maps to the largest by nearest neighbour and concatenate them: `(batch, position, dimension)`.

    `channels` picks channels of each map, one index tensor a map; the positions run row by row.
    """
    size = _largest(features.maps)  # also where nothing of the largest map is picked
    maps = features.maps if channels is None else _pick(features.maps, channels)
    aligned = [m if tuple(m.shape[2:]) == size else functional.interpolate(m, size, mode="nearest") for m in maps]
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in aligned], dim=2)


def project(features: FeatureMaps, matrix: Tensor) -> Tensor:
    """Multiply the concatenated embedding by `matrix` `(all channels, dimension)`: `(batch, position, dimension)`.

    Each map is projected at its own size and enlarged afterwards, which is the same and much cheaper.
    """
    size = _largest(features.maps)
    blocks = torch.split(matrix, [m.shape[1] for m in features.maps])
    total = matrix.new_zeros(())
    for m, block in sorted(zip(features.maps, blocks, strict=True), key=lambda pair: -pair[0].shape[2]):
        small = functional.conv2d(m, block.T[:, :, None, None])
        total = small if total.ndim == 0 and tuple(small.shape[2:]) == size else _add_enlarged(total, small, size)
    return total.permute(0, 2, 3, 1).flatten(1, 2)


def _add_enlarged(total: Tensor, small: Tensor, size: tuple[int, int]) -> Tensor:
    """Add `small`, enlarged to `size` by nearest neighbour, to `total`, in place where the sizes divide."""
    h, w = small.shape[2:]
    if total.ndim == 0 or size[0] % h or size[1] % w:
        return total + functional.interpolate(small, size, mode="nearest")
    blocks = total.unflatten(3, (w, size[1] // w)).unflatten(2, (h, size[0] // h))  # type: ignore[no-untyped-call]
    blocks += small[:, :, :, None, :, None]
    return total


def random_channels(channels: Sequence[int], d: int, *, seed: int) -> tuple[Tensor, ...]:
    """Choose `d` of all channels at random (R_d of the PaDiM paper): an index tensor a map.

    The draw is Python's `random.sample`, as in the common re-implementation, so that a seed names the same channels.
    """
    total = sum(channels)
    if not 1 <= d <= total:
        raise ArgumentError.about("dimensions", expected=f"1 to {total}, the channels of the taps", got=d)
    chosen = sorted(random.Random(seed).sample(range(total), d))
    starts = [sum(channels[:i]) for i in range(len(channels))]
    return tuple(
        torch.tensor([c - start for c in chosen if start <= c < start + count], dtype=torch.long)
        for start, count in zip(starts, channels, strict=True)
    )


def semi_orthogonal(total: int, d: int, *, seed: int) -> Tensor:
    """A random `(total, d)` float32 matrix with orthonormal columns (Kim et al., Semi-orthogonal Embedding, 2021)."""
    if not 1 <= d <= total:
        raise ArgumentError.about("dimensions", expected=f"1 to {total}, the channels of the taps", got=d)
    normal = torch.randn(total, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    # The sign convention makes the draw uniform, and the same for every LAPACK.
    columns: Tensor = q * r.diagonal().sign()
    return columns.float()


def _pick(maps: Sequence[Tensor], channels: Sequence[Tensor]) -> list[Tensor]:
    return [m.index_select(1, index.to(m.device)) for m, index in zip(maps, channels, strict=True) if len(index)]


def _largest(maps: Sequence[Tensor]) -> tuple[int, int]:
    return max((m.shape[2], m.shape[3]) for m in maps)
