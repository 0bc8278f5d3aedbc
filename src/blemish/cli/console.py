"""What the command line reads and writes: parameters, progress, tables, JSON lines, heat maps."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..memory import peak_bytes, spell_bytes
from .progress import ProgressView

if TYPE_CHECKING:
    from ..detector import Detector
    from ..evaluation.detector import Evaluation
    from ..images.source import Skipped


@contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Show what the library logs, such as its plans and downloads, while a command runs."""
    log = logging.getLogger("blemish")
    handler, level = _Notes(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)


class Speaker:
    """Progress and notes on stderr, so that stdout carries results only."""

    def line(self, text: str) -> None:
        typer.echo(text, err=True)

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def skipped(self, files: Sequence[Skipped]) -> None:
        for name, reason in files:
            self.line(f"skipped: {reason if name in reason else f'{name}: {reason}'}")
        if files:
            self.line(f"{len(files)} files skipped.")

    def progress(self) -> ProgressView:
        return ProgressView()


def print_fit(detector: Detector, out: Path, seconds: float, as_json: bool, *, extra: Mapping[str, object]) -> None:
    from ..promises import spell_promise
    from ..report.facts import excluded_words, held_out_images

    calibration = detector.calibration_
    row: dict[str, Any] = {
        "model": str(out),
        "images": detector.images_,
        "held_out": held_out_images(detector),
        "left_out": 0 if calibration is None else len(calibration.scores) - held_out_images(detector),
        "groups": None if calibration is None or calibration.groups is None else calibration.n_groups,
        "excluded": detector.excluded_,
        "threshold": None if calibration is None else calibration.threshold,
        "promise": None if calibration is None else asdict(calibration.promise),
        "seconds": round(seconds, 3),
        "peak_bytes": peak_bytes(),
        "model_bytes": out.stat().st_size,
        "skipped": len(detector.skipped_),
    }
    if as_json:
        typer.echo(json.dumps(row | dict(extra)))
        return
    dropped = "the old one belonged to the old model; `blemish recalibrate` makes a new one"
    verdict = f"no threshold ({'calibration off' if detector.calibration == 'none' else dropped})"
    if calibration is not None:
        verdict = "verdicts by p-value" if row["threshold"] is None else f"threshold {row['threshold']:.4g}"
    in_groups = f" in {row['groups']} groups" if row["groups"] else ""
    others = f"{row['left_out']} left out in turn" if row["left_out"] else f"{row['held_out']} held out"
    typer.echo(
        f"{out}: learned from {row['images']} normal images, {others}{in_groups}, {verdict}; "
        f"{seconds:.1f} s, model {spell_bytes(row['model_bytes'])}"
        + (f", peak memory {spell_bytes(row['peak_bytes'])}" if row["peak_bytes"] else "")
    )
    if calibration is not None:
        typer.echo(spell_promise(calibration.promise))
    if row["groups"]:
        typer.echo("The promised false-alarm rate counts groups: it is that of one image of a new group.")
    if detector.excluded_:
        typer.echo(f"Excluded: {excluded_words(detector)}.")


def print_evaluation(evaluation: Evaluation, as_json: bool, *, extra: Mapping[str, object]) -> None:
    from ..evaluation.detector import evaluation_json
    from ..metrics.table import TABLE

    if as_json:
        typer.echo(json.dumps(evaluation_json(evaluation) | dict(extra)))
        return
    rows: list[dict[str, object]] = []
    for name, metric in TABLE.items():
        value = _or_dash(getattr(evaluation.figures, name), "d" if metric.is_count else ".4f")
        rows.append({"figure": name, "value": value})
        if evaluation.intervals:
            ends = evaluation.intervals.get(name, ())
            rows[-1]["95 % interval"] = " to ".join(f"{end:.4f}" for end in ends)
    print_rows(rows)
    print_rows(
        [
            {
                "kind": kind.kind,
                "images": kind.images,
                "image_auroc": _or_dash(kind.image_auroc, ".4f"),
                "flagged": _or_dash(kind.flagged, ".1%"),
            }
            for kind in evaluation.kinds
        ]
    )
    for rate in (evaluation.missed, evaluation.realised, evaluation.realised_regions):
        if rate is not None:
            typer.echo(rate)
    for together in (evaluation.parts, evaluation.batch):
        for line in () if together is None else together.lines():
            typer.echo(line)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_rows(rows: list[dict[str, object]]) -> None:
    """Print rows as a table; the first column is never cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(rows[0] if rows else ()):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return "" if value is None else str(value)
