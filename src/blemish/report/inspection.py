"""What `blemish inspect` found, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..datasets.layouts import Dataset
from ..errors import ImageError
from ..files import check_output
from ..images.decode import as_image
from ..images.source import ImageSource
from ..inspection.alike import NEARLY
from ..inspection.inspect import Inspection
from . import figures as draw
from .page import counted, data_uri, percent, write_page
from .parts import Card, Column, Entry, Gallery, Number, Page, Section, Table, TextList

_MOST = 36
"""Pictures in the gallery."""

_SIDE = 256


def write_inspection(inspection: Inspection, dataset: Dataset, path: str | Path) -> Path:
    """Write one self-contained HTML file; the pictures of the gallery are read again."""
    check_output(path)
    found = list(_listings(inspection))
    page = Page(
        title=f"{inspection.root.resolve().name}, {inspection.layout} layout",
        headline=f"{counted(inspection.train, 'normal image')} to learn from, {inspection.test} to test on",
        verdict=[_verdict(found)],
        warnings=_warnings(inspection),
        numbers=[Number(listing.summary.partition(":")[0], str(len(listing.items)), "") for listing in found],
        sections=[
            Section.of("Folders", ["Black and white: the median share of pixels at the ends."], _folders(inspection)),
            *([Section.of("What was found", (), *found)] if found else ()),
            *([_unlike(inspection, dataset)] if inspection.unlike else ()),
        ],
    )
    return write_page(Path(path), page)


def _verdict(found: Sequence[TextList]) -> str:
    return "Nothing odd was found." if not found else "Nothing was changed: this page says what to look at."


def _warnings(inspection: Inspection) -> list[str]:
    if not inspection.leaks:
        return []
    count = counted(len(inspection.leaks), "picture")
    return [f"{count} to learn from and to test on at once: no test figure that counts them says anything."]


def _folders(inspection: Inspection) -> Table:
    columns = [
        Column("Folder", is_number=False, is_head=True),
        Column("Images"),
        Column("Sizes", is_number=False),
        Column("Modes", is_number=False),
        Column("Black"),
        Column("White"),
    ]
    rows = [
        [
            Entry(folder.folder),
            Entry(str(folder.images)),
            Entry(_counts(folder.sizes)),
            Entry(_counts(folder.modes)),
            Entry(percent(folder.black)),
            Entry(percent(folder.white)),
        ]
        for folder in inspection.folders
    ]
    return Table(columns, rows, style="")


def _counts(counts: dict[str, int]) -> str:
    some = [name if len(counts) == 1 else f"{name} ({count})" for name, count in list(counts.items())[:3]]
    return "; ".join(some) + (f"; {len(counts) - 3} others" if len(counts) > 3 else "")


def _listings(inspection: Inspection) -> list[TextList]:
    """One a kind of finding."""
    rule = f"16 x 16 grey thumbnails differ by less than {NEARLY:g} of 255 levels"
    rows = [
        ("Leaks: identical pictures to learn from and to test on", _names(inspection.leaks)),
        ("Identical: every pixel is the same", _names(inspection.identical)),
        (f"Nearly identical: {rule}", _names(inspection.nearly_identical)),
        ("Constant: one colour all over", [(name, "one colour all over") for name in inspection.constant]),
        ("Unreadable: would stop a fit", list(inspection.unreadable)),
        ("Passed over: not listed as images", list(inspection.passed_over)),
        ("Exposure: more pixels at an end of the scale than usual in the folder", list(inspection.exposure)),
        ("Masks: to be looked at before any figure", list(inspection.masks)),
    ]
    return [TextList(summary, items, is_open=len(items) <= 10) for summary, items in rows if items]


def _names(groups: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(names[0], ", ".join(names[1:])) for names in groups]


def _unlike(inspection: Inspection, dataset: Dataset) -> Section:
    source = dataset.train_images()
    place = {name: i for i, name in enumerate(inspection.names_below(source.names))}
    cards = [_card(name, score, source, place[name]) for name, score in inspection.most_unlike[:_MOST]]
    lead = (
        "Leave-one-out distance of each normal image from all the others, as the built-in backbone sees them. Take "
        "out what is not normal (--out list.txt, then fit --exclude list.txt). Keep good images that merely look "
        "unusual: without them the promised false-alarm rate holds only for images that the same rule would keep."
    )
    gallery = Gallery(f"The {len(cards)} most unlike of {len(inspection.unlike)}", "The most unlike first.", cards)
    return Section.of("Normal images least like the others", [lead], gallery)


def _card(name: str, score: float, source: ImageSource, index: int) -> Card:
    try:
        photo, remark = _small(as_image(source.load(index))), ""
    except ImageError as error:
        photo, remark = None, str(error)
    return Card(
        name=name,
        kind=Path(name).parent.name,
        numbers=f"unlike {score:.2f} of 1",
        photo=photo,
        remark=remark,
    )


def _small(image: Image.Image) -> str | None:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return data_uri("webp", draw.webp(small))
