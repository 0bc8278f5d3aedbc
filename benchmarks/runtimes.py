"""What the network's runtime and precision give and cost: time, memory, AUROC; and what bounds a folder of pictures.

    python benchmarks/runtimes.py network DATA --weights resnet18.pth
    python benchmarks/runtimes.py fit DATA --models FOLDER --weights resnet18.pth
    python benchmarks/runtimes.py time DATA --models FOLDER
    python benchmarks/runtimes.py folder DATA --models FOLDER

`network` has the milliseconds of processor time that the network alone takes with one thread, and may run on a busy
machine: what waits for others is not counted. `fit` makes a model of each method, backbone, runtime and precision
that this machine has, of `--images` training images, and measures its AUROC on the test images; a model that is there
already stays. It may run on a busy machine. `time` and `folder` want a quiet one: some four and two minutes on two
cores. `time` prints ms an image with one and eight a batch, with one thread and two, from pictures in memory to
verdict, regions and a map on the picture's own pixels, and of the network alone; each model and number of threads has
a process of its own, whose peak memory comes with it. `folder` has each stage of `predict` on the files of the test
images, and images a second of all stages together, as `blemish predict` without heat maps has them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _measure import least_processor_seconds, median_seconds, peak_bytes, run_json, write

METHODS, BACKBONES, THREADS, BATCHES = ("padim", "patchcore"), ("compact", "resnet18"), (1, 2), (1, 8)
ENGINES = (
    ("torch", "float32"), ("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"),
    ("onnxruntime", "int8"), ("openvino", "int8"),
)  # fmt: skip
_ROUNDS = 3


def network(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a backbone, runtime and precision: the layers that PatchCore reads, of images of 256 pixels."""
    import torch

    from blemish import Preprocess, open_dataset
    from blemish.errors import ArgumentError
    from blemish.features.backbones import find_backbone
    from blemish.features.extract import build_extractor
    from blemish.features.runtime import Runner
    from blemish.features.weights import find_weights
    from blemish.images.source import Batches

    torch.set_num_threads(1)
    learned = open_dataset(options.data).train_images().subset(list(range(options.pictures)))
    pixels, rows = [batch.pixels for batch in Batches(learned, Preprocess(256), 8, 1)], []
    for backbone in BACKBONES:
        for runtime, precision in (*ENGINES, ("torch", "bfloat16")):
            row: dict[str, Any] = {"backbone": backbone, "runtime": runtime, "precision": precision}
            known = find_backbone(backbone)
            weights = find_weights(known, options.weights if backbone == "resnet18" else None, seed=0)
            own = precision if runtime == "torch" else "float32"
            try:
                extractor = build_extractor(known, weights=weights, precision=own)
                if runtime != "torch":
                    extractor.runner = Runner(runtime, precision=precision)
                    extractor.runner.learn_ranges(extractor, pixels)
            except ArgumentError as error:
                rows.append(row | {"refused": str(error)})
                continue
            for size in BATCHES:
                part = pixels[0][:size]
                row[f"ms, {size}"] = round(1e3 * least_processor_seconds(partial(extractor, part), 9) / size, 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def fit(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a model, and its file in the folder; what this machine or the bound on the loss refuses has a reason."""
    from blemish import METHODS as KNOWN
    from blemish import Detector, evaluate, open_dataset
    from blemish.errors import ArgumentError

    dataset = open_dataset(options.data)
    train = dataset.train_images()
    train = train.subset(list(range(0, len(train), max(1, len(train) // options.images)))[: options.images])
    options.models.mkdir(parents=True, exist_ok=True)
    rows = []
    for method in METHODS:
        for backbone in BACKBONES:
            for runtime, precision in ENGINES:
                path = options.models / f"{method}-{backbone}-{runtime}-{precision}.blemish"
                row: dict[str, Any] = {"model": path.stem}
                if (facts := path.with_suffix(".json")).exists():
                    rows.append(json.loads(facts.read_text()))
                    continue
                weights = options.weights if backbone == "resnet18" else None
                made = KNOWN[method](backbone=backbone, weights=weights, precision=precision)
                try:
                    detector = Detector(method=made, runtime=runtime, calibration="split").fit(train)
                except ArgumentError as error:
                    row["refused"] = str(error)
                else:
                    detector.save(path)
                    row |= {"AUROC": round(evaluate(detector, dataset).figures.image_auroc or 0, 4)}
                    row |= {"loss": detector.manifest().get("runtime", {}).get("loss"), "MB": path.stat().st_size / 1e6}
                facts.write_text(json.dumps(row))
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def time(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a model and number of threads."""
    rows = []
    for path in models_in(options.models):
        facts = json.loads(path.with_suffix(".json").read_text())
        for threads in THREADS:
            os.environ["OMP_NUM_THREADS"] = str(threads)
            command = [sys.executable, __file__, "time", options.data, "--models", options.models, "--one", path]
            found = run_json([str(part) for part in [*command, "--threads", threads, "--pictures", options.pictures]])
            rows.append({"model": path.stem, "threads": threads} | found | {"AUROC": facts["AUROC"]})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def models_in(folder: Path) -> list[Path]:
    """In the order of the tables, torch first, as the others are compared with it."""
    names = [f"{m}-{b}-{r}-{p}.blemish" for m in METHODS for b in BACKBONES for r, p in ENGINES]
    return [folder / name for name in names if (folder / name).exists()]


def time_one(options: argparse.Namespace) -> dict[str, float]:
    """ms an image of one model, in this process: whole, and the network alone."""
    import torch

    from blemish import Detector, open_dataset
    from blemish.images.source import Batches

    torch.set_num_threads(options.threads)
    test = open_dataset(options.data).test_images()
    chosen = list(range(0, len(test), max(1, len(test) // options.pictures)))[: options.pictures]
    shown = [np.asarray(test.load(i)) for i in chosen]
    detector = Detector.load(options.one, device="cpu")
    (batch,) = Batches(test.subset(chosen), detector.preprocessing, len(chosen), 1)
    detector.workers, row = 1, {}

    def network(size: int) -> None:
        for part in batch.pixels.split(size):
            detector.method_.extractor_(part)  # type: ignore[attr-defined]

    for size in BATCHES:
        detector.batch_size = size

        row[f"network, {size}"] = round(1e3 * median_seconds(partial(network, size), _ROUNDS) / len(shown), 1)
        whole = median_seconds(lambda: list(detector.predict(shown)), _ROUNDS)
        row[f"whole, {size}"] = round(1e3 * whole / len(shown), 1)
        row[f"MB, {size}"] = round(peak_bytes() / 1e6)
    return row


def folder(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Stages on files, for the models of the compact backbone; the pictures come `--repeat` times."""
    import torch

    from blemish import Detector, open_dataset
    from blemish.evaluation.speed import time_stages
    from blemish.images.source import from_paths
    from blemish.report.lines import judged

    paths = [sample.path for sample in open_dataset(options.data).test] * options.repeat
    rows = []
    for path in models_in(options.models):
        if "compact" not in path.stem:
            continue
        for threads in THREADS:
            torch.set_num_threads(threads)
            detector = Detector.load(path, device="cpu")
            found = time_stages(
                detector, from_paths(paths), lambda one: json.dumps(judged(one)), batch_size=8, maps=False
            )
            rows.append({"model": path.stem, "threads": threads} | asdict(found))
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    return rows


def main() -> None:
    """Read the options, and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("network", "fit", "time", "folder"))
    parser.add_argument("data")
    parser.add_argument("--models", type=Path, default="models", help="folder for the models, and of them")
    parser.add_argument("--weights", help="of ResNet-18, for `fit`")
    parser.add_argument("--images", type=int, default=100, help="training images")
    parser.add_argument("--pictures", type=int, default=16, help="for `time` and `network`")
    parser.add_argument("--repeat", type=int, default=1, help="for `folder`")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(time_one(options)))
        return
    write(options.out, {"network": network, "fit": fit, "time": time, "folder": folder}[options.what](options))


if __name__ == "__main__":
    main()
