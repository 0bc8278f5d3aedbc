"""Outliers made from in-distribution images, to tune detectors where there are no real outliers."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("noise", "shuffled patches", "mirror blend")


def synthetic_outliers(pixels: Tensor, *, first: int, seed: int) -> Tensor:
    """One outlier for each image of `(n, 3, height, width)`, the kinds in turn; `first` is the first image's index.

    Uniform noise; the image with a 4 x 4 grid of patches in random order; the mean of the image and its left-right,
    upside-down mirror image. Each depends on its own image, `first` and `seed` only.
    """
    made = [_outlier(image, first + i, seed) for i, image in enumerate(pixels)]
    return torch.stack(made)


def _outlier(image: Tensor, index: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed * 1_000_003 + index)
    kind = KINDS[index % len(KINDS)]
    if kind == "noise":
        return torch.rand(image.shape, generator=random)
    if kind == "mirror blend":
        return (image + image.flip(1, 2)) / 2
    height, width = (side // 4 for side in image.shape[1:])
    patches = [image[:, r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(4) for c in range(4)]
    order = torch.randperm(16, generator=random).tolist()
    shuffled = image.clone()
    for place, chosen in enumerate(order):
        row, column = divmod(place, 4)
        shuffled[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = patches[chosen]
    return shuffled
