"""The peer's side of `export.py speed`; runs in the peer's own environment, imports nothing of blemish.

`prepare` fits PaDiM and PatchCore (1 %) on ResNet-18, with all that the peer has beside the model, and exports them for
OpenVINO. `time` prints one JSON line: ms a picture by the peer's own inferencer, which returns scores, a map of the
network's size, a mask and a label.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import tempfile
import warnings
from pathlib import Path
from time import perf_counter

import torch

warnings.filterwarnings("ignore")
if torch.version.cuda is None:  # torchvision from PyPI is built against CUDA; its import needs these two declarations
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np  # noqa: E402


def prepare(options: argparse.Namespace) -> None:
    """Fit and export both methods: `FOLDER/METHOD.xml`."""
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Padim, Patchcore
    from lightning.pytorch import seed_everything

    logging.getLogger("lightning").setLevel(logging.ERROR)
    kinds = sorted(p.name for p in (options.data / "test").iterdir() if p.name != "good")
    learned = sorted((options.data / "train" / "good").iterdir())[: options.images]
    weights = torch.load(options.weights, weights_only=True)
    for method in ("padim", "patchcore"):
        seed_everything(0)
        with tempfile.TemporaryDirectory() as folder:
            for path in learned:
                Path(folder, "good").mkdir(exist_ok=True)
                shutil.copy(path, Path(folder, "good"))
            data = Folder(
                name="data",
                root=options.data,
                normal_dir=Path(folder, "good"),
                normal_test_dir="test/good",
                abnormal_dir=[f"test/{kind}" for kind in kinds],
                val_split_mode="same_as_test",
                num_workers=2,
            )
            kept = {"backbone": "resnet18", "pre_trained": False, "evaluator": False, "visualizer": False}
            model = (
                Padim(**kept)
                if method == "padim"
                else Patchcore(layers=("layer2", "layer3"), coreset_sampling_ratio=0.01, **kept)
            )
            model.model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
            engine = Engine(
                accelerator="cpu", devices=1, logger=False, default_root_dir=folder, enable_progress_bar=False
            )
            engine.fit(model=model, datamodule=data)
            size = (options.side, options.side) if options.side else None
            made = Path(engine.export(model, "openvino", export_root=folder, input_size=size))
            for part in (made, made.with_suffix(".bin")):
                shutil.copy(part, options.folder / f"{method}{part.suffix}")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The median of three rounds over all pictures."""
    from anomalib.deploy import OpenVINOInferencer

    os.chdir(options.folder)  # it writes its cache where it is
    settings = {"INFERENCE_NUM_THREADS": options.threads, "INFERENCE_PRECISION_HINT": "f32"}
    inferencer = OpenVINOInferencer(options.folder / f"{options.method}.xml", device="CPU", config=settings)
    with np.load(options.shown) as kept:
        shown = list(kept.values())
    batch = inferencer.input_blob.partial_shape[0]
    many = batch.get_length() if batch.is_static else 1  # its PatchCore takes two at a time, and no other number
    calls = [np.stack(shown[i : i + many]) for i in range(0, len(shown), many)]
    seconds = []
    for _ in range(4):
        start = perf_counter()
        for pictures in calls:
            inferencer.predict(pictures)
        seconds.append(perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ms": 1e3 * statistics.median(seconds[1:]) / len(shown), "peak_mb": peak / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("prepare", "time"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--side", type=int, help="of the pictures")
    parser.add_argument("--method", default="padim")
    parser.add_argument("--shown", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options)
    else:
        print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
