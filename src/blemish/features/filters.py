"""Backbones without weights: a multi-scale, colour-aware bank of Gabor filters, and the bare pixels.

Each level works on an image half the size of the level before and describes every cell of its stride by
- the energy of quadrature Gabor pairs (6 orientations x 2 wavelengths) on luminance, and on the two opponent colours,
- the mean of luminance and of the opponent colours, and their horizontal and vertical gradients.
It needs no download and no licence. A pretrained network, such as the built-in `compact`, localises better.
The bare pixels are the classical baseline of one-class methods.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

ORIENTATIONS = 6
WAVELENGTHS = (3.5, 6.0)
_RADIUS = 6
CHANNELS = ORIENTATIONS * (len(WAVELENGTHS) + 1) + 9
"""Channels of one level: luminance energies, opponent energies, three means, six gradients."""

# Rows: luminance, red-green, yellow-blue; orthonormal up to scale, so that no colour direction is lost.
_OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]])

# Energies and gradients of natural images are much smaller than their means. These factors bring all channels to
# about unit spread, which is the scale on which regularisation constants such as PaDiM's 0.01 are meant.
_ENERGY_SCALE, _MEAN_SCALE, _GRADIENT_SCALE = 6.0, 3.0, 8.0


def gabor_pairs() -> Tensor:
    """Quadrature Gabor kernels `(2 * orientations * wavelengths, 1, k, k)`: all even ones, then all odd ones."""
    axis = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    even, odd = [], []
    for wavelength in WAVELENGTHS:
        envelope = torch.exp(-(x**2 + y**2) / (2 * (0.5 * wavelength) ** 2))
        for k in range(ORIENTATIONS):
            angle = math.pi * k / ORIENTATIONS
            phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
            cosine = envelope * torch.cos(phase)
            # Remove the response to a constant image: brightness belongs to the means, not to the energies.
            cosine = cosine - envelope * (cosine.sum() / envelope.sum())
            even.append(cosine / cosine.abs().sum())
            sine = envelope * torch.sin(phase)
            odd.append(sine / sine.abs().sum())
    return torch.stack(even + odd)[:, None].float()


class FilterLevel(nn.Module):
    """Describe an opponent-colour image `(batch, 3, height, width)` by cells of `cell` x `cell` pixels."""

    kernels: Tensor

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.register_buffer("kernels", gabor_pairs(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return `(batch, CHANNELS, height / cell, width / cell)`."""
        means = functional.avg_pool2d(image, self.cell)
        luminance = self._energies(image[:, :1], self.kernels)
        even, odd = self.kernels.chunk(2)
        coarse = torch.cat([even[-ORIENTATIONS:], odd[-ORIENTATIONS:]])
        colour = self._energies(image[:, 1:2], coarse) + self._energies(image[:, 2:3], coarse)
        padded = functional.pad(means, (1, 1, 1, 1), mode="replicate")
        dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        return torch.cat(
            [
                luminance.mul_(_ENERGY_SCALE),
                colour.mul_(_ENERGY_SCALE),
                means * _MEAN_SCALE,
                dx * _GRADIENT_SCALE,
                dy * _GRADIENT_SCALE,
            ],
            dim=1,
        )

    def _energies(self, plane: Tensor, kernels: Tensor) -> Tensor:
        padded = functional.pad(plane, (_RADIUS,) * 4, mode="reflect")
        even, odd = functional.conv2d(padded, kernels).chunk(2, dim=1)
        magnitude = even.square().add_(odd.square()).add_(1e-8).sqrt_()
        # The root makes faint texture count beside strong edges; the mean over the cell makes it stable.
        return functional.avg_pool2d(magnitude, self.cell).sqrt_()


class FilterBank(nn.Module):
    """Three levels with strides 4, 8 and 16. Input: RGB in [0, 1], at least 64 pixels a side."""

    opponent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("opponent", _OPPONENT[:, :, None, None].clone(), persistent=False)
        self.level1, self.level2, self.level3 = FilterLevel(4), FilterLevel(4), FilterLevel(4)

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the three levels; the features are read at `level1`, `level2`, `level3`."""
        image = functional.conv2d(pixels, self.opponent)
        self.level1(image)
        image = functional.avg_pool2d(image, 2)
        self.level2(image)
        deepest: Tensor = self.level3(functional.avg_pool2d(image, 2))
        return deepest


PIXELS_SIDE = 32


class Thumbnail(nn.Module):
    """An image averaged down to 32 x 32 (an even smaller one: repeated), as one position with 3072 channels."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(batch, 3 * 32 * 32, 1, 1)`, channel by channel and row by row."""
        return functional.adaptive_avg_pool2d(pixels, PIXELS_SIDE).reshape(len(pixels), -1, 1, 1)


class Pixels(nn.Module):
    """The bare pixels. Input: RGB in [0, 1], of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.thumbnail = Thumbnail()

    def forward(self, pixels: Tensor) -> Tensor:
        """The features are read at `thumbnail`."""
        small: Tensor = self.thumbnail(pixels)
        return small
