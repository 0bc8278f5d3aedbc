"""From feature maps to one embedding vector a position: alignment, concatenation, and choice of dimensions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from ..types import FeatureMaps

_AT_ONCE = 4
"""Images projected at a time: the maps between stay small, in memory that is there already; twice as fast as 16."""


def concatenate(features: FeatureMaps, channels: Sequence[Tensor] | None = None) -> Tensor:
    """Align all maps to the largest by nearest neighbour and concatenate them: `(batch, position, dimension)`.

    `channels` picks channels of each map, one index tensor a map; the positions run row by row.
    """
    size = _largest(features.maps)  # also where nothing of the largest map is picked
    maps = features.maps if channels is None else _pick(features.maps, channels)
    aligned = [m if tuple(m.shape[2:]) == size else functional.interpolate(m, size, mode="nearest") for m in maps]
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in aligned], dim=2)


def project(features: FeatureMaps, matrix: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Align all maps bilinearly, concatenate them, and multiply by `matrix` `(all channels, dimension)`.

    They are aligned to `size`; None: to the largest map.

    Each map is projected at its own size and enlarged afterwards, which is the same and much cheaper; the result is
    `(batch, position, dimension)`.
    """
    size = size or _largest(features.maps)
    blocks = [block.T[:, :, None, None] for block in torch.split(matrix, [m.shape[1] for m in features.maps])]
    images = len(features.maps[0])
    embedded = matrix.new_empty(images, size[0] * size[1], matrix.shape[1])
    for start in range(0, images, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        parts = (
            _enlarged(functional.conv2d(m[some], block), size) for m, block in zip(features.maps, blocks, strict=True)
        )
        total = next(parts)
        for part in parts:
            total = total.add_(part)
        embedded[some] = _flat(total)
    return embedded


def cells_inside(features: FeatureMaps, size: Sequence[int]) -> Tensor | None:
    """Which positions of a grid of this `(h, w)` have a pixel in the region of interest: `(batch, h, w)`; None: all."""
    if features.inside is None:
        return None
    return functional.adaptive_max_pool2d(features.inside[:, None].float(), (size[0], size[1]))[:, 0] > 0


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


def pool(maps: Tensor) -> Tensor:
    """Average over all positions: `(batch, channels)`."""
    return maps.mean(dim=(2, 3))


def averaged(features: FeatureMaps) -> FeatureMaps:
    """Average 3 x 3 neighbours, zeros beyond the edge, of every map."""
    return FeatureMaps(tuple(functional.avg_pool2d(m, 3, 1, 1) for m in features.maps), features.image_size)


def average_patches(features: FeatureMaps) -> Tensor:
    """Average 3 x 3 neighbours, enlarge to the first map bilinearly, concatenate: `(batch, position, channels)`."""
    return single_patches(averaged(features))


def single_patches(features: FeatureMaps) -> Tensor:
    """Enlarge all maps to the first one bilinearly and concatenate: `(batch, position, channels)`."""
    size = tuple(features.maps[0].shape[2:])
    return _flat(torch.cat([_enlarged(m, size) for m in features.maps], dim=1))


def unfolded_patches(features: FeatureMaps, kernels: Sequence[tuple[int, Tensor]], dimension: int) -> Tensor:
    """PatchCore's published embedding, `(batch, position, dimension)`; `kernels` come from `unfolding_kernels`.

    There, the 3 x 3 neighbours of all channels are unfolded, enlarged to the first map, pooled to equal length a map,
    stacked, and pooled again. Pooling is linear in channels and neighbours, and enlarging in positions, so they
    commute: a convolution that unfolds and pools at once, and then the enlargement of what is left.
    """
    size = tuple(features.maps[0].shape[2:])
    batch = len(features.maps[0])
    total = features.maps[0].new_zeros(batch, dimension, *size).contiguous(memory_format=torch.channels_last)
    for m, (start, kernel) in zip(features.maps, kernels, strict=True):
        total[:, start : start + len(kernel)] += _enlarged(functional.conv2d(m, kernel, padding=1), size)
    return _flat(total)


def unfolding_kernels(channels: Sequence[int], dimension: int) -> list[tuple[int, Tensor]]:
    """One convolution a map, and the first output channel it adds to: both adaptive poolings of PatchCore in one."""
    outer = _pooling_matrix(len(channels) * dimension, dimension)
    kernels = []
    for i, count in enumerate(channels):
        matrix = outer[:, i * dimension : (i + 1) * dimension] @ _pooling_matrix(count * 9, dimension)
        rows = matrix.any(dim=1).nonzero()[:, 0]
        first, last = int(rows[0]), int(rows[-1]) + 1
        kernels.append((first, matrix[first:last].reshape(-1, count, 3, 3).float()))
    return kernels


def _pooling_matrix(length: int, count: int) -> Tensor:
    """Adaptive average pooling from `length` to `count` as a `(count, length)` float64 matrix."""
    matrix = torch.zeros(count, length, dtype=torch.float64)
    for i in range(count):
        first, last = i * length // count, -((i + 1) * length // -count)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _enlarged(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(maps.shape[2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def _flat(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def gaussian_projection(total: int, dimension: int, *, seed: int) -> Tensor:
    """A random `(total, dimension)` matrix that roughly keeps distances (Johnson and Lindenstrauss, 1984)."""
    normal = torch.randn(total, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return normal.div_(dimension**0.5).float()


def _pick(maps: Sequence[Tensor], channels: Sequence[Tensor]) -> list[Tensor]:
    return [m.index_select(1, index.to(m.device)) for m, index in zip(maps, channels, strict=True) if len(index)]


def _largest(maps: Sequence[Tensor]) -> tuple[int, int]:
    return max((m.shape[2], m.shape[3]) for m in maps)
