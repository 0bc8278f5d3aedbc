"""Which layers, patches, scale and share of the variance the subspace method should have, seen from drawn defects.

    BLEMISH_WEIGHTS=weights python benchmarks/subspace_choice.py --changed mvtec_ad/screw mtd --json choice.json
    python benchmarks/subspace_choice.py --products weave --layers 4,8,16 --patches average --scales none

`--products` are drawn, with labelled defects. Of `--changed`, folders in the MVTec layout, normal training images are
read: some are learned from, 20 others are told apart from themselves with a small change. No test image is looked at.
A candidate's value is the mean of image AUROC and AU-PRO 30 % (on maps of 64 x 64), over all sets, after 2 and after 40
images. See docs/experiments/subspace.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import write
from torch import Tensor
from torch.nn import functional

from blemish import Batches, Preprocess, metrics, open_dataset
from blemish.augment.defects import FAMILIES
from blemish.datasets import synthetic
from blemish.features.backbones import find_backbone
from blemish.features.extract import Extractor, build_extractor
from blemish.features.weights import find_weights
from blemish.ops.maps import enlarge_and_smooth

LAYERS = {"4,8,16": (0, 1, 2), "8,16": (1, 2), "8": (1,), "16": (2,)}
PATCHES = ("average", "plain")
SCALES = ("none", "layer", "channel", "apart")
SHARES = (0.95, 0.98, 0.99, 0.995, 0.999)
COUNTS = (2, 40)
HELD_OUT, EACH = 20, 4
SIDE = 64


@dataclass(frozen=True)
class Trial:
    """Images to learn from, and normal ones against defective ones of each kind, with their place where it is known."""

    name: str
    train: Tensor
    normal: Tensor
    kinds: dict[str, tuple[Tensor, Tensor | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", nargs="*", default=sorted(synthetic.PRODUCTS))
    parser.add_argument("--changed", nargs="*", type=Path, default=[])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=["8,16", "8", "16"])
    parser.add_argument("--patches", nargs="+", choices=PATCHES, default=PATCHES)
    parser.add_argument("--scales", nargs="+", choices=SCALES, default=SCALES)
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    row = find_backbone(options.backbone)
    extractor = build_extractor(row, weights=find_weights(row, None))
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for trial in (*map(drawn, options.products), *map(changed, options.changed)):
            candidates = product(options.layers, options.patches, COUNTS, options.scales)
            rows += measure(trial, extractor, list(candidates))
            write(options.json, rows)
            print(trial.name, flush=True)
    values = defaultdict(list)
    for found in rows:
        values[found["layers"], found["patch"], found["scale"], found["share"]].append(found["value"])
    for key in sorted(values, key=lambda key: -np.mean(values[key])):
        print(f"{np.mean(values[key]):.4f}", *key)


def drawn(name: str) -> Trial:
    """A product, with each of its defects."""

    def stack(drawings: list[synthetic.Drawing]) -> Tensor:
        return torch.stack([torch.from_numpy(d.pixels).permute(2, 0, 1).float() / 255 for d in drawings])

    train = [synthetic.draw(name, seed=i) for i in range(max(COUNTS))]
    normal = [synthetic.draw(name, seed=1000 + i) for i in range(HELD_OUT)]
    bad = [
        synthetic.draw(name, seed=2000 + 100 * kind + i, defect=defect)
        for kind, defect in enumerate(synthetic.DEFECTS)
        for i in range(EACH)
    ]
    masks = torch.stack([torch.from_numpy(d.mask) for d in bad])
    return Trial(name, stack(train), stack(normal), {"defects": (stack(bad), masks)})


def changed(path: Path) -> Trial:
    """Normal training images against themselves with a small change."""
    source = open_dataset(path).train_images()
    chosen = np.random.default_rng(0).permutation(len(source))[: max(COUNTS) + HELD_OUT]
    batches = Batches(source.subset(sorted(chosen.tolist())), Preprocess(256))
    pixels = torch.cat([batch.pixels for batch in batches])
    pixels = pixels[torch.from_numpy(np.random.default_rng(1).permutation(len(pixels)))]
    held_out, kinds = pixels[-HELD_OUT:], {}
    for family, change in FAMILIES.items():
        after = change(held_out, torch.Generator().manual_seed(7))
        place = (after - held_out).abs().amax(1) > 0.5 / 255
        kinds[family] = (after, None if family == "augmix" else place)
    return Trial(path.name, pixels[:-HELD_OUT], held_out, kinds)


def measure(
    trial: Trial, extractor: Extractor, candidates: list[tuple[str, str, int, str]]
) -> Iterator[dict[str, Any]]:
    """One row for each candidate and number of images."""
    train, normal, *others = (
        maps_of(extractor, pixels) for pixels in (trial.train, trial.normal, *(p for p, _ in trial.kinds.values()))
    )
    masks = [mask for _, mask in trial.kinds.values()]
    for (layers, patch), of_both in groupby(candidates, key=lambda candidate: candidate[:2]):
        learned, channels = embed(train, LAYERS[layers], patch)
        tested = [embed(maps, LAYERS[layers], patch)[0] for maps in (normal, *others)]
        for _, _, count, scale in of_both:
            if len(channels) == 1 and scale in ("layer", "apart"):
                continue
            mean, directions, weights = subspaces(learned[:count].flatten(0, 2), channels, scale)
            maps = [scored(patches, mean, directions, weights) for patches in tested]
            for i, share in enumerate(SHARES):
                values = [figures(maps[0][i], m[i], mask) for m, mask in zip(maps[1:], masks, strict=True)]
                images, places = [v[0] for v in values], [v[1] for v in values if v[1] is not None]
                yield {
                    "set": trial.name, "layers": layers, "patch": patch, "scale": scale, "share": share, "count": count,
                    "outside": int((weights[:, i] > 0).sum()), "image_auroc": images, "au_pro": places,
                    "value": (float(np.mean(images)) + float(np.mean(places))) / 2,
                }  # fmt: skip


def maps_of(extractor: Extractor, pixels: Tensor) -> list[Tensor]:
    found = [extractor(part).maps for part in pixels.split(8)]  # type: ignore[no-untyped-call]
    return [torch.cat(maps) for maps in zip(*found, strict=True)]


def embed(maps: list[Tensor], layers: tuple[int, ...], patch: str) -> tuple[Tensor, list[int]]:
    """`(image, h, w, channel)`, and the channels of each layer."""
    chosen = [maps[i] for i in layers]
    if patch == "average":
        chosen = [functional.avg_pool2d(m, 3, 1, 1) for m in chosen]
    size = chosen[0].shape[2:]
    aligned = [functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in chosen]
    return torch.cat(aligned, dim=1).permute(0, 2, 3, 1), [m.shape[1] for m in chosen]


def subspaces(patches: Tensor, channels: list[int], scale: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `(d,)`, scaled eigenvectors `(d, d)`, and which of them count, `(d, shares)`."""
    total, square = torch.zeros(sum(channels), dtype=torch.float64), torch.zeros(sum(channels), sum(channels)).double()
    for part in patches.split(16384):  # type: ignore[no-untyped-call]
        total += part.double().sum(0)
    mean = total / len(patches)
    for part in patches.split(16384):  # type: ignore[no-untyped-call]
        centred = part.double() - mean
        square.addmm_(centred.T, centred)
    variances, ends = square.diagonal(), np.cumsum([0, *channels]).tolist()
    blocks = [slice(a, b) for a, b in pairwise(ends)]
    unit = torch.ones_like(variances)
    if scale == "channel":
        unit = variances.clamp_min(1e-12 * variances.max()).rsqrt()
    elif scale != "none":
        unit = torch.cat([variances[b].sum().rsqrt().expand(b.stop - b.start) for b in blocks])
    scaled, vectors = unit[:, None] * square * unit, torch.zeros_like(square)
    weights = torch.zeros(len(unit), len(SHARES), dtype=torch.float64)
    for block in blocks if scale == "apart" else [slice(0, len(unit))]:
        values, vectors[block, block] = torch.linalg.eigh(scaled[block, block])
        held = values.clamp_min(0).flip(0).cumsum(0)
        for i, share in enumerate(SHARES):
            inside = min(int((held < (share - 1e-12) * held[-1]).sum()) + 1, len(values) - 1)
            rest = values.clamp_min(0)[: len(values) - inside].sum().clamp_min(1e-12)
            weights[block.start : block.stop - inside, i] = 1 / rest if scale == "apart" else 1.0
    return mean.float(), (unit[:, None] * vectors).float(), weights.float()


def scored(patches: Tensor, mean: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """Maps `(share, image, SIDE, SIDE)`."""
    found = []
    for part in patches.split(8):  # type: ignore[no-untyped-call]
        residuals = ((part - mean) @ directions).square_() @ weights
        found.append([enlarge_and_smooth(r, (SIDE, SIDE), sigma=SIDE / 64) for r in residuals.permute(3, 0, 1, 2)])
    return torch.stack([torch.cat(maps) for maps in zip(*found, strict=True)])


def figures(normal: Tensor, other: Tensor, masks: Tensor | None) -> tuple[float, float | None]:
    """Image AUROC and AU-PRO."""
    scores = torch.cat([normal, other]).amax((1, 2)).numpy()
    image = metrics.auroc(scores, np.arange(len(scores)) >= len(normal))
    if masks is None:
        return image, None
    small = functional.adaptive_max_pool2d(masks[:, None].float(), SIDE)[:, 0].bool().numpy()
    pairs = [(m, None) for m in normal.numpy()] + list(zip(other.numpy(), small, strict=True))
    return image, metrics.au_pro(metrics.pixel_curve(pairs))


if __name__ == "__main__":
    main()
