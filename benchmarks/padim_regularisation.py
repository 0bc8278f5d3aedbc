"""What PaDiM adds to its covariances: all candidates on many sets, on features that are extracted once.

    python benchmarks/padim_regularisation.py extract CACHE --data mvtec_ad/screw mtd --drawn 0 1
    python benchmarks/padim_regularisation.py compare CACHE drawn-cork-0 changed-screw --side 64 --step 2
    python benchmarks/padim_regularisation.py compare CACHE screw --only abs=0.001 pooled=0.3 --images 20 50 100 0

`extract` writes the embeddings of PaDiM's default parameters for `compact` and `resnet18` (weights from
$BLEMISH_WEIGHTS): of each data set `NAME` (MVTec layout), of `changed-NAME`, whose test images are held-out normal ones
and the same after small changes, and of the drawn products, `drawn-PRODUCT-SEED`. 1.6 MB an image and backbone.
`compare` measures on the network's pixels (or a coarser map: --side). Candidates: docs/experiments/padim.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import write
from torch import Tensor

from blemish import Batches, PaDiM, Preprocess, metrics, open_dataset
from blemish.augment.defects import FAMILIES
from blemish.datasets.dataset import Dataset
from blemish.datasets.synthetic import PRODUCTS, write_dataset
from blemish.images.decode import decode_mask
from blemish.ops.maps import enlarge_and_smooth

SIZE, BACKBONES, HELD_OUT = 256, ("compact", "resnet18"), 24
CHANGES = tuple((family, share) for family in ("scar", "cutpaste", "cutout") for share in (1.0, 1 / 3))
NUMBERS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
CANDIDATES: tuple[tuple[str, tuple[float, ...]], ...] = (
    *(("abs", (e,)) for e in (0.001, 0.01)),
    *((name, (c,)) for name in ("mean", "median", "root") for c in NUMBERS),
    *(("pooled", (c,)) for c in (*NUMBERS, 3.0)),
    *(("two", (b, c)) for b in (0.01, 0.1) for c in (0.01, 0.1)),
    *(("lifted", (c,)) for c in (0.01, 0.03, 0.1, 0.3)),
    ("own", ()),
    ("oas", ()),
    *((name, (k,)) for name in ("prior", "prior+") for k in (1.0, 3.0, 10.0, 30.0)),
)


POOLED = ("pooled", "prior", "prior+")


def spelled(candidate: tuple[str, tuple[float, ...]]) -> str:
    return "=".join([candidate[0], "/".join(f"{c:g}" for c in candidate[1])]).rstrip("=")


# --- embeddings


def extract(options: argparse.Namespace) -> None:
    cache: Path = options.cache
    methods = {backbone: PaDiM(backbone=backbone) for backbone in BACKBONES}
    for method in methods.values():
        method.extractor_ = method._extractor(method._initial_weights())
        method._choose_dimensions([m.shape[1] for m in method.extractor_(torch.zeros(1, 3, SIZE, SIZE)).maps])
    for folder in options.data:
        name = folder.name
        if not (cache / name / "done").exists():
            keep(cache / name, methods, *pixels_of(some(open_dataset(folder), options.every)))
        if not (cache / f"changed-{name}" / "done").exists():
            train = some(open_dataset(folder), options.every).train_images()
            chosen = np.random.default_rng(0).permutation(len(train))[: min(HELD_OUT, len(train) // 4)]
            keep(cache / f"changed-{name}", methods, None, *changed(train.subset(chosen)))
            for backbone in methods:
                whole = np.load(cache / name / f"{backbone}-train.npy", mmap_mode="r")
                np.save(cache / f"changed-{name}" / f"{backbone}-train.npy", np.delete(whole, chosen, axis=0))
    for seed in options.drawn:
        for product in options.products:
            place = cache / f"drawn-{product}-{seed}"
            if not (place / "done").exists():
                with tempfile.TemporaryDirectory() as folder:
                    counts = {"n_train": 40, "n_test_normal": 16, "n_per_defect": 4}
                    drawn = write_dataset(Path(folder) / product, product=product, seed=seed, **counts)
                    keep(place, methods, *pixels_of(open_dataset(drawn)))


def read(source: Any) -> Iterator[Tensor]:
    return (batch.pixels for batch in Batches(source, Preprocess(SIZE)))


def some(dataset: Dataset, every: int) -> Dataset:
    return replace(dataset, train=dataset.train[::every], test=dataset.test[::every])


def pixels_of(dataset: Dataset) -> tuple[Iterator[Tensor], Iterator[Tensor], list[bool], list[Any]]:
    masks: list[Any] = []
    if any(sample.mask is not None for sample in dataset.test):
        for sample in dataset.test:
            empty = np.zeros((SIZE, SIZE), dtype=bool)
            masks.append(empty if sample.mask is None else Preprocess(SIZE).mask(decode_mask(sample.mask)))
    return read(dataset.train_images()), read(dataset.test_images()), [s.anomalous for s in dataset.test], masks


def changed(source: Any) -> tuple[Iterator[Tensor], list[bool], list[Any]]:
    plain = torch.cat(list(read(source)))
    parts, labels, masks = [plain], [False] * len(plain), [np.zeros((SIZE, SIZE), dtype=bool)] * len(plain)
    for number, (family, share) in enumerate(CHANGES):
        whole = FAMILIES[family](plain, torch.Generator().manual_seed(number))  # type: ignore[index]
        parts.append(plain + share * (whole - plain))
        labels += [True] * len(plain)
        masks += list(((whole - plain).abs().amax(dim=1) > 4 / 255).numpy())
    return (pixels for part in parts for pixels in part.split(8)), labels, masks


def keep(  # noqa: PLR0917
    place: Path, methods: dict[str, PaDiM], train: Any, test: Any, labels: list[bool], masks: list[Any]
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for part, batches in (("train", train), ("test", test)) if train else (("test", test),):
        rows: dict[str, list[Tensor]] = {backbone: [] for backbone in methods}
        for pixels in batches:
            for backbone, method in methods.items():
                rows[backbone].append(method._embed(method.extractor_(pixels)))
        for backbone, found in rows.items():
            np.save(place / f"{backbone}-{part}.npy", torch.cat(found).numpy())
    np.savez_compressed(place / "truth.npz", labels=np.array(labels), masks=np.array(masks))
    (place / "done").touch()
    print(f"{place.name}: {len(labels)} test images", flush=True)


# --- candidates


def distances(
    train: np.ndarray[Any, Any],
    test: np.ndarray[Any, Any],
    candidates: list[tuple[str, tuple[float, ...]]],
    rows: np.ndarray[Any, Any],
) -> Tensor:
    """`(candidate, image, position)`; every candidate is a weight of directions in one of two sets of axes."""
    n, (_, positions, d) = len(rows), train.shape
    scatter, square = torch.zeros(d, d, dtype=torch.float64), torch.zeros(positions, dtype=torch.float64)
    trace = torch.zeros(positions, dtype=torch.float64)
    chunks = [slice(start, min(start + 256, positions)) for start in range(0, positions, 256)]

    def moments(part: slice) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(train[rows, part].transpose(1, 0, 2))).double()
        mean = x.mean(dim=1, keepdim=True)
        return mean, (x - mean).mT @ (x - mean) / (n - 1)

    for part in chunks:
        covariance = moments(part)[1]
        scatter += covariance.sum(dim=0)
        trace[part], square[part] = covariance.diagonal(dim1=1, dim2=2).sum(dim=1), covariance.square().sum(dim=(1, 2))
    pooled, own = scatter / positions, trace / d
    # OAS: Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for MMSE covariance estimation", 2010, equation 23.
    above, below = (1 - 2 / d) * square + trace**2, (n + 1 - 2 / d) * (square - trace**2 / d)
    share = (above / below.clamp_min(1e-300)).clamp(0, 1)
    typical = own.mean(), own.median(), share.mean()
    lower = torch.linalg.cholesky(pooled + 1e-3 * own.mean() * torch.eye(d, dtype=torch.float64))
    whiten = torch.linalg.solve_triangular(lower, torch.eye(d, dtype=torch.float64), upper=False).T
    result = torch.empty(len(candidates), len(test), positions)
    for part in chunks:
        mean, covariance = moments(part)
        z = torch.from_numpy(np.ascontiguousarray(test[:, part].transpose(1, 0, 2))).double() - mean
        for is_pooled in (False, True):
            if not any((name in POOLED) == is_pooled for name, _ in candidates):
                continue
            axes = whiten if is_pooled else torch.eye(d, dtype=torch.float64)
            values, vectors = torch.linalg.eigh((axes.T @ covariance @ axes).float())
            squared = (z.float() @ (axes.float() @ vectors)).square_()
            s = values.double().clamp_min(0)
            for i, (name, c) in enumerate(candidates):
                if (name in POOLED) == is_pooled:
                    spectra = spectrum(name, c, s, n, of_all=typical, of_each=(own[part, None], share[part, None]))
                    weights = spectra.clamp_min(1e-12).reciprocal().float()
                    result[i, :, part] = (squared @ weights[:, :, None])[:, :, 0].sqrt().T
    return result


def spectrum(  # noqa: PLR0917
    name: str, c: tuple[float, ...], s: Tensor, n: int, of_all: tuple[Tensor, ...], of_each: tuple[Tensor, Tensor]
) -> Tensor:
    """Variances `(position, direction)` that a candidate makes of those of the sample covariance."""
    (v, middle, a), (own, a_own) = of_all, of_each
    made: dict[str, Callable[[], Tensor]] = {
        "abs": lambda: s + c[0],
        "mean": lambda: s + c[0] * v,
        "median": lambda: s + c[0] * middle,
        "root": lambda: s + c[0] * (own * v).sqrt(),
        "two": lambda: s + c[0] * own + c[1] * v,
        "lifted": lambda: s + a_own * own + c[0] * v,
        "own": lambda: (1 - a_own) * s + a_own * own,
        "oas": lambda: (1 - a) * s + a * v,
        "pooled": lambda: s + c[0],
        "prior": lambda: s + c[0] / n,
        "prior+": lambda: s + 0.1 + c[0] / n,
    }
    return made[name]()


def figures(grids: Tensor, labels: Any, masks: Any, side: int) -> dict[str, float | None]:
    grid = int(grids.shape[1] ** 0.5)
    maps = enlarge_and_smooth(grids.reshape(-1, grid, grid), (side, side), sigma=4 * side / SIZE).numpy()
    found = {"image": float(metrics.auroc(maps.max(axis=(1, 2)), labels)), "pixel": None, "pro": None, "on": None}
    if len(masks):
        step = SIZE // side
        small = masks.reshape(-1, side, step, side, step)[:, :, step // 2, :, step // 2]
        curve = metrics.pixel_curve(list(zip(maps, small, strict=True)))
        found |= {"pixel": float(metrics.pixel_auroc(curve)), "pro": float(metrics.au_pro(curve))}
        at = maps.reshape(len(maps), -1).argmax(axis=1)
        near = np.array([m.ravel()[i] for m, i in zip(small, at, strict=True)])
        found["on"] = float(near[labels].mean())
    return found


def every_other(embedded: Any, step: int) -> Any:
    images, positions, d = embedded.shape
    side = int(positions**0.5)
    return embedded.reshape(images, side, side, d)[:, ::step, ::step].reshape(images, -1, d) if step > 1 else embedded


def compare(options: argparse.Namespace) -> None:
    chosen = [c for c in CANDIDATES if not options.only or spelled(c) in options.only]
    written: list[dict[str, Any]] = []
    for name in options.sets:
        truth = np.load(options.cache / name / "truth.npz")
        labels, masks = truth["labels"], truth["masks"]
        for backbone in options.backbones:
            train, test = (
                every_other(np.load(options.cache / name / f"{backbone}-{part}.npy", mmap_mode="r"), options.step)
                for part in ("train", "test")
            )
            for images in options.images:
                whole = not images or images >= len(train)
                if whole and images:
                    continue
                for draw in range(1 if whole else options.draws):
                    rows = np.sort(np.random.default_rng(draw).permutation(len(train))[: images or len(train)])
                    grids = distances(train, test, chosen, rows)
                    for candidate, of_it in zip(chosen, grids, strict=True):
                        row = {"set": name, "backbone": backbone, "images": len(rows), "all": whole, "draw": draw}
                        row |= {"candidate": spelled(candidate)} | figures(of_it, labels, masks, options.side)
                        written.append(row)
                        print(json.dumps(row), flush=True)
    write(options.json, written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("extract")
    first.add_argument("cache", type=Path)
    first.add_argument("--data", type=Path, nargs="*", default=[])
    first.add_argument("--drawn", type=int, nargs="*", default=[], help="seeds of the drawn products")
    first.add_argument("--products", nargs="+", default=list(PRODUCTS))
    first.add_argument("--every", type=int, default=1, help="keep one image of so many")
    second = commands.add_parser("compare")
    second.add_argument("cache", type=Path)
    second.add_argument("sets", nargs="+")
    second.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    second.add_argument("--only", nargs="+", help="candidates, such as pooled=0.1; default: all")
    second.add_argument("--images", type=int, nargs="+", default=[0], help="how many to learn from; 0: all")
    second.add_argument("--draws", type=int, default=10)
    second.add_argument("--side", type=int, default=SIZE, help="of the map that is measured, in pixels")
    second.add_argument("--step", type=int, default=1, help="look at one position of so many, down and across")
    second.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.command == "extract":
        extract(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
