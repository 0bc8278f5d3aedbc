"""Temperature and step that were tuned for one architecture, on the others; and each part alone with its own best.

    python benchmarks/ood_data.py DATA PAIRS
    BLEMISH_WEIGHTS=DATA/weights python benchmarks/ood_transfer.py PAIRS --out transfer
    BLEMISH_WEIGHTS=DATA/weights python benchmarks/ood_transfer.py PAIRS --out transfer --sizes 100 300 1000 2500

The four ResNets for CIFAR-10 against Tiny-ImageNet: for the gradient method and ODIN, T and eps are tuned for each on
`--grid-images` images of either set; every network is then scored with all four choices, the detector's defaults and
MSP, on `--limit` other images of either set. The ablation of the gradient method is that of each network with its own
tuning, by preprocessing: none, the best T, the best eps, both. Four metrics with deviations of 100 bootstraps, and the
ROC-AUC minus that of the network's own tuning, with the deviation over 100 draws of the same images for both; rows with
the same parameters are scored once. A tuning that lies in `--out` is not made again. `--sizes` shows instead what the
number of outliers changes, for the detectors with their defaults on the first network.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from blemish import metrics
from blemish.datasets.labelled import LabelledImages, from_class_folders, open_labelled
from blemish.evaluation.classifiers import Reader, joined, score_images
from blemish.evaluation.tuning import Grid, Tunable, Tuning, tune_ood
from blemish.ood import MSP, ODIN, Classifier, Gradient, OODDetector, open_classifier

_NETWORKS = tuple(f"cifar10_resnet{depth}" for depth in (20, 32, 44, 56))
_FIGURES = ("auroc", "fpr_at_95_tpr", "average_precision", "average_precision_normal")
_GRID = Grid((1.0, 2.0, 5.0, 1000.0), (0.0, 0.0004, 0.001, 0.004))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=400, help="images of each set to score")
    parser.add_argument("--grid-images", type=int, default=100, help="images of each set to tune on")
    parser.add_argument("--networks", nargs="+", default=list(_NETWORKS))
    parser.add_argument("--score", nargs="+", help="those of --networks to score; default: all")
    parser.add_argument("--detectors", nargs="+", choices=["gradient", "odin"], default=["gradient", "odin"])
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of outliers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.sizes:
        by_size(open_classifier(options.networks[0]), options.pairs, options.limit, options.sizes)
        return
    taken = options.limit + options.grid_images
    normal = from_class_folders(options.pairs / "cifar10_test" / "test").sample(taken, seed=0)
    outliers = open_labelled(options.pairs / "tiny_imagenet").sample(taken, seed=1)
    for name in options.detectors:
        kind, tunings = _KINDS[name], {}
        for network in options.networks:
            file = options.out / f"{name}-{network}.json"
            if not file.exists():  # a stopped run goes on
                tune_ood(
                    open_classifier(network),
                    kind,
                    normal,
                    outliers,
                    grid=_GRID,
                    limit=options.grid_images,
                    reading=_READING,
                ).save(file)
            tunings[network] = Tuning.load(file)
            print(
                f"{name}, {network}: T = {tunings[network].temperature:g}, eps = {tunings[network].chosen_eps:g}",
                flush=True,
            )
        for network in options.score or options.networks:
            rows = variants(kind, tunings, network)
            scored(
                open_classifier(network),
                rows,
                (normal, outliers),
                tuning=tunings[network],
                own=of(network),
                title=f"{name}, {network}",
            )


_READING = Reader(batch_size=64)
_KINDS: dict[str, Tunable] = {"gradient": Gradient(), "odin": ODIN()}


def variants(kind: Tunable, tunings: dict[str, Tuning], network: str) -> dict[str, OODDetector]:
    """What is scored on one network, by name."""
    temperature, eps = tunings[network].alone()
    assert temperature is not None
    assert eps is not None
    rows: dict[str, OODDetector] = {
        "msp": MSP(),
        "defaults": kind,
        "none": type(kind)(temperature=1.0, eps=0.0),
        f"T alone = {temperature:g}": type(kind)(temperature=temperature, eps=0.0),
        f"eps alone = {eps:g}": type(kind)(temperature=1.0, eps=eps),
    }
    return rows | {of(other): tuning.apply(kind) for other, tuning in tunings.items()}


def of(network: str) -> str:
    return f"of {network}"


def by_size(classifier: Classifier, pairs: Path, limit: int, sizes: list[int]) -> None:
    """Print ROC-AUC and both PR-AUC of some detectors for growing numbers of outliers, each with all before it."""
    normal = from_class_folders(pairs / "cifar10_test" / "test").sample(limit, seed=0)
    outliers = open_labelled(pairs / "tiny_imagenet").sample(max(sizes), seed=1)
    detectors: dict[str, OODDetector] = {"msp": MSP(), **_KINDS}
    functions = {name: detector.score for name, detector in detectors.items()}
    inside, outside = (score_images(classifier, images, functions, reading=_READING) for images in (normal, outliers))
    order = np.random.default_rng(0).permutation(len(outside))
    print(f"{classifier.name}: {len(inside)} in-distribution images\n")
    print("| | outliers | ROC-AUC | FPR95 | PR-AUC (outlier) | PR-AUC (inlier) |\n|---|---|---|---|---|---|")
    for name, size in product(detectors, sizes):
        some = outside.scores[name][order[:size]]
        print(f"| {name} | {size} | {' | '.join(figures(inside.scores[name], some))} |", flush=True)


def figures(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> list[str]:
    """Four figures with the deviation over 100 bootstraps, in percent."""
    drawn = metrics.bootstrap_ranking(*joined(inside, outside), repetitions=100, seed=0)
    means, deviations = drawn.means(), drawn.standard_errors()
    return [f"{100 * means[figure]:.1f} ± {100 * deviations[figure]:.1f}" for figure in _FIGURES]


def against(
    own: tuple[NDArray[np.float64], NDArray[np.float64]], other: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> str:
    """ROC-AUC of `other` minus that of `own` in percent, and its deviation over 100 draws, the same for both."""
    draw = np.random.default_rng(0)
    inside, outside = (np.arange(len(part)) for part in own)
    drawn = [(draw.choice(inside, len(inside)), draw.choice(outside, len(outside))) for _ in range(100)]
    found = [
        [metrics.auroc(*joined(scores[0][a], scores[1][b])) for a, b in ((inside, outside), *drawn)]
        for scores in (own, other)
    ]
    gains = 100 * (np.array(found[1]) - np.array(found[0]))
    return f"{gains[0]:+.1f} ± {gains[1:].std(ddof=1):.1f}"


def scored(
    classifier: Classifier,
    rows: dict[str, OODDetector],
    sets: tuple[LabelledImages, LabelledImages],
    *,
    tuning: Tuning,
    own: str,
    title: str,
) -> None:
    """Print four figures of each row with deviations, in percent; the tuned images are left out."""
    first = {name: next(other for other in rows if rows[other] == detector) for name, detector in rows.items()}
    functions = {name: rows[name].score for name in first.values()}
    found = [score_images(classifier, images, functions, reading=_READING) for images in sets]
    inside, outside = (part.without(frozenset(tuning.digests)) for part in found)
    print(f"\n{title}: {len(inside)} in-distribution images, {len(outside)} outliers\n", flush=True)
    print("| | ROC-AUC | FPR95 | PR-AUC (outlier) | PR-AUC (inlier) | ROC-AUC minus own |\n|---|---|---|---|---|---|")
    for name in rows:
        pairs = [(inside.scores[first[row]], outside.scores[first[row]]) for row in (own, name)]
        gain = "" if first[name] == first[own] else against(*pairs)
        print(f"| {name} | {' | '.join(figures(*pairs[1]))} | {gain} |", flush=True)


if __name__ == "__main__":
    main()
