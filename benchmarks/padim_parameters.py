"""How much PaDiM's figures depend on the seed, eps, the reduction and d.

    python benchmarks/padim_parameters.py DATA --weights resnet18.pth --seeds 0 1 2 --eps 0.01 0.001

DATA is in the MVTec layout. Features are extracted once; each combination is fitted on all training images and measured
on the network's pixels. Test labels are used, so this explains a choice, it does not make an honest one.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

from blemish import Batches, PaDiM, Preprocess, metrics, open_dataset
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.weights import read_weights
from blemish.images.decode import decode_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eps", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--reduction", nargs="+", default=["random", "orthogonal"])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[100])
    options = parser.parse_args()

    dataset = open_dataset(options.data)
    extractor = build_extractor(find_backbone("resnet18"), weights=read_weights(options.weights))
    preprocess = Preprocess(256)
    train, test = (
        [extractor(batch.pixels) for batch in Batches(source, preprocess)]
        for source in (dataset.train_images(), dataset.test_images())
    )
    anomalous = np.array([sample.anomalous for sample in dataset.test])
    masks = [None if s.mask is None else preprocess.mask(decode_mask(s.mask)) for s in dataset.test]
    for reduction, d, eps, seed in itertools.product(options.reduction, options.dimensions, options.eps, options.seeds):
        method = PaDiM(reduction=reduction, dimensions=d, eps=eps, seed=seed)
        method._learn(iter(train), expected=len(dataset.train))
        scores = [method._score(features) for features in test]
        maps = torch.cat([s.maps for s in scores]).numpy()
        curve = metrics.pixel_curve(list(zip(maps, masks, strict=True)))
        image = metrics.auroc(torch.cat([s.images for s in scores]).numpy(), anomalous)
        print(
            f"{reduction:10} d {d:4} eps {eps:<7g} seed {seed}: image AUROC {image:.4f}   pixel AUROC "
            f"{metrics.pixel_auroc(curve):.4f}   AU-PRO {metrics.au_pro(curve):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
