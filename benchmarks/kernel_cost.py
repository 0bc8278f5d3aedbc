"""Time and peak memory of fitting `ocsvm` and `svdd` on random embeddings, each in a fresh process.

OMP_NUM_THREADS=1 python benchmarks/kernel_cost.py --images 1000 2000 4000 --numbers 512
OMP_NUM_THREADS=1 python benchmarks/kernel_cost.py --images 5000 20000 --methods svdd,approximation=nystroem
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from time import perf_counter

from _measure import peak_bytes, run_json


def one(spec: str, images: int, numbers: int) -> dict[str, float]:
    """Seconds and bytes beside what the process held before."""
    import torch
    from figures import make_method

    from blemish.types import FeatureMaps

    method, _ = make_method(spec, "filters", seed=0)
    vectors = torch.randn(images, numbers, generator=torch.Generator().manual_seed(0)) + 1
    maps = FeatureMaps((vectors[:, :, None, None],), (64, 64))
    method._learn(iter([FeatureMaps((vectors[:20, :, None, None],), (64, 64))]), expected=20)  # loads the solvers
    before, start = peak_bytes(), perf_counter()
    method._learn(iter([maps]), expected=images)
    seconds = perf_counter() - start
    return {"seconds": seconds, "bytes": peak_bytes() - before, "planned": method._plan(maps, images).peak_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--numbers", type=int, default=512)
    parser.add_argument("--methods", nargs="+", default=["ocsvm", "svdd"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.methods[0], options.images[0], options.numbers)))
        return
    for spec, images in product(options.methods, options.images):
        size = ["--images", str(images), "--numbers", str(options.numbers)]
        row = run_json([sys.executable, __file__, "--one", "--methods", spec, *size])
        print(
            f"{spec:32} {images:6} x {options.numbers}   {row['seconds']:7.2f} s   peak {row['bytes'] / 1e6:7.0f} MB, "
            f"planned {row['planned'] / 1e6:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
