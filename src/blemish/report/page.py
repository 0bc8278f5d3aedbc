"""What all reports share: one template, one file that is replaced in one step, and numbers as text."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources
from pathlib import Path

from ..files import write_whole
from .parts import Page, Plot

NOTHING = EN_DASH = "\N{EN DASH}"


def write_page(path: Path, page: Page) -> Path:
    """Write a page as one HTML file that needs nothing else; an existing one is replaced in one step."""
    write_whole(path, _render(page))
    return path


def _render(page: Page) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .. import __version__

    environment = Environment(
        loader=PackageLoader("blemish", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["tight"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")  # a number and its sign
    script = resources.files("blemish.report").joinpath("page.js").read_text("utf-8") if page.is_sortable else ""
    # The hash lets a browser run this one script and no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html.jinja").render(
        version=__version__, page=page, script=script, digest=digest
    )
    return text.lstrip()  # what defines the macros leaves empty lines


def data_uri(kind: str, data: bytes | None) -> str | None:
    """Put a picture of `image/kind` into the page itself."""
    return None if data is None else f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def plot_of(png: bytes, words: str) -> Plot:
    """A drawn plot as a part of the page."""
    return Plot(data_uri("png", png), words)


def percent(value: float | None, digits: int = 1) -> str:
    """A share with so many decimals; only what is exactly 0 or 1 is printed as 0 or 100."""
    if value is None or math.isnan(value):
        return NOTHING
    rounded, step = round(100 * value, digits) + 0.0, 10.0**-digits  # + 0.0: no "-0.0"
    if rounded == 100 and value < 1:
        return f"> {100 - step:.{digits}f} %"
    return f"< {step:.{digits}f} %" if rounded == 0 and value > 0 else f"{rounded:.{digits}f} %"


def percent_range(interval: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of shares; empty for none."""
    if interval is None:
        return ""
    low, high = interval
    if math.isnan(low + high):
        return NOTHING
    return f"{100 * low:.{digits}f} {EN_DASH if low >= 0 else 'to'} {100 * high:.{digits}f} %"


def counted(count: int, noun: str) -> str:
    """A number and its noun, in the plural where it is not one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
