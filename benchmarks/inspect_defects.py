"""Defects among the normal images: does `blemish inspect` rank them high, and what does throwing them out give?

    python benchmarks/inspect_defects.py ../shared/data/mtd --draws 3

Of the test defects, so many are drawn into the training images that they are 5 % of them; the other test images are
tested on. Prints the share of them among the most unlike tenth, and image AUROC of PaDiM on the built-in backbone,
trained without them, with them, without those that are in the tenth (somebody looked at it), and without the tenth.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from blemish import Detector, Preprocess
from blemish.datasets.layouts import Dataset, open_dataset
from blemish.evaluation.detector import evaluate
from blemish.inspection.inspect import inspect_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--no-fits", action="store_true", help="only the ranking")
    settings = parser.parse_args()
    dataset = open_dataset(settings.data)
    for draw in range(settings.draws):
        defects = [sample for sample in dataset.test if sample.anomalous]
        count = round(len(dataset.train) * 0.05 / 0.95)
        mixed = {sample.path for sample in random.Random(draw).sample(defects, count)}
        test = tuple(sample for sample in dataset.test if sample.path not in mixed)
        dirty = (*dataset.train, *sorted(mixed))
        inspection = inspect_dataset(Dataset(dataset.root, dataset.layout, dirty, ()))
        tenth = {dataset.root / name for name, _ in inspection.most_unlike}
        print(f"draw {draw}: {count} defects among {len(dirty)}, {len(mixed & tenth) / count:.3f} of them in the tenth")
        if settings.no_fits:
            continue
        for name, left_out in (("clean", mixed), ("dirty", set()), ("found", mixed & tenth), ("tenth", tenth)):
            train = tuple(path for path in dirty if path not in left_out)
            auroc = image_auroc(Dataset(dataset.root, dataset.layout, train, test), settings.resize)
            print(f"  {name}: {len(train)} images, image AUROC {auroc:.4f}", flush=True)


def image_auroc(dataset: Dataset, side: int) -> float:
    detector = Detector(preprocess=Preprocess(side), calibration="none").fit(dataset.train_images())
    plain = [sample.__class__(sample.path, sample.kind, sample.anomalous) for sample in dataset.test]  # without masks
    found = evaluate(detector, Dataset(dataset.root, dataset.layout, dataset.train, tuple(plain))).figures.image_auroc
    return float("nan") if found is None else float(np.float64(found))


if __name__ == "__main__":
    main()
