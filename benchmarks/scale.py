"""CFLOW and Students by what their scales are taken over: all positions, or each; held-out likelihood and figures.
Of Students also by what e and v are measured in, and with e alone.

    BLEMISH_WEIGHTS=weights python benchmarks/scale.py cflow mvtec_ad/screw mtd --json cflow.json
    python benchmarks/scale.py students mvtec_ad/screw mtd --steps 1000 --json students.json

"held out" is minus the log-likelihood of held-out normal images, smaller = better, in one unit for both scales, but not
for both distances: of CFLOW -log p / C of feature vectors before they are scaled, mean of the layers, at the step that
was kept; of Students that of e and v under the normal distribution that half of the held-out images say, on the other
half. CFLOW is trained for each scale, the same Students are measured and normalised in all ways. The name of a drawn
product stands for `write_dataset` with `--draw` for its seed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _measure import write

from blemish import Batches, CFlow, Detector, Preprocess, Students, evaluate, open_dataset
from blemish.datasets.layouts import Dataset
from blemish.datasets.synthetic import PRODUCTS, write_dataset
from blemish.methods.students import _by_position, _normalisation
from blemish.training.pictures import split_off

_NORMALISE = {"global": _normalisation, "position": _by_position}


def cflow(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each scale."""
    rows = []
    for scale in ("global", "position"):
        method = CFlow(
            backbone=options.backbone,
            scale=scale,
            steps=options.steps or 240,
            rate=options.rate or 1e-2,
            seed=options.seed,
        )
        detector = Detector(method=method, preprocess=Preprocess(options.resize), calibration="none")
        detector.fit(dataset.train_images())
        best = method.course_.best
        assert best is not None
        rows.append({"scale": scale, "held out": best[1]} | figures(detector, dataset))
    return rows


def students(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each distance and scale, of e and v and of e alone."""
    method = Students(
        weights=options.weights, patches=(options.patch,), distance="mahalanobis", dense=False,
        seed=options.seed, steps=options.steps or 1000, rate=options.rate or 1e-3,
    )  # fmt: skip
    preprocess = Preprocess(options.resize)
    detector = Detector(method=method, preprocess=preprocess, calibration="none")
    normal = dataset.train_images()
    detector.fit(normal)
    (scale,) = method.scales_.values()
    held_out = split_off(len(normal), method.validation, seed=options.seed)[1].tolist()
    images = list(Batches(normal.subset(held_out), preprocess, 4))
    factor = scale.residual_factor  # without it the same students are measured as the paper does
    rows = []
    for distance, (name, normalisation) in product(("euclidean", "mahalanobis"), _NORMALISE.items()):
        scale.residual_factor = None if distance == "euclidean" else factor
        with torch.inference_mode():
            errors = torch.cat([scale.errors(batch.pixels, dense=False) for batch in images]).clone()
        mean, inverse = normalisation([(errors[::2], None)])
        density = ((errors[1::2] - mean) * inverse).square() / 2 - inverse.log()
        scale.error_mean, scale.error_factor = normalisation([(errors, None)])
        row = {"distance": distance, "scale": name, "held out": float(density.mean())}
        rows.append(row | {"of": "e + v"} | figures(detector, dataset))
        scale.error_factor[1] = 0
        rows.append(row | {"of": "e"} | figures(detector, dataset))
    return rows


def figures(detector: Detector, dataset: Dataset) -> dict[str, Any]:
    """On the test images."""
    found = evaluate(detector, dataset).figures
    return {name: getattr(found, name) for name in ("image_auroc", "pixel_auroc", "au_pro_30")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["cflow", "students"])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--patch", type=int, default=33, help="p of students")
    parser.add_argument("--weights", type=Path, help="folder of teachers of students; default: the built-in ones")
    parser.add_argument("--draw", type=int, default=11, help="seed of drawn products")
    parser.add_argument("--drawn", type=int, default=60, help="normal images of drawn products")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--steps", type=int, help="default: 240 of cflow, 1000 of students")
    parser.add_argument("--rate", type=float, help="default: 1e-2 of cflow, 1e-3 of students")
    parser.add_argument("--every", type=int, default=1, help="score every so many of the test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for data in options.data:
            if data in PRODUCTS:
                drawn = write_dataset(Path(folder) / data, product=data, seed=options.draw, n_train=options.drawn)
                dataset = open_dataset(drawn)
            else:
                dataset = open_dataset(data)
            dataset = replace(dataset, test=dataset.test[:: options.every])
            for row in (cflow if options.method == "cflow" else students)(dataset, options):
                rows.append({"data": Path(data).name} | row)
                print(
                    "   ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                    flush=True,
                )
                write(options.json, rows)


if __name__ == "__main__":
    main()
