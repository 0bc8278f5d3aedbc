"""SPADE: time of the correspondence a test image against the bare matrix products of the same size, in one run.

    python benchmarks/spade_time.py [--images 320] [--neighbours 50]

The layers are those of ResNet-18 at 256 px: 64 x 64 x 64, 32 x 32 x 128, 16 x 16 x 256, filled with random numbers; the
gallery does not change the time. The bare products are what any implementation must do: every activation vector of the
image times every one of the neighbours, into a buffer that is there already, one neighbour at a time.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from _measure import median_seconds, peak_bytes

from blemish.memory import resident_bytes
from blemish.methods.spade import SPADE

LAYERS = ((64, 64), (128, 32), (256, 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--neighbours", type=int, default=50)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    method = SPADE()
    total = {"ours": 0.0, "bare": 0.0}
    for channels, side in LAYERS:
        gallery = torch.randn(options.images, side * side, channels, generator=generator)
        layer = torch.randn(1, channels, side, side, generator=generator)
        neighbours = torch.randperm(options.images, generator=generator)[None, : options.neighbours]
        vectors = layer[0].flatten(1).T.contiguous()
        buffer = torch.empty(side * side, side * side)

        def bare(vectors: torch.Tensor, gallery: torch.Tensor, neighbours: torch.Tensor, out: torch.Tensor) -> None:
            for image in neighbours[0].tolist():
                torch.mm(vectors, gallery[image].T, out=out)

        before = resident_bytes() or 0
        ours = median_seconds(partial(method._distances, layer, gallery, neighbours), 5)
        grown = peak_bytes() - before
        product = median_seconds(partial(bare, vectors, gallery, neighbours, buffer), 5)
        total["ours"] += ours
        total["bare"] += product
        print(
            f"{channels} x {side} x {side}: ours {ours * 1e3:.0f} ms, bare products {product * 1e3:.0f} ms, "
            f"ratio {ours / product:.2f}"
        )
        if layer.shape[2] == LAYERS[0][1]:  # later layers are smaller, and the peak is that of the process
            print(f"memory beside the gallery: {grown / 1e6:.0f} MB")
    print(f"all layers: {total['ours'] * 1e3:.0f} ms, {total['bare'] * 1e3:.0f} ms, ratio", end=" ")
    print(f"{total['ours'] / total['bare']:.2f}")


if __name__ == "__main__":
    main()
