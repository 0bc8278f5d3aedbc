"""The figures of docs/ood.md: detectors of out-of-distribution images on real pairs, grids, ablations, reliability.

    python benchmarks/ood_data.py DATA PAIRS
    BLEMISH_WEIGHTS=DATA/weights python benchmarks/ood_pairs.py cifar10 PAIRS --data DATA --out ood-cifar10
    BLEMISH_WEIGHTS=DATA/weights python benchmarks/ood_pairs.py mobilenet_v2 PAIRS --data DATA --out ood-mobilenet

Writes figures.json, tables.md, report.html and pictures. Parameters are tuned on `--grid-images` images of each set,
which are left out of the test; the sets are subsampled to `--limit` images so that two CPU cores can do it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from blemish.datasets.labelled import LabelledImages, from_class_folders, open_labelled
from blemish.evaluation.classifiers import OODEvaluation, Reader, evaluate_ood
from blemish.evaluation.tuning import Grid, Tuning, ablate_ood, reliability_ood, tune_ood
from blemish.ood import DETECTORS, ODIN, Classifier, Ensemble, Gradient, open_classifier
from blemish.ood.ensemble import MEASURES
from blemish.report import ood as report
from blemish.report import ood_figures as draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="cifar10 (ResNet-20, with 32, 44 and 56 as an ensemble) or an ImageNet one")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000, help="images of each set")
    parser.add_argument("--grid-images", type=int, default=150, help="images of each set to tune on")
    parser.add_argument("--coarse", action="store_true", help="grid of 4 temperatures x 4 steps instead of 10 x 6")
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument("--tune-on", nargs="*", default=["synthetic", "Tiny-ImageNet", "Textures", "notMNIST"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    classifier, inliers, learn_from = opened(args.classifier, args.pairs, args.limit)
    outliers = {
        "Tiny-ImageNet": open_labelled(args.pairs / "tiny_imagenet").sample(args.limit, seed=1),
        "Textures": open_labelled(args.data / "ood" / "textures"),
        "notMNIST": open_labelled(args.pairs / "notmnist.npz").sample(args.limit, seed=1),
    }
    reading = Reader(batch_size=64 if args.classifier == "cifar10" else 16, progress=progress)
    grid = Grid((1.0, 2.0, 5.0, 1000.0), (0.0, 0.0004, 0.001, 0.004))
    if not args.coarse:
        grid = Grid(eps=Grid().eps[::4])

    tunings: dict[str, Tuning] = {}
    for kind in (Gradient(), ODIN()):
        name = type(kind).__name__.lower()
        for goal in args.tune_on:
            images = outliers.get(goal)
            file = args.out / f"tuning-{name}-{goal}.json"
            if not file.exists():  # a stopped run goes on
                tune_ood(classifier, kind, inliers, images, grid=grid, limit=args.grid_images, reading=reading).save(
                    file
                )
            tunings[f"{name} {goal}"] = Tuning.load(file)
    detectors = {name: kind() for name, kind in DETECTORS.items() if name != "ensemble"}
    detectors |= {f"ensemble {measure}": Ensemble(measure=measure) for measure in MEASURES}
    for kind in (Gradient(), ODIN()):
        name = type(kind).__name__.lower()
        for goal in args.tune_on:
            detectors[f"{name}, tuned on {goal}"] = tunings[f"{name} {goal}"].apply(kind)
    tuned_on = frozenset(digest for tuning in tunings.values() for digest in tuning.digests)
    evaluation = evaluate_ood(
        classifier, inliers, outliers, detectors=detectors, learn_from=learn_from, reading=reading,
        tuned_on=tuned_on, exclude_tuned=True, keep=args.out / "scores",
    )  # fmt: skip
    rows = {}
    for name, images in ({} if args.no_ablation else outliers).items():
        file = args.out / f"ablation-{name}.json"
        tuning = tunings[f"gradient {name if name in args.tune_on else args.tune_on[0]}"]
        rows[name] = ablate_ood(
            classifier, tuning.apply(Gradient()), inliers.sample(args.limit // 2, seed=2),
            images.sample(args.limit // 2, seed=2), tuned_on=tuned_on,
            tuning=tuning, reading=reading,
        )  # fmt: skip
        file.write_text(json.dumps([asdict(row) for row in rows[name]], indent=1))
        (args.out / f"ablation-{name}.png").write_bytes(draw.ablation_plot(rows[name]))
    figures = reliability_ood(evaluation.inliers, bin_size=50 if args.limit <= 1000 else 500)
    chosen = next(f for f in figures if f.detector == "gradient")
    (args.out / "reliability.png").write_bytes(draw.reliability_plot(chosen))
    for name, tuning in tunings.items():
        (args.out / f"grid-{name}.png").write_bytes(draw.grid_plot(tuning))
    for scored in evaluation.outliers:
        picture = draw.histogram_plot(evaluation.inliers, scored, "gradient")
        (args.out / f"histogram-{scored.name}.png").write_bytes(picture)
    report.write_ood_report(
        args.out / "report.html", title=classifier.name, evaluation=evaluation, tunings=list(tunings.values()),
        ablation=rows.get("Tiny-ImageNet", ()), reliability=figures,
    )  # fmt: skip
    content = {
        "accuracy": evaluation.accuracy,
        "comparisons": [asdict(row) for row in evaluation.comparisons],
        "trivial": evaluation.trivial,
        "warnings": evaluation.warnings,
        "left_out": evaluation.left_out,
        "milliseconds": {k: 1e3 * v / len(evaluation.inliers) for k, v in evaluation.inliers.seconds.items()},
        "tuned": {name: [t.temperature, t.chosen_eps, t.tuned_on] for name, t in tunings.items()},
        "reliability": {
            f.detector: [f.aurc, f.e_aurc, f.augrc, f.risk_at_80_coverage, f.coverage_at_5_risk] for f in figures
        },
        "ablation": {name: [[r.part, r.variant, r.auroc, r.interval] for r in part] for name, part in rows.items()},
    }
    (args.out / "figures.json").write_text(json.dumps(content, indent=1))
    (args.out / "tables.md").write_text(tables(evaluation))
    print((args.out / "tables.md").read_text())


def opened(name: str, pairs: Path, limit: int) -> tuple[Classifier, LabelledImages, LabelledImages | None]:
    if name == "cifar10":
        members = [f"cifar10_resnet{depth}" for depth in (32, 44, 56)]
        test = from_class_folders(pairs / "cifar10_test" / "test").sample(3 * limit, seed=0)
        train = from_class_folders(pairs / "cifar10_train" / "train")
        return open_classifier("cifar10_resnet20", members=members), test, train.sample(5000, seed=0)
    return open_classifier(name), open_labelled(pairs / "imagenet_sample.csv").sample(limit, seed=0), None


def tables(evaluation: OODEvaluation) -> str:
    """One Markdown table a set of outliers: mean and deviation of 100 bootstraps, as in the thesis, times 100."""
    parts = []
    for scored in evaluation.outliers:
        rows = sorted((r for r in evaluation.comparisons if r.outliers == scored.name), key=lambda r: -r.auroc.value)
        parts.append(
            f"\n{scored.name}: {rows[0].n_outliers} outliers, {rows[0].n_inliers} in-distribution images\n\n"
            "| detector | ROC-AUC | FPR95 | PR-AUC (outlier) | PR-AUC (in-distribution) |\n|---|---|---|---|---|\n"
            + "".join(
                f"| {r.detector} | "
                + " | ".join(
                    f"{100 * f.mean:.1f} ± {100 * f.deviation:.1f}"
                    for f in (r.auroc, r.fpr_at_95_tpr, r.average_precision, r.average_precision_normal)
                )
                + " |\n"
                for r in rows
            )
        )
    return "".join(parts)


def progress(stage: str, done: int, total: int) -> None:
    if done == total:
        print(f"{stage}: {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
