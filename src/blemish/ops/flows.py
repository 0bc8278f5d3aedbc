"""Conditional normalising flows on vectors: a stack of affine coupling blocks with exact log-determinants.

The density of x given a condition c is that of z = f(x; c) under a standard normal, times |det df/dx|. One block, of
x = (a, b), where a is the longer half (Dinh et al., "Density estimation using Real NVP", ICLR 2017; with the global
affine map and the fixed soft permutation of Ardizzone et al., "Guided Image Generation with Conditional Invertible
Neural Networks", 2019):

    (r, t) = relu(a A + c C + u) B + v                    the subnet, twice as wide as its input
    s = clamp tanh(r / 10)                                soft clamping: a scale within exp(+-clamp)
    y = ((a, b exp(s) + t / 10) * g + o) Q                g = softplus > 0; Q orthogonal, never trained
    log |det dy/dx| = sum s + sum log g
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ArgumentError

_DAMPING = 0.1
"""Of what the subnet returns: a new block is close to its permutation."""


class ConditionalFlow(nn.Module):
    """Map d-vectors to as many numbers that are independent and standard normal where the training data are.

    The parameters of all blocks lie in one tensor each: few tensors to update, and the condition's share of all
    subnets is one product, which needs to be made once for vectors that share their conditions.
    """

    mixings: Tensor

    def __init__(
        self,
        dimension: int,
        condition: int,
        *,
        blocks: int = 8,
        clamp: float = 1.9,
        soft: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if dimension < 2:
            raise ArgumentError.about("dimension", expected="at least 2, to be halved", got=dimension)
        self.clamp = clamp
        self.kept = dimension - dimension // 2
        """Length of a."""
        width, changed = 2 * (self.kept + condition), dimension - self.kept

        def uniform(*shape: int, inputs: int) -> nn.Parameter:
            bound = inputs**-0.5
            return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound)

        self.of_vector = uniform(blocks, self.kept, width, inputs=self.kept + condition)
        self.of_condition = uniform(blocks, condition, width, inputs=self.kept + condition)
        self.first_bias = uniform(blocks, width, inputs=self.kept + condition)
        self.second = uniform(blocks, width, 2 * changed, inputs=width)
        self.second_bias = uniform(blocks, 2 * changed, inputs=width)
        self.gains = nn.Parameter(torch.full((blocks, dimension), 2 * math.log(math.expm1(5.0))))  # g = 1
        self.offsets = nn.Parameter(torch.zeros(blocks, dimension))
        draw = _orthogonal if soft else _permutation
        self.register_buffer("mixings", torch.stack([draw(dimension, generator) for _ in range(blocks)]))

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return z `(..., d)` and log |det dz/dx| `(...)`; x is `(..., d)`, the condition `(..., k)` may broadcast."""
        total = x.new_zeros(x.shape[:-1])
        for hidden, weights in zip(self._of_conditions(condition), self._blocks(), strict=True):
            vector, second, second_bias, gain, offset, mixing = weights
            a, b = x[..., : self.kept], x[..., self.kept :]
            s, t = self._coupling(a @ vector, hidden, second, second_bias)
            y = torch.cat([a, torch.addcmul(t, b, s.exp())], dim=-1)
            x = torch.addcmul(offset, y, gain) @ mixing
            total = total + s.sum(dim=-1) + gain.log().sum()
        return x, total

    def inverse(self, z: Tensor, condition: Tensor) -> Tensor:
        """Return the x whose image is z."""
        for hidden, weights in reversed(list(zip(self._of_conditions(condition), self._blocks(), strict=True))):
            vector, second, second_bias, gain, offset, mixing = weights
            y = (z @ mixing.T - offset) / gain
            a, b = y[..., : self.kept], y[..., self.kept :]
            s, t = self._coupling(a @ vector, hidden, second, second_bias)
            z = torch.cat([a, (b - t) * (-s).exp()], dim=-1)
        return z

    def log_density(self, x: Tensor, condition: Tensor) -> Tensor:
        """Natural logarithm of the density of `(..., d)` vectors, `(...)`."""
        z, log_det = self(x, condition)
        normal = -0.5 * (z.square().sum(dim=-1) + z.shape[-1] * math.log(2 * math.pi))
        return normal + log_det  # type: ignore[no-any-return]

    def _of_conditions(self, condition: Tensor) -> Iterator[Tensor]:
        """What the condition adds to the hidden layer of each block, `(..., width)`."""
        blocks, _, width = self.of_condition.shape
        hidden = condition @ self.of_condition.permute(1, 0, 2).flatten(1) + self.first_bias.flatten()
        return iter(hidden.reshape(*condition.shape[:-1], blocks, width).unbind(-2))

    def _blocks(self) -> Iterator[tuple[Tensor, ...]]:
        gains = 0.1 * functional.softplus(self.gains, beta=0.5)
        stacks = (self.of_vector, self.second, self.second_bias, gains, self.offsets, self.mixings)
        return zip(*(stack.unbind() for stack in stacks), strict=True)

    def _coupling(self, own: Tensor, hidden: Tensor, second: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        # In place: what lies in the cache is not written anew.
        r, t = (own.add_(hidden).relu_() @ second).add_(bias).mul_(_DAMPING).chunk(2, dim=-1)
        return self.clamp * r.tanh(), t


def position_code(height: int, width: int, size: int = 128) -> Tensor:
    """Sinusoidal codes of the positions of a map, row by row: `(height * width, size)` float32.

    The first half tells the column, the second the row, as sin and cos in turn of position / 10000^(2 i / (size / 2))
    (Wang and Liu, "Translating Math Formula Images to LaTeX Sequences", 2021; the condition of CFLOW-AD).
    """
    if size < 4 or size % 4:
        raise ArgumentError.about("size", expected="a multiple of 4", got=size)
    half = size // 2
    frequency = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * frequency
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    columns, rows = waves(width).expand(height, -1, -1), waves(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()


def _orthogonal(dimension: int, generator: torch.Generator | None) -> Tensor:
    normal = torch.randn(dimension, dimension, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(normal)
    uniform: Tensor = q * r.diagonal().sign()
    return uniform.float()


def _permutation(dimension: int, generator: torch.Generator | None) -> Tensor:
    return torch.eye(dimension)[torch.randperm(dimension, generator=generator)]
