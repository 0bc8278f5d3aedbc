"""The small residual networks for CIFAR of He et al., "Deep residual learning", 2016, section 4.2, shortcuts A."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """6 n + 2 layers for images of 32 x 32: three stages of n blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(*(_Block(32 if i else 16, 32, 1 if i else 2) for i in range(n)))
        self.layer3 = nn.Sequential(*(_Block(64 if i else 32, 64, 1 if i else 2) for i in range(n)))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, 3, 32, 32)` -> `(batch, classes)` logits."""
        maps = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._stride, self._added = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self._added:  # shortcut A: every second pixel, and zeros for the new channels, half on either side
            below = self._added // 2
            x = nn.functional.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, below, self._added - below))
        return torch.relu(out + x)
