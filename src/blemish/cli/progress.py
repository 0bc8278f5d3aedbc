"""Progress on stderr: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

import typer

from ..progress import Throttle


class ProgressView:
    """Shows how far work has come, in a `with` statement; called as `progress.Progress` is, or with a note as well."""

    def __init__(self, unit: str = "images") -> None:
        self._unit, self._stage = unit, ""
        self._throttle = Throttle()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> ProgressView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "", *, is_news: bool = False) -> None:
        """`is_news`: worth a line of a log in any case, as the begin and the end of a stage are."""
        if self._bar is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage, total=total, note=note)
            self._bar.update(self._tasks[stage], completed=done, total=total, note=note)
            return
        is_new, self._stage = stage != self._stage, stage
        if self._throttle.is_due(in_any_case=is_news or is_new or done >= total):
            head = "" if stage == self._unit else f"{stage}: "
            typer.echo(f"{head}{done}/{total} {self._unit}{f': {note}' if note else ''}", err=True)


def duration(seconds: float) -> str:
    """A time in the unit in which one says it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
