"""PaDiM in the shape of WRN-50-2: 56 x 56 positions, d = 550, n = 209 made-up embeddings.

    python benchmarks/padim_wide.py

Shows that the low-rank form equals the dense form, what the model weighs, and what a fit holds at its peak. Dense,
all positions would be 3.8 GB; the two are compared on a sample of positions.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from _measure import peak_bytes, write

from blemish.ops.gaussian import Moments
from blemish.persist import save

POSITIONS, D, N, EPS = 56 * 56, 550, 209, 0.01


def embeddings(seed: int, count: int) -> torch.Tensor:
    """Correlated vectors: 60 strong directions that all images share, and noise."""
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    strong = torch.randn(count, POSITIONS, 60, generator=random) @ basis
    return strong.mul_(0.1).add_(torch.randn(count, POSITIONS, D, generator=random), alpha=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    embeddings(0, 1)
    before = peak_bytes()
    moments = Moments(POSITIONS, D, expected=N)
    for seed in range(N):
        moments.update(embeddings(seed, 1))
    start = perf_counter()
    gaussian = moments.whiten(EPS)
    seconds = perf_counter() - start
    peak = peak_bytes() - before
    del moments

    sample = torch.arange(0, POSITIONS, 49)
    train = torch.cat([embeddings(seed, 1)[:, sample] for seed in range(N)])
    test = torch.cat([embeddings(10_000 + i, 1)[:, sample] for i in range(8)] + [train[:8]])
    dense = Moments(len(sample), D, expected=8)  # a small buffer forces the dense form
    dense.update(train)
    expected = dense.whiten(EPS).distances(test)
    few = replace(
        gaussian, mean=gaussian.mean[sample], factor=gaussian.factor[sample], spectrum=gaussian.spectrum[sample]
    )
    error = float(((few.distances(test) - expected).abs() / expected).max())

    row: dict[str, float] = {"relative_difference": error, "whiten_seconds": seconds, "fit_peak_bytes": peak}
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype in (("float32", torch.float32), ("float16", torch.float16)):
            stored, storage_error = gaussian.stored_as(dtype)
            tensors = {"mean": stored.mean, "factor": stored.factor, "spectrum": stored.spectrum}
            save(Path(folder) / "m", tensors, {})
            row[f"{name}_file_bytes"] = (Path(folder) / "m").stat().st_size
            row[f"{name}_error"] = storage_error
    dense_bytes = POSITIONS * D * D * 4
    print(f"low rank against dense, largest relative difference of a distance: {error:.1e} (target 1e-5)")
    print(f"file: {row['float32_file_bytes'] / 1e9:.3f} GB (target 1.5), dense {dense_bytes / 1e9:.1f} GB")
    print(f"file, half: {row['float16_file_bytes'] / 1e9:.3f} GB (target 0.75), error {row['float16_error']:.1e}")
    print(f"peak memory of the fit: {peak / 1e9:.2f} GB; all embeddings would be {N * POSITIONS * D * 4 / 1e9:.2f} GB")
    print(f"whitening: {seconds:.1f} s")
    write(options.json, row)


if __name__ == "__main__":
    main()
