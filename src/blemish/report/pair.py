"""Two detectors compared on the same images, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..evaluation.pair import PairEvaluation
from ..files import check_output
from ..metrics.paired import FigureDifference
from ..metrics.table import TABLE, Topic
from .page import NOTHING, counted, percent, percent_range, write_page
from .parts import Column, Entry, Page, Section, Table, facts_table

_HEADINGS: dict[Topic, str] = {
    "ranking": "Ranking of images, no threshold needed",
    "verdicts": "Verdicts, each at its own threshold",
    "localisation": "Localisation",
    "oracle": "Not a result: an upper bound",
}

_LEAD = (
    "All differences are a - b. Intervals: 95 %, bootstrap. p: how often a difference at least as large comes of "
    "swapping what the two made of an image, or a group, by the toss of a coin; of pixel figures, from the "
    "bootstrap. Whoever looks at many figures finds a small p in one of them: choose one before."
)


def write_pair(
    pair: PairEvaluation,
    path: str | Path,
    *,
    title: str,
    names: tuple[str, str],
    facts: tuple[Mapping[str, str], Mapping[str, str]],
) -> Path:
    """Write one self-contained HTML file; `names` and `facts` are of a and b."""
    check_output(path)
    page = Page(
        title=title,
        headline=f"{names[0]} against {names[1]}",
        verdict=[say_difference(pair, names, "image_auroc"), _units(pair)],
        warnings=_warnings(pair),
        sections=[
            Section.of("Figures", [_LEAD], _table(pair, names)),
            *(Section.of(name, (), facts_table(known)) for name, known in zip(names, facts, strict=True)),
        ],
    )
    return write_page(Path(path), page)


def say_difference(pair: PairEvaluation, names: tuple[str, str], figure: str) -> str:
    """One figure's difference in a sentence."""
    found = pair.differences.get(figure)
    if found is None:
        return f"{TABLE[figure].label}: not both models have it."
    better = names[TABLE[figure].merit(found.a) < TABLE[figure].merit(found.b)]
    points = f"{percent(found.difference)} ({percent_range((found.interval.low, found.interval.high))})"
    said = f"{TABLE[figure].label}: {percent(found.a)} and {percent(found.b)}, a difference of {points}"
    chance = "chance alone explains it" if found.p_value > 0.05 else f"{better} is better, and not by chance alone"
    return f"{said}; p = {found.p_value:.3g}: {chance}."


def _units(pair: PairEvaluation) -> str:
    if pair.groups == pair.images:
        return f"{counted(pair.images, 'test image')}, each judged by both."
    return f"{counted(pair.images, 'test image')} in {counted(pair.groups, 'group')}, each judged by both."


def _warnings(pair: PairEvaluation) -> list[str]:
    seen = len({name for one in (pair.a, pair.b) for name in one.overlap})
    return [f"A model had seen {counted(seen, 'test image')}. No figure here is a test."] if seen else []


def _table(pair: PairEvaluation, names: tuple[str, str]) -> Table:
    columns = [
        Column("Figure", is_number=False, is_head=True), Column(names[0], style="value-cell"),
        Column(names[1], style="value-cell"), Column("a - b", style="value-cell"),
        Column("95 % interval", style="interval"), Column("p"),
    ]  # fmt: skip
    rows: list[list[Entry]] = []
    for topic, heading in _HEADINGS.items():
        found = {name: d for name, d in pair.differences.items() if TABLE[name].topic == topic}
        if found:
            rows.append([Entry(heading)])
            rows += [_row(name, difference) for name, difference in found.items()]
    return Table(columns, rows, style="figures")


def _row(name: str, found: FigureDifference) -> list[Entry]:
    smaller = ", smaller is better" if TABLE[name].better == "smaller" else ""
    interval = percent_range((found.interval.low, found.interval.high))
    texts = [percent(found.a), percent(found.b), percent(found.difference), interval or NOTHING, f"{found.p_value:.3g}"]
    return [Entry(TABLE[name].label + smaller), *map(Entry, texts)]
