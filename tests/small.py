"""A tiny network and tiny images, so that the plain-loop references finish."""

from __future__ import annotations

import pytest
import torch

from blemish.features.backbones import custom_backbone
from blemish.features.extract import build_extractor

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
needs_programs = pytest.mark.skipif(TORCH < (2, 9), reason="programs of torch are made from torch 2.9 on")
needs_exporter = pytest.mark.skipif(TORCH < (2, 7), reason="whole detectors are exported from torch 2.7 on")


class Net(torch.nn.Module):
    """Three layers with strides 2, 4 and 8."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Conv2d(3, 6, 3, 2, 1)
        self.b = torch.nn.Conv2d(6, 8, 3, 2, 1)
        self.c = torch.nn.Conv2d(8, 10, 3, 2, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def small_pixels(n, seed, size=(24, 24)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


BACKBONE = custom_backbone(Net(), taps=("a", "b", "c"), trace_size=24)


def layers(pixels, taps=None):
    return [m.numpy() for m in build_extractor(BACKBONE, taps=taps)(pixels).maps]
