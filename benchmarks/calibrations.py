"""What each calibration guarantees, against what happens: by simulation, on real normal images, and against refits.

    python benchmarks/calibrations.py simulate [--only auto]
    python benchmarks/calibrations.py auto
    python benchmarks/calibrations.py features mvtec_ad/screw mvtec_ad/bottle mtd --out features.npz
    python benchmarks/calibrations.py real features.npz
    python benchmarks/calibrations.py refits mvtec_ad/bottle
    python benchmarks/calibrations.py time mvtec_ad/screw
    python benchmarks/calibrations.py coreset mtd --side 128

`simulate` draws images of one distribution as vectors, and one new image a repetition; a promise below the exact 99.9 %
interval of what happened ends in FAILS; so do the rows `outside`, as they should. `auto` does it with the detector
itself, on tiny pictures. `features` makes pooled features once, `real` draws normal images from them:
how many of the others are flagged, and how many defects. `refits` compares left-out scores with fits without the
image, `time` a fit with `loo` or `cross` with one without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from decisions import print_table, share
from numpy.typing import NDArray

from blemish import Batches, Detector, PaDiM, PatchCore, Preprocess, open_dataset
from blemish.calibrate import Calibration, calibrate, with_margin
from blemish.choosing import candidates
from blemish.choosing.auto import Auto
from blemish.features.backbones import custom_backbone
from blemish.features.memory import FeatureMemory
from blemish.features.patches import pool
from blemish.folds import fold_of
from blemish.methods import KNN, GaussianAD, Subspace
from blemish.ops.shrinkage import ShrinkageSums
from blemish.promises import images_needed, plus_bound

Floats = NDArray[np.float64]
Judge = Callable[[Floats, Floats, float], Floats | None]
"""From the rows of normal images, those of new ones and a rate to the new ones' p-values; None where too few."""
FOLDS, K, REPETITIONS, DRAWS = 10, 2, 2000, 200
RATES = (0.01, 0.02, 0.05, 0.1)
CORESETS = 20
"""Draws of `coreset`, each of which fits eleven models."""
NEW = 40
"""New images of each of them."""
FEW = 5
"""New images a draw, of each kind, for `full` with `gaussian`: their share in one draw says little, the mean does."""


# Rules: scores of rows by a model of other rows


def nearest(learned: Floats, rows: Floats) -> Floats:
    """Mean squared distance to the K nearest."""
    squared = squared_distances(rows, learned)
    found: Floats = np.partition(squared, K - 1, axis=1)[:, :K].mean(axis=1)
    return found


def squared_distances(a: Floats, b: Floats) -> Floats:
    squared: Floats = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return squared.clip(0)


def nearest_left_out(rows: Floats) -> Floats:
    squared = squared_distances(rows, rows)
    np.fill_diagonal(squared, np.inf)
    found: Floats = np.partition(squared, K - 1, axis=1)[:, :K].mean(axis=1)
    return found


def mahalanobis(learned: Floats, rows: Floats) -> Floats:
    """By Ledoit and Wolf's covariance, as `gaussian`."""
    mean, covariance, _ = sums_of(learned).estimate()
    z = rows - mean.numpy()
    found: Floats = np.sqrt((z @ np.linalg.inv(covariance.numpy()) * z).sum(axis=1))
    return found


def mahalanobis_left_out(rows: Floats) -> Floats:
    found: Floats = sums_of(rows).squared_without(torch.from_numpy(rows)).sqrt().numpy()
    return found


def sums_of(rows: Floats) -> ShrinkageSums:
    sums = ShrinkageSums.empty(rows.shape[1], torch.device("cpu"))
    sums.update(torch.from_numpy(rows))
    return sums


def unstable(learned: Floats, rows: Floats) -> Floats:
    """Mahalanobis in the learned images' span: at one more image than dimensions, the model without one is another."""
    z = rows - learned.mean(axis=0)
    found: Floats = (z @ np.linalg.pinv(np.cov(learned.T, bias=True), rcond=1e-9) * z).sum(axis=1)
    return found


def refitted(score: Callable[[Floats, Floats], Floats], rows: Floats) -> Floats:
    return np.array([score(np.delete(rows, i, axis=0), rows[i : i + 1])[0] for i in range(len(rows))])


# `auto` in small: which of many directions tells changed rows best, by the rows that are learned


CHOICES, CHANGE = 300, 3.0
"""Directions to choose from, and by how much a changed row differs in each number."""


@cache
def directions(d: int) -> Floats:
    """Of length 1, `(d, CHOICES)`."""
    found: Floats = np.random.default_rng(7).standard_normal((d, CHOICES))
    return found / np.linalg.norm(found, axis=0)


def by_a_quarter(learned: Floats) -> int:
    """As `choosing.compare`: a quarter that the candidates do not learn is told from itself, changed, by AUROC."""
    held_out = learned[::4]
    centres = np.median(np.delete(learned, np.s_[::4], axis=0) @ directions(learned.shape[1]), axis=0)
    untouched, changed = (np.abs(x @ directions(x.shape[1]) - centres) for x in (held_out, held_out + CHANGE))
    others = ~np.eye(len(held_out), dtype=bool)
    return int((changed[:, None] > untouched)[others].mean(axis=0).argmax())


def by_all(learned: Floats) -> int:
    """The worst that a choice could do: the direction in which all rows lie closest together."""
    places = learned @ directions(learned.shape[1])
    return int(np.abs(places - np.median(places, axis=0)).max(axis=0).argmin())


def along(choice: int, learned: Floats, rows: Floats) -> Floats:
    """Distance to the median in one direction."""
    direction = directions(learned.shape[1])[:, choice]
    found: Floats = np.abs(rows @ direction - np.median(learned @ direction))
    return found


def chosen(choose: Callable[[Floats], int], learned: Floats, rows: Floats) -> Floats:
    """By the direction that the learned rows choose: the choice is a part of the rule, as `auto` is."""
    return along(choose(learned), learned, rows)


CHOOSERS: dict[str, Callable[[Floats], int]] = {"auto": by_a_quarter, "auto by all": by_all}

RULES: dict[str, tuple[Callable[[Floats, Floats], Floats], Callable[[Floats], Floats]]] = {
    "knn": (nearest, nearest_left_out),
    "gaussian": (mahalanobis, mahalanobis_left_out),
    "unstable": (unstable, partial(refitted, unstable)),
    **{
        name: (partial(chosen, choose), partial(refitted, partial(chosen, choose))) for name, choose in CHOOSERS.items()
    },
}


# Calibrations: p-values of new rows


def split(rule: str, rows: Floats, new: Floats, rate: float, *, certain: float | None = None) -> Floats | None:
    """As `Detector` holds out: a fifth, or what the rate takes, up to half."""
    needed = images_needed(rate, certain=certain)
    count = needed if 0.2 < needed / len(rows) <= 0.5 else round(0.2 * len(rows))
    if count < needed:
        return None
    score, _ = RULES[rule]
    made = calibrate(score(rows[count:], rows[:count]), false_alarm_rate=rate, certain=certain)
    scores = score(rows[count:], new)
    if certain is not None:  # the threshold of the certainty has no p-value of its own
        return np.where(scores > made.threshold, 0.0, 1.0)
    return made.p_values(scores)


def loo(rule: str, rows: Floats, new: Floats, rate: float) -> Floats | None:
    score, left_out = RULES[rule]
    return None if len(rows) < images_needed(rate) else made_of(left_out(rows), rate, "loo").p_values(score(rows, new))


def cross(rule: str, rows: Floats, new: Floats, rate: float) -> Floats | None:
    return by_folds(RULES[rule][0], rows, new, rate)


def outside(rule: str, rows: Floats, new: Floats, rate: float) -> Floats | None:
    """What must not be done: all rows choose, and the same rows calibrate, by folds."""
    return by_folds(partial(along, CHOOSERS[rule](rows)), rows, new, rate)


def by_folds(
    score: Callable[[Floats, Floats], Floats], rows: Floats, new: Floats, rate: float, *, folds: int = FOLDS
) -> Floats | None:
    numbers = np.array(fold_of(range(len(rows)), folds, seed=0))
    own = numbers >= 0
    if own.sum() < images_needed(rate):
        return None
    scores = np.empty(len(rows))
    plus = np.empty((len(new), folds))
    for fold in range(folds):
        learned = rows[numbers != fold]
        scores[numbers == fold] = score(learned, rows[numbers == fold])
        plus[:, fold] = score(learned, new)
    made = calibrate(scores[own], false_alarm_rate=rate, kind="cross", folds=numbers[own])
    return made.p_values(plus.mean(axis=1), plus=plus)


def full(rule: str, rows: Floats, new: Floats, rate: float) -> Floats | None:
    """Each learned image by all the others and the new one, which is scored by all of them."""
    score, left_out = RULES[rule]
    if len(rows) < images_needed(rate):
        return None
    plus = [left_out(np.vstack([rows, row]))[:-1] for row in new]
    return made_of(left_out(rows), rate, "full").p_values(score(rows, new), plus=plus)


def made_of(scores: Floats, rate: float, kind: Any) -> Calibration:
    return calibrate(with_margin(scores), false_alarm_rate=rate, kind=kind)


# The tables


def guaranteed(kind: str, rule: str, n: int, rate: float) -> float | None:
    """What `Promise.guaranteed_rate` says; None: nothing."""
    if kind == "loo" and rule != "knn":
        return None
    allowed = int(rate * (n + 1) * (1 + 1e-12))
    if kind in ("loo", "full"):
        return plus_bound(allowed, n, folds=n) if kind == "loo" else allowed / (n + 1)
    if kind in ("cross", "outside"):
        size = n // FOLDS * FOLDS
        return plus_bound(int(rate * (size + 1) * (1 + 1e-12)), size, folds=FOLDS)
    certain = 0.95 if kind == "certain" else None
    needed = images_needed(rate, certain=certain)
    count = needed if 0.2 < needed / n <= 0.5 else round(0.2 * n)
    return calibrate(range(count), false_alarm_rate=rate, certain=certain).promise.guaranteed_rate


def simulate(only: str) -> None:
    """One new image a repetition, of the distribution of the normal ones; `only`: how the rules' names begin."""
    random = np.random.default_rng(0)
    kinds: dict[str, Any] = {
        "split": split, "certain": partial(split, certain=0.95), "loo": loo, "cross": cross, "full": full,
        "outside": outside,
    }  # fmt: skip
    cases = [("knn", kind, n, 4) for n in (20, 50, 100) for kind in kinds if kind != "outside"]
    cases += [("gaussian", kind, n, 4) for n in (20, 50) for kind in ("split", "loo", "cross", "full")]
    cases += [("unstable", kind, 20, 19) for kind in ("split", "loo", "cross", "full")]
    cases += [(rule, kind, n, 10) for rule in CHOOSERS for n in (20, 40) for kind in ("cross", "outside")]
    rows = []
    for rule, kind, n, d in (case for case in cases if case[0].startswith(only)):
        depends = kind in ("split", "certain")  # how many are held out follows the rate
        found: dict[float, list[bool]] = {}
        for _ in range(REPETITIONS):
            drawn = random.standard_gamma(2.0, size=(n + 1, d))
            p_values = None
            for rate in (0.1, 0.05):
                p_values = kinds[kind](rule, drawn[:n], drawn[n:], rate) if depends or p_values is None else p_values
                if p_values is not None:
                    found.setdefault(rate, []).append(p_values[0] <= rate * (1 + 1e-12))
        for rate, happened in sorted(found.items()):
            proven = guaranteed(kind, rule, n, rate)
            rows.append([
                rule, kind, str(n), f"{rate:.0%}", "none" if proven is None else f"{proven:.2%}",
                share(happened, most=1.0 if proven is None else proven),
            ])  # fmt: skip
    print_table(["rule", "calibration", "n", "asked for", "guaranteed", "realised"], rows)


class Tiny(torch.nn.Module):
    """A network for tiny pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.Conv2d(6, 8, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b(self.a(x).relu())
        return found


def auto(repetitions: int) -> None:
    """`Detector(method="auto", calibration="cross")` end to end, one new picture a repetition; three rows to choose."""
    candidates.ROWS = (
        candidates.Row(PaDiM, lambda row: row.taps[-1:]),
        candidates.Row(KNN),
        candidates.Row(GaussianAD),
    )
    method = Auto(backbone=custom_backbone(Tiny(), taps=("a", "b"), trace_size=16))
    random, n, folds = np.random.default_rng(0), 44, 2
    p_values, differ = [], 0
    for repetition in range(repetitions):
        levels = 120 + random.normal(0, 8, (n + 1, 1, 1, 1))
        pictures = [*(levels + random.normal(0, 20, (n + 1, 16, 16, 3))).clip(0, 255).astype(np.uint8)]
        detector = Detector(
            method=method, preprocess=Preprocess(16), calibration="cross", folds=folds, seed=repetition, workers=1
        ).fit(pictures[:n])
        p_values.append(next(detector.predict(pictures[n:])).p_value)
        differ += bool(detector.scales_)
    print(f"folds of several methods: {differ} of {repetitions}")
    rows = []
    for rate in (0.05, 0.1, 0.2):
        proven = detector.calibration_.at(rate).promise.guaranteed_rate
        happened = [p <= rate * (1 + 1e-12) for p in p_values]
        rows.append([str(n), str(folds), f"{rate:.0%}", f"{proven:.2%}", share(happened, most=proven)])
    print_table(["n", "folds", "asked for", "guaranteed", "realised"], rows)


def features(paths: list[str], out: Path, side: int) -> None:
    """Pooled features of `compact`, of every image of the data sets: `NAME.normal`, `NAME.defects`, for two levels."""
    kept = {}
    for path in paths:
        dataset = open_dataset(path)
        for kind, source in (("train", dataset.train_images()), ("test", dataset.test_images())):
            method: Any = KNN(taps=("stride8", "stride16"))
            batches = Batches(source, Preprocess(side), 8, 1, "raise")
            method.extractor_ = method._extractor(method._initial_weights())
            with torch.inference_mode():
                maps = [[pool(m) for m in method.extractor_(batch.pixels).maps] for batch in batches]
            for level in (0, 1):
                kept[f"{Path(path).name}.{kind}.{level}"] = torch.cat([pair[level] for pair in maps]).numpy()
        kept[f"{Path(path).name}.anomalous"] = np.array([sample.anomalous for sample in dataset.test])
    np.savez(out, **kept)


def real(file: Path) -> None:
    """Draws of n normal images; others are new ones."""
    kept = np.load(file)
    heads = ["data", "rule", "n", "asked for", "calibration", "guaranteed"]
    print_table([*heads, "realised", "its 5 to 95 %", "found", "its 5 to 95 %"], [])
    for wanted in (20, 50, 100, None):
        for name in sorted({key.partition(".")[0] for key in kept}):
            anomalous = kept[f"{name}.anomalous"]
            for rule, level in (("knn", 1), ("gaussian", 0)):
                train, test = (kept[f"{name}.{part}.{level}"].astype(np.float64) for part in ("train", "test"))
                normal = np.vstack([train, test[~anomalous]])
                n = min(wanted or len(normal), len(normal) * 3 // 4)
                for row in of_draws(name, rule, normal, test[anomalous], n=n):
                    print(f"| {' | '.join(row)} |", flush=True)


def of_draws(name: str, rule: str, normal: Floats, defects: Floats, *, n: int) -> Iterator[list[str]]:
    kinds: dict[str, Any] = {"split": split, "loo": loo, "cross": cross}
    kinds["full"] = full_nearest if rule == "knn" else full
    random = np.random.default_rng(0)
    found: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for _ in range(DRAWS):
        order = random.permutation(len(normal))
        learned, others = normal[order[:n]], normal[order[n : n + 150]]
        drawn = others, random.permutation(defects)[:150]

        def shown(kind: str, drawn: tuple[Floats, Floats] = drawn) -> tuple[Floats, ...]:
            """All new images; few where each takes an eigendecomposition."""
            return tuple(rows[:FEW] for rows in drawn) if kinds[kind] is full else drawn

        for kind, judge in kinds.items():
            same = None  # p-values that do not depend on the rate
            for rate in sorted(RATES, reverse=True):
                if n + 1 < 1 / rate:
                    continue
                if kind == "split" or same is None:
                    same = judge(rule, learned, np.vstack(shown(kind)), rate)
                if same is not None:
                    flagged, count = same <= rate * (1 + 1e-12), len(shown(kind)[0])
                    pair = float(flagged[:count].mean()), float(flagged[count:].mean())
                    found.setdefault((rate, kind), []).append(pair)
    for (rate, kind), pairs in sorted(found.items()):
        proven = guaranteed(kind, rule, n, rate)
        values = np.array(pairs)
        low, high = np.quantile(values, (0.05, 0.95), axis=0)
        ranges = [f"{a:.1%} to {b:.1%}" if kinds[kind] is not full else "-" for a, b in zip(low, high, strict=True)]
        mean = [f"{one:.1%}" for one in values.mean(axis=0)]
        guarantee = "none" if proven is None else f"{proven:.1%}"
        yield [name, rule, str(n), f"{rate:.0%}", kind, guarantee, mean[0], ranges[0], mean[1], ranges[1]]


def full_nearest(_rule: str, rows: Floats, new: Floats, rate: float) -> Floats | None:
    """`full` of `knn` for many new rows: a nearer new image takes the place of the last of an image's neighbours."""
    if len(rows) < images_needed(rate):
        return None
    squared = squared_distances(rows, rows)
    np.fill_diagonal(squared, np.inf)
    near = np.sort(squared, axis=1)[:, :K]
    to_new = squared_distances(new, rows)
    plus = near.mean(axis=1) - np.maximum(near[:, -1] - to_new, 0) / K
    return made_of(near.mean(axis=1), rate, "full").p_values(nearest(rows, new), plus=plus)


def refits(path: str, n: int, side: int) -> None:
    """Left-out scores against fits without the image, relative."""
    source = open_dataset(path).train_images().subset(range(n))
    methods = {
        "knn": KNN, "gaussian": GaussianAD, "gaussian pca": partial(GaussianAD, components="pca"),
        "subspace": Subspace, "padim": PaDiM, "padim eps 0.01": partial(PaDiM, eps=0.01),
        "patchcore ratio 1": partial(PatchCore, ratio=1.0), "patchcore 0.1": partial(PatchCore, ratio=0.1),
        "patchcore 0.01": PatchCore,
    }  # fmt: skip
    rows = []
    for name, make in methods.items():
        method: Any = make()

        def batches(indices: list[int]) -> Batches:
            return Batches(source.subset(indices), Preprocess(side), 8, 1, "raise")

        everything = batches(list(range(n)))
        method.fit(everything)
        left_out = torch.cat([scores.images for _, scores in method.left_out(everything, range(n))]).double()
        alone, whole = [], []
        for i in range(n):
            (one,) = batches([i])
            alone.append(float(make().fit(batches([j for j in range(n) if j != i])).score(one).images))
            whole.append(float(method.score(one).images))
        expected = torch.tensor(alone, dtype=torch.float64)
        off = ((left_out - expected) / expected).abs()
        ranks = np.corrcoef(left_out.argsort().argsort().numpy(), expected.argsort().argsort().numpy())[0, 1]
        higher = (left_out > expected * (1 + 1e-5)).double().mean()
        rows.append([name, f"{off.median():.1e}", f"{off.max():.1e}", f"{ranks:.3f}", f"{higher:.0%}",
                     f"{np.mean(whole) / float(expected.mean()):.2f}"])  # fmt: skip
        print(rows[-1], flush=True)
    heads = [
        "method",
        "off, median",
        "off, largest",
        "rank correlation",
        "larger than the refit's",
        "learned / left out",
    ]
    print_table(heads, rows)


def coreset(path: str, side: int) -> None:
    """Realised rates of PatchCore on maps made once: `loo` without a guarantee, and `cross`, by the kept share."""
    source, random = open_dataset(path).train_images(), np.random.default_rng(0)
    if len(source) < 100 + NEW:
        raise SystemExit(f"{path}: {100 + NEW} normal training images are drawn from, {len(source)} are there")
    source = source.subset(sorted(random.permutation(len(source))[:240]))
    first = PatchCore()
    first.extractor_ = first._extractor(first._initial_weights())
    memory = FeatureMemory(backbone="compact", preprocess=Preprocess(side), images=len(source))
    for batch in Batches(source, Preprocess(side), 8, 1, "raise"):
        memory.add(batch, first.with_maps(batch).features or {})

    def fitted(ratio: float, names: list[str]) -> PatchCore:
        method = PatchCore(ratio=ratio, reserve=0, sigma=0)  # what takes time and changes no score
        method._extractor = lambda *_args, **_more: first.extractor_  # type: ignore[method-assign]
        return method.fit([memory.batch(names)])

    print_table(["ratio", "n", "calibration", "asked for", "guaranteed", "realised", "its 5 to 95 %"], [])
    for ratio, n in ((0.01, 20), (0.01, 50), (0.01, 100), (0.1, 20), (0.1, 50), (0.1, 100)):
        found: dict[tuple[str, float], list[float]] = {}
        for _ in range(CORESETS):
            names = [source.names[i] for i in random.permutation(len(source))]
            learned, new = names[:n], memory.batch(names[n : n + NEW])
            whole = fitted(ratio, learned)
            left_out = torch.cat([s.images for _, s in whole.left_out([memory.batch(learned)], range(n))]).double()
            p_values = {"loo": made_of(left_out.numpy(), 0.1, "loo").p_values(whole.score(new).images.double().numpy())}
            folds = np.array(fold_of(range(n), FOLDS, seed=0))
            own, plus = np.empty(n), np.empty((NEW, FOLDS))
            for fold in range(FOLDS):
                one = fitted(ratio, [name for name, number in zip(learned, folds, strict=True) if number != fold])
                of_fold = memory.batch([name for name, number in zip(learned, folds, strict=True) if number == fold])
                own[folds == fold], plus[:, fold] = (one.score(batch).images.numpy() for batch in (of_fold, new))
            made = calibrate(with_margin(own), false_alarm_rate=0.1, kind="cross", folds=folds)
            p_values["cross"] = made.p_values(plus.mean(axis=1), plus=plus)
            for kind, values in p_values.items():
                for rate in (0.05, 0.1):
                    found.setdefault((kind, rate), []).append(float((values <= rate * (1 + 1e-12)).mean()))
        for (kind, rate), rates in sorted(found.items()):
            proven = guaranteed(kind, "patchcore", n, rate)
            low, high = np.quantile(rates, (0.05, 0.95))
            row = [f"{ratio:g}", str(n), kind, f"{rate:.0%}", "none" if proven is None else f"{proven:.1%}"]
            print(f"| {' | '.join([*row, f'{np.mean(rates):.1%}', f'{low:.1%} to {high:.1%}'])} |", flush=True)


def time(path: str, n: int, side: int) -> None:
    """A fit that calibrates nothing, and one that leaves images out, side by side."""
    source = open_dataset(path).train_images().subset(range(n))
    rows = []
    methods: tuple[Any, ...] = (KNN(), GaussianAD(), Subspace(), PaDiM(), PatchCore(), PatchCore(ratio=0.1))
    Detector(method=KNN(), preprocess=Preprocess(side), calibration="none").fit(source)  # what only a first fit takes
    for method in methods:
        for kind in ("loo", "cross"):
            spent = []
            for calibration in ("none", kind):
                detector = Detector(method=method, preprocess=Preprocess(side), calibration=calibration)
                wall, own = perf_counter(), process_time()
                detector.fit(source)
                spent.append((perf_counter() - wall, process_time() - own))
            (one, one_own), (both, both_own) = spent
            ratio = getattr(method, "ratio", "")
            row = [f"{method.name} {ratio}", kind, f"{one:.1f}", f"{both:.1f}", f"{both / one:.2f}"]
            rows.append([*row, f"{both_own / one_own:.2f}"])
            print(rows[-1], flush=True)
    print_table(["method", "calibration", "fit, s", "with it, s", "ratio", "ratio of CPU time"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("simulate").add_argument("--only", default="")
    commands.add_parser("auto").add_argument("--repetitions", type=int, default=REPETITIONS)
    for name in ("features", "real", "refits", "time", "coreset"):
        command = commands.add_parser(name)
        command.add_argument("data", nargs="+")
        command.add_argument("--out", type=Path)
        command.add_argument("--images", type=int, default=30)
        command.add_argument("--side", type=int, default=128)
    options = parser.parse_args()
    if options.command == "simulate":
        simulate(options.only)
    elif options.command == "auto":
        auto(options.repetitions)
    elif options.command == "features":
        features(options.data, options.out, options.side)
    elif options.command == "real":
        real(Path(options.data[0]))
    elif options.command == "coreset":
        coreset(options.data[0], options.side)
    else:
        {"refits": refits, "time": time}[options.command](options.data[0], options.images, options.side)


if __name__ == "__main__":
    main()
