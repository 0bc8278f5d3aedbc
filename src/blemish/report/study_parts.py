"""What a report on a study is made of, before it becomes HTML or Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .page import NOTHING
from .study_words import Pick, figure


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
    value: float | None = None
    """What it is sorted by; None: its text."""
    is_best: bool = False


@dataclass(frozen=True)
class Column:
    name: str
    note: str = ""
    is_number: bool = True
    filter: bool = False
    """Whether a reader can choose one of its texts."""


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    """The first one names the row."""
    rows: Sequence[Sequence[Cell]]
    folded: str = ""
    """Where it is only shown on a click: what is in it."""
    search: bool = False


@dataclass(frozen=True)
class Plot:
    picture: str | None
    words: str


@dataclass(frozen=True)
class Panel:
    """One of several views of a section, of which one is seen at a time."""

    name: str
    lead: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Section:
    heading: str
    lead: Sequence[str]
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Summary:
    """What a report says at the top."""

    title: str
    headline: str
    verdict: Sequence[str]
    warnings: Sequence[str]
    picks: Sequence[Pick]
    rules: Sequence[str]


def text_cell(text: str, note: str = "") -> Cell:
    return Cell(text, note)


def number_cell(value: float | None, text: str, note: str = "", *, is_best: bool = False) -> Cell:
    unknown = value is None or math.isnan(value)
    return Cell(NOTHING if unknown else text, note, None if unknown else value, is_best and not unknown)


def quality_cell(value: float | None, best: float | None = None, note: str = "") -> Cell:
    return number_cell(value, figure(value), note, is_best=value is not None and value == best)


def words_column(name: str, *, filter: bool = False) -> Column:
    """A column of texts."""
    return Column(name, is_number=False, filter=filter)
