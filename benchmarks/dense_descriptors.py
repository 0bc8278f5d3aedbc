"""A dense map of patch descriptors against the patches one by one, in milliseconds an image; both in one run.

    python benchmarks/dense_descriptors.py [--side 128] [--threads 1]

The patches are timed on a sample and multiplied up to one a pixel.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import torch

from blemish.features.descriptors import PATCHES, PatchDescriptor


def seconds(run, repeat=3):
    run()
    times = []
    for _ in range(repeat):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--sample", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image = torch.rand(1, 3, options.side, options.side)
    print(f"{options.side} x {options.side} pixels, {options.threads} threads")
    with torch.inference_mode():
        for patch in PATCHES:
            network = PatchDescriptor(patch).eval()
            patches = torch.rand(options.sample, 3, patch, patch)
            dense = seconds(lambda: [network.inside(strip) for *_, strip in network.strips(image)])  # noqa: B023
            single = seconds(lambda: network(patches)) / options.sample * options.side**2  # noqa: B023
            rate = 2 * network.operations((options.side, options.side)) / dense / 1e9
            print(
                f"p = {patch}: dense {1e3 * dense:.0f} ms ({rate:.0f} GFLOP/s), patch by patch {1e3 * single:.0f} ms, "
                f"{single / dense:.1f} times as long"
            )


if __name__ == "__main__":
    main()
