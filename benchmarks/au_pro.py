"""AU-PRO of a large test set: time, peak memory and value beside a plain version of the official definition.

    python benchmarks/au_pro.py                      # 160 maps of 1024 x 1024; the plain version needs some 7 GB
    python benchmarks/au_pro.py --maps 16 --size 512 --json au_pro.json

Each version runs in a process of its own. Memory is the peak resident size less the resident size once maps and
masks are there, plus the 4 bytes a pixel of the float32 maps themselves. Linux only (reads /proc/self/statm).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]

LIMIT = 0.3
SHARE_WITH_DEFECTS = 119 / 160
TOLERANCE = 1e-9


def test_set(maps: int, size: int, share: float) -> tuple[Maps, Masks]:
    """Smooth noise everywhere; in three of four images also blobs, which the maps find with varying success.

    `share` is about the share of anomalous pixels in the images with defects.
    """
    random = np.random.default_rng(0)
    made = [_image(random, size, share if i < round(maps * SHARE_WITH_DEFECTS) else 0.0) for i in range(maps)]
    return [scores for scores, _ in made], [mask for _, mask in made]


def _image(random: np.random.Generator, size: int, share: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    coarse = random.gamma(4.0, 2.0, (size // 16 + 2, size // 16 + 2)).astype(np.float32)
    scores = ndimage.zoom(coarse, 16, order=1)[:size, :size] + np.float32(5)
    mask = np.zeros((size, size), dtype=np.bool_)
    blobs = int(random.integers(1, 5)) if share else 0
    for _ in range(blobs):
        radius = size * np.sqrt(share / blobs / np.pi) * random.uniform(0.7, 1.3)
        row, column = random.uniform(0, size, 2)
        rows, columns = np.ogrid[:size, :size]
        squared = ((rows - row) ** 2 + (columns - column) ** 2).astype(np.float32) / np.float32(radius**2)
        mask |= squared < 1
        scores += np.float32(random.uniform(1, 15)) * np.exp(-squared)
    return ndimage.gaussian_filter(scores, size / 256), mask


def ours(maps: Maps, masks: Masks) -> float:
    from blemish.metrics import au_pro, pixel_curve

    return au_pro(pixel_curve(list(zip(maps, masks, strict=True))), limit=LIMIT)


def plain(maps: Maps, masks: Masks) -> float:
    """Sort all pixels once, sum false positives and region shares along the order, keep one point a distinct score."""
    scores = np.array(maps).ravel()
    false_positives = np.empty(scores.size, dtype=np.uint32)
    overlap = np.zeros(scores.size, dtype=np.float64)
    n_regions, n_pixels = 0, masks[0].size
    for i, mask in enumerate(masks):
        part = slice(i * n_pixels, (i + 1) * n_pixels)
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        false_positives[part] = ~mask.ravel()
        for region in range(1, count + 1):
            inside = labels.ravel() == region
            overlap[part][inside] = 1 / np.count_nonzero(inside)
        n_regions += count
    order = np.argsort(scores)[::-1]
    scores, false_positives, overlap = scores[order], false_positives[order], overlap[order]
    del order
    n_normal = int(false_positives.sum(dtype=np.int64))
    fpr = np.cumsum(false_positives, out=false_positives) / n_normal
    pro = np.cumsum(overlap, out=overlap) / n_regions
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    fpr = np.concatenate(([0.0], fpr[last_of_tie], [1.0]))
    pro = np.concatenate(([0.0], pro[last_of_tie], [1.0]))
    end = int(np.searchsorted(fpr, LIMIT, side="right"))
    x = np.append(fpr[:end], LIMIT)
    y = np.append(pro[:end], np.interp(LIMIT, fpr[end - 1 : end + 1], pro[end - 1 : end + 1]))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / LIMIT)


def measure(name: str, maps: int, size: int, share: float) -> dict[str, float]:
    """Run one version here: its value, wall and CPU seconds, bytes a pixel, and the share of anomalous pixels."""
    scores, masks = test_set(maps, size, share)
    before = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
    start, cpu_start = time.perf_counter(), time.process_time()
    value = {"ours": ours, "plain": plain}[name](scores, masks)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pixels = maps * size * size
    anomalous = sum(int(mask.sum()) for mask in masks) / pixels
    return {
        "au_pro": value,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bytes_a_pixel": (peak - before) / pixels + 4,
        "anomalous": anomalous,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--maps", type=int, default=160)
    parser.add_argument("--size", type=int, default=1024, help="height and width of each map")
    parser.add_argument("--share", type=float, default=0.04, help="about the anomalous share of an image with defects")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", choices=["ours", "plain"], help="run one version in this process and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.maps, options.size, options.share)))
        return 0
    figures = compare(options.maps, options.size, options.share)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if figures["difference"] <= TOLERANCE else 1


def compare(maps: int, size: int, share: float) -> dict[str, float]:
    """Run both versions, one after the other, and print the table."""
    settings = [f"--maps={maps}", f"--size={size}", f"--share={share}"]
    runs: dict[str, dict[str, float]] = {}
    for name in ("ours", "plain"):
        command = [sys.executable, __file__, "--only", name, *settings]
        runs[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    difference = abs(runs["ours"]["au_pro"] - runs["plain"]["au_pro"])
    ratio = runs["plain"]["seconds"] / runs["ours"]["seconds"]
    print(f"{maps} maps of {size} x {size} float32, {runs['ours']['anomalous']:.1%} of the pixels anomalous")
    print(f"{'':8}{'AU-PRO':>18}{'seconds':>10}{'CPU':>8}{'bytes/pixel':>13}")
    for name, run in runs.items():
        print(
            f"{name:8}{run['au_pro']:18.15f}{run['seconds']:10.2f}{run['cpu_seconds']:8.2f}{run['bytes_a_pixel']:13.1f}"
        )
    print(f"difference {difference:.1e} (at most {TOLERANCE:.0e}), {ratio:.1f} times faster")
    flat = {f"{name}_{key}": value for name, run in runs.items() for key, value in run.items()}
    return {"maps": maps, "size": size, **flat, "difference": difference, "ratio": ratio}


if __name__ == "__main__":
    sys.exit(main())
