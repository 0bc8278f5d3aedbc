"""Random views of images for contrastive learning (Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for
Contrastive Learning of Visual Representations", 2020, appendix A), drawn from a generator alone.

All take and return `(batch, 3, height, width)` float32 in [0, 1]; each image gets its own draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LUMINANCE = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
_BLUR_RADIUS = 4


def random_view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crop (a fifth to all of the area), mirror (half of the images), colour (0.8), grey (0.2) and blur (0.5)."""
    view = mirror(crop(pixels, generator), generator)
    view = sometimes(0.8, view, jitter(view, generator), generator)
    view = sometimes(0.2, view, grey(view), generator)
    return sometimes(0.5, view, blur(view, generator), generator)


def sometimes(share: float, plain: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
    """Take the changed image with this probability, else the plain one."""
    return torch.where(_uniform(plain, generator) < share, changed, plain)


def crop(pixels: Tensor, generator: torch.Generator, *, area: tuple[float, float] = (0.2, 1.0)) -> Tensor:
    """A part of this share of the area, its sides as 3 : 4 to 4 : 3, enlarged bilinearly to the whole size.

    A side that would be longer than the image is cut to it.
    """
    share = area[0] + (area[1] - area[0]) * _uniform(pixels, generator).flatten()
    ratio = (math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * _uniform(pixels, generator).flatten()).exp()
    wide, high = (share * ratio).sqrt().clamp_max(1), (share / ratio).sqrt().clamp_max(1)
    # In coordinates where the image runs from -1 to 1: the middle lies where the part still fits.
    x = (2 * _uniform(pixels, generator).flatten() - 1) * (1 - wide)
    y = (2 * _uniform(pixels, generator).flatten() - 1) * (1 - high)
    zero = torch.zeros_like(x)
    boxes = torch.stack([torch.stack([wide, zero, x], dim=1), torch.stack([zero, high, y], dim=1)], dim=1)
    grid = functional.affine_grid(boxes, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False).clamp(0, 1)


def mirror(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Exchange left and right in half of the images."""
    return sometimes(0.5, pixels, pixels.flip(3), generator)


def grey(pixels: Tensor) -> Tensor:
    """Luminance in all three channels."""
    return (pixels * _LUMINANCE).sum(dim=1, keepdim=True).expand_as(pixels)


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation by a factor of 0.6 to 1.4 each, then the hue by a tenth of the circle."""
    brighter = (pixels * _factor(pixels, generator)).clamp(0, 1)
    middle = grey(brighter).mean(dim=(1, 2, 3), keepdim=True)
    contrast = (middle + (brighter - middle) * _factor(pixels, generator)).clamp(0, 1)
    plain = grey(contrast)
    saturated = (plain + (contrast - plain) * _factor(pixels, generator)).clamp(0, 1)
    return turn_hue(saturated, 0.1 * (2 * _uniform(pixels, generator) - 1))


def turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue of the HSV model by `turn`, a share of the circle, `(batch, 1, 1, 1)`."""
    value, least = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    spread = value - least
    red, green, blue = pixels.split(1, dim=1)  # type: ignore[no-untyped-call]
    safe = torch.where(spread > 0, spread, 1)
    hue = torch.where(value == red, (green - blue) / safe, 4 + (red - green) / safe)
    hue = torch.where((value == green) & (value != red), 2 + (blue - red) / safe, hue)
    # A channel at hue h (in sixths): value - spread * clamp(min(k, 4 - k), 0, 1) with k = (n + h) mod 6, n = 5, 3, 1.
    place = (torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1) + hue + 6 * turn) % 6
    return value - spread * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian of a deviation of 0.1 to 2 pixels."""
    deviation = 0.1 + 1.9 * _uniform(pixels, generator).flatten()
    offset = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    weights = torch.exp(-(offset**2) / (2 * deviation[:, None] ** 2))
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    count, _, height, width = pixels.shape
    flat = pixels.reshape(1, 3 * count, height, width)
    for kernel, margin in ((weights[:, None, :, None], (0, 0, 1, 1)), (weights[:, None, None, :], (1, 1, 0, 0))):
        padded = functional.pad(flat, [_BLUR_RADIUS * side for side in margin], mode="replicate")
        flat = functional.conv2d(padded, kernel, groups=3 * count)
    return flat.reshape(pixels.shape).clamp(0, 1)


def _uniform(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(pixels), 1, 1, 1, generator=generator)


def _factor(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return 0.6 + 0.8 * _uniform(pixels, generator)
