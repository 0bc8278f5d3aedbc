"""Which share of a map makes the score of an image: image AUROC for several `top_share`, one row a data set and method.

    python benchmarks/score_rules.py drawn
    python benchmarks/score_rules.py mvtec_ad/screw mtd --methods padim patchcore --backbone resnet18

`drawn` stands for all drawn products. Each fit is on all normal images, and only the rule differs within a row.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from _measure import write

from blemish import METHODS, Batches, Preprocess, open_dataset
from blemish.datasets.dataset import Dataset
from blemish.datasets.synthetic import PRODUCTS, write_dataset
from blemish.metrics import auroc

SHARES = (0.0, 0.001, 0.003, 0.01, 0.02, 0.05)


def measure(dataset: Dataset, name: str, backbone: str) -> dict[float, float]:
    """Image AUROC by share; the network sees each test image once."""
    method: Any = METHODS[name](backbone=backbone)
    method.fit(Batches(dataset.train_images(), Preprocess(), 8, 1, "raise"))
    scores: dict[float, list[float]] = {share: [] for share in SHARES}
    for batch in Batches(dataset.test_images(), Preprocess(), 8, 1, "raise"):
        maps = method.extractor_(batch.pixels).maps
        known = replace(batch, features=dict(zip(method.extractor_.taps, maps, strict=True)))
        for share in SHARES:
            scores[share] += method.set_params(top_share=share).score(known).images.tolist()
    labels = [sample.anomalous for sample in dataset.test]
    return {share: auroc(found, labels) for share, found in scores.items()}


def datasets(paths: list[str], folder: Path) -> Iterator[tuple[str, Dataset]]:
    for path in paths:
        if path != "drawn":
            yield Path(path).name, open_dataset(path)
            continue
        for product in PRODUCTS:
            yield product, open_dataset(write_dataset(folder / product, product=product, seed=0, n_train=80))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore"])
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'':28}" + "".join(f"{share:>8}" for share in SHARES))
    with tempfile.TemporaryDirectory() as folder:
        for data, dataset in datasets(options.data, Path(folder)):
            for name in options.methods:
                found = measure(dataset, name, options.backbone)
                print(f"{data:16} {name:11}" + "".join(f"{value:8.4f}" for value in found.values()), flush=True)
                rows.append({"data": data, "method": name, "backbone": options.backbone, "image_auroc": found})
                write(options.json, rows)
    for name in options.methods:
        mine = [row["image_auroc"] for row in rows if row["method"] == name]
        means = (sum(found[share] for found in mine) / len(mine) for share in SHARES)
        print(f"{'mean':16} {name:11}" + "".join(f"{value:8.4f}" for value in means))


if __name__ == "__main__":
    main()
