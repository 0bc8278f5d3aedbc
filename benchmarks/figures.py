"""Figures of any method on labelled data, one row a combination, in one run.

    python benchmarks/figures.py mvtec_ad/screw mtd --methods knn gaussian --backbones resnet18 mobilenet_v2
    python benchmarks/figures.py mtd --methods patchcore,ratio=0.01 patchcore,ratio=0.1 --json figures.json

Each fit is on all normal images, without calibration; weights come from $BLEMISH_WEIGHTS. A method may carry
parameters, `taps=layer1+layer2` or `index=faiss:ivf16`, and `preset=paper` for those of the paper. Pixel figures are
on the original pixels (`paper`: on the crop).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from _measure import write

from blemish import METHODS, Detector, Preprocess, evaluate, open_dataset
from blemish.edges.faiss import index_from_name
from blemish.methods import Method


def make_method(spec: str, backbone: str, seed: int) -> tuple[Method, str]:
    """The method that `NAME,KEY=VALUE,...` describes, and its preset."""
    name, *settings = spec.split(",")
    parameters = dict(setting.split("=", 1) for setting in settings)
    preset = parameters.pop("preset", "default")
    chosen: dict[str, Any] = dict(METHODS[name].paper) if preset == "paper" else {}
    if "taps" in parameters:
        chosen["taps"] = tuple(parameters.pop("taps").split("+"))
    if "index" in parameters:
        chosen["index"] = index_from_name(parameters.pop("index"))
    for key, value in parameters.items():
        chosen[key] = json.loads(value) if value[0] in "0123456789-" or value in ("true", "false") else value
    return METHODS[name](backbone=backbone, seed=seed, **chosen), preset


def measure(data: Path, spec: str, backbone: str, seed: int, *, resize: int | None, every: int) -> dict[str, Any]:
    """One row, on each `every`-th test image."""
    method, preset = make_method(spec, backbone, seed)
    dataset = open_dataset(data)
    dataset = replace(dataset, test=dataset.test[::every])
    detector = Detector(method=method, preprocess=Preprocess(resize) if resize else preset, calibration="none")
    start = perf_counter()
    detector.fit(dataset.train_images())
    fit = perf_counter() - start
    some = dataset.test_images().subset(range(min(64, len(dataset.test))))
    start = perf_counter()
    for _ in detector.score(some):
        pass
    score = (perf_counter() - start) / len(some)
    found = evaluate(detector, dataset).figures
    row = {"data": data.name, "method": spec, "backbone": backbone, "seed": seed, "fit": fit, "score": score}
    row["recall"] = getattr(method, "recall_", None)
    return row | {name: getattr(found, name) for name in ("image_auroc", "pixel_auroc", "au_pro_30")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--backbones", nargs="+", default=["resnet18"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--resize", type=int, help="pixels; default: the preset's")
    parser.add_argument("--every", type=int, default=1, help="score one test image of so many")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for data, spec, backbone, seed in product(options.data, options.methods, options.backbones, options.seeds):
        row = measure(data, spec, backbone, seed, resize=options.resize, every=options.every)
        rows.append(row)
        text = "   ".join(
            f"{key} {'-' if row[key] is None else f'{row[key]:.4f}'}"
            for key in ("image_auroc", "pixel_auroc", "au_pro_30", "recall")
        )
        place = f"{row['data']:6} {spec:28} {backbone:13} seed {seed}"
        print(f"{place}   {text}   fit {row['fit']:6.1f} s, score {row['score'] * 1e3:6.1f} ms an image", flush=True)
        write(options.json, rows)


if __name__ == "__main__":
    main()
