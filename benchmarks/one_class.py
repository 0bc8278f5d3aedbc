"""One-class tables: every class of a labelled image set taken for normal in turn, any methods, image AUROC.

    BLEMISH_WEIGHTS=weights python benchmarks/one_class.py cifar10 --resize 128 --limit 200
    python benchmarks/one_class.py cifar10 --backbone pixels --resize 32 --kind all-but --json figures.json
    python benchmarks/one_class.py cifar10 --resize 64 --classes cat truck --methods knn,normalise=true mean_shifted

Like `blemish study 'cifar10:one-class=*'`, but with a frozen backbone each image goes through the network once, not
once for each class, and there are intervals of the mean over the classes, and of what a method gains over the first
one of `--methods`. Intervals are 95 %: DeLong's for a class; for the mean, a bootstrap over the test images of each
class. What is learned from is the training part, tested is on `--limit` test images of each class. A row is written to
`--json` as soon as it is measured; one that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from _measure import write
from figures import make_method
from numpy.typing import NDArray

from blemish import Batches, Detector, Preprocess, metrics
from blemish.datasets.labelled import LabelledImages, open_parts
from blemish.datasets.layouts import Dataset, one_class
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.memory import FeatureMemory
from blemish.features.weights import find_weights
from blemish.memory import available_bytes
from blemish.methods import FeatureMethod
from blemish.training.loop import Course

# AUROC of airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck; from docs/experiments/one-class.md.
PUBLISHED = {
    "Deep SVDD": (61.7, 65.9, 50.8, 59.1, 60.9, 65.7, 67.7, 67.3, 75.9, 73.1),
    "DN2, ResNet-152": (93.9, 97.7, 85.5, 85.5, 93.6, 91.3, 94.3, 93.6, 95.1, 95.3),
    "PANDA, ResNet-152": (97.4, 98.4, 93.9, 90.6, 97.5, 94.4, 97.5, 97.5, 97.6, 97.4),
    "Mean-shifted, ResNet-152": (97.0, 98.7, 94.8, 94.3, 96.9, 97.2, 98.2, 98.3, 98.5, 98.3),
}
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", default=["ocsvm", "svdd", "knn", "gaussian"])
    parser.add_argument("--classes", nargs="+", help="which to take for normal; default: each")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--kind", choices=["one-class", "all-but"], default="one-class")
    parser.add_argument("--limit", type=int, help="test images of each class; default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("blemish").setLevel(logging.INFO)
    train, test = open_parts(options.data)
    if test is None:
        train, test = train.split(0.2, seed=0)
    test = limited(test, options.limit)
    labels = options.classes or sorted(set(train.class_names()))
    methods: dict[str, FeatureMethod] = {}
    for spec in options.methods:
        method, _ = make_method(spec, options.backbone, seed=0)
        assert isinstance(method, FeatureMethod)
        methods[spec] = method
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    done = {(row["label"], row["method"]): row for row in rows}
    frozen = {spec: method for spec, method in methods.items() if method.reads_features}
    preprocess, features = Preprocess(options.resize), None
    if any((label, spec) not in done for label in labels for spec in frozen):
        start = perf_counter()
        learned = [i for i, name in enumerate(train.class_names()) if options.kind == "all-but" or name in labels]
        features = read(train.subset(learned), test, list(frozen.values()), preprocess)
        print(f"{len(features)} images read in {perf_counter() - start:.0f} s", flush=True)
    for label in labels:
        dataset = one_class(train, test, label=label, kind=options.kind)
        anomalous = np.array([sample.anomalous for sample in dataset.test])
        for spec, method in methods.items():
            if (label, spec) not in done:
                found, seconds, course = scored(method, dataset, preprocess, features if spec in frozen else None)
                interval = metrics.delong_interval(found, anomalous)
                row = {"label": label, "method": spec, "auroc": metrics.auroc(found, anomalous), "fit": seconds}
                done[label, spec] = row | {"low": interval.low, "high": interval.high, "course": course}
                done[label, spec]["scores"] = found.tolist()
                write(options.json, list(done.values()))
            row = done[label, spec]
            figures = f"{row['auroc']:.4f} [{row['low']:.4f}, {row['high']:.4f}], fit {row['fit']:.0f} s"
            print(f"{label:12} {spec:40} {figures}{row.get('course', '')}", flush=True)
    kinds = np.array(test.class_names())
    means = {
        spec: drawn_means([np.array(done[label, spec]["scores"]) for label in labels], labels, kinds, options.kind)
        for spec in methods
    }
    print(table(done, means, labels))


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


def scored(
    method: FeatureMethod, dataset: Dataset, preprocess: Preprocess, features: FeatureMemory | None
) -> tuple[NDArray[np.float64], float, str]:
    """Scores of the test images in their order, the seconds of the fit, and how the terms of the loss went."""
    detector = Detector(method=method, preprocess=preprocess, calibration="none", features=features)
    start = perf_counter()
    detector.fit(dataset.train_images())
    seconds = perf_counter() - start
    parts = [found.images.double().numpy() for _, found in detector.score(dataset.test_images())]
    return np.concatenate(parts), seconds, went(getattr(method, "course_", None))


def went(course: Course | None) -> str:
    """Each term's mean over the first and the last tenth of the steps."""
    if course is None or not course.steps:
        return ""
    tenth = -(-course.steps // 10)
    first, last = (part.mean(dim=0).tolist() for part in (course.losses[:tenth], course.losses[-tenth:]))
    terms = zip(course.terms, first, last, strict=True)
    return f", {course.steps} steps, " + ", ".join(f"{name} {a:.4g} -> {b:.4g}" for name, a, b in terms)


def drawn_means(
    scores: list[NDArray[np.float64]], labels: list[str], kinds: NDArray[np.str_], kind: str
) -> NDArray[np.float64]:
    """Mean AUROC over the classes, then 500 of it with the test images drawn again within their classes."""
    members, draw = [np.flatnonzero(kinds == name) for name in sorted(set(kinds.tolist()))], np.random.default_rng(0)

    def mean(chosen: NDArray[np.intp]) -> float:
        anomalous = [(kinds[chosen] == label) != (kind == "one-class") for label in labels]
        return float(np.mean([metrics.auroc(s[chosen], a) for s, a in zip(scores, anomalous, strict=True)]))

    drawn = [np.concatenate([draw.choice(some, len(some)) for some in members]) for _ in range(500)]
    return np.array([mean(chosen) for chosen in (np.arange(len(kinds)), *drawn)])


def table(rows: dict[tuple[str, str], dict[str, Any]], means: dict[str, NDArray[np.float64]], labels: list[str]) -> str:
    """Percent, with half the width of the intervals."""
    first = next(iter(means.values()))
    lines = [f"| | {' | '.join(labels)} | mean | gain |", "|---" * (len(labels) + 3) + "|"]
    for spec, mean in means.items():
        own = [rows[label, spec] for label in labels]
        cells = [f"{100 * row['auroc']:.1f} ± {50 * (row['high'] - row['low']):.1f}" for row in own]
        lines.append(f"| `{spec}` | {' | '.join(cells)} | {percent(mean)} | {percent(mean - first)} |")
    if set(labels) <= set(_CIFAR):
        for name, values in PUBLISHED.items():
            own_values = [values[_CIFAR.index(label)] for label in labels]
            lines.append(f"| {name} (published) | {' | '.join(map(str, own_values))} | {np.mean(own_values):.1f} | |")
    return "\n".join(lines)


def percent(drawn: NDArray[np.float64]) -> str:
    """The first of these, and half the width of the interval of the others."""
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return f"{100 * drawn[0]:.1f} ± {50 * (high - low):.1f}"


if __name__ == "__main__":
    main()
