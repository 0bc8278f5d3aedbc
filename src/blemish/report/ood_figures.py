"""Plots of out-of-distribution studies as PNG, each usable alone. Nothing here keeps global state.

Made to be read from 560 px of width on; line styles and places say what the colours say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .. import metrics
from ..errors import ArgumentError
from ..evaluation.classifiers import OODEvaluation, ScoredImages, joined
from ..evaluation.tuning import AblationRow, SelectiveFigures, Tuning
from ..types import Floats
from .figures import ANOMALOUS, FAINT, INK, NORMAL, drawable, png, tidy
from .page import percent

WIDTH = 5.6
"""Inches; the letters are 9 points."""
LINES = (
    ("#0072b2", "solid"), ("#d55e00", (0, (5, 2))), ("#009e73", (0, (1, 1))), ("#cc79a7", (0, (5, 1, 1, 1))),
    ("#56b4e9", (0, (8, 3))), ("#e69f00", (0, (3, 1, 1, 1, 1, 1))),
)  # fmt: skip
"""Colours of Okabe and Ito, which stay apart with every kind of colour blindness."""
PARTS = {"preprocessing": "preprocessing", "blocks": "blocks of the network, from the input on"}


def is_gradient(detector: str) -> bool:
    """Whether this is the gradient method, with parameters in the name or not."""
    return detector.split(",", maxsplit=1)[0] == "gradient"


def grid_plot(tuning: Tuning) -> bytes:
    """Draw the objective over temperature (rows) and step (columns), with the choice outlined."""
    in_percent = tuning.objective != "inliers"
    values = np.asarray(tuning.values, dtype=np.float64) * (100 if in_percent else 1)
    rows, columns = values.shape
    figure = Figure(figsize=(WIDTH, max(2.0, 1.3 + 0.26 * rows)), layout="constrained")
    axes = figure.subplots()
    low, high = _limits(values)
    axes.set_facecolor("#d0d4d8")  # cells without a value
    image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=low, vmax=high, aspect="auto")
    _every(axes, "x", [f"{eps:g}" for eps in tuning.grid.eps])
    _every(axes, "y", [f"{temperature:g}" for temperature in tuning.grid.temperatures])
    if columns <= 8:
        _cell_values(axes, values, middle=(low + high) / 2)
    _outlined_choice(axes, tuning)
    axes.set(xlabel="step ε", ylabel="temperature T")
    tidy(axes)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("AUROC (%)" if in_percent else "mean log-confidence", size=9, color=INK)
    bar.ax.tick_params(labelsize=9, color="#b5bcc4", labelcolor=INK)
    bar.outline.set_visible(False)
    return png(figure)


def histogram_plot(inliers: ScoredImages, outliers: ScoredImages | Sequence[ScoredImages], detector: str) -> bytes:
    """Draw the scores of in-distribution images against those of one or more sets of outliers, a row each.

    Shares of each set, for sets differ in size; on a logarithmic axis where scores are positive and span two decades.
    """
    sets = [outliers] if isinstance(outliers, ScoredImages) else list(outliers)
    edges, logarithmic = _edges(np.concatenate([images.scores[detector] for images in (inliers, *sets)]))
    figure = Figure(figsize=(WIDTH, 0.6 + 1.55 * len(sets)), layout="constrained")
    for axes, images in zip(figure.subplots(len(sets), 1, sharex=True, squeeze=False)[:, 0], sets, strict=True):
        _share(axes, inliers.scores[detector], edges, colour=NORMAL, label="in-distribution images")
        _share(axes, images.scores[detector], edges, colour=ANOMALOUS, label=f"outliers: {drawable(images.name)}")
        axes.set_ylabel("share (%)")
        axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        _legend(axes, "upper right")
        tidy(axes)
    if logarithmic:
        axes.set_xscale("log")
        axes.minorticks_off()
    what = ", a norm at its T and eps" if is_gradient(detector) else ""
    axes.set_xlabel(f"score of {drawable(detector, 40)}{what} (larger = more anomalous)", parse_math=False)
    return png(figure)


def roc_curves_plot(evaluation: OODEvaluation, outliers_name: str, detectors: Sequence[str]) -> bytes:
    """Draw the ROC curves of up to six detectors on one set of outliers."""
    sets = {images.name: images for images in evaluation.outliers}
    if outliers_name not in sets:
        raise ArgumentError.about("outliers_name", expected=f"one of {', '.join(sets)}", got=outliers_name)
    if not 0 < len(detectors) <= len(LINES):
        raise ArgumentError.about("detectors", expected=f"1 to {len(LINES)} names", got=len(detectors))
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1)
    axes.axhline(95, color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)))  # where FPR95 is read off
    for name, (colour, style) in zip(detectors, LINES, strict=False):
        sample = joined(evaluation.inliers.scores[name], sets[outliers_name].scores[name])
        curve, area = metrics.roc_curve(*sample), percent(metrics.auroc(*sample))
        label = f"{area}  {drawable(name, 40)}"
        axes.plot(100 * curve.fpr, 100 * curve.tpr, color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.set(xlim=(-1.5, 101.5), ylim=(-1.5, 101.5), yticks=(0, 20, 40, 60, 80, 95, 100))
    axes.set_xlabel("in-distribution images flagged (%)")
    axes.set_ylabel(f"outliers found (%): {drawable(outliers_name)}", parse_math=False)
    _legend(axes, "lower right", title="AUROC")
    tidy(axes, grid="both")
    return png(figure)


def ablation_plot(rows: Sequence[AblationRow]) -> bytes:
    """Draw the AUROC of each variant with its interval, a panel a part.

    Dots and no bars: the axis is cut to what differs, where a bar's length would mislead.
    """
    parts = {part: [row for row in rows if row.part == part] for part in PARTS}
    parts = {part: found for part, found in parts.items() if found}
    heights = [0.27 * len(found) + 0.35 for found in parts.values()]
    figure = Figure(figsize=(WIDTH, 0.7 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (part, found) in zip(panels, parts.items(), strict=True):
        places = np.arange(len(found))
        ends = 100 * np.array([row.interval for row in found], dtype=np.float64)
        axes.hlines(places, ends[:, 0], ends[:, 1], color=NORMAL, linewidth=2, alpha=0.6)
        axes.plot([100 * row.auroc for row in found], places, "o", color=INK, markersize=5)
        axes.set_yticks(places, [drawable(row.variant, 32) for row in found], parse_math=False)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_title(PARTS[part], fontsize=9, color=INK, loc="left")
        tidy(axes, grid="x")
        axes.tick_params(axis="y", length=0)
    axes.set_xlabel("AUROC (%) with 95 % interval")
    return png(figure)


def reliability_plot(figures: SelectiveFigures | Sequence[SelectiveFigures]) -> bytes:
    """Draw the accuracy of the tails of the samples sorted by score, a panel a detector, with shared axes."""
    several = [figures] if isinstance(figures, SelectiveFigures) else list(figures)
    figure = Figure(figsize=(WIDTH, 0.4 + 2.6 * len(several)), layout="constrained")
    panels = figure.subplots(len(several), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, one in zip(panels, several, strict=True):
        _reliability(axes, one)
    axes.set_xlabel("in-distribution images with a smaller score")
    _legend(panels[0], "best")
    return png(figure)


def _limits(values: Floats) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _every(axes: Axes, side: str, names: Sequence[str]) -> None:
    """Name as many rows or columns as there is room for."""
    step = -(-len(names) // (7 if side == "x" else 20))
    getattr(axes, f"set_{side}ticks")(range(0, len(names), step), names[::step])


def _cell_values(axes: Axes, values: Floats, *, middle: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = INK if value > middle else "white"
            axes.annotate(f"{value:.4g}", (column, row), ha="center", va="center", fontsize=8, color=colour)


def _outlined_choice(axes: Axes, tuning: Tuning) -> None:
    cell = (tuning.temperature, tuning.chosen_eps)
    if cell not in tuning.grid.cells():
        return
    row, column = divmod(tuning.grid.cells().index(cell), len(tuning.grid.eps))
    for colour, width in (("white", 4.5), (ANOMALOUS, 2.0)):  # the white rim shows on every colour of the map
        box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=3)
        axes.add_patch(box).set_clip_on(False)
    axes.set_title(f"chosen: T = {cell[0]:g}, ε = {cell[1]:g}", fontsize=9, color=INK, loc="left")


def _edges(scores: Floats) -> tuple[Floats, bool]:
    """Edges of the bins, and whether they are logarithmic."""
    finite = scores[np.isfinite(scores)]
    low, high = _limits(finite)
    if low == high:
        margin = max(0.5, abs(low) / 1000)
        low, high = low - margin, high + margin
    bins = min(60, max(10, len(finite) // 15))
    logarithmic = low > 0 and high > 100 * low
    return (np.geomspace if logarithmic else np.linspace)(low, high, bins + 1), logarithmic


def _share(axes: Axes, scores: Floats, edges: Floats, *, colour: str, label: str) -> None:
    finite = scores[np.isfinite(scores)]
    shares = 100 * np.histogram(finite, bins=edges)[0] / max(1, len(finite))
    # The number in front also keeps a name that begins with an underscore in the legend.
    axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35, label=f"{len(scores)} {label}")
    axes.stairs(shares, edges, color=colour, linewidth=1.2)


def _legend(axes: Axes, place: str, title: str | None = None) -> None:
    legend = axes.legend(loc=place, fontsize=8.5, title=title, title_fontsize=8.5, frameon=False, alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _reliability(axes: Axes, figures: SelectiveFigures) -> None:
    curve = figures.curve
    below = curve.sizes[0] - curve.sizes
    axes.fill_between(
        below, 100 * curve.low, 100 * curve.high, color=NORMAL, alpha=0.18, linewidth=0,
        label=f"{100 * curve.confidence:g} % Clopper-Pearson, each tail by itself",
    )  # fmt: skip
    if len(below) == 1:  # a band over one point has no width
        axes.vlines(below, 100 * curve.low, 100 * curve.high, color=NORMAL, alpha=0.4, linewidth=3)
    axes.plot(below, 100 * curve.accuracy, color=INK, linewidth=1.6, marker="o", markersize=3, label="accuracy")
    median, first = 100 * curve.bootstrap_median, 100 * curve.bootstrap_first_percentile
    axes.plot(below, median, color=NORMAL, linewidth=1.2, linestyle=(0, (4, 2)), label="bootstrap median")
    axes.plot(below, first, color=ANOMALOUS, linewidth=1.2, linestyle=(0, (1, 1)), label="bootstrap first percentile")
    axes.set_ylabel("accuracy of the rest (%)")
    axes.set_title(
        f"{drawable(figures.detector, 40)}: score threshold",
        fontsize=9,
        color=INK,
        loc="left",
        pad=20,
        parse_math=False,
    )
    tidy(axes, grid="both")
    above = axes.secondary_xaxis("top")
    chosen = np.unique(np.linspace(0, len(below) - 1, min(6, len(below))).round().astype(int))
    above.set_xticks(below[chosen], [f"{curve.thresholds[i]:.3g}" for i in chosen])
    above.tick_params(labelsize=8, color="#b5bcc4", labelcolor="#6b737c", length=2)
    above.spines["top"].set_visible(False)
