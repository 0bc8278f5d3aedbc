"""Whether a choice without defects finds the best candidate: its criterion beside true AUROC, many candidates and sets.

    python benchmarks/choose.py measure --out scores --resize 128 mvtec_ad/bottle weave 'cifar10:one-class=cat'
    python benchmarks/choose.py table scores/*.npz
    python benchmarks/choose.py families scores/*.npz
    python benchmarks/choose.py draws --resize 128 mvtec_ad/bottle
    python benchmarks/choose.py time mvtec_ad/bottle

`measure` writes one file a set: scores of held-out normal images, of the same with every family of changes, and of the
test images, by every candidate; the name of a drawn product stands for `write_dataset`. `table` reads them: the pick of
`choosing.choose` (families, changes an image, margin as in the package), what it loses against the best candidate,
what fixed choices lose, and the rank correlation of the criterion with the truth over all candidates. `families` says
it for each family. `draws` is `Detector.choose` with ten seeds. `time` is processor seconds of a fit, named and `auto`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from blemish import KNN, Batches, Detector, GaussianAD, PaDiM, PatchCore, Preprocess, Subspace, open_dataset
from blemish.augment.changes import CHANGES, draw_change
from blemish.choosing.choose import ALIKE, CHANGES_AN_IMAGE, FAMILIES, HELD_OUT, LEAST
from blemish.choosing.criterion import Trial, interval, mean_separation
from blemish.datasets.layouts import Dataset
from blemish.datasets.synthetic import PRODUCTS, write_dataset
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.features.memory import FeatureMemory
from blemish.features.weights import find_weights
from blemish.images.source import ImageSource
from blemish.methods import FeatureMethod
from blemish.methods._base import MapMethod
from blemish.metrics import auroc
from blemish.ops.maps import mean_of_highest
from blemish.training.loop import generator
from blemish.types import ImageBatch

RULES = {"max": 0.0, "top 1 %": 0.01, "top 5 %": 0.05}
"""Score rules: `top_share` of methods with maps."""
OF_AUTO = ("padim", "padim 8,16", "padim 16", "patchcore", "patchcore 8", "knn unit", "gaussian")
"""The rows of `choosing.candidates`, in the order of their size, largest first, and those without maps last."""
SIZES = {"padim": 100.0, "padim 8,16": 25.0, "padim 16": 6.5, "patchcore": 5.0, "patchcore 8": 2.0}
"""MB of a model of 100 images at 256 pixels, roughly: the pick needs their order alone."""


def candidates(*, all_of_them: bool) -> dict[str, FeatureMethod]:
    """Those of `auto`, or all; each of those with maps stands for one candidate a score rule then."""
    found: dict[str, FeatureMethod] = {
        "padim": PaDiM(),
        "padim 8,16": PaDiM(taps=("stage8", "stage16")),
        "padim 8": PaDiM(taps=("stage8",)),
        "padim 16": PaDiM(taps=("stage16",)),
        "padim 16 eps .01": PaDiM(taps=("stage16",), eps=0.01),
        "patchcore": PatchCore(reserve=0),  # what takes time and changes no score
        "patchcore 8": PatchCore(taps=("stride8",), reserve=0),
        "patchcore 16": PatchCore(taps=("stride16",), reserve=0),
        "subspace": Subspace(),
        "knn": KNN(),
        "knn unit": KNN(normalise=True),
        "knn 3": KNN(taps=("stride4", "stride8", "stride16")),
        "gaussian": GaussianAD(),
        "gaussian 16": GaussianAD(taps=("stride16",)),
    }
    return found if all_of_them else {name: found[name] for name in OF_AUTO}


class Caught:
    """The values that a method makes an image's score from, for the other rules: its maps are made once."""

    def __init__(self, method: MapMethod) -> None:
        self._made = method._image_scores
        self.values, self.inside = torch.empty(0), None

    def __call__(self, values: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        self.values, self.inside = values, inside
        return self._made(values, inside)

    def by(self, share: float) -> list[float]:
        found: list[float] = mean_of_highest(self.values, share, self.inside).tolist()
        return found


@dataclass
class Network:
    """The backbone, and the candidates on it."""

    preprocess: Preprocess
    all_of_them: bool

    def __post_init__(self) -> None:
        self.row = find_backbone("compact")
        self.taps = (*self.row.narrow, *self.row.taps)
        self.rules = RULES if self.all_of_them else {"max": 0.0}
        self.families = tuple(CHANGES) if self.all_of_them else FAMILIES
        self.extractor = build_extractor(self.row, weights=find_weights(self.row), taps=self.taps)

    def seen(self, batch: ImageBatch) -> ImageBatch:
        maps = dict(zip(self.taps, self.extractor(batch.pixels).maps, strict=True))
        return ImageBatch(batch.pixels, batch.names, batch.sizes, maps)

    def read(self, source: ImageSource) -> FeatureMemory:
        memory = FeatureMemory(backbone=self.row.name, preprocess=self.preprocess, images=len(source))
        for batch in Batches(source, self.preprocess):
            maps = self.seen(batch).features
            assert maps is not None
            memory.add(batch, maps)
        return memory

    def fitted(self, source: ImageSource, memory: FeatureMemory) -> dict[str, FeatureMethod]:
        batches = Batches(source, self.preprocess, features=memory)
        methods = {
            name: copy.deepcopy(method).fit(batches)
            for name, method in candidates(all_of_them=self.all_of_them).items()
        }
        for method in methods.values():
            if isinstance(method, MapMethod):
                method._image_scores = Caught(method)  # type: ignore[method-assign]
        return methods


@dataclass
class Scored:
    """Scores by candidate, in the order in which images come."""

    rules: dict[str, float]
    scores: dict[str, list[float]] = field(default_factory=dict)

    def add(self, methods: dict[str, FeatureMethod], batch: ImageBatch) -> None:
        for name, method in methods.items():
            whole = method.score(batch).images.tolist()
            caught = getattr(method, "_image_scores", None)
            found = {"max": whole}
            if isinstance(caught, Caught):
                found = {rule: caught.by(share) for rule, share in self.rules.items()}
            for rule, values in found.items():
                self.scores.setdefault(f"{name}|{rule}", []).extend(values)


def open_set(name: str, folder: Path) -> Dataset:
    if name not in PRODUCTS:
        return open_dataset(name)
    if not (folder / name).exists():
        write_dataset(folder / name, product=name, n_train=100)
    return open_dataset(folder / name)


def some(count: int, most: int) -> list[int]:
    chosen: list[int] = sorted(np.random.default_rng(0).permutation(count)[:most].tolist())
    return chosen


def balanced(dataset: Dataset, count: int) -> list[int]:
    """Test images, half of them normal; all where there are no more."""
    if len(dataset.test) <= count:
        return list(range(len(dataset.test)))
    labels, draws = np.array([sample.anomalous for sample in dataset.test]), np.random.default_rng(0)
    halves = [draws.permutation(np.flatnonzero(labels == anomalous))[: count // 2] for anomalous in (0, 1)]
    return sorted(np.concatenate(halves).tolist())


def measure(name: str, options: argparse.Namespace) -> None:
    """Write the scores of one set."""
    target = options.out / (name.replace("/", "_").replace("..", "") + f"-{options.draw}.npz")
    if target.exists():
        return
    start, network = perf_counter(), Network(Preprocess(options.resize), not options.only_auto)
    dataset = open_set(name, options.out / "drawn")
    train = dataset.train_images()
    train = train.subset(some(len(train), options.train))
    learn, held_out = train.split(HELD_OUT, seed=options.draw + 1)
    memory = network.read(train)
    trial, untouched, changed = compared(network, network.fitted(learn, memory), held_out, memory, seed=options.draw)
    test, methods, tested = balanced(dataset, options.test), network.fitted(train, memory), Scored(network.rules)
    for batch in Batches(dataset.test_images().subset(test), network.preprocess):
        tested.add(methods, network.seen(batch))
    facts = {"set": name, "train": len(train), "held_out": len(held_out), "test": len(test), "resize": options.resize}
    arrays: dict[str, Any] = {"of": trial.of, "families": trial.families, "facts": json.dumps(facts)}
    arrays["labels"] = [dataset.test[i].anomalous for i in test]
    for part, scored in (("untouched", untouched), ("changed", changed), ("test", tested)):
        arrays |= {f"{part}/{key}": values for key, values in scored.scores.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez(target, **arrays)
    print(f"{name}: {facts['train']} train, {facts['test']} test, {perf_counter() - start:.0f} s", flush=True)


def compared(
    network: Network, methods: dict[str, FeatureMethod], held_out: ImageSource, memory: FeatureMemory, *, seed: int
) -> tuple[Trial, Scored, Scored]:
    """Scores of held-out images as they are, and of each with a change of every family."""
    rules = network.rules
    untouched, changed, of, families = Scored(rules), Scored(rules), list[int](), list[str]()
    before, first = None, 0
    for batch in Batches(held_out, network.preprocess):
        untouched.add(methods, memory.batch(batch.names))
        others = [batch.pixels[0] if before is None else before, *batch.pixels[:-1]]
        before = batch.pixels[-1]
        for family in network.families:
            draws = generator(seed, first, family)
            pixels = [draw_change(family, i, o, draws)[0] for i, o in zip(batch.pixels, others, strict=True)]
            changed.add(methods, network.seen(ImageBatch(torch.stack(pixels), batch.names, batch.sizes)))
            of += range(first, first + len(batch))
            families += [family] * len(batch)
        first += len(batch)
    return Trial(held_out.names, tuple(of), tuple(families)), untouched, changed


@dataclass
class Measured:
    """A file of `measure`."""

    path: Path

    def __post_init__(self) -> None:
        self.file = np.load(self.path, allow_pickle=False)
        facts = json.loads(str(self.file["facts"]))
        self.name, names = facts["set"].split("/")[-1], tuple(map(str, range(facts["held_out"])))
        self.trial = Trial(names, tuple(self.file["of"].tolist()), tuple(self.file["families"].tolist()))
        self.keys = [key.removeprefix("test/") for key in self.file.files if key.startswith("test/")]
        self.of_auto = [name for name in OF_AUTO if f"{name}|max" in self.keys]
        self.true = {key: auroc(self.file[f"test/{key}"], self.file["labels"]) for key in self.keys}

    def criteria(
        self, families: Sequence[str], *, changes: int | None = None, turn: int = 0, repetitions: int = 0
    ) -> dict[str, NDArray[np.float64]]:
        """Of every candidate; with `changes` an image, each has that many families in turn."""
        count, each = len(families), len(families) if changes is None else changes
        kept = [
            row
            for row, (image, family) in enumerate(zip(self.trial.of, self.trial.families, strict=True))
            if family in families and (families.index(family) - (image + turn) * each) % count < each
        ]
        part = Trial(
            self.trial.names, tuple(self.trial.of[i] for i in kept), tuple(self.trial.families[i] for i in kept)
        )
        weights = part.weights(seed=turn, repetitions=repetitions)
        return {
            key: mean_separation(
                part.separation(self.file[f"untouched/{key}"], self.file[f"changed/{key}"][kept], weights)
            )
            for key in self.keys
        }

    def lost(self, key: str) -> float:
        """Of true AUROC, against the best of the candidates of `auto`."""
        return max(self.true[f"{name}|max"] for name in self.of_auto) - self.true[key]

    def correlation(self, criteria: dict[str, NDArray[np.float64]]) -> float:
        found = spearmanr([criteria[key][0] for key in self.keys], [self.true[key] for key in self.keys])
        return float(found.statistic)


def cost(key: str) -> tuple[bool, float]:
    name = key.split("|", maxsplit=1)[0]
    return name not in SIZES, SIZES.get(name, 1.0)


def picked(criteria: dict[str, NDArray[np.float64]], rule: str) -> str:
    keys = [f"{name}|max" for name in OF_AUTO if f"{name}|max" in criteria]
    best = max(keys, key=lambda key: float(criteria[key][0]))
    if rule == "package" and criteria[best][0] < LEAST:
        return "knn unit|max"

    def alike(key: str) -> bool:
        behind = criteria[best] - criteria[key]
        if rule == "interval":
            return key == best or interval(behind)[0] <= 0
        if rule == "one standard error":
            return bool(behind[0] <= np.nanstd(behind[1:]))
        return bool(behind[0] <= (ALIKE if rule in ("margin", "package") else 0.0))

    return min(filter(alike, keys), key=cost)


def table(options: argparse.Namespace) -> None:
    """What the pick, and what fixed choices, lose; means over the turns of the families."""
    fixed, rows = ("padim", "padim 8,16", "padim 16", "patchcore"), []
    rules = ("package", "margin", "best", "one standard error", "interval")
    print("| set | best | pick loses | " + " | ".join(fixed) + " | rank correlation | picked |")
    print("|---" * (len(fixed) + 5) + "|")
    for measured in map(Measured, options.files):
        lost: dict[str, list[float]] = {rule: [] for rule in rules}
        correlations, names = [], []
        for turn in range(4):
            criteria = measured.criteria(FAMILIES, changes=CHANGES_AN_IMAGE, turn=turn, repetitions=200)
            for rule in rules:
                lost[rule].append(measured.lost(picked(criteria, rule)))
            names.append(picked(criteria, "package").split("|")[0])
            correlations.append(measured.correlation(criteria))
        row = [float(np.mean(lost[rule])) for rule in rules]
        row += [measured.lost(f"{name}|max") for name in fixed] + [float(np.mean(correlations))]
        rows.append(row)
        most = ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())
        best = max(measured.true[f"{name}|max"] for name in measured.of_auto)
        cells = " | ".join(f"{value:.3f}" for value in [best, row[0], *row[len(rules) :]])
        print(f"| {measured.name} | {cells} | {most} |")
    mean, worst = np.mean(rows, axis=0), np.max(rows, axis=0)
    print("| mean | | " + " | ".join(f"{value:.4f}" for value in [mean[0], *mean[len(rules) :]]) + " | |")
    print("| worst | | " + " | ".join(f"{value:.3f}" for value in [worst[0], *worst[len(rules) : -1]]) + " | | |")
    print("lost by other rules: " + ", ".join(f"{rule} {value:.4f}" for rule, value in zip(rules, mean, strict=False)))


def families(options: argparse.Namespace) -> None:
    """How each family alone follows the truth, and at which level; and groups of families."""
    sets = [Measured(path) for path in options.files]
    some = [str(one.name) for one in sets if not set(CHANGES) <= set(one.trial.families)]
    if some:
        raise SystemExit(f"families compares all of them; of {', '.join(some)} some were not measured: no --only-auto")
    groups = {name: (name,) for name in CHANGES} | {
        "all": tuple(CHANGES), "of the package": FAMILIES, "of the prototype": ("augmix", "cutout", "cutpaste", "scar"),
    }  # fmt: skip
    print("| families | rank correlation | pick loses | level |\n|---|---|---|---|")
    for name, group in groups.items():
        found = [(one, one.criteria(group)) for one in sets]
        correlation = np.mean([one.correlation(criteria) for one, criteria in found])
        lost = np.mean([one.lost(picked(criteria, "margin")) for one, criteria in found])
        level = np.mean([[criteria[f"{key}|max"][0] for key in one.of_auto] for one, criteria in found])
        print(f"| {name} | {correlation:.2f} | {lost:.4f} | {level:.2f} |")


def draws(options: argparse.Namespace) -> None:
    """Ten choices, each by other held-out images."""
    for name in options.sets:
        train = open_set(name, options.out / "drawn").train_images()
        train = train.subset(some(len(train), options.train))
        names = []
        for seed in range(10):
            detector = Detector(calibration="none", preprocess=Preprocess(options.resize), seed=seed)
            names.append(detector.choose(train).picked.name)
        print(f"{name}: " + "; ".join(f"{pick} {count}" for pick, count in Counter(names).most_common()), flush=True)


def time(options: argparse.Namespace) -> None:
    """Processor seconds, which do not depend on what else runs, of one fit."""
    torch.set_num_threads(1)
    methods = {"padim": PaDiM(), "patchcore": PatchCore(), "padim 16": PaDiM(taps=("stage16",)), "auto": "auto"}
    for name in options.sets:
        train, seconds = open_set(name, options.out / "drawn").train_images(), {}
        for key, method in methods.items():
            start = process_time()
            detector = Detector(method=method, calibration="none").fit(train)
            seconds[key] = process_time() - start
        start = process_time()
        Detector(method=copy.deepcopy(detector.method_), calibration="none").fit(train)
        seconds[f"its pick, {detector.method_.name}, named"] = process_time() - start
        ratios = ", ".join(f"{key} {seconds['auto'] / value:.1f}" for key, value in seconds.items() if key != "auto")
        print(f"{name}: auto {seconds['auto']:.1f} s; times {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("measure", measure), ("draws", draws), ("time", time)):
        command = commands.add_parser(name)
        command.add_argument("sets", nargs="+")
        command.add_argument("--out", type=Path, default=Path("scores"))
        command.add_argument("--draw", type=int, default=0, help="another one holds out other images")
        command.add_argument("--train", type=int, default=96, help="most normal images to learn from")
        command.add_argument("--test", type=int, default=200, help="most test images, half of them normal")
        command.add_argument("--resize", type=int, default=256)
        command.add_argument("--only-auto", action="store_true", help="the candidates and families of the package only")
        command.set_defaults(run=run)
    for name, run in (("table", table), ("families", families)):
        command = commands.add_parser(name)
        command.add_argument("files", nargs="+", type=Path)
        command.set_defaults(run=run)
    options = parser.parse_args()
    if options.run is measure:
        for name in options.sets:
            measure(name, options)
    else:
        options.run(options)


if __name__ == "__main__":
    main()
