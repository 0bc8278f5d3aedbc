"""Plots of comparisons as PNG, each usable alone. Nothing here keeps global state.

Colours and markers together tell methods (or curves) apart; tables beside the plots hold all that is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..images.groups import grouped
from ..methods.registry import METHODS
from ..study.compare import CostName, DimensionCurve, LayerGrid, Measured, WeightsPair, deviation
from .figures import FAINT, INK, drawable, png, tidy
from .ood_figures import LINES, WIDTH

MARKERS = "os^DvP"
AXES: dict[CostName, tuple[str, float]] = {
    "total_ms": ("decode, forward and score: ms an image", 1.0),
    "work_ms": ("forward and score: ms an image", 1.0),
    "peak_bytes": ("peak memory: MB", 1e6),
    "model_bytes": ("model file: MB", 1e6),
}
"""What each cost is called on its axis, and what it is divided by."""


def pareto_plot(
    measured: Sequence[Measured], front: Sequence[Measured], *, numbers: Sequence[int], cost: CostName, quality: str
) -> bytes:
    """Draw quality over cost with the front as a step line; `numbers` are those of the front's points in the table."""
    words, unit = AXES[cost]
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    places = [(getattr(m, cost) / unit, m.quality) for m in front]
    axes.plot(*zip(*places, strict=True), drawstyle="steps-post", color=FAINT, linewidth=1.2, zorder=1)
    on_front = {m.choice for m in front}
    bundles = grouped(measured, lambda m: m.choice.method)
    for method, found in bundles.items():
        style = _style(list(METHODS).index(method))
        for is_front, alpha in ((False, 0.35), (True, 1)):
            some = [m for m in found if (m.choice in on_front) == is_front]
            xs, ys = [getattr(m, cost) / unit for m in some], [m.quality for m in some]
            axes.plot(xs, ys, style[1], color=style[0], alpha=alpha, markersize=6, linestyle="none")
        axes.plot([], [], style[1], color=style[0], linestyle="none", label=f"{len(found)} {drawable(method, 30)}")
    _logarithmic(axes)
    axes.set_xlabel(f"{words} (less is better)")
    axes.set_ylabel(quality)
    _legend(axes)
    tidy(axes, grid="both")
    axes.margins(0.08)
    _numbers(axes, places, numbers)
    return png(figure)


def _numbers(axes: Axes, places: Sequence[tuple[float, float]], numbers: Sequence[int]) -> None:
    """Number the points of a front from the best down, those left out that would cover another number."""
    inside = axes.transScale + axes.transLimits  # to shares of the axes
    taken: list[tuple[float, float]] = []
    for number, place in reversed(list(zip(numbers, places, strict=True))):
        x, y = inside.transform(place)
        if any(abs(x - u) < 0.045 and abs(y - v) < 0.05 for u, v in taken):
            continue
        taken.append((x, y))
        axes.annotate(  # nothing lies above and left of a front
            str(number), place, (-4, 4), textcoords="offset points", ha="right", fontsize=9, color=INK, weight="bold"
        )


def layer_plot(grid: LayerGrid, specs: Sequence[str], quality: str) -> bytes:
    """Draw the quality of each tap subset of one backbone, a row a subset, a mark a method.

    `specs` are the methods of all plots that belong together, so that each keeps its mark.
    """
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(grid.rows)), layout="constrained")
    axes = figure.subplots()
    for column in grid.columns:
        colour, marker = _style(specs.index(column))
        known = [
            (grid.values[row, column], place) for place, row in enumerate(grid.rows) if (row, column) in grid.values
        ]
        xs, ys = zip(*known, strict=True)
        axes.plot(xs, ys, marker, color=colour, markersize=6, linestyle="none", label=drawable(column, 30), alpha=0.85)
    axes.set_yticks(range(len(grid.rows)), [drawable(row, 36) for row in grid.rows], parse_math=False)
    axes.set_ylim(len(grid.rows) - 0.5, -0.5)
    axes.set_title(_network(grid.name.backbone, grid.name.weights), fontsize=9, color=INK, loc="left", parse_math=False)
    axes.set_xlabel(quality)
    _legend(axes)
    tidy(axes, grid="both")
    axes.tick_params(axis="y", length=0)
    return png(figure)


def dimension_plot(curves: Sequence[DimensionCurve], quality: str) -> bytes:
    """Draw quality over the number of dimensions, up to six curves."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    for curve, (colour, dashes), marker in zip(curves, LINES, MARKERS, strict=False):
        xs, ys = zip(*curve.points, strict=True)
        name = drawable(f"{curve.name.spec} on {_network(curve.name.backbone, curve.name.weights)}", 44)
        axes.plot(xs, ys, marker, color=colour, linestyle=dashes, linewidth=1.6, markersize=5, label=name)
    _logarithmic(axes)
    numbers = sorted({d for curve in curves for d, _ in curve.points})
    axes.set_xticks(numbers[:: -(-len(numbers) // 10)])
    axes.minorticks_off()
    axes.set_xlabel("dimensions")
    axes.set_ylabel(quality)
    _legend(axes)
    tidy(axes, grid="both")
    return png(figure)


def pair_plot(pairs: Sequence[WeightsPair], quality: str) -> bytes:
    """Draw pretrained over random weights, a mark a pair, with the spread over seeds.

    Above the diagonal pretrained weights are better.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    bundles = grouped(pairs, lambda p: p.choice.method)
    for method, found in bundles.items():
        colour, marker = _style(list(METHODS).index(method))
        axes.errorbar(
            [fmean(p.random) for p in found], [fmean(p.pretrained) for p in found],
            xerr=[deviation(p.random) or 0 for p in found], yerr=[deviation(p.pretrained) or 0 for p in found],
            fmt=marker, color=colour, markersize=6, linewidth=1, alpha=0.8,
            label=f"{len(found)} {drawable(method, 30)}",
        )  # fmt: skip
    ends = [*axes.get_xlim(), *axes.get_ylim()]
    low, high = min(ends), max(ends)
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel(f"{quality}, random weights")
    axes.set_ylabel(f"{quality}, pretrained weights")
    _legend(axes)
    tidy(axes, grid="both")
    return png(figure)


def _network(backbone: str, weights: str) -> str:
    return backbone if weights in ("pretrained", "built-in") else f"{backbone} ({weights.rpartition('/')[2]})"


def _style(number: int) -> tuple[str, str]:
    """A colour and a marker; the first 36 differ."""
    return LINES[number % 6][0], MARKERS[(number + number // 6) % 6]


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with plain numbers; within a decade those of a linear one, of which more fit."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 10 * low:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    elif high < 1000 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    """Below the plot, where it covers nothing."""
    longest = max(len(name) for name in axes.get_legend_handles_labels()[1])
    columns = max(1, min(3, 78 // (longest + 7)))
    legend = axes.figure.legend(loc="outside lower left", fontsize=8.5, frameon=False, ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
