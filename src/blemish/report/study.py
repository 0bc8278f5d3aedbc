"""Studies as one HTML file that needs nothing else, and the same as short Markdown: what to pick, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..files import write_whole
from ..study import compare as study
from ..study.compare import Comparison, StudyRow
from . import study_words as words
from .page import counted, write_page
from .parts import Page, Pick
from .study_markdown import markdown
from .study_sections import sections_of
from .study_words import NAMED, Names, figure


def write_study_report(folder: str | Path, rows: Sequence[StudyRow]) -> dict[str, Any]:
    """Write `report.html` and `report.md` from the rows of a store; returns the summary as plain values.

    Existing files are replaced in one step. A study without any row is refused; cells that wait or failed are counted.
    """
    if not rows:
        raise ArgumentError.about("rows", expected="at least one cell", got="an empty study")
    folder = Path(folder)
    names = Names(rows)
    comparisons = [found for name in study.QUALITIES if (found := study.compare_configurations(rows, name)).measured]
    by_image, sets = study.compare_configurations(rows), list(names.datasets.values())
    picks = words.picked(by_image, names)
    page = Page(
        title=f"Study of {', '.join(sets) if len(sets) <= NAMED else counted(len(sets), 'data set')}",
        headline=_headline(picks, by_image),
        verdict=tuple(_verdict(rows, by_image, names)),
        warnings=tuple(words.warnings(rows, names)),
        picks=picks,
        rules=(*words.RULES, words.optimism(by_image), words.INTERVALS) if picks else (),
        sections=sections_of(rows, comparisons, names),
        is_wide=True,
    )
    write_page(folder / "report.html", page)
    write_whole(folder / "report.md", markdown(page))
    return {
        "report": str(folder / "report.html"),
        "markdown": str(folder / "report.md"),
        "cells": dict(Counter(row["status"] for row in rows)),
        "datasets": sets,
        "configurations": len(by_image.measured),
        "left_out": by_image.left_out,
        "warnings": list(page.warnings),
        "rules": list(page.rules),
        "picks": words.picks_json(picks, by_image, names),
    }


def _headline(picks: Sequence[Pick], comparison: Comparison) -> str:
    if not picks:
        return "No configuration has a figure on all data sets yet"
    best = f"{picks[0].name}, {figure(comparison.measured[0].quality)} image AUROC"
    return f"Best of {counted(len(comparison.measured), 'configuration')}: {best}"


def _verdict(rows: Sequence[StudyRow], comparison: Comparison, names: Names) -> Iterator[str]:
    finished = sum(row["status"] == "finished" for row in rows)
    yield f"{counted(finished, 'cell')} finished, on {counted(len(names.datasets), 'data set')}."
    sets = ", ".join(names.datasets[path] for path in comparison.datasets)
    if comparison.measured:
        yield (
            "A configuration is a method with its parameters, a backbone, weights and layers. Its figures are means "
            f"over the seeds of each data set, and then over the data sets: {sets}.{words.left_out(comparison)}"
        )
