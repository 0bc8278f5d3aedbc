"""Regions: false ones on normal images against the promise, by simulation and on real data, and the defects they hit.

    python benchmarks/regions.py simulate
    python benchmarks/regions.py cross
    python benchmarks/regions.py real ../shared/data
    python benchmarks/regions.py real-cross ../shared/data

`simulate`: 2 000 repetitions a row, each of n held-out maps and a new one of smooth noise, so that the premise holds;
exact intervals at 99.9 %. `cross`: the same by the models of ten folds. `real`: one fit on half of the normal training
images; then all normal images that it did not learn, those of the test part too, are split 200 times into held-out and
new ones. The last columns are of the fit whose held-out images are those of the training part. `real-cross`: draws of n
normal images for the models of ten folds, and of 30 new ones from both parts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from decisions import REPETITIONS, print_table, share
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from blemish import Detector, evaluate, open_dataset
from blemish.calibrate import calibrate
from blemish.images.preprocess import Preprocess
from blemish.localise import Localiser
from blemish.promises import images_needed
from blemish.types import ImageBatch, Scores

SIDE, SPLITS = 16, 200
FIGURES = [
    "data", "asked for", "held out", "guaranteed", "normal test images with a region", "regions each", "defects hit",
    "images found", "SegF1", "AU-PRO 30 %",
]  # fmt: skip
DATA = {"screw": "mvtec_ad/screw", "mtd": "mtd", "metal_plate": "mpdd/metal_plate"}


def batch_of(maps: NDArray[np.float64], inside: torch.Tensor | None) -> tuple[ImageBatch, Scores]:
    """Maps as a method would give them."""
    found = torch.from_numpy(maps.astype(np.float32))
    names, sizes = tuple(map(str, range(len(maps)))), ((2 * SIDE, 2 * SIDE),) * len(maps)
    batch = ImageBatch(torch.zeros(len(maps), 3, 1, 1), names, sizes, inside=inside)
    return batch, Scores(found.amax(dim=(1, 2)), found)


def simulate() -> None:
    """Print the rates of normal images with any region."""
    random, rows = np.random.default_rng(0), []
    part = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    part[:, 2:12, 5:] = True
    for least, inside, counts in ((1, None, (19, 20, 50, 100)), (24, None, (20,)), (24, part, (20,))):
        for n in counts:
            rates = [rate for rate in (0.05, 0.1, 0.2) if n >= images_needed(rate)]
            found = np.array([one_draw(n, rates, least, inside, random=random) for _ in range(REPETITIONS)])
            for rate, regions in zip(rates, found.T, strict=True):
                guaranteed = np.floor(rate * (n + 1) * (1 + 1e-12)) / (n + 1)
                what = [str(n), f"{rate:.0%}", str(least), "all" if inside is None else "a part", f"{guaranteed:.2%}"]
                rows.append([*what, share(regions > 0, most=guaranteed), f"{regions.mean():.3f}"])
    heads = [
        "held out",
        "asked for",
        "--min-area",
        "looked at",
        "guaranteed",
        "images with a region",
        "regions an image",
    ]
    print_table(heads, rows)


def one_draw(
    n: int, rates: list[float], least: int, inside: torch.Tensor | None, *, random: np.random.Generator
) -> list[int]:
    """How many regions a new normal map shows, for each rate, after n held-out ones."""
    localiser = Localiser(Preprocess(SIDE), least)
    noise = gaussian_filter(random.gamma(2, size=(n + 1, SIDE, SIDE)), (0, 1.5, 1.5))
    batch, scores = batch_of(noise[1:], None if inside is None else inside.expand(n, -1, -1))
    peaks = localiser.peaks(batch, scores)
    new = batch_of(noise[:1], inside)
    found = [localiser.regions(*new, calibrate(peaks, false_alarm_rate=rate))[0] for rate in rates]
    return [len(regions) for regions in found]


def nearest(learned: NDArray[np.float64], images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps of images by a model of others: the distance to the nearest one at each place."""
    return np.abs(images[:, None] - learned).min(axis=1)


def cross(side: int = 8, folds: int = 10) -> None:
    """Print how often a new normal image shows a region by the maps of ten models."""
    random, rows, rates = np.random.default_rng(1), [], (0.05, 0.1)
    for n, least in ((20, 1), (20, 8), (50, 1)):
        localiser, found = Localiser(Preprocess(16), least), []
        for _ in range(REPETITIONS):
            images = gaussian_filter(random.gamma(2, size=(n + 1, side, side)), (0, 1, 1)).repeat(2, 1).repeat(2, 2)
            rest, new, numbers = images[1:], images[:1], np.arange(n) % folds
            peaks, maps = np.empty(n), []
            for fold in range(folds):
                learned = rest[numbers != fold]
                peaks[numbers == fold] = nearest(learned, rest[numbers == fold]).max(axis=(1, 2))
                maps.append(nearest(learned, new)[0])
            by_fold = torch.from_numpy(np.stack(maps))[None]
            scores = Scores(by_fold.amax(dim=(1, 2, 3)), by_fold.mean(dim=1), fold_maps=by_fold)
            batch = ImageBatch(torch.zeros(1, 3, 1, 1), ("new",), ((16, 16),))
            made = [calibrate(peaks, false_alarm_rate=rate, kind="cross", folds=numbers) for rate in rates]
            found.append([len(localiser.regions(batch, scores, one)[0]) for one in made])
        for one, regions in zip(made, np.array(found).T, strict=True):
            proven = one.promise.guaranteed_rate
            what = [str(n), f"{one.false_alarm_rate:.0%}", str(least), f"{proven:.2%}"]
            rows.append([*what, share(regions > 0, most=proven), f"{regions.mean():.3f}"])
    print_table(["n", "asked for", "--min-area", "guaranteed", "images with a region", "regions an image"], rows)


def peaks_of_unlearned(detector: Detector, images: list[str]) -> NDArray[np.float64]:
    """The peak of each normal image that the detector did not learn."""
    return np.array([p for batch, scores in detector.score(images) for p in detector.localiser.peaks(batch, scores)])


def real(root: Path, names: list[str], method: str, min_area: int) -> None:
    """Print rates over splits, and the figures of one fit, data set by data set."""
    for name in names:
        dataset = open_dataset(root / DATA[name])
        detector = Detector(method=method, held_out=0.5, min_area=min_area).fit(dataset.train_images())
        normal = [str(s.path) for s in dataset.test if not s.anomalous]
        peaks = np.concatenate([detector.peaks_.scores, peaks_of_unlearned(detector, normal)])
        cells = [(n, rate) for n in (20, 50, 100) for rate in (0.05, 0.1) if n >= images_needed(rate)]
        rates = [[name, *split_row(peaks, n, rate)] for n, rate in cells if len(peaks) - n >= 20]
        print_table(["data", "held out", "asked for", "guaranteed", "realised, mean of 200", "5 to 95 %"], rates)
        figures = [
            [name, f"{rate:.0%}", *figures_row(evaluate(detector.recalibrate(rate), dataset))] for rate in (0.05, 0.2)
        ]
        print_table(FIGURES, figures)


def real_cross(root: Path, names: list[str], counts: list[int], *, draws: int, new: int = 30) -> None:
    """Print rates over draws of the images that ten models learn, and of those that are new to all of them."""
    rows, rates = [], (0.05, 0.1)
    for name in names:
        dataset, random = open_dataset(root / DATA[name]), np.random.default_rng(0)
        images = [*map(str, dataset.train), *(str(s.path) for s in dataset.test if not s.anomalous)]
        for n in counts:
            found = np.zeros((draws, len(rates)))
            for draw in range(draws):
                drawn = [images[i] for i in random.permutation(len(images))[: n + new]]
                # A size that is given: one that pictures of many shapes settle would leave nothing proven.
                detector = Detector(preprocess=Preprocess(256), calibration="cross", false_alarm_rate=rates[-1])
                detector.fit(drawn[:n])
                # A lower rate shows a region exactly where one of these has so small a p-value.
                least = [min((r.p_value for r in d.regions), default=1) for d in detector.predict(drawn[n:])]
                found[draw] = [np.mean(np.array(least) <= rate * (1 + 1e-12)) for rate in rates]
            for rate, shares in zip(rates, found.T, strict=True):
                proven = detector.peaks_.at(rate).promise.guaranteed_rate
                low, high = np.quantile(shares, (0.05, 0.95))
                what = [name, str(n), f"{rate:.0%}", f"{proven:.2%}"]
                rows.append([*what, f"{shares.mean():.2%}", f"{low:.1%} to {high:.1%}"])
                print(rows[-1], flush=True)
    heads = ["data", "n", "asked for", "guaranteed", f"realised, mean of {draws} draws", "5 to 95 %"]
    print_table(heads, rows)


def split_row(peaks: NDArray[np.float64], n: int, rate: float) -> list[str]:
    """Realised rates over random splits of the same peaks."""
    random, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = random.permutation(len(peaks))
        calibration = calibrate(peaks[order[:n]], false_alarm_rate=rate)
        found.append(float((peaks[order[n:]] > calibration.threshold).mean()))
    low, high = np.quantile(found, (0.05, 0.95))
    guaranteed = calibration.promise.guaranteed_rate
    return [str(n), f"{rate:.0%}", f"{guaranteed:.2%}", f"{np.mean(found):.2%}", f"{low:.1%} to {high:.1%}"]


def figures_row(evaluation) -> list[str]:
    """What regions hit, and how often they are false."""
    f, realised = evaluation.figures, evaluation.realised_regions
    normal = [len(r.decision.regions) for r in evaluation.records if not r.sample.anomalous]
    low, high = realised.interval
    return [
        str(realised.promise.held_out), f"{realised.promise.guaranteed_rate:.2%}",
        f"{realised.alarms} of {realised.images} ({low:.1%} to {high:.1%})", f"{np.mean(normal):.2f}",
        f"{f.defects_hit:.1%}", f"{1 - f.misses:.1%}", f"{f.seg_f1:.3f}", f"{f.au_pro_30:.3f}",
    ]  # fmt: skip


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["simulate", "cross", "real", "real-cross"])
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--method", default="patchcore")
    parser.add_argument("--min-area", type=int, default=1)
    parser.add_argument("--data", nargs="+", choices=DATA, default=[*DATA])
    parser.add_argument("--draws", type=int, default=20, help="of real-cross")
    parser.add_argument("--images", type=int, nargs="+", default=[20], help="that real-cross learns")
    options = parser.parse_args()
    if options.what.startswith("real") and options.root is None:
        parser.error("the folder of the data sets is missing")
    if options.what in ("simulate", "cross"):
        {"simulate": simulate, "cross": cross}[options.what]()
        return
    if options.what == "real-cross":
        real_cross(options.root, options.data, options.images, draws=options.draws)
        return
    real(options.root, options.data, options.method, options.min_area)


if __name__ == "__main__":
    main()
