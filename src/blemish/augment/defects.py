"""Images that are not quite normal, made from normal ones: what stands in for anomalies where none may be seen.

Each family takes and returns `(batch, 3, height, width)` float32 in [0, 1] and draws from a generator alone, for each
image anew. Lengths are shares of the image's sides, so that a family means the same at every size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

_CHAINS, _DEPTH = 3, 3


def cut_out(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of 1 to 5 % of the area in the image's mean colour (DeVries and Taylor, 2017)."""
    changed = pixels.clone()
    for image in changed:
        height, width = _sides(generator, area=(0.01, 0.05), ratio=(0.5, 2.0))
        inside, _ = _rectangle(image, (height, width), 0.0, generator)
        image.copy_(torch.where(inside, image.mean(dim=(1, 2), keepdim=True), image))
    return changed


def cut_paste(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of 2 to 15 % of the area lies a second time somewhere else (Li et al., "CutPaste", CVPR 2021)."""
    changed = pixels.clone()
    for image in changed:
        _paste(image, _sides(generator, area=(0.02, 0.15), ratio=(0.3, 1 / 0.3)), 0.0, generator)
    return changed


def scar(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A thin strip of the image lies somewhere else, turned by up to 45 degrees (the same paper)."""
    changed = pixels.clone()
    for image in changed:
        strip = uniform(generator, 10 / 256, 25 / 256), uniform(generator, 2 / 256, 16 / 256)
        _paste(image, strip, uniform(generator, -math.pi / 4, math.pi / 4), generator)
    return changed


def augmix(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A mixture of the image with chains of up to three small changes (Hendrycks et al., "AugMix", ICLR 2020).

    Dirichlet(1, 1, 1) weights of the chains, and a Beta(1, 1) share of the untouched image.
    """
    mixed = []
    for image in pixels:
        drawn = -torch.rand(_CHAINS, generator=generator).clamp_min(1e-12).log()
        total = torch.zeros_like(image)
        for weight in (drawn / drawn.sum()).tolist():
            chain = image
            for _ in range(1 + int(torch.randint(_DEPTH, (), generator=generator))):
                change = _CHANGES[int(torch.randint(len(_CHANGES), (), generator=generator))]
                chain = change(chain, generator)
            total += weight * chain
        share = uniform(generator, 0.0, 1.0)
        mixed.append(share * image + (1 - share) * total)
    return torch.stack(mixed).clamp(0, 1)


Family = Callable[[Tensor, torch.Generator], Tensor]
FamilyName = Literal["augmix", "cutout", "cutpaste", "scar"]

FAMILIES: dict[FamilyName, Family] = {"augmix": augmix, "cutout": cut_out, "cutpaste": cut_paste, "scar": scar}
"""Name of a family, and the function that makes it."""


def _paste(image: Tensor, sides: tuple[float, float], angle: float, generator: torch.Generator) -> None:
    """Copy a rectangle of these shares of the sides to another place, turned, a tenth brighter or darker."""
    _, height, width = image.shape
    inside, (y, x) = _rectangle(image, sides, angle, generator)
    half = sides[0] * height / 2, sides[1] * width / 2
    top, left = (uniform(generator, h, size - h) for h, size in zip(half, (height, width), strict=True))
    points = torch.stack([(x + left) / width, (y + top) / height], dim=2) * 2 - 1
    moved = functional.grid_sample(image[None], points[None], padding_mode="border", align_corners=False)[0]
    image.copy_(torch.where(inside, (moved * uniform(generator, 0.9, 1.1)).clamp(0, 1), image))


def _rectangle(
    image: Tensor, sides: tuple[float, float], angle: float, generator: torch.Generator
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Which pixels lie in a turned rectangle around a random place, and where in it: `(height, width)`, pixels."""
    _, height, width = image.shape
    v = torch.arange(height)[:, None] + 0.5 - uniform(generator, 0.1, 0.9) * height
    u = torch.arange(width) + 0.5 - uniform(generator, 0.1, 0.9) * width
    y = v * math.cos(angle) - u * math.sin(angle)
    x = v * math.sin(angle) + u * math.cos(angle)
    # No part of an image is too small to hold a pixel.
    inside = (y.abs() <= max(sides[0] * height, 1.5) / 2) & (x.abs() <= max(sides[1] * width, 1.5) / 2)
    return inside, (y, x)


def _sides(generator: torch.Generator, *, area: tuple[float, float], ratio: tuple[float, float]) -> tuple[float, float]:
    share = uniform(generator, *area)
    shape = drawn(generator, *ratio)
    return math.sqrt(share * shape), math.sqrt(share / shape)


def _warped(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """Move an image by a matrix `(2, 3)` over pixels, the shift being a share of the sides; the edge is mirrored."""
    _, height, width = image.shape
    (a, b, c), (d, e, f) = matrix
    theta = torch.tensor([[a, b * height / width, 2 * c], [d * width / height, e, 2 * f]])
    grid = functional.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    return functional.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]


def _turn(image: Tensor, generator: torch.Generator) -> Tensor:
    angle = uniform(generator, -math.pi / 12, math.pi / 12)
    return _warped(image, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


def _shear(image: Tensor, generator: torch.Generator) -> Tensor:
    x, y = uniform(generator, -0.1, 0.1), uniform(generator, -0.1, 0.1)
    return _warped(image, [[1, x, 0], [y, 1, 0]])


def _shift(image: Tensor, generator: torch.Generator) -> Tensor:
    return _warped(image, [[1, 0, uniform(generator, -0.1, 0.1)], [0, 1, uniform(generator, -0.1, 0.1)]])


def _posterise(image: Tensor, generator: torch.Generator) -> Tensor:
    levels = 2 ** (2 + int(torch.randint(3, (), generator=generator)))
    shades: Tensor = (image * levels).floor().clamp_max(levels - 1) / (levels - 1)
    return shades


def _solarise(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(image > uniform(generator, 0.7, 1.0), 1 - image, image)


def _stretch(image: Tensor, _generator: torch.Generator) -> Tensor:
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (image - low) / (high - low).clamp_min(1e-6), image)


_CHANGES = (_turn, _shear, _shift, _posterise, _solarise, _stretch)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number between the two."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def drawn(generator: torch.Generator, low: float, high: float) -> float:
    """Between the two, on a logarithmic scale."""
    return math.exp(uniform(generator, math.log(low), math.log(high)))
