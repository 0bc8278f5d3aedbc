"""Which score ranks defects among normal images highest? What `blemish inspect` uses, beside other candidates.

    python benchmarks/inspect_scores.py ../shared/data/mvtec_ad/screw --draws 6 --seed 100 --chosen-on
    python benchmarks/inspect_scores.py ../shared/data/mtd ../shared/data/mpdd/metal_plate --draws 10

Of the test defects, so many are drawn into the training images that they are 5 % of them; figure: the share of them
among the most unlike tenth, mean over draws. With `--chosen-on` also eight drawn products, each of 100 images; the
last column is the mean of the products and of the sets given, half each, by which a score was chosen. `--shapes`
instead: drawn textures alone, cut to all aspects from 0.4 to 2.5, so that no place of one picture is that of another.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from input_size import draw_shapes
from scipy.stats import rankdata

from blemish import Preprocess
from blemish.datasets._defects import DEFECTS
from blemish.datasets.layouts import open_dataset
from blemish.datasets.synthetic import PRODUCTS, draw
from blemish.device import find_device
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.weights import find_weights
from blemish.images.source import Batches, as_source
from blemish.inspection.unlike import leave_one_out, near_its_place

Maps = list[torch.Tensor]


def whole(maps: Maps) -> np.ndarray:
    """Averages and deviations of each channel."""
    return leave_one_out(torch.cat([f for m in maps for f in (m.mean((2, 3)), m.std((2, 3)))], 1).double().numpy())


def inside(maps: Maps) -> np.ndarray:
    """The same without the outer twelfth at each side."""
    return whole([m[:, :, k:-k, k:-k] for m in maps for k in [m.shape[2] // 12]])


def one_place_away(maps: Maps) -> np.ndarray:
    """Distance to the nearest patch of another image, one place away at most; mean of the highest."""
    draw = torch.Generator().manual_seed(0)
    values = maps[1]  # stride 8
    return near_its_place(torch.einsum("nchw,cd->nhwd", values, torch.randn(values.shape[1], 32, generator=draw)))


WHOLE: dict[str, Callable[[Maps], np.ndarray]] = {"averages and deviations": whole, "the same inside": inside}


def scores(maps: Maps) -> dict[str, np.ndarray]:
    """Each score's share of rank, and by Fisher's sum those of whole images and of places."""
    n = len(maps[0])
    known = {name: rankdata(score(maps)) / (n + 1) for name, score in WHOLE.items()}
    place = rankdata(one_place_away(maps)) / (n + 1)
    both = {f"Fisher: {name}, one place away": -np.log((1 - one) * (1 - place)) for name, one in known.items()}
    return known | {"one place away": place} | both


def features(images: object, side: int) -> Maps:
    row = find_backbone("compact")
    extractor = build_extractor(row, weights=find_weights(row), device=find_device("cpu"))
    found = [extractor(batch.pixels).maps for batch in Batches(as_source(images), Preprocess(side))]
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


def shares(normal: Maps, defects: Maps, draws: int, seed: int) -> dict[str, list[float]]:
    n, found = len(normal[0]), {}
    count = max(1, round(n * 0.05 / 0.95))
    for number in range(draws):
        chosen = random.Random(f"{seed} {number}").sample(range(len(defects[0])), min(count, len(defects[0])))
        mixed = [torch.cat([a, b[chosen]]) for a, b in zip(normal, defects, strict=True)]
        tenth = -(-len(mixed[0]) // 10)
        for name, values in scores(mixed).items():
            found.setdefault(name, []).append(float((np.argsort(-values)[:tenth] >= n).sum() / len(chosen)))
    return found


def drawn(name: str, side: int) -> tuple[Maps, Maps]:
    kinds = list(DEFECTS)
    normal = [draw(name, seed=seed, size=side).pixels for seed in range(100)]
    defects = [draw(name, seed=1000 + s, defect=kinds[s % len(kinds)], size=side).pixels for s in range(24)]
    return features(normal, side), features(defects, side)


def drawn_shapes(name: str, side: int) -> tuple[Maps, Maps]:
    parts = draw_shapes(name, train=100, normal=0, each=4)
    return tuple(features([part.picture for part in some], side) for some in (parts.train, parts.test))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=192, help="pixels that the backbone sees")
    parser.add_argument("--chosen-on", action="store_true")
    parser.add_argument("--shapes", action="store_true")
    settings = parser.parse_args()
    columns: dict[str, dict[str, float]] = {}
    for path in settings.data:
        dataset = open_dataset(path)
        defects = [sample.path for sample in dataset.test if sample.anomalous]
        found = shares(
            features(dataset.train_images(), settings.side),
            features(defects, settings.side),
            settings.draws,
            settings.seed,
        )
        columns[path.name] = {name: float(np.mean(values)) for name, values in found.items()}
    if settings.chosen_on:
        for name in PRODUCTS:
            found = shares(*drawn(name, settings.side), settings.draws, settings.seed)
            columns[name] = {name: float(np.mean(values)) for name, values in found.items()}
    for name in ("weave", "brushed", "leather", "terrazzo", "cork") if settings.shapes else ():
        found = shares(*drawn_shapes(name, settings.side), settings.draws, settings.seed)
        columns[name] = {name: float(np.mean(values)) for name, values in found.items()}
    print("|".join(["score", *columns]))
    rows = {name: [column[name] for column in columns.values()] for name in next(iter(columns.values()))}
    real = len(settings.data) or len(columns)
    for name, values in sorted(rows.items(), key=lambda row: -np.mean(row[1][:real])):
        half = f"|{(np.mean(values[:real]) + np.mean(values[real:])) / 2:.3f}" if settings.chosen_on else ""
        print("|".join([name, *(f"{value:.2f}" for value in values)]) + half)


if __name__ == "__main__":
    main()
