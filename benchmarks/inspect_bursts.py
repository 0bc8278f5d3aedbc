"""Bursts of one part: which share of new good parts is flagged at a promised 5 %, with and without --group-by?

    python benchmarks/inspect_bursts.py ../shared/data/mtd --splits 200

Each normal training image is a part that was photographed 1 to 6 times: itself, and copies with noise (standard
deviation 3 of 255) and a shift of up to 2 pixels. In each split a third of the parts are new; the pictures of the
others are split by images or by parts (a fifth held out), the method is the distance to the nearest learned picture
(`knn` with k = 1, features of the built-in backbone averaged over all positions, 128 pixels), and the threshold comes
from the held-out pictures. Counted is, part by part, the share of the pictures of new parts above it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blemish import Preprocess
from blemish.calibrate import calibrate
from blemish.datasets.layouts import open_dataset
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.patches import pool
from blemish.features.weights import find_weights
from blemish.images.groups import hold_out

RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--parts", type=int, default=400)
    settings = parser.parse_args()
    vectors, part_of = draw_bursts(settings.data, settings.parts)
    distances = torch.cdist(vectors, vectors).numpy()
    print(f"{part_of.max() + 1} parts, {len(part_of)} pictures")
    alarms: dict[str, list[float]] = {"by images": [], "by parts, images counted": [], "by parts": []}
    for split in range(settings.splits):
        parts = np.random.default_rng(split).permutation(part_of.max() + 1)
        is_new = np.isin(part_of, parts[: len(parts) // 3])
        own = np.flatnonzero(~is_new)
        groups = np.unique(part_of[own], return_inverse=True)[1]
        for name, splits_by, counts in (
            ("by images", np.arange(len(own)), None),
            ("by parts, images counted", groups, None),
            ("by parts", groups, groups),
        ):
            learned, held_out = hold_out(splits_by.tolist(), 0.2, seed=split)
            scores = distances[:, own[learned]].min(axis=1)
            known = None if counts is None else counts[held_out]
            threshold = calibrate(scores[own[held_out]], false_alarm_rate=RATE, groups=known).threshold
            flagged = (scores > threshold)[is_new]
            new = part_of[is_new]
            alarms[name].append(float(np.mean([flagged[new == part].mean() for part in np.unique(new)])))
    for name, found in alarms.items():
        low, high = np.quantile(found, [0.05, 0.95])
        error = np.std(found) / np.sqrt(len(found))
        print(
            f"{name}: {np.mean(found):.4f} +- {error:.4f} of new parts flagged; 90 % of splits {low:.3f} to {high:.3f}"
        )


def draw_bursts(data: Path, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """One vector a picture, and the number of its part."""
    source, random = open_dataset(data).train_images(), np.random.default_rng(0)
    chosen = random.permutation(len(source))[:count]
    row = find_backbone("compact")
    extractor, preprocess = build_extractor(row, weights=find_weights(row)), Preprocess(128)
    vectors, part_of = [], []
    for part, index in enumerate(chosen.tolist()):
        image = np.asarray(source.load(index)).astype(np.float32)
        copies = [image] + [another(image, random) for _ in range(random.integers(0, 6))]
        pixels = torch.stack([preprocess.pixels(Image.fromarray(np.uint8(np.clip(copy, 0, 255)))) for copy in copies])
        vectors.append(torch.cat([pool(m) for m in extractor(pixels).maps], dim=1))
        part_of += [part] * len(copies)
    return torch.cat(vectors), np.array(part_of)


def another(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same part once more."""
    down, right = random.integers(-2, 3, size=2)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    moved = padded[2 + down : 2 + down + image.shape[0], 2 + right : 2 + right + image.shape[1]]
    return np.round(moved + random.normal(0, 3, size=image.shape))


if __name__ == "__main__":
    main()
