"""What the presets reach on labelled data, and what an image takes, in turns in one run.

    python benchmarks/presets.py mvtec_ad/screw mpdd/metal_plate --presets default fast accurate --train 150

DATA is in the MVTec layout. Each preset learns from the same normal images, without calibration; an image's time is the
median of processor seconds over some images, as a ratio to the first preset's.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time

from blemish import Detector, evaluate, open_dataset

TIMED = 24


def seconds(detector: Detector, paths: list[Path]) -> list[float]:
    """Processor seconds of each image, one at a time."""
    found = []
    for path in paths:
        start = process_time()
        next(detector.predict(path))
        found.append(process_time() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--presets", nargs="+", default=["default", "fast", "accurate"])
    parser.add_argument("--train", type=int, default=10_000, help="learn from so many images, drawn by a seed")
    options = parser.parse_args()
    for folder in options.data:
        dataset = open_dataset(folder)
        train = sorted(random.Random(0).sample(dataset.train, min(options.train, len(dataset.train))))
        dataset = replace(dataset, train=tuple(train))
        timed = [sample.path for sample in dataset.test][:: max(1, len(dataset.test) // TIMED)]
        first = 0.0
        for name in options.presets:
            detector = Detector.preset(name).set_params(calibration="none")
            detector.fit(dataset.train_images())
            taken = median(seconds(detector, timed))
            first = first or taken
            found = evaluate(detector, dataset).figures
            texts = ["-" if v is None else f"{v:.3f}" for v in (found.image_auroc, found.pixel_auroc, found.au_pro_30)]
            print(f"{folder.name:12} {name:9} {' '.join(texts)}   time {taken / first:.2f}", flush=True)


if __name__ == "__main__":
    main()
