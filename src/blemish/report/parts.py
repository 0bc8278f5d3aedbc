"""What a page is made of. Each report puts its own together, and one template draws them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Entry:
    """One cell of a table."""

    text: str
    note: str = ""
    value: float | None = None
    """What it is sorted by; None: its text."""
    is_best: bool = False
    bar: float | None = None
    """Percent of a bar that is drawn instead of the text."""
    style: str = ""


@dataclass(frozen=True)
class Column:
    """What a table says above the entries, and how it sets them."""

    name: str
    note: str = ""
    is_number: bool = True
    is_head: bool = False
    """Whether its entries name their rows."""
    filter: bool = False
    """Whether a reader can choose one of its texts."""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Entries in rows; columns without any name stay without a head."""

    kind: ClassVar = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    """A row of one entry is a heading over the rows that follow."""
    folded: str = ""
    """Where it is only shown on a click: what is in it."""
    style: str = "sortable"
    search: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture and what it shows, for those who do not see it."""

    picture: str | None
    words: str


@dataclass(frozen=True)
class Plots:
    """Pictures side by side."""

    kind: ClassVar = "plots"
    plots: Sequence[Plot]
    style: str = "even"


@dataclass(frozen=True)
class Legend:
    """The colours of heat maps."""

    kind: ClassVar = "legend"
    strip: str | None
    marks: Sequence[tuple[str, str]]
    """Number and name, from left to right below the strip."""
    keys: Sequence[tuple[str, str]]
    """Style and meaning."""


@dataclass(frozen=True)
class Card:
    """One image of a gallery."""

    name: str
    kind: str
    numbers: str
    photo: str | None
    badge: str = ""
    is_wrong: bool = False
    heat: str | None = None
    heat_words: str = ""
    is_wide: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images under a heading of their own."""

    kind: ClassVar = "gallery"
    heading: str
    lead: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class TextList:
    """Names and reasons on a click."""

    kind: ClassVar = "listing"
    summary: str
    items: Sequence[tuple[str, str]]
    is_open: bool


Block = Table | Plots | Legend | Gallery | TextList


@dataclass(frozen=True)
class Panel:
    """One of several views of a section, of which one is seen at a time."""

    name: str
    lead: Sequence[str]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """One question that a reader may have, and the answer."""

    heading: str
    lead: Sequence[str]
    panels: Sequence[Panel]
    """Those without a switch have one."""

    @classmethod
    def of(cls, heading: str, lead: Sequence[str], *blocks: Block) -> Section:
        """Make a section of a single view."""
        return cls(heading, lead, [Panel("", (), blocks)])


@dataclass(frozen=True)
class Number:
    """One of the large numbers at the top."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Pick:
    """What is recommended for one goal, ready to be read."""

    goal: str
    name: str
    figures: str
    reason: str

    @property
    def words(self) -> str:
        """All in one sentence, and the reason."""
        return f"{self.name}: {self.figures}; {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report: what it says at the top, and its sections."""

    title: str
    headline: str
    interval: str = ""
    """Of the headline."""
    verdict: Sequence[str] = ()
    warnings: Sequence[str] = ()
    numbers: Sequence[Number] = ()
    picks: Sequence[Pick] = ()
    rules: Sequence[str] = ()
    """Of the picks."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Name and reason."""
    sections: Sequence[Section] = ()
    is_wide: bool = False

    @property
    def is_sortable(self) -> bool:
        """Whether it needs the script."""
        blocks = (block for section in self.sections for panel in section.panels for block in panel.blocks)
        return any(isinstance(block, Table) and block.style == "sortable" for block in blocks)


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values, without a head."""
    columns = (Column("", is_number=False, is_head=True), Column("", is_number=False))
    return Table(columns, [(Entry(name), Entry(value)) for name, value in facts.items()], style="facts")
