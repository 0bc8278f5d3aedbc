"""CFLOW's figures from one fit, with its layers combined in every way.

    python benchmarks/cflow_layers.py mtd --resize 128 --methods cflow,steps=800 --json figures.json

The first row is the method as it is, on the original pixels. The others take the same flows, whose layers know nothing
of each other, on the network's pixels: each layer alone, some of them, the paper's combination, no smoothing.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from _measure import write
from figures import make_method
from numpy.typing import NDArray
from torch import Tensor

from blemish import Detector, Preprocess, evaluate, metrics, open_dataset
from blemish.images.decode import decode_mask
from blemish.methods.cflow import CFlow
from blemish.ops.maps import enlarge_and_smooth

NAMES = ("image_auroc", "pixel_auroc", "au_pro_30")
COMBINED = (
    ("standardised", (0, 1, 2), 4.0),
    ("standardised", (0, 1, 2), 0.0),
    ("likelihood", (0, 1, 2), 4.0),
    ("likelihood", (0, 1, 2), 0.0),
    ("standardised", (1, 2), 4.0),
    ("standardised", (0,), 4.0),
    ("standardised", (1,), 4.0),
    ("standardised", (2,), 4.0),
)
"""How, which layers, smoothing."""


def measure(data: Path, spec: str, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Fit once; a row for each way."""
    method, _ = make_method(spec, options.backbone, seed)
    assert isinstance(method, CFlow)
    dataset, preprocess = open_dataset(data), Preprocess(options.resize)
    detector = Detector(method=method, preprocess=preprocess, calibration="none")
    start = perf_counter()
    detector.fit(dataset.train_images())
    fit = perf_counter() - start
    grids, found = kept_grids(method), evaluate(detector, dataset).figures
    best = method.course_.best
    own = {"data": data.name, "method": spec, "fit": fit, "training": method.course_.seconds, "held out": best}
    rows = [own | {name: getattr(found, name) for name in NAMES}]
    masks = [
        np.zeros(preprocess.size, bool) if sample.mask is None else preprocess.mask(decode_mask(sample.mask))
        for sample in dataset.test
    ]
    anomalous = np.array([sample.anomalous for sample in dataset.test])
    for how, layers, sigma in COMBINED:
        row = {"data": data.name, "combine": how, "layers": [i + 1 for i in layers], "sigma": sigma}
        maps = combined(method, [torch.cat(grids[i]) for i in layers], layers, how=how, sigma=sigma)
        rows.append(row | figures(maps, masks, anomalous))
    return rows


def kept_grids(method: CFlow) -> list[list[Tensor]]:
    """Log-densities `(batch, h, w)` by layer, of all that will be scored."""
    grids: list[list[Tensor]] = [[] for _ in method.flows_]
    density = method._density_map

    def keep(number: int, maps: Tensor) -> Tensor:
        grids[number].append(density(number, maps))
        return grids[number][-1]

    method._density_map = keep  # type: ignore[method-assign]
    return grids


def combined(method: CFlow, grids: list[Tensor], layers: tuple[int, ...], *, how: str, sigma: float) -> Tensor:
    """Maps `(images, height, width)`, as `CFlow` adds them up."""
    total = torch.zeros(())
    for i, grid in zip(layers, grids, strict=True):
        mean, deviation, most = method.normal_[i]
        likely = (grid - most).exp() if how == "likelihood" else (grid - mean) / deviation
        total = total - enlarge_and_smooth(likely, method.image_size_, sigma=sigma)
    return total


def figures(maps: Tensor, masks: list[NDArray[np.bool_]], anomalous: NDArray[np.bool_]) -> dict[str, float]:
    curve = metrics.pixel_curve(list(zip(maps.numpy(), masks, strict=True)))
    image = metrics.auroc(maps.amax(dim=(1, 2)).double().numpy(), anomalous)
    return dict(zip(NAMES, (image, metrics.pixel_auroc(curve), metrics.au_pro(curve)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", default=["cflow"])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for data, spec, seed in product(options.data, options.methods, options.seeds):
        rows += (new := measure(data, spec, options, seed))
        for row in new:
            print(
                "   ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True
            )
        write(options.json, rows)


if __name__ == "__main__":
    main()
