"""What a stranger gets: `fit` without options, beside anomalib's PaDiM and PatchCore on ResNet-18, same images.

    python -m venv peer && peer/bin/pip install anomalib==2.7.0 torch==2.13.0 torchvision==0.28.0
    python benchmarks/first_contact.py mvtec_ad/bottle mpdd/metal_plate --weights resnet18.pth --peer peer/bin/python

Ours holds normal images out for its threshold and learns from the rest; the peer learns from all. Image AUROC; pixel
AUROC and AU-PRO on the original pixels where there are masks. The peer's PatchCore keeps 1 % of the patches
(`--ratio`; its default of 10 % takes hours on a CPU). DATA is in the MVTec layout. Each side is a process of its own.

`--fold I` of ours alone: the I-th fifth of the normal training images is judged with the test images, not learned; for
sets with a handful of normal test images, whose AUROC says nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from _measure import run_json, write
from figures import make_method
from PIL import Image

from blemish import Detector, Preprocess, evaluate, metrics, open_dataset
from blemish.datasets.dataset import Dataset, Sample
from blemish.images.decode import decode_mask

FIGURES = ("image_auroc", "pixel_auroc", "au_pro_30")


def ours(data: Path, options: argparse.Namespace) -> None:
    """Runs in a process of its own."""
    dataset = open_dataset(data)
    if options.fold is not None:
        dataset = without_fold(dataset, options.fold)
    detector = Detector(method=options.method) if options.method else Detector()
    if options.backbone or "," in (options.method or ""):
        method, _ = make_method(options.method or "patchcore", options.backbone or "compact", 0)
        detector = Detector(method=method)
    if options.held_out is not None:
        share = {"held_out": options.held_out} if options.held_out else {"calibration": "none"}
        detector = replace(detector, **share)
    detector = replace(detector, seed=options.seed)
    if options.resize:
        detector = replace(detector, preprocess=Preprocess(options.resize))
    start, busy = perf_counter(), process_time()
    detector.fit(dataset.train_images())
    fit, busy_fit = perf_counter() - start, process_time() - busy
    some = dataset.test_images().subset(range(min(40, len(dataset.test))))
    busy = process_time()
    for _ in detector.predict(some):
        pass
    busy_image = (process_time() - busy) / len(some)
    found = evaluate(detector, dataset)
    chosen = detector.chosen_ or detector.method_.name
    row = {"fit": fit, "score": found.seconds, "images": len(found.records), "chosen": chosen}
    row |= {"busy_fit": busy_fit, "busy_image": busy_image}
    print(json.dumps(row | {name: getattr(found.figures, name) for name in FIGURES}))


def without_fold(dataset: Dataset, fold: int, folds: int = 5) -> Dataset:
    """A data set in which a share of the normal training images is judged instead of learned."""
    left_out = dataset.train[fold::folds]
    learned = tuple(path for path in dataset.train if path not in left_out)
    return replace(dataset, train=learned, test=(*dataset.test, *(Sample(path, "good", False) for path in left_out)))


def figures_of(data: Path, found: Path) -> dict[str, float | None]:
    """The peer's scores and maps, by our metrics."""
    samples = {str(sample.path): sample for sample in open_dataset(data).test}
    with np.load(found) as file:
        names, scores, maps = file["names"], file["scores"], file["maps"]
    chosen = [samples[str(name)] for name in names]
    anomalous = np.array([sample.anomalous for sample in chosen])
    row: dict[str, float | None] = {"image_auroc": metrics.auroc(scores, anomalous), "pixel_auroc": None}
    if any(sample.mask for sample in chosen):
        preprocess, pairs = Preprocess(maps.shape[1]), []
        for sample, map in zip(chosen, maps, strict=True):
            width, height = Image.open(sample.path).size
            placed = preprocess.to_original(torch.from_numpy(map), (height, width))
            mask = None if sample.mask is None else _at_size(decode_mask(sample.mask), (height, width))
            pairs.append((placed, mask))
        curve = metrics.pixel_curve(pairs)
        row |= {"pixel_auroc": metrics.pixel_auroc(curve), "au_pro_30": metrics.au_pro(curve)}
    return row


def _at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[rows[:, None], columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, help="of ResNet-18, for the peer")
    parser.add_argument("--peer", type=Path, help="python of the peer's environment")
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore"], help="of the peer")
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument(
        "--one-product",
        action="store_true",
        help="the peer's coreset by one product a step: hours less on large sets, for figures, not for times",
    )
    parser.add_argument("--method", help="ours with this method, such as patchcore,count=2000, or auto")
    parser.add_argument("--backbone", help="ours on this backbone; compact_large, resnet18 from $BLEMISH_WEIGHTS, ...")
    parser.add_argument("--resize", help="ours with this input size, such as auto:320")
    parser.add_argument(
        "--held-out", type=float, help="ours with this share of the images held out; 0: none, no threshold"
    )
    parser.add_argument("--seed", type=int, default=0, help="what is held out, and the coreset; of the peer as well")
    parser.add_argument("--fold", type=int, choices=range(5))
    parser.add_argument("--no-ours", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_ours:
        ours(options.data[0], options)
        return
    rows = []
    for data in (path.resolve() for path in options.data):
        found = {}
        if not options.no_ours:
            mine = [sys.executable, __file__, str(data), "--only-ours"]
            for name in ("method", "backbone", "resize", "fold", "held_out", "seed"):
                given = getattr(options, name)
                mine += [] if given is None else [f"--{name.replace('_', '-')}", str(given)]
            found["blemish"] = run_json(mine)
        for method in options.methods if options.peer else ():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "found.npz"
                side = str(Path(__file__).with_name("_anomalib_side.py"))
                command = [str(options.peer), side, method, str(data), str(options.weights), str(out)]
                command += ["--one-product"] if options.one_product else []
                row = run_json([*command, "--ratio", str(options.ratio), "--seed", str(options.seed)])
                found[f"anomalib {method}"] = row | figures_of(data, out)
        for side, row in found.items():
            rows.append({"data": data.name, "side": side, **row})
            text = "  ".join(f"{name} {'-' if row.get(name) is None else f'{row[name]:.4f}'}" for name in FIGURES)
            seconds = f"fit {row['fit']:6.1f} s, score {row['score'] / row['images'] * 1e3:5.1f} ms an image"
            if side == "blemish":  # processor seconds say the same on a busy machine
                seconds += f"  processor {row['busy_fit']:6.1f} s, {row['busy_image'] * 1e3:5.1f} ms"
            print(f"{data.name:16} {side:19} {text}  {seconds}  {row.get('chosen', '')}", flush=True)
            write(options.json, rows)


if __name__ == "__main__":
    main()
