"""How much of what P says of a crop can be read from patch descriptors, by least squares: teachers side by side.

    BLEMISH_WEIGHTS=weights python benchmarks/readable.py NATURAL --patch 65 --teachers old new

A card says what a teacher's own decoder leaves unexplained of the pictures that *its* training held out, which are
others where the folder's names come in another order. Here the same pictures judge all: of `--held-out` of NATURAL no
decoder learns. Teachers trained on NATURAL have seen most of these pictures, each as many of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from blemish.augment.crops import read_cache
from blemish.distil.descriptor import DescriptorRecipe, PatchCrops, Targets, _describe, _targets, _teacher
from blemish.features.descriptors import find_descriptor
from blemish.features.extract import Extractor


@torch.no_grad()
def crops_of(crops: PatchCrops, batches: int, p: Extractor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Crops, and what is to be read of them."""
    found = [crops.draw(step, alike=False, use="read")[0] for step in range(batches)]
    return torch.cat(found), torch.cat([targets(_describe(p, part, crops.recipe)) for part in found])


@torch.no_grad()
def described(folder: Path | None, patch: int, crops: Tensor) -> Tensor:
    """The descriptors of one teacher, and a 1 for the constant."""
    network = find_descriptor(patch, folder)
    descriptors = torch.cat([network(part) for part in crops.split(256)]).double()
    return torch.cat([descriptors, torch.ones(len(crops), 1, dtype=torch.float64)], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--patch", type=int, default=33)
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="folders; the built-in one comes first")
    parser.add_argument("--batches", type=int, default=300, help="of 64 crops to learn to read from")
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = DescriptorRecipe(patch=options.patch, tap="layer3", seed=options.seed)
    device = torch.device("cpu")
    parts = read_cache(options.data).split(options.held_out, seed=options.seed)
    learned, unseen = (PatchCrops(part, recipe, device) for part in parts)
    p = _teacher(recipe, None, device)
    targets = _targets(learned, p, recipe)
    seen, wanted = crops_of(learned, options.batches, p, targets)
    others, answers = crops_of(unseen, 64, p, targets)
    spread = (answers - answers.mean(dim=0)).square().sum()
    for folder in (None, *options.teachers):
        decoder = torch.linalg.lstsq(described(folder, options.patch, seen), wanted.double()).solution
        left = (described(folder, options.patch, others) @ decoder - answers).square().sum() / spread
        print(f"p = {options.patch}   {folder or 'built in'}   unexplained {float(left):.3f}", flush=True)


if __name__ == "__main__":
    main()
