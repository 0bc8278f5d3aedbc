"""Uninformed Students on labelled data: every scale, their mean, dense maps and strided ones, of one training.

    python benchmarks/students.py mvtec_ad/screw --steps 2000 --json screw.json
    python benchmarks/students.py mvtec_ad/screw --patches 33 65 --fast --steps 2000 --json fast.json

Each scale learns as if it were alone, so one fit of several has the figures of single ones in it. A strided map has
a value for 4 x 4 (p = 33) or 8 x 8 pixels (p = 65), enlarged. Times are of one thread. `top` is image AUROC where the
mean of the highest 1 % or 5 % of a map is an image's score.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from _measure import write
from numpy.typing import NDArray

from blemish import Detector, Preprocess, evaluate, metrics, open_dataset
from blemish.datasets.layouts import Dataset
from blemish.methods.students import Students
from blemish.ops.maps import mean_of_highest
from blemish.types import ImageBatch, Scores

Maps = dict[str, NDArray[np.float32]]


class Stored(Students):
    """Gives maps that were made before, in their order."""

    def __init__(self, maps: NDArray[np.float32]) -> None:
        self.maps, self.given = maps, 0

    def score(self, batch: ImageBatch) -> Scores:
        maps = torch.from_numpy(self.maps[self.given : self.given + len(batch)])
        self.given += len(batch)
        return Scores(maps.amax(dim=(1, 2)), maps)


def all_maps(detector: Detector, dataset: Dataset, *, dense: bool) -> tuple[Maps, dict[str, float]]:
    """The maps of the test images of every scale, and the seconds that an image took."""
    method = detector.method
    assert isinstance(method, Students)
    kinds = [
        (p, kind)
        for p in method.scales_
        for kind in (True, False)
        if (p > 17 and (dense or not kind)) or (p == 17 and kind)
    ]
    found: dict[str, list[NDArray[np.float32]]] = {name_of(p, kind): [] for p, kind in kinds}
    seconds = dict.fromkeys(found, 0.0)
    images = detector._batches(dataset.test_images())
    for batch in images:
        for p, kind in kinds:
            scale, name = method.scales_[p], name_of(p, kind)
            scale.dense = kind
            start = process_time()
            with torch.inference_mode():
                found[name].append(scale.map(batch.pixels).numpy())
            seconds[name] += process_time() - start
    return {k: np.concatenate(v) for k, v in found.items()}, {k: v / len(dataset.test) for k, v in seconds.items()}


def name_of(p: int, dense: bool) -> str:
    return f"{p}" if dense else f"{p} strided"


def means(maps: Maps) -> Maps:
    """The scales, and the means of several."""
    sets = [("17", "33", "65"), ("17", "33"), ("33", "65")]
    sets += [tuple(n if n == "17" else f"{n} strided" for n in s) for s in sets]
    return maps | {" + ".join(s): np.mean([maps[n] for n in s], axis=0) for s in sets if set(s) <= maps.keys()}


def by_share(maps: NDArray[np.float32], share: float, labels: list[bool]) -> float:
    return metrics.auroc(mean_of_highest(torch.from_numpy(maps), share).numpy(), labels)


def fitted(options: argparse.Namespace, dataset: Dataset) -> tuple[Detector, float]:
    """The trained detector, and the seconds of one core that it took."""
    method = Students(
        weights=options.weights, patches=tuple(options.patches), fast=options.fast, dense=not options.no_dense,
        steps=options.steps, rate=options.rate, grid=options.grid, scale=options.scale, distance=options.distance,
        seed=options.seed,
    )  # fmt: skip
    detector = Detector(method=method, preprocess=Preprocess(options.resize), calibration="none")
    images = dataset.train_images()
    if options.train:
        images = images.subset(np.linspace(0, len(images) - 1, options.train).round().astype(int).tolist())
    start = process_time()
    detector.fit(images)
    seconds = process_time() - start
    errors = {p: round(float(scale.error_mean[0].mean()), 2) for p, scale in method.scales_.items()}
    print(f"fit: {seconds:.0f} s of one core; mean e of held-out normal images: {errors}", flush=True)
    return detector, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--patches", type=int, nargs="+", default=[17, 33, 65])
    parser.add_argument("--weights", type=Path, help="folder of teachers; default: the built-in ones")
    parser.add_argument("--scale", choices=["position", "global"], default=Students.scale)
    parser.add_argument("--distance", choices=["euclidean", "mahalanobis"], default=Students.distance)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--no-dense", action="store_true", help="strided maps only, of p = 33 and 65")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--train", type=int, help="learn from so many images, evenly spaced; default: all")
    parser.add_argument("--every", type=int, default=1, help="score every so many of the test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--model", type=Path, help="also write the model; where there is one, it is read, and not trained again"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    dataset = open_dataset(options.data)
    dataset = replace(dataset, test=dataset.test[:: options.every])
    if options.model and options.model.exists():
        detector, fit = Detector.load(options.model), 0.0
    else:
        detector, fit = fitted(options, dataset)
        if options.model:
            detector.save(options.model)
    maps, seconds = all_maps(detector, dataset, dense=not options.fast and not options.no_dense)
    rows: list[dict[str, Any]] = []
    labels = [sample.anomalous for sample in dataset.test]
    for name, values in means(maps).items():
        detector.method = Stored(values)
        found = evaluate(detector, dataset).figures
        row: dict[str, Any] = {"data": options.data.name, "scales": name, "fast": options.fast, "fit": fit}
        row["score"] = sum(seconds[part] for part in name.split(" + "))
        row |= {key: getattr(found, key) for key in ("image_auroc", "pixel_auroc", "au_pro_30")}
        row |= {f"top {share:.0%}": by_share(values, share, labels) for share in (0.01, 0.05)}
        row |= {"steps": options.steps, "rate": options.rate, "resize": options.resize, "seed": options.seed}
        rows.append(row)
        shown = ("image_auroc", "top 1%", "top 5%", "pixel_auroc", "au_pro_30")
        figures = "   ".join(f"{key} {row[key]:.4f}" for key in shown if row[key])
        print(f"{name:30} {figures}   {1e3 * row['score']:.0f} ms an image", flush=True)
        write(options.json, rows)


if __name__ == "__main__":
    main()
