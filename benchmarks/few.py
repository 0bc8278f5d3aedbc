"""From few normal images: what methods find after 1, 2, 4, 8 and 16 of them, over several draws.

    BLEMISH_WEIGHTS=weights python benchmarks/few.py mvtec_ad/screw mtd --methods subspace padim patchcore,count=1000
    python benchmarks/few.py mvtec_ad/hazelnut_few --images all --draws 1 --maps --json all.json

DATA is in the MVTec layout. The images of a draw are the first ones of a seeded order, so that 4 contain the 2; each
image goes through the backbone once. `--limit` takes a seeded choice of so many normal and so many test images.
`--maps` adds AU-PRO, on the network's pixels. A method that needs more images than there are has no figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import write
from figures import make_method
from numpy.typing import NDArray

from blemish import Batches, Preprocess, metrics, open_dataset
from blemish.errors import ArgumentError
from blemish.features.backbones import find_backbone
from blemish.features.extract import Extractor, build_extractor
from blemish.features.weights import find_weights
from blemish.images.decode import decode_mask
from blemish.images.source import ImageSource
from blemish.methods import FeatureMethod
from blemish.ops.turns import turned
from blemish.types import FeatureMaps

FIGURES = ("image_auroc", "au_pro_30")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", default=["subspace", "padim", "patchcore,count=300"])
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--images", nargs="+", default=["1", "2", "4", "8", "16"], help="how many, or all")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--limit", type=int, help="default: all images")
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    methods = {spec: make_method(spec, options.backbone, seed=0)[0] for spec in options.methods}
    rows: list[dict[str, Any]] = []
    taps = tuple(dict.fromkeys(tap for method in methods.values() for tap in method.tapped()))
    backbone = find_backbone(options.backbone)
    extractor = build_extractor(backbone, weights=find_weights(backbone, None), taps=taps)
    preprocess = Preprocess(256)
    for path in options.data:
        dataset, random = open_dataset(path), np.random.default_rng(0)
        pool, test = (
            sorted(random.permutation(len(samples))[: options.limit].tolist())
            for samples in (dataset.train, dataset.test)
        )
        normal = Pictures(extractor, dataset.train_images().subset(pool), preprocess)
        tested = Pictures(extractor, dataset.test_images().subset(test), preprocess).learned(range(len(test)))
        samples = [dataset.test[i] for i in test]
        anomalous = np.array([sample.anomalous for sample in samples])
        masks = [None if s.mask is None else preprocess.mask(decode_mask(s.mask)) for s in samples]
        with_place = options.maps and all(m is not None for m, bad in zip(masks, anomalous, strict=True) if bad)
        for draw, count, spec in product(range(options.draws), options.images, methods):
            order = np.random.default_rng([1, draw]).permutation(len(normal))
            chosen = (order if count == "all" else order[: int(count)]).tolist()
            learned = normal.learned(chosen, turns=getattr(methods[spec], "turns", 1))
            figures = measure(methods[spec], extractor.taps, learned, tested, anomalous, masks if with_place else None)
            place = {"data": path.name, "method": spec, "images": count, "draw": draw}
            rows.append(place | dict(zip(FIGURES, figures, strict=True)))
            write(options.json, rows)
        for spec, figure in product(methods, FIGURES):
            own = [row for row in rows if (row["data"], row["method"]) == (path.name, spec)]
            cells = [cell([row[figure] for row in own if row["images"] == count]) for count in options.images]
            print(f"| {path.name} | `{spec}` | {figure} | {' | '.join(cells)} |", flush=True)


class Pictures:
    """Images, and the maps of each by itself, in any direction; made when they are asked for, and once."""

    def __init__(self, extractor: Extractor, source: ImageSource, preprocess: Preprocess) -> None:
        self._extractor = extractor
        self._pixels = [pixels[None] for batch in Batches(source, preprocess) for pixels in batch.pixels]
        self._maps: dict[tuple[int, float], FeatureMaps] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def learned(self, indices: Iterable[int], *, turns: int = 1) -> list[FeatureMaps]:
        """What is learned from these images in so many directions."""
        return [self._seen(index, 360 * k / turns) for index in indices for k in range(turns)]

    def _seen(self, index: int, degrees: float) -> FeatureMaps:
        if (index, degrees) not in self._maps:
            pixels = self._pixels[index]
            self._maps[index, degrees] = self._extractor(turned(pixels, degrees) if degrees else pixels)
        return self._maps[index, degrees]


def measure(  # noqa: PLR0917
    method: FeatureMethod,
    taps: tuple[str, ...],
    learned: list[FeatureMaps],
    tested: list[FeatureMaps],
    anomalous: NDArray[np.bool_],
    masks: list[NDArray[np.bool_] | None] | None,
) -> tuple[float | None, float | None]:
    """Image AUROC and AU-PRO 30 %."""
    own = [taps.index(tap) for tap in method.tapped()]

    def maps(of: list[FeatureMaps]) -> list[FeatureMaps]:
        return [FeatureMaps(tuple(m.maps[i] for i in own), m.image_size) for m in of]

    with torch.inference_mode():
        try:
            method._learn(iter(maps(learned)), expected=len(learned))
        except ArgumentError:
            return None, None  # it cannot learn from so few images
        scores = [method._score(features) for features in maps(tested)]
    image = metrics.auroc(torch.cat([s.images for s in scores]).numpy(), anomalous)
    if masks is None:
        return image, None
    curve = metrics.pixel_curve(list(zip(torch.cat([s.maps for s in scores]).numpy(), masks, strict=True)))
    return image, metrics.au_pro(curve)


def cell(figures: list[float | None]) -> str:
    """Mean and standard deviation over the draws."""
    values = np.array([value for value in figures if value is not None], dtype=float)
    return f"{values.mean():.3f} ± {values.std():.3f}" if len(values) else "-"


if __name__ == "__main__":
    main()
