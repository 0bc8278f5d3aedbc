"""Fine-tuned Gaussians against frozen ones, epoch by epoch: what the criterion says, and what the AUROC then was.

    python benchmarks/finetune.py screw 'cifar10:one-class=cat' --resize 128 --seeds 0 1 2 --json found.json
    python benchmarks/finetune.py screw --methods gaussian_finetune gaussian_finetune,covariance=identity

Epoch 0 is the frozen network, and so `gaussian` on the same taps and the same four fifths of the images. Test images go
through the network beside the fit, which never gets them; nothing is chosen by them. The criterion is kept for each
family of changes: one run shows what any of them alone would have chosen, as long as `patience` does not end it.
`--picture` draws the runs of a file: criterion above, AUROC below. `--pixels` adds pixel AUROC and AU-PRO of the frozen
and of the kept network, on all test images. A run that lies in `--json` is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from _measure import write
from figures import make_method
from torch import Tensor

from blemish import Batches, Detector, Preprocess, evaluate, metrics, open_dataset
from blemish.methods import gaussian_finetune
from blemish.methods.gaussian_finetune import GaussianFinetune
from blemish.training import run as training
from blemish.training.loop import Course, optimise


def run(data: str, spec: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One fit, and what the network of each epoch makes of the test images."""
    dataset, preprocess = open_dataset(data), Preprocess(options.resize)
    draw = np.random.default_rng(0)
    chosen = [sample.anomalous for sample in dataset.test]
    if options.limit:  # of normal and of anomalous test images
        flags = np.array(chosen)
        parts = [draw.permutation(np.flatnonzero(flags == kind))[: options.limit] for kind in (False, True)]
        keep = sorted(np.concatenate(parts).tolist())
    else:
        keep = list(range(len(chosen)))
    anomalous = np.array(chosen)[keep]
    train = dataset.train_images()
    if options.train:
        train = train.subset(sorted(draw.permutation(len(train))[: options.train].tolist()))
    pixels = torch.cat([batch.pixels for batch in Batches(dataset.test_images().subset(keep), preprocess, 8)])
    method, _ = make_method(spec, options.backbone, seed)
    assert isinstance(method, GaussianFinetune)
    epochs: list[dict[str, Any]] = []
    families: list[float] = []

    def separation(normal: Tensor, other: Tensor) -> float:
        families.append(original(normal, other))
        return families[-1]

    def watched(*arguments: Any, watch: Any, **named: Any) -> Course:
        def criterion(step: int) -> float:
            families.clear()
            value: float = watch.criterion(step)
            scores = method._distances(pixels).double().numpy()
            epoch = {"criterion": value, "families": dict(zip(method._families(), families, strict=True))}
            epochs.append(epoch | {"auroc": metrics.auroc(scores, anomalous)})
            print(f"  {len(epochs) - 1:3} {value:.4f} {epochs[-1]['auroc']:.4f}", flush=True)
            return value

        return optimise(*arguments, watch=replace(watch, criterion=criterion), **named)

    original = gaussian_finetune.separation
    start = perf_counter()
    with_patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (gaussian_finetune, "separation", separation), (training, "optimise", watched),
    ]  # fmt: skip
    detector = Detector(method=method, preprocess=preprocess, calibration="none", batch_size=8)
    for place, name, patch in with_patches:
        setattr(place, name, patch)
    try:
        detector.fit(train)
    finally:
        gaussian_finetune.separation, training.optimise = original, optimise  # type: ignore[attr-defined]
    kept = int(np.argmin([epoch["criterion"] for epoch in epochs]))
    row = dict(zip(("data", "backbone", "method"), named(data, spec, options), strict=True))
    row |= {"seed": seed, "kept": kept, "epochs": epochs}
    row |= {"seconds": perf_counter() - start, "loss": method.course_.losses.sum(dim=1).tolist()}
    if options.pixels:
        frozen = Detector(method=replace(method, epochs=0), preprocess=preprocess, calibration="none", batch_size=8)
        for name, one in (("frozen", frozen.fit(train)), ("kept", detector)):
            figures = evaluate(one, dataset).figures
            row[f"pixels {name}"] = [figures.pixel_auroc, figures.au_pro_30]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--methods", nargs="+", default=["gaussian_finetune"])
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--train", type=int, help="normal images; default: all")
    parser.add_argument("--limit", type=int, help="normal, and anomalous, test images; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="further rows are added to it")
    parser.add_argument("--pixels", action="store_true", help="figures of the maps as well")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for data, spec, seed in product(options.data, options.methods, options.seeds):
        if (*named(data, spec, options), seed) in {(*run_of(row), row["seed"]) for row in rows}:
            continue
        print(f"{data} {spec} seed {seed}: epoch, criterion, AUROC", flush=True)
        rows.append(run(data, spec, options, seed))
        write(options.json, rows)
    print(table(rows))
    print(by_family(rows))
    if options.picture:
        options.picture.write_bytes(picture(rows))


def named(data: str, spec: str, options: argparse.Namespace) -> tuple[str, str, str]:
    """Short names of data, backbone and method."""
    return data.rstrip("/").rsplit("/", 1)[-1], options.backbone.removeprefix("timm:tf_"), spec


def run_of(row: dict[str, Any]) -> tuple[str, str, str]:
    """What rows of other seeds have in common."""
    return row["data"], row.get("backbone", "mobilenet_v2"), row["method"]


def table(rows: list[dict[str, Any]]) -> str:
    """AUROC in percent, frozen, of the kept epoch, and of the last one; gains with half a 95 % interval over seeds."""
    heads = "data | backbone | method | frozen | kept | gain | last epoch | kept epochs"
    heads += " | pixel AUROC, AU-PRO frozen | kept"
    lines = [f"| {heads} |", "|---" * 10 + "|"]
    for name in dict.fromkeys(run_of(row) for row in rows):
        own = [row for row in rows if run_of(row) == name]
        curves = [[100 * epoch["auroc"] for epoch in row["epochs"]] for row in own]
        frozen, kept, last = (
            np.array([c[i] for c, i in zip(curves, indices, strict=True)])
            for indices in ([0] * len(own), [row["kept"] for row in own], [-1] * len(own))
        )
        epochs = ", ".join(str(row["kept"]) for row in own)
        lines.append(
            f"| {' | '.join(name)} | {frozen.mean():.1f} | {kept.mean():.1f} | {interval(kept - frozen)} "
            f"| {last.mean():.1f} | {epochs} | {of_pixels(own, 'frozen')} | {of_pixels(own, 'kept')} |"
        )
    return "\n".join(lines)


def of_pixels(rows: list[dict[str, Any]], network: str) -> str:
    """Mean pixel AUROC and AU-PRO in percent; a dash where there are none."""
    found = [row.get(f"pixels {network}", [None]) for row in rows]
    if any(value is None for values in found for value in values):
        return "-"
    return ", ".join(f"{100 * value:.1f}" for value in np.mean(found, axis=0))


def by_family(rows: list[dict[str, Any]]) -> str:
    """Gain of the epoch that each family alone would have kept, in percent, mean over seeds."""
    families = list(rows[0]["epochs"][0]["families"])
    lines = [f"| data | backbone | method | {' | '.join(families)} | all |", "|---" * (len(families) + 4) + "|"]
    for name in dict.fromkeys(run_of(row) for row in rows):
        own = [row["epochs"] for row in rows if run_of(row) == name]
        cells = []
        for family in (*families, None):
            kept = [
                int(np.argmin([e["criterion"] if family is None else -e["families"][family] for e in epochs]))
                for epochs in own
            ]
            gains = [100 * (epochs[i]["auroc"] - epochs[0]["auroc"]) for epochs, i in zip(own, kept, strict=True)]
            cells.append(f"{np.mean(gains):+.1f} (epoch {', '.join(map(str, kept))})")
        lines.append(f"| {' | '.join(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(gains: Any) -> str:
    """Mean, and half the width of Student's interval."""
    if len(gains) < 2:
        return f"{gains.mean():+.1f}"
    from scipy.stats import t

    return f"{gains.mean():+.1f} +- {t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5:.1f}"


def picture(rows: list[dict[str, Any]]) -> bytes:
    """Criterion and AUROC against epochs, a column a run, a line a seed; a dot on the kept epoch."""
    import io

    from matplotlib.figure import Figure

    names = list(dict.fromkeys(run_of(row) for row in rows))
    figure = Figure(figsize=(1.9 * len(names), 3.4), layout="constrained")
    for column, name in enumerate(names):
        above, below = (figure.add_subplot(2, len(names), i * len(names) + column + 1) for i in (0, 1))
        for number, row in enumerate(row for row in rows if run_of(row) == name):
            for axes, key, colour in ((above, "criterion", "#1f6f8b"), (below, "auroc", "#8a8a8a")):
                values = [epoch[key] for epoch in row["epochs"]]
                values = [1 - v for v in values] if key == "criterion" else values
                axes.plot(values, color=colour, alpha=1 - 0.25 * (number % 3), linewidth=1.2)
                axes.plot(row["kept"], values[row["kept"]], "o", color=colour, markersize=4)
        data, backbone, spec = name
        settings = spec.partition(",")[2].replace(",", ", ") or "defaults"
        above.set_title(f"{data.rpartition('=')[2]}\n{backbone}\n{settings}", fontsize=8)
        below.set_xlabel("epoch", fontsize=8)
        for axes in (above, below):
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        if column == 0:
            above.set_ylabel("held out:\nchanged from untouched", fontsize=8)
            below.set_ylabel("test AUROC\n(chooses nothing)", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


if __name__ == "__main__":
    main()
