"""The compact backbones that ship with the package against ResNet-18, up to the same strides: time of a forward pass.

    BLEMISH_WEIGHTS=weights python benchmarks/compact.py [--side 256] [--batch 1 8] [--threads 1 2]

Both run as methods run them (folded, channels last, cut behind the deepest layer), in turns in one process. What they
find is measured by `benchmarks/figures.py DATA --methods padim patchcore,ratio=0.01 --backbones compact resnet18`.
Targets: `compact` 3 times faster, `compact_large` not slower.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from time import perf_counter

import torch
from _measure import write

from blemish.features.backbones import find_backbone
from blemish.features.extract import Extractor, build_extractor
from blemish.features.weights import find_weights

TARGETS = {"compact": 3, "compact_large": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = ("resnet18", *TARGETS)
    contenders = [_extractor(name) for name in names]
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in options.batch:
            pixels = torch.rand(batch, 3, options.side, options.side)
            rounds = [[_seconds(extractor, pixels) for extractor in contenders] for _ in range(options.rounds + 1)][1:]
            for i, name in enumerate(names):
                spent = statistics.median(seconds[i] for seconds in rounds) / batch * 1e3
                ratio = statistics.median(seconds[0] / seconds[i] for seconds in rounds)
                rows.append({"threads": threads, "batch": batch, "backbone": name, "ms": spent, "ratio": ratio})
                target = f" (target >= {TARGETS[name]})" if name in TARGETS else ""
                print(f"{threads} threads, {batch} images: {name} {spent:.1f} ms an image, ratio {ratio:.2f}{target}")
    write(options.json, rows)


def _extractor(name: str) -> Extractor:
    row = find_backbone(name)
    return build_extractor(row, weights=find_weights(row))


def _seconds(extractor: Extractor, pixels: torch.Tensor) -> float:
    start = perf_counter()
    extractor(pixels)
    return perf_counter() - start


if __name__ == "__main__":
    main()
