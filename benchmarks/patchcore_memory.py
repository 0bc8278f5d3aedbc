"""PatchCore on more images than memory holds: 20 000 images through `fit` with a budget of 4 GB.

    python benchmarks/patchcore_memory.py [--images 20000] [--memory 4] [--ratio 0.002]

All patches would take 31 GB (1 024 an image, 384 numbers). The backbone is replaced by one that makes up maps of
ResNet-18's shape; everything behind it is the real thing. Prints the plan, the time and the peak of the process.
"""

from __future__ import annotations

import argparse
import logging
import resource
from collections.abc import Iterator
from time import perf_counter

import torch
from torch import Tensor, nn

from blemish import ImageBatch, PatchCore
from blemish.features.backbones import custom_backbone


class MadeUp(nn.Module):
    """Maps of layer2 and layer3 of ResNet-18 at 256 px, drawn from the image's first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2, self.layer3 = nn.Identity(), nn.Identity()
        generator = torch.Generator().manual_seed(0)
        self.base2 = torch.randn(128, 32, 32, generator=generator)
        self.base3 = torch.randn(256, 16, 16, generator=generator)

    def forward(self, pixels: Tensor) -> Tensor:
        seeds = (pixels[:, 0, 0, 0] * 1e6).round().long().tolist()
        random = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.layer2(torch.stack([self.base2 + torch.randn(128, 32, 32, generator=r) for r in random]))
        last: Tensor = self.layer3(torch.stack([self.base3 + torch.randn(256, 16, 16, generator=r) for r in random]))
        return last


class Images:
    """Images that differ in one pixel, which is all that the made-up network looks at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageBatch]:
        for start in range(0, self._count, 16):
            n = min(16, self._count - start)
            pixels = torch.zeros(n, 3, 256, 256)
            pixels[:, 0, 0, 0] = torch.arange(start, start + n) / 1e6
            yield ImageBatch(pixels, tuple(str(start + i) for i in range(n)), ((256, 256),) * n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--memory", type=float, default=4.0)
    parser.add_argument("--ratio", type=float, default=0.002)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    row = custom_backbone(
        MadeUp(), taps=("layer2", "layer3"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), trace_size=256
    )
    method = PatchCore(backbone=row, ratio=options.ratio, memory_gb=options.memory)
    start = perf_counter()
    method.fit(Images(options.images))
    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{options.images} images, {method.seen_} patches: bank of {len(method.bank_)}, every patch within "
        f"{method.radius_:.2f} (projected); {seconds:.0f} s, peak {peak / 1e9:.2f} GB of {options.memory:g} GB"
    )


if __name__ == "__main__":
    main()
