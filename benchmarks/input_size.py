"""Which size and shape of the network's input is best: the figures of docs/experiments/size.md.

    python benchmarks/input_size.py strips --data mvtec_ad/screw mpdd/metal_plate --json strips.json
    python benchmarks/input_size.py shapes --data mtd --json shapes.json
    python benchmarks/input_size.py long --json long.json
    python benchmarks/input_size.py areas --data mvtec_ad/screw mtd mvtec_ad/bottle mpdd/metal_plate --json areas.json

`strips`: strips of 1 : 2.5 and 2.5 : 1, as a square and in their own aspect. `shapes`: pictures of many shapes,
stretched, or fitted inside a margin that is neither learned nor scored. `areas`: inputs of 192 to 384 pixels squared.
`long`: strips of 1 : 8 in inputs of several aspects. DATA is in the MVTec layout; `strips` and `shapes` draw further
products. PaDiM and PatchCore read the same features of the built-in backbone; figures are on the original pixels. Times
are processor seconds, as a ratio to the first.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from _measure import write
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from blemish import PaDiM, PatchCore, Preprocess, metrics, open_dataset
from blemish.datasets.synthetic import draw
from blemish.features.backbones import find_backbone
from blemish.features.extract import Extractor, build_extractor
from blemish.features.patches import semi_orthogonal
from blemish.features.weights import find_weights
from blemish.images.decode import decode, decode_mask
from blemish.ops.maps import enlarge_and_smooth
from blemish.types import FeatureMaps

KINDS = ("scratch", "spot", "stain", "chip", "contamination", "distortion", "missing")
DRAWN = ("weave", "brushed", "leather", "terrazzo", "board")
Mask = NDArray[np.bool_]
Size = tuple[int, int]


@dataclass
class Part:
    """A picture, and what is wrong with it; a normal picture has no mask."""

    picture: Image.Image
    anomalous: bool = False
    mask: Mask | None = None

    def turned(self) -> Part:
        """On its side."""
        mask = None if self.mask is None else np.ascontiguousarray(np.rot90(self.mask))
        return replace(self, picture=self.picture.transpose(Image.Transpose.ROTATE_90), mask=mask)

    def cut(self, box: tuple[int, int, int, int]) -> Part:
        """The part of it in (left, top, right, bottom)."""
        left, top, right, bottom = box
        mask = None if self.mask is None else self.mask[top:bottom, left:right]
        return replace(self, picture=self.picture.crop(box), mask=mask)


@dataclass
class Set:
    """What is learned, and what is judged."""

    name: str
    train: list[Part]
    test: list[Part]

    def map(self, change: Callable[[Part], Part | None], name: str) -> Set:
        """Every picture changed, and those left out that the change drops."""
        train, test = ([part for one in parts if (part := change(one))] for parts in (self.train, self.test))
        return Set(name, train, test)


def read(folder: Path, *, train: int = 10_000, test: int = 10_000) -> Set:
    """A data set, or so many drawn images of it."""
    dataset = open_dataset(folder)
    paths = sorted(random.Random(0).sample(dataset.train, min(train, len(dataset.train))))
    samples = [
        dataset.test[i] for i in sorted(random.Random(1).sample(range(len(dataset.test)), min(test, len(dataset.test))))
    ]
    parts = []
    for sample in samples:
        picture: Any = decode(sample.path)
        mask = None if sample.mask is None else Image.fromarray(decode_mask(sample.mask).astype(np.uint8))
        bits = None if mask is None else np.array(mask.resize(picture.size, Image.Resampling.NEAREST)).astype(bool)
        parts.append(Part(picture, sample.anomalous, bits))
    pictures: list[Any] = [decode(path) for path in paths]
    return Set(folder.name, [Part(picture) for picture in pictures], parts)


def draw_strips(
    product: str, *, wide: int = 400, high: int = 160, train: int = 80, normal: int = 40, each: int = 8
) -> Set:
    """Strips cut out of drawn square pictures: the middle of a board, any part of a texture that holds the defect."""

    def strip(seed: int, kind: str | None) -> Part | None:
        rng = np.random.default_rng([7, seed])
        drawn = draw(product, seed=seed, defect=kind, size=wide)
        top = (wide - high) // 2 if product == "board" else int(rng.integers(wide - high + 1))
        if kind and product != "board":
            rows = np.flatnonzero(drawn.mask.any(axis=1))
            middle = int(rows.mean()) - int(rng.integers(high // 4, high - high // 4))
            top = min(max(middle, 0), wide - high)
        inside = drawn.mask[top : top + high]
        if kind and inside.sum() < min(0.6, high / 160) * drawn.mask.sum():
            return None
        picture = Image.fromarray(drawn.pixels[top : top + high])
        return Part(picture, kind is not None, inside if kind else None)

    seeds = iter(range(1_000_000))

    def some(count: int, kind: str | None = None) -> Iterator[Part]:
        while count:
            if part := strip(next(seeds), kind):
                count -= 1
                yield part

    found = [*some(normal), *(part for kind in KINDS for part in some(each, kind))]
    return Set(product, list(some(train)), found)


def draw_shapes(product: str, *, train: int = 120, normal: int = 60, each: int = 10) -> Set:
    """Cuts of all aspects from 0.4 to 2.5 out of drawn textures, each with its defect inside."""

    def cut(seed: int, kind: str | None) -> Part | None:
        rng = np.random.default_rng([8, seed])
        aspect = 2.5 ** rng.uniform(-1, 1)
        high, wide = round(200 / aspect**0.5), round(200 * aspect**0.5)
        drawn = draw(product, seed=seed, defect=kind, size=320)
        corner = []
        for axis, length in enumerate((high, wide)):
            at = np.flatnonzero(drawn.mask.any(axis=1 - axis)).mean() if kind else rng.uniform(0, 320)
            corner.append(int(min(max(at - length * rng.uniform(0.25, 0.75), 0), 320 - length)))
        top, left = corner
        whole = Part(Image.fromarray(drawn.pixels), kind is not None, drawn.mask if kind else None)
        part = whole.cut((left, top, left + wide, top + high))
        return part if not kind or part.mask.sum() > 0.6 * drawn.mask.sum() else None  # type: ignore[union-attr]

    seeds = iter(range(2_000_000, 3_000_000))

    def some(count: int, kind: str | None = None) -> Iterator[Part]:
        while count:
            if part := cut(next(seeds), kind):
                count -= 1
                yield part

    found = [*some(normal), *(part for kind in KINDS for part in some(each, kind))]
    return Set(product, list(some(train)), found)


def middle_strip(part: Part) -> Part | None:
    """The middle two fifths of a square picture, across; None where too little of its defect is there."""
    side = part.picture.width
    high = round(side / 2.5)
    top = (side - high) // 2
    strip = part.cut((0, top, side, top + high))
    if part.anomalous and (strip.mask is None or strip.mask.sum() < max(20, 0.3 * part.mask.sum())):  # type: ignore[union-attr]
        return None
    return replace(strip, mask=strip.mask if part.anomalous else None)


def own_size(parts: list[Part], *, side: int = 256, multiple: int = 16) -> Size:
    """The median aspect at this area, sides a multiple of this."""
    aspect = float(np.exp(np.median([np.log(p.picture.width / p.picture.height) for p in parts])))
    if round(aspect, 2) == 1:
        return side, side
    high, wide = (max(1, round(length / multiple)) * multiple for length in (side * aspect**-0.5, side * aspect**0.5))
    return high, wide


@dataclass(frozen=True)
class Stretched:
    """Every picture on the whole input."""

    size: Size

    def pixels(self, part: Part) -> Tensor:
        return Preprocess(self.size).pixels(part.picture)

    def box(self, part: Part) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of the picture on the input."""
        return 0, 0, *self.size


@dataclass(frozen=True)
class Fitted:
    """Every picture in the middle of the input, as large as its own aspect allows; the margin mirrors it."""

    size: Size

    def box(self, part: Part) -> tuple[int, int, int, int]:
        scale = min(self.size[0] / part.picture.height, self.size[1] / part.picture.width)
        high, wide = (
            max(8, min(most, round(n * scale)))
            for n, most in zip((part.picture.height, part.picture.width), self.size, strict=True)
        )
        top, left = (self.size[0] - high) // 2, (self.size[1] - wide) // 2
        return top, left, top + high, left + wide

    def pixels(self, part: Part) -> Tensor:
        top, left, bottom, right = self.box(part)
        inner = Preprocess((max(16, bottom - top), max(16, right - left))).pixels(part.picture).numpy()
        inner = inner[:, : bottom - top, : right - left]
        margins = ((0, 0), (top, self.size[0] - bottom), (left, self.size[1] - right))
        return torch.from_numpy(np.pad(inner, margins, mode="symmetric"))


Placing = Stretched | Fitted


def extract(extractor: Extractor, parts: list[Part], placing: Placing) -> list[FeatureMaps]:
    """The features of all pictures, eight at a time."""
    eights = [parts[i : i + 8] for i in range(0, len(parts), 8)]
    return [extractor(torch.stack([placing.pixels(part) for part in eight])) for eight in eights]


def inside(part: Part, placing: Placing, grid: Size) -> Mask:
    """The positions of a map whose centres lie in the picture."""
    top, left, bottom, right = placing.box(part)
    rows, columns = ((np.arange(n) + 0.5) * length / n for n, length in zip(grid, placing.size, strict=True))
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))


def without_margin(features: list[FeatureMaps], parts: list[Part], placing: Placing) -> list[FeatureMaps]:
    """What lies in a margin replaced by the nearest position of the picture, which a bank takes once only."""
    result, at = [], 0
    for maps in features:
        changed = []
        for layer in (map.clone() for map in maps.maps):
            for i in range(len(layer)):
                kept = inside(parts[at + i], placing, (layer.shape[2], layer.shape[3]))
                rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
                near = [
                    np.clip(np.arange(n), k[0], k[-1]) for n, k in ((layer.shape[2], rows), (layer.shape[3], columns))
                ]
                layer[i] = layer[i][:, near[0]][:, :, near[1]]
            changed.append(layer)
        at += len(maps.maps[0])
        result.append(FeatureMaps(tuple(changed), maps.image_size))
    return result


class Positions:
    """PaDiM in which each position learns from the pictures that reach it alone."""

    def __init__(self, method: PaDiM, d: int) -> None:
        assert method.eps is not None
        self.method, self.d, self.eps = method, d, method.eps

    def fit(self, features: list[FeatureMaps], parts: list[Part], placing: Placing) -> Positions:
        method = self.method
        method.projection_ = semi_orthogonal(sum(m.shape[1] for m in features[0].maps), self.d, seed=0)
        embedded = torch.cat([method._embed(maps) for maps in features])
        self.grid = max((m.shape[2], m.shape[3]) for m in features[0].maps)
        weight = torch.from_numpy(np.stack([inside(part, placing, self.grid).ravel() for part in parts])).float()
        count = weight.sum(0).clamp_min(2)
        self.mean = torch.einsum("np,npd->pd", weight, embedded) / count[:, None]
        self.factor = []
        for p in range(embedded.shape[1]):
            rows = (embedded[:, p] - self.mean[p])[weight[:, p] > 0].double()
            covariance = rows.T @ rows / (count[p].double() - 1) + self.eps * torch.eye(self.d, dtype=torch.float64)
            self.factor.append(torch.linalg.cholesky(covariance).float())
        self.factor = torch.stack(self.factor)
        return self

    def grids(self, maps: FeatureMaps) -> Tensor:
        difference = (self.method._embed(maps) - self.mean).permute(1, 2, 0)
        solved = torch.linalg.solve_triangular(self.factor, difference, upper=False)
        return torch.linalg.vector_norm(solved, dim=1).T.reshape(-1, *self.grid)


def measure(job: str, found: Set, placing: Placing) -> Iterator[dict[str, Any]]:
    """Figures of all methods on one set with one way to place pictures; they read the same features."""
    row = find_backbone("compact")
    eps = 0.001 if job == "shapes" else None  # `Positions` has no pooled covariance
    methods: dict[str, Any] = {"padim": PaDiM(eps=eps), "patchcore": PatchCore()}
    if job == "areas":
        methods |= {"padim stage16": PaDiM(taps=("stage16",))}
    taps = {name: method.tapped() for name, method in methods.items()}
    extractor = build_extractor(
        row, weights=find_weights(row), taps=sorted({tap for names in taps.values() for tap in names})
    )
    start = process_time()
    train, test = (extract(extractor, parts, placing) for parts in (found.train, found.test))
    forward = process_time() - start
    for name, method in methods.items():
        start = process_time()
        order = [extractor.taps.index(tap) for tap in taps[name]]
        learned, judged = (
            [FeatureMaps(tuple(m.maps[i] for i in order), m.image_size) for m in some] for some in (train, test)
        )
        if isinstance(placing, Fitted) and isinstance(method, PaDiM):
            positions = Positions(method, row.d or 100).fit(learned, found.train, placing)
            grids = [positions.grids(maps) for maps in judged]
        else:
            if isinstance(placing, Fitted):
                learned = without_margin(learned, found.train, placing)
            method._learn(iter(learned), expected=len(found.train))
            grids = [grid_of(method, maps) for maps in judged]
        seconds = forward + process_time() - start
        yield {"method": name, "time": seconds} | figures(found, placing, grids, name)


def grid_of(method: Any, maps: FeatureMaps) -> Tensor:
    """Distances of all positions, before they are enlarged."""
    if isinstance(method, PaDiM):
        return method.gaussian_.distances(method._embed(maps)).reshape(-1, *method.grid_)  # type: ignore[no-any-return]
    squared, _ = method.bank_.search(method._embed(maps).flatten(0, 1), 1)
    return squared.sqrt().reshape(-1, *maps.maps[0].shape[2:])  # type: ignore[no-any-return]


def figures(found: Set, placing: Placing, grids: list[Tensor], which: str) -> dict[str, Any]:
    """Image AUROC, pixel AUROC and AU-PRO; what lies in a margin never counts."""
    scores, pairs = [], []
    for part, distances in zip(found.test, (one for some in grids for one in some), strict=True):
        kept = torch.from_numpy(inside(part, placing, (distances.shape[0], distances.shape[1])))
        grid = torch.where(kept, distances, distances[kept].min())
        map = enlarge_and_smooth(grid[None], placing.size, sigma=4.0)[0]
        top, left, bottom, right = placing.box(part)
        map = map[top:bottom, left:right]
        scores.append(float(map.max() if which.startswith("padim") else grid.max()))
        size = part.picture.height, part.picture.width
        placed = torch.nn.functional.interpolate(map[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        pairs.append((placed.numpy(), part.mask))
    anomalous = np.array([part.anomalous for part in found.test])
    row: dict[str, Any] = {"image_auroc": metrics.auroc(np.array(scores), anomalous)}
    if any(part.mask is not None for part in found.test):
        curve = metrics.pixel_curve(pairs)
        row |= {"pixel_auroc": metrics.pixel_auroc(curve), "au_pro_30": metrics.au_pro(curve)}
    return row


def candidates(job: str, found: Set) -> dict[str, Placing]:
    """What is compared on a set."""
    own = own_size(found.train)
    if job == "areas":
        return {str(side): Stretched(own_size(found.train, side=side)) for side in (192, 256, 320, 384)}
    if job == "long":
        return {str(size): Stretched(size) for size in ((256, 256), (176, 368), (128, 512), (96, 720))}
    if job == "strips":
        return {"square": Stretched((256, 256)), "own": Stretched(own)}
    return {"square": Stretched((256, 256)), "own, stretched": Stretched(own), "own, fitted": Fitted(own)}


def sets(job: str, folders: list[Path], drawn: list[str]) -> Iterator[Set]:
    """What is measured on, one after the other."""
    for folder in folders:
        whole = read(folder, train=150 if job == "areas" else 250, test=300)
        if job == "strips":
            whole = whole.map(middle_strip, f"{whole.name} strips")
        yield whole
    if job == "areas":
        return
    for product in drawn:
        if job == "long":
            yield draw_strips(product, high=50)
        else:
            yield draw_strips(product) if job == "strips" else draw_shapes(product)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("strips", "shapes", "long", "areas"))
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--drawn", nargs="*", default=None)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    drawn = (
        options.drawn
        if options.drawn is not None
        else list(DRAWN if options.job == "strips" else ("leather", "terrazzo"))
    )
    for found in sets(options.job, options.data, drawn):
        for one in (
            (found, found.map(Part.turned, f"{found.name}, on its side")) if options.job == "strips" else (found,)
        ):
            first: dict[str, float] = {}
            for name, placing in candidates(options.job, one).items():
                for line in measure(options.job, one, placing):
                    line["time"] /= first.setdefault(line["method"], line["time"])
                    rows.append({"data": one.name, "input": name, "size": placing.size} | line)
                    rows[-1] |= {"train": len(one.train), "test": len(one.test)}
                    print(
                        " ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True
                    )
                    write(options.json, rows)


if __name__ == "__main__":
    main()
