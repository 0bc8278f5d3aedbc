"""One-class tables: every class of a labelled image set taken for normal in turn, any methods, image AUROC.

    BLEMISH_WEIGHTS=weights python benchmarks/one_class.py cifar10 --resize 128 --limit 200
    python benchmarks/one_class.py cifar10 --backbone pixels --resize 32 --kind all-but --json figures.json

Like `blemish study 'cifar10:one-class=*'`, but each image goes through the network once, not once for each class, and
the mean over the classes gets an interval. Intervals are 95 %: DeLong's for a class; for the mean, a bootstrap over the
test images of each class. What is learned from is the training part, tested is on `--limit` test images of each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from _measure import write
from figures import make_method
from numpy.typing import NDArray

from blemish import Batches, Detector, Preprocess, metrics
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.weights import find_weights
from blemish.images.datasets import Dataset, one_class
from blemish.images.feature_memory import FeatureMemory
from blemish.images.labelled import LabelledImages, open_parts
from blemish.memory import available_bytes
from blemish.methods import FeatureMethod

# AUROC of airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck; where from: docs/one-class.md.
PUBLISHED = {
    "Deep SVDD": (61.7, 65.9, 50.8, 59.1, 60.9, 65.7, 67.7, 67.3, 75.9, 73.1),
    "DN2, ResNet-152": (93.9, 97.7, 85.5, 85.5, 93.6, 91.3, 94.3, 93.6, 95.1, 95.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", default=["ocsvm", "svdd", "knn", "gaussian"])
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--kind", choices=["one-class", "all-but"], default="one-class")
    parser.add_argument("--limit", type=int, help="test images of each class; default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    train, test = open_parts(options.data)
    if test is None:
        train, test = train.split(0.2, seed=0)
    test = limited(test, options.limit)
    methods: dict[str, FeatureMethod] = {}
    for spec in options.methods:
        method, _ = make_method(spec, options.backbone, seed=0)
        assert isinstance(method, FeatureMethod)
        methods[spec] = method
    labels = sorted(set(train.class_names()))
    start = perf_counter()
    features = read(train, test, list(methods.values()), Preprocess(options.resize))
    print(f"{len(features)} images read in {perf_counter() - start:.0f} s", flush=True)
    scores: dict[str, list[NDArray[np.float64]]] = {spec: [] for spec in methods}
    rows: list[dict[str, Any]] = []
    for label in labels:
        dataset = one_class(train, test, label=label, kind=options.kind)
        for spec, method in methods.items():
            found, seconds = scored(method, dataset, features)
            scores[spec].append(found)
            anomalous = np.array([sample.anomalous for sample in dataset.test])
            interval = metrics.delong_interval(found, anomalous)
            row = {"label": label, "method": spec, "auroc": metrics.auroc(found, anomalous), "fit": seconds}
            rows.append(row | {"low": interval.low, "high": interval.high})
            print(f"{label:12} {spec:24} {row['auroc']:.4f} [{interval.low:.4f}, {interval.high:.4f}]", flush=True)
            write(options.json, rows)
    kinds = np.array(test.class_names())
    means = {spec: mean_interval(found, labels, kinds, options.kind) for spec, found in scores.items()}
    print(table(rows, means, labels))


def limited(test: LabelledImages, count: int | None) -> LabelledImages:
    """A seeded choice of so many images of each class."""
    if count is None:
        return test
    names = np.array(test.class_names())
    draw = np.random.default_rng(0)
    chosen = [draw.permutation(np.flatnonzero(names == name))[:count] for name in sorted(set(names.tolist()))]
    return test.subset(sorted(np.concatenate(chosen).tolist()))


def read(
    train: LabelledImages, test: LabelledImages, methods: list[FeatureMethod], preprocess: Preprocess
) -> FeatureMemory:
    """The features of all images, which all methods and classes share."""
    row = find_backbone(methods[0].backbone)
    taps = tuple(dict.fromkeys(tap for method in methods for tap in method.tapped()))
    extractor = build_extractor(row, weights=find_weights(row, None), taps=taps)
    free = available_bytes()
    count = len(train) + len(test)
    features = FeatureMemory(backbone=row.name, preprocess=preprocess, images=count, budget=free and free // 4)
    for part in (train, test):
        for batch in Batches(part.source, preprocess, 8):
            features.add(batch, dict(zip(extractor.taps, extractor(batch.pixels).maps, strict=True)))
    return features


def scored(method: FeatureMethod, dataset: Dataset, features: FeatureMemory) -> tuple[NDArray[np.float64], float]:
    """Scores of the test images in their order, and the seconds of the fit."""
    detector = Detector(method=method, preprocess=features.preprocess, calibration="none", features=features)
    start = perf_counter()
    detector.fit(dataset.train_images())
    seconds = perf_counter() - start
    parts = [found.images.double().numpy() for _, found in detector.score(dataset.test_images())]
    return np.concatenate(parts), seconds


def mean_interval(
    scores: list[NDArray[np.float64]], labels: list[str], kinds: NDArray[np.str_], kind: str
) -> tuple[float, float, float]:
    """Mean AUROC over the classes, and its interval: test images are drawn again within their classes, 500 times."""
    members, draw = [np.flatnonzero(kinds == label) for label in labels], np.random.default_rng(0)

    def mean(chosen: NDArray[np.intp]) -> float:
        anomalous = [(kinds[chosen] == label) != (kind == "one-class") for label in labels]
        return float(np.mean([metrics.auroc(s[chosen], a) for s, a in zip(scores, anomalous, strict=True)]))

    drawn = [mean(np.concatenate([draw.choice(some, len(some)) for some in members])) for _ in range(500)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return mean(np.arange(len(kinds))), float(low), float(high)


def table(rows: list[dict[str, Any]], means: dict[str, tuple[float, float, float]], labels: list[str]) -> str:
    """Percent, with half the width of the intervals."""
    lines = [f"| | {' | '.join(labels)} | mean |", "|---" * (len(labels) + 2) + "|"]
    for spec, (mean, low, high) in means.items():
        own = [row for row in rows if row["method"] == spec]
        cells = [f"{100 * row['auroc']:.1f} ± {50 * (row['high'] - row['low']):.1f}" for row in own]
        lines.append(f"| {spec} | {' | '.join(cells)} | **{100 * mean:.1f}** ± {50 * (high - low):.1f} |")
    if len(labels) == 10 and labels[0] == "airplane":
        for name, values in PUBLISHED.items():
            lines.append(f"| {name} (published) | {' | '.join(map(str, values))} | {np.mean(values):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
