"""Images turned by a given angle, what lies beyond the edge being mirrored."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def turned(pixels: Tensor, degrees: float) -> Tensor:
    """Turn `(batch, 3, height, width)` about the middle, clockwise as one sees them; the size stays."""
    _, _, height, width = pixels.shape
    a, b = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # In coordinates from -1 to 1 on both axes, so a turn also changes the unit.
    theta = torch.tensor([[a, b * height / width, 0], [-b * width / height, a, 0]], device=pixels.device)
    grid = functional.affine_grid(theta.expand(len(pixels), -1, -1), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
