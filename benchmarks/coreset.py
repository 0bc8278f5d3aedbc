"""The greedy coreset: ours against the plain loop on the same vectors, and how the time grows, in one run.

    python benchmarks/coreset.py [DATA --backbone resnet18] [--sizes 50000 100000 ... 800000]

The vectors are PatchCore's projected patches of DATA (weights from $BLEMISH_WEIGHTS), or made up: clusters of unequal
width, 128 dimensions. The plain loop is the one of the literature: for every choice the norm of all differences to the
new centre, the minimum with what is stored, the largest of all (PyTorch, float32). It runs `--plain-steps` steps, whose
time is scaled to all of them; with `--full` it runs to the end and its choices are compared with ours. Near-ties fall
differently in float32; `--double` runs the loop in float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import torch
from _measure import peak_bytes, write
from torch import Tensor

from blemish.ops.coreset import k_center


def made_up(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(200, 128, generator=generator)
    width = torch.rand(n, 1, generator=generator)
    which = torch.randint(200, (n,), generator=generator)
    return centres[which] * 0.5 + torch.randn(n, 128, generator=generator) * width


def patches(data: Path, backbone: str, n: int) -> Tensor:
    """The first n projected patches."""
    from blemish import Batches, PatchCore, Preprocess, open_dataset

    method = PatchCore(backbone=backbone, count=1)
    images = open_dataset(data).train_images()
    method.fit(Batches(images.subset(range(1)), Preprocess(256)))
    found: list[Tensor] = []
    for batch in Batches(images, Preprocess(256)):
        found.append(method._project(method._embed(method.extractor_(batch.pixels)).flatten(0, 1)))
        if sum(len(part) for part in found) >= n:
            break
    return torch.cat(found)[:n]


def plain(vectors: Tensor, count: int) -> list[int]:
    """The loop of the literature."""
    nearest = torch.full((len(vectors),), torch.inf, dtype=vectors.dtype)
    chosen = [0]
    for _ in range(count - 1):
        torch.minimum(nearest, torch.linalg.vector_norm(vectors - vectors[chosen[-1]], dim=1), out=nearest)
        chosen.append(int(nearest.argmax()))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[78_400])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--plain-steps", type=int, default=200)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for n in options.sizes:
        vectors = made_up(n) if options.data is None else patches(options.data, options.backbone, n)
        count = int(len(vectors) * options.share)
        steps = count if options.full else min(count, options.plain_steps)
        start = perf_counter()
        ours = k_center(vectors, count)
        mine = perf_counter() - start
        start = perf_counter()
        loop = plain(vectors.double() if options.double else vectors, steps)
        theirs = (perf_counter() - start) * count / steps
        same = sum(a == b for a, b in zip(loop, ours.indices.tolist(), strict=False))
        row = {"n": len(vectors), "count": count, "ours": mine, "plain": theirs, "steps": steps, "same": same}
        rows.append(row | {"radius": ours.radius, "peak_bytes": peak_bytes()})
        print(
            f"{len(vectors)} x {vectors.shape[1]}, {count} chosen: ours {mine:.1f} s, plain loop {theirs:.1f} s "
            f"({'run' if options.full else 'from'} {steps} steps), ratio {theirs / mine:.1f}; "
            f"first {steps} choices: {same} the same; radius {ours.radius:.3f}",
            flush=True,
        )
    write(options.json, rows)


if __name__ == "__main__":
    main()
