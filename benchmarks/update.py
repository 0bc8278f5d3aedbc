"""Growing a model: fitted on the first images and updated with the rest, against one fit on all of them.

    python benchmarks/update.py mtd --first 300 --methods padim gaussian,taps=layer1+layer2+layer3 patchcore

Weights come from $BLEMISH_WEIGHTS. Prints how far image scores and maps are apart, relative to the largest, and both
image AUROCs, and with several seeds their means: one seed moves PatchCore's by a point.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from figures import make_method

from blemish import Detector, metrics, open_dataset
from blemish.datasets.layouts import Dataset


def scores(detector: Detector, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor | None]:
    found = [result for _, result in detector.score(dataset.test_images())]
    maps = [result.maps for result in found if result.maps is not None]
    return torch.cat([result.images for result in found]), torch.cat(maps) if maps else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--first", type=int, default=300)
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore"])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the method and, but for 0, of the order")
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    anomalous = np.array([sample.anomalous for sample in dataset.test])
    aurocs: dict[str, list[tuple[float, float]]] = {spec: [] for spec in options.methods}
    for spec, seed in ((spec, seed) for spec in options.methods for seed in options.seeds):
        images = dataset.train_images()
        if seed:
            images = images.subset(np.random.default_rng(seed).permutation(len(images)).tolist())
        whole, grown = (
            Detector(method=make_method(spec, options.backbone, seed)[0], calibration="none") for _ in range(2)
        )
        start = perf_counter()
        whole.fit(images)
        refit = perf_counter() - start
        grown.fit(images.subset(range(options.first)))
        start = perf_counter()
        grown.update(images.subset(range(options.first, len(images))))
        update = perf_counter() - start
        (expected, maps), (found, found_maps) = scores(whole, dataset), scores(grown, dataset)
        apart = float((found - expected).abs().max() / expected.abs().max())
        if maps is not None and found_maps is not None:
            apart = max(apart, float((found_maps - maps).abs().max() / maps.abs().max()))
        pair = metrics.auroc(found.numpy(), anomalous), metrics.auroc(expected.numpy(), anomalous)
        aurocs[spec].append(pair)
        print(
            f"{spec}, seed {seed}: scores and maps at most {apart:.1e} apart; image AUROC {pair[0]:.4f} grown, "
            f"{pair[1]:.4f} refitted; update {update:.1f} s, refit {refit:.1f} s",
            flush=True,
        )
    for spec, pairs in aurocs.items():
        means = np.mean(pairs, axis=0)
        print(f"{spec}, mean of {len(pairs)}: image AUROC {means[0]:.4f} grown, {means[1]:.4f} refitted")


if __name__ == "__main__":
    main()
