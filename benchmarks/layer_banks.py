"""PatchCore from few images with features of length 1, and with one bank a layer: image AUROC over a few draws.

    python benchmarks/layer_banks.py mpdd/metal_plate mvtec_ad/screw mvtec_ad/bottle --images 1 4 --draws 3

DATA is in the MVTec layout; 300 patches are kept in each bank, and the score of an image is its largest distance. Where
each layer has a bank, distances are added. See docs/experiments/subspace.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from few import Pictures
from torch import Tensor
from torch.nn.functional import normalize

from blemish import Preprocess, metrics, open_dataset
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.patches import average_patches, gaussian_projection
from blemish.features.weights import find_weights
from blemish.ops.coreset import CoresetStream

KEPT, TESTED = 300, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--images", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    row = find_backbone(options.backbone)
    extractor = build_extractor(row, weights=find_weights(row, None), taps=row.taps[-2:])
    widths = list(row.channels[-2:])
    kinds: dict[str, Callable[[Tensor], list[Tensor]]] = {
        "as it is": lambda x: [x],
        "length 1": lambda x: [normalize(x)],
        "one bank a layer": lambda x: [normalize(part) for part in x.split(widths, dim=1)],  # type: ignore[no-untyped-call]
        "each layer of length 1": lambda x: [torch.cat([normalize(part) for part in x.split(widths, dim=1)], dim=1)],  # type: ignore[no-untyped-call]
    }
    for path in options.data:
        dataset = open_dataset(path)
        test = sorted(np.random.default_rng(0).permutation(len(dataset.test))[:TESTED].tolist())
        anomalous = np.array([dataset.test[i].anomalous for i in test])
        tested = patches(Pictures(extractor, dataset.test_images().subset(test), Preprocess(256)), len(test))
        orders = [np.random.default_rng([1, draw]).permutation(len(dataset.train)) for draw in range(options.draws)]
        chosen = [order[: max(options.images)].tolist() for order in orders]
        drawn = [Pictures(extractor, dataset.train_images().subset(some), Preprocess(256)) for some in chosen]
        for name, layers in kinds.items():
            for count in options.images:
                found = []
                for pictures in drawn:
                    banks = [bank(part) for part in layers(torch.cat(patches(pictures, count)))]
                    scores = [
                        sum(torch.cdist(x, b).amin(1) for x, b in zip(layers(image), banks, strict=True)).max()
                        for image in tested
                    ]
                    found.append(metrics.auroc(np.array(scores), anomalous))
                print(f"{path.name} {count} images, {name}: {np.mean(found):.3f} ± {np.std(found):.3f}", flush=True)


def patches(pictures: Pictures, count: int) -> list[Tensor]:
    """`(position, channel)` of each image."""
    return [average_patches(maps)[0] for maps in pictures.learned(range(count))]


def bank(vectors: Tensor) -> Tensor:
    """The coreset."""
    matrix = gaussian_projection(vectors.shape[1], 128, seed=0)
    stream = CoresetStream(
        len(vectors), vectors.shape[1], total=len(vectors), wanted=KEPT, project=lambda x: x @ matrix, like=vectors
    )
    stream.add(vectors)
    return stream.finish(KEPT)[0]


if __name__ == "__main__":
    with torch.inference_mode():
        main()
