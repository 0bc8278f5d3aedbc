"""Writes docs/study/costs.md and docs/images/study-costs.png from docs/study/costs.csv.

python docs/study/make_costs.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from blemish.features.backbones import BACKBONES
from blemish.features.costs import table_costs

HERE = Path(__file__).parent
HEAD = """# What each backbone costs on a CPU

One image of 256 x 256, {threads} thread(s) of a server CPU (Intel Xeon with AMX, 2 cores), while other work ran on the
machine. **Absolute times are that machine's**; `x resnet18` was measured in turns with it in the same process, and
carries over. In {disturbed} of {rows} processes resnet18 took more than a fifth longer than the {reference:.0f} ms of
an undisturbed one; times there are scaled down by as much. Weights are random: neither time nor memory depends on them.
`python benchmarks/backbone_costs.py --out docs/study/costs.csv` measures, `python docs/study/make_costs.py` writes this
page; `costs.csv` has more columns.

- **forward**: the network up to its deepest tap, one image at a time; **of 8**: an image of a batch of 8.
- **PaDiM**, **SPADE**: forward and scoring of one image; the models are of {images} images. SPADE searches 50 of them,
  at all positions of its layers. Where the first layer has stride 2 (EfficientNet, MobileNet), that is 16 times the
  work of a stride of 4, and batches of 8 were left out where one image takes more than 6 s.
- **peak**: of the whole process while it scores one image, of which Python with its libraries is about 0.35 GB.
  **file**: the model.

{reading}

![Time against multiply-adds](../images/study-costs.png)

| backbone | forward ms | x resnet18 | of 8 | PaDiM ms | of 8 | peak GB | file MB | SPADE ms | of 8 | peak GB | MB |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    with (HERE / "costs.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["backbone"] in BACKBONES]
    rows.sort(key=lambda row: float(row["forward_1_ratio"]))
    beside = [float(row["forward_1_ms"]) / float(row["forward_1_ratio"]) for row in rows]
    reference = float(np.percentile(beside, 25))
    head = HEAD.format(
        threads=rows[0]["threads"],
        images=60,
        reading=reading(rows),
        rows=len(rows),
        disturbed=sum(ms > 1.2 * reference for ms in beside),
        reference=reference,
    )
    lines = [line(row, min(1.0, reference / ms)) for row, ms in zip(rows, beside, strict=True)]
    (HERE / "costs.md").write_text(head + "".join(lines), encoding="utf-8")
    draw(rows)


def line(row: dict[str, str], scale: float) -> str:
    """One row of the table; times are multiplied by `scale`."""
    forward = float(row["forward_1_ms"]) * scale
    cells = [
        row["backbone"],
        f"{forward:.1f}",
        f"{float(row['forward_1_ratio']):.2f}",
        f"{float(row['forward_8_ratio']):.2f}",
    ]
    for method in ("padim", "spade"):
        for count in (1, 8):
            score = row[f"{method}_score_{count}_ms"]
            passing = float(row[f"forward_{count}_ms"])
            cells.append(f"{(passing + float(score)) * scale:.0f}" if score else "")
        cells.append(f"{float(row[f'{method}_score_1_peak_mb']) / 1e3:.2f}")
        cells.append(f"{float(row[f'{method}_model_mb']):.0f}")
    return f"| {' | '.join(cells)} |\n"


def slowness(row: dict[str, str]) -> float:
    """Time a multiply-add, resnet18's being 1."""
    costs = table_costs()
    relative = costs[row["backbone"]].multiply_adds / costs["resnet18"].multiply_adds
    return float(row["forward_1_ratio"]) / relative


def reading(rows: list[dict[str, str]]) -> str:
    """What the table says, in words."""
    counted = [row for row in rows if table_costs()[row["backbone"]].multiply_adds > 0]
    slow = sorted(counted, key=slowness)
    faster = [row["backbone"] for row in rows if float(row["forward_1_ratio"]) < 0.5]
    heavy = [row["backbone"] for row in rows if float(row["forward_1_ratio"]) > 10]
    first, last = slow[0], slow[-1]
    return (
        f"{len(faster)} of {len(rows)} rows take less than half of resnet18's time ({', '.join(faster)}), {len(heavy)} "
        f"more than ten times it. Multiply-adds, which papers count, do not tell the time: a multiply-add of "
        f"{last['backbone']} takes {slowness(last):.0f} times as long as one of resnet18, one of {first['backbone']} "
        f"{slowness(first):.1f} times; the median row {np.median([slowness(row) for row in counted]):.1f} times."
    )


def draw(rows: list[dict[str, str]]) -> None:
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    costs = table_costs()
    points = [
        (costs[row["backbone"]].multiply_adds / 1e9, float(row["forward_1_ratio"]), row["backbone"])
        for row in rows
        if costs[row["backbone"]].multiply_adds > 0
    ]
    x, y, names = zip(*points, strict=True)
    axes.loglog(x, y, ".", color="#1f5fa8")
    relative = np.array([min(x), max(x)])
    axes.loglog(relative, relative / (costs["resnet18"].multiply_adds / 1e9), color="#999999", linewidth=0.8)
    axes.text(
        relative[1],
        relative[1] / (costs["resnet18"].multiply_adds / 1e9),
        "as fast as resnet18",
        fontsize=7,
        ha="right",
    )
    labelled: list[tuple[float, float]] = []
    for name, across, up in zip(names, x, y, strict=True):
        here = (float(np.log10(across)), float(np.log10(up)))
        if any(abs(here[0] - other[0]) < 0.35 and abs(here[1] - other[1]) < 0.07 for other in labelled):
            continue  # no room
        labelled.append(here)
        short = name.removeprefix("timm:").split("_patch")[0].split(".")[0]
        axes.annotate(short, (across, up), fontsize=6, xytext=(3, -2), textcoords="offset points", color="#555555")
    axes.set_xlabel("10⁹ multiply-adds of one 224 x 224 image, up to the deepest tap")
    axes.set_ylabel("time of one image, resnet18 = 1")
    figure.savefig(HERE.parent / "images" / "study-costs.png", dpi=160)


if __name__ == "__main__":
    main()
