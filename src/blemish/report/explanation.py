"""Regions beside the normal patches that are most like them, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..explain import Explanation
from ..files import check_output
from . import figures as draw
from .overlay import photograph
from .page import counted, data_uri, write_page
from .parts import Card, Gallery, Page, Section

_MOST = 60
"""Regions on the page."""
_SIDE = 256


def write_explanations(found: Sequence[Explanation], path: str | Path, *, title: str) -> Path:
    """Write one self-contained HTML file; an existing one is replaced in one step."""
    check_output(path)
    shown = sorted(found, key=lambda one: -one.region.peak)[:_MOST]
    lead = (
        "Left what is around a region, right the same around the most similar patch of a normal image. The words are "
        "measured on these pixels and on those of up to 8 normal images. They say what differs; what the model saw may "
        "be more."
    )
    gallery = Gallery("Highest peaks first", "", [_card(one) for one in shown])
    page = Page(
        title=title,
        headline=f"{counted(len(found), 'region')} explained",
        verdict=["On an image with a defect, regions beside the defect have no promise."],
        sections=[Section.of("Why", [lead], gallery)] if shown else (),
    )
    return write_page(Path(path), page)


def _card(explanation: Explanation) -> Card:
    nearest = explanation.nearest[0] if explanation.nearest else None
    beside = ""
    if nearest is not None:
        beside = f" beside {Path(nearest.name).name} at {nearest.centre[0]:.0f}, {nearest.centre[1]:.0f}"
    return Card(
        name=Path(explanation.name).name + beside,
        kind="; ".join(explanation.differences) or "no simple difference",
        numbers=f"p {explanation.region.p_value:.2g}",
        photo=_picture(explanation.pixels),
        heat=None if nearest is None else _picture(nearest.pixels),
        heat_words="The most similar normal patch",
        is_wide=explanation.pixels.shape[1] > 1.5 * explanation.pixels.shape[0],
    )


def _picture(pixels: NDArray[np.uint8]) -> str | None:
    return data_uri("webp", draw.webp(photograph(Image.fromarray(pixels), _SIDE)))
