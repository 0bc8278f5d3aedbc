"""Plots of a training run as PNG. Nothing here keeps global state."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from .figures import png, tidy
from .ood_figures import LINES, WIDTH


def loss_plot(terms: Sequence[str], curve: Sequence[Sequence[float]]) -> bytes:
    """Draw each term of a loss over the steps, one below the other; `curve` has rows of steps and one value a term.

    A run that had no time for a step has no terms either: an empty picture says so.
    """
    terms = terms or ("loss",)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.4 * len(terms)), layout="constrained")
    rows = figure.subplots(len(terms), 1, sharex=True, squeeze=False)[:, 0]
    steps = [row[0] for row in curve]
    for number, (axes, term) in enumerate(zip(rows, terms, strict=True)):
        colour, _ = LINES[number % len(LINES)]
        axes.plot(steps, [row[1 + number] for row in curve], color=colour, linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(term)
        tidy(axes)
    rows[-1].set_xlabel("step" if curve else "no step was taken")
    return png(figure)
