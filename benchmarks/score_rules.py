"""Which share of a map makes the score of an image: image AUROC for several `top_share`, one row a data set and method.

    python benchmarks/score_rules.py drawn
    python benchmarks/score_rules.py mvtec_ad/screw mtd --methods padim patchcore --backbone resnet18
    python benchmarks/score_rules.py drawn mvtec_ad/screw --methods patchcore --as-fit --seeds 11 12

`drawn` stands for all drawn products. Each fit is on all normal images, at 256 x 256; only the rule differs within a
row. `--as-fit` prepares and holds out images as `fit` without options does, and draws products of 512 x 512: 60 images
to learn from, 40 normal and 56 defective ones to judge.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from _measure import write

from blemish import METHODS, Batches, Detector, Preprocess, open_dataset
from blemish.datasets.dataset import Dataset
from blemish.datasets.synthetic import PRODUCTS, write_dataset
from blemish.metrics import auroc

SHARES = (0.0, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)


def measure(dataset: Dataset, name: str, backbone: str, *, as_fit: bool) -> dict[float, float]:
    """Image AUROC by share; the network sees each test image once."""
    method: Any = METHODS[name](backbone=backbone)
    preprocess: Any = Preprocess()
    if as_fit:
        detector = Detector(method=method).fit(dataset.train_images())
        method, preprocess = detector.method_, detector.preprocessing
    else:
        method.fit(Batches(dataset.train_images(), preprocess, 8, 1, "raise"))
    scores: dict[float, list[float]] = {share: [] for share in SHARES}
    for batch in Batches(dataset.test_images(), preprocess, 8, 1, "raise"):
        maps = method.extractor_(batch.pixels).maps
        known = replace(batch, features=dict(zip(method.extractor_.taps, maps, strict=True)))
        for share in SHARES:
            scores[share] += method.set_params(top_share=share).score(known).images.tolist()
    labels = [sample.anomalous for sample in dataset.test]
    return {share: auroc(found, labels) for share, found in scores.items()}


def datasets(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Dataset]]:
    numbers = {"n_train": 60, "n_test_normal": 40, "size": 512} if options.as_fit else {"n_train": 80}
    for path in options.data:
        if path != "drawn":
            yield Path(path).name, open_dataset(path)
            continue
        for product, seed in itertools.product(PRODUCTS, options.seeds):
            drawn = write_dataset(folder / f"{product}-{seed}", product=product, seed=seed, **numbers)
            yield drawn.name, open_dataset(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore"])
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--as-fit", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of drawn products")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'':28}" + "".join(f"{share:>8}" for share in SHARES))
    with tempfile.TemporaryDirectory() as folder:
        for data, dataset in datasets(options, Path(folder)):
            for name in options.methods:
                found = measure(dataset, name, options.backbone, as_fit=options.as_fit)
                print(f"{data:16} {name:11}" + "".join(f"{value:8.4f}" for value in found.values()), flush=True)
                rows.append({"data": data, "method": name, "backbone": options.backbone, "image_auroc": found})
                write(options.json, rows)
    for name in options.methods:
        mine = [row["image_auroc"] for row in rows if row["method"] == name]
        means = (sum(found[share] for found in mine) / len(mine) for share in SHARES)
        print(f"{'mean':16} {name:11}" + "".join(f"{value:8.4f}" for value in means))


if __name__ == "__main__":
    main()
