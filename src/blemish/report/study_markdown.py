"""The same report as Markdown, short enough to read: the first rows of each table, and no pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .parts import Entry, Page, Panel, Section, Table

_ROWS = 20
"""Most rows of a table."""
ROWS_OF_OTHERS = 5
"""Of one in a view behind the first, such as that by pixel AUROC."""


def markdown(page: Page) -> str:
    """Render what the page holds."""
    return "\n\n".join([*_top(page), *(part for section in page.sections for part in _section(section))]) + "\n"


def _top(page: Page) -> Iterator[str]:
    yield f"# {escaped(page.title)}"
    yield f"**{escaped(page.headline)}**"
    yield from map(escaped, page.verdict)
    if page.warnings:
        yield "\n".join(f"- **{escaped(text)}**" for text in page.warnings)
    if page.picks:
        yield "## Picks"
        yield "\n".join(f"- **{pick.goal.capitalize()}**: {escaped(pick.words)}" for pick in page.picks)
        yield "\n".join(f"- {escaped(rule)}" for rule in page.rules)


def _section(section: Section) -> Iterator[str]:
    yield f"## {escaped(section.heading)}"
    yield from map(escaped, section.lead)
    for number, panel in enumerate(section.panels):
        if len(section.panels) > 1:
            yield f"### {escaped(panel.name)}"
        yield from _panel(panel, ROWS_OF_OTHERS if number else _ROWS)


def _panel(panel: Panel, most: int) -> Iterator[str]:
    yield from map(escaped, panel.lead)
    for table in panel.blocks:
        if not isinstance(table, Table):
            continue
        if table.search:
            yield f"{len(table.rows)} rows: report.html and study.csv have them."
            continue
        yield _table(table, most)
        if len(table.rows) > most:
            yield f"{len(table.rows) - most} more rows are left out here; report.html has all."


def _table(table: Table, most: int) -> str:
    heads = [escaped(f"{column.name} ({column.note})" if column.note else column.name) for column in table.columns]
    rules = ["---:" if column.is_number else "---" for column in table.columns]
    lines = [heads, rules, *([_entry(entry) for entry in row] for row in table.rows[:most])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _entry(entry: Entry) -> str:
    text = escaped(entry.text)
    text = f"**{text}**" if entry.is_best else text
    return f"{text} ({escaped(entry.note)})" if entry.note else text


def escaped(text: str) -> str:
    """Text that stays text: on one line, and without a letter that begins markup."""
    return re.sub(r"([\\|<>*\[\]`])", r"\\\1", " ".join(text.split()))
