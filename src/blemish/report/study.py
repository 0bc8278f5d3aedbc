"""Studies as one HTML file that needs nothing else, and the same as short Markdown: what to pick, and why."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..study import compare as study
from ..study.compare import Comparison, Row
from . import study_words as words
from .page import counted, write_page
from .study_markdown import markdown
from .study_parts import Summary
from .study_sections import sections_of
from .study_words import NAMED, Names, Pick, figure


def write_study_report(folder: str | Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Write `report.html` and `report.md` from the rows of a store; returns the summary as plain values.

    Existing files are replaced in one step. A study without any row is refused; cells that wait or failed are counted.
    """
    if not rows:
        raise ArgumentError.about("rows", expected="at least one cell", got="an empty study")
    folder = Path(folder)
    names = Names(rows)
    comparisons = [found for name in study.QUALITIES if (found := study.compare(rows, name)).measured]
    by_image, sets = study.compare(rows), list(names.datasets.values())
    picks = words.picked(by_image, names)
    summary = Summary(
        f"Study of {', '.join(sets) if len(sets) <= NAMED else counted(len(sets), 'data set')}",
        _headline(picks, len(by_image.measured)),
        tuple(_verdict(rows, by_image, names)),
        tuple(words.warnings(rows, names)),
        picks,
        (*words.RULES, words.optimism(by_image), words.INTERVALS) if picks else (),
    )
    sections = tuple(sections_of(rows, comparisons, names))
    script = resources.files("blemish.report").joinpath("study.js").read_text(encoding="utf-8")
    content = vars(summary) | {"headline_interval": "", "sections": sections, "script": script, "hash": _hash(script)}
    page = write_page(folder / "report.html", "study.html.jinja", content)
    text = _write(folder / "report.md", markdown(summary, sections))
    return {
        "report": str(page),
        "markdown": str(text),
        "cells": dict(Counter(row["status"] for row in rows)),
        "datasets": sets,
        "configurations": len(by_image.measured),
        "left_out": by_image.left_out,
        "warnings": list(summary.warnings),
        "rules": list(summary.rules),
        "picks": words.as_json(picks, by_image, names),
    }


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)
    return path


def _hash(script: str) -> str:
    """What lets a browser run this one script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _headline(picks: Sequence[Pick], count: int) -> str:
    if not picks:
        return "No configuration has a figure on all data sets yet"
    best = picks[0]
    return f"Best of {counted(count, 'configuration')}: {best.name}, {figure(best.chosen.quality)} image AUROC"


def _verdict(rows: Sequence[Row], comparison: Comparison, names: Names) -> Iterator[str]:
    finished = sum(row["status"] == "finished" for row in rows)
    yield f"{counted(finished, 'cell')} finished, on {counted(len(names.datasets), 'data set')}."
    sets = ", ".join(names.datasets[path] for path in comparison.datasets)
    if comparison.measured:
        yield (
            "A configuration is a method with its parameters, a backbone, weights and layers. Its figures are means "
            f"over the seeds of each data set, and then over the data sets: {sets}.{words.left_out(comparison)}"
        )
