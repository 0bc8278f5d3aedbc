"""IBN-Net-a (Pan et al., Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, 2018).

A ResNet in which the first BatchNorm of each block of layers 1 to 3 normalises half of its channels by the image itself
(InstanceNorm). Parameters are named as in the checkpoints that the authors published, which come in no package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InstanceBatchNorm(nn.Module):
    """InstanceNorm on the first half of the channels, BatchNorm on the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, maps: Tensor) -> Tensor:
        half = self.IN.num_features
        return torch.cat([self.IN(maps[:, :half]), self.BN(maps[:, half:])], dim=1)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that sees the means of all of them (Hu et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeeze = nn.Linear(channels, channels // 16, bias=False)
        self.fc = nn.Sequential(squeeze, nn.ReLU(), nn.Linear(channels // 16, channels, bias=False), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        gate: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return maps * gate[:, :, None, None]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (in `groups`), 1 x 1, and the input added."""

    def __init__(self, given: int, width: int, channels: int, *, stride: int, groups: int, ibn: bool, se: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcitation(channels) if se else nn.Identity()
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv2d(given, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if given != channels
            else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(maps)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.se(self.bn3(self.conv3(inner)))
        result: Tensor = self.relu(inner + self.downsample(maps))
        return result


class IbnNet(nn.Module):
    """`(batch, 3, h, w)` to 1000 logits; `width_a_group` x `groups` is the width of the blocks of the first layer."""

    def __init__(self, blocks: tuple[int, ...], *, groups: int = 1, width_a_group: int = 64, se: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        given, width = 64, groups * width_a_group
        for i, depth in enumerate(blocks):
            layer = nn.Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(Bottleneck(given, width << i, 256 << i, stride=stride, groups=groups, ibn=i < 3, se=se))
                given = 256 << i
            self.add_module(f"layer{i + 1}", layer)
        self.fc = nn.Linear(given, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        for i in range(1, 5):
            maps = self.get_submodule(f"layer{i}")(maps)
        logits: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits


def build_ibn(name: str) -> IbnNet:
    """Build one of the published networks with random weights."""
    depth_101 = (3, 4, 23, 3)
    if name == "resnext101_ibn_a":
        return IbnNet(depth_101, groups=32, width_a_group=4)
    return IbnNet((3, 4, 6, 3) if "50" in name else depth_101, se=name.startswith("se_"))
