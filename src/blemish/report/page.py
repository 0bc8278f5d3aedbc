"""What all reports share: one file that is replaced in one step, and numbers as text."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArgumentError

NOTHING = EN_DASH = "\N{EN DASH}"


def write_page(path: Path, template: str, content: Mapping[str, object]) -> Path:
    """Render a template that extends `base.html.jinja` into a self-contained HTML file."""
    page = _render(template, content)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A file name that is not UTF-8 has no letters to show: it comes out escaped.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
        os.replace(temporary, path)
    except OSError as error:
        raise ArgumentError.about("path", expected="a file that can be written", got=f"{path} ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _render(template: str, content: Mapping[str, object]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .. import __version__

    environment = Environment(
        loader=PackageLoader("blemish", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["tight"] = _tight
    return environment.get_template(template).render(version=__version__, **content)


def _tight(text: str) -> str:
    """Keep a number and its percent sign on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def data_uri(kind: str, data: bytes | None) -> str | None:
    """Put a picture of `image/kind` into the page itself."""
    return None if data is None else f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share with so many decimals; only what is exactly 0 or 1 is printed as 0 or 100."""
    if value is None or math.isnan(value):
        return NOTHING
    rounded, step = round(100 * value, digits) + 0.0, 10.0**-digits  # + 0.0: no "-0.0"
    if rounded == 100 and value < 1:
        return f"> {100 - step:.{digits}f} %"
    return f"< {step:.{digits}f} %" if rounded == 0 and value > 0 else f"{rounded:.{digits}f} %"


def counted(count: int, noun: str) -> str:
    """A number and its noun, in the plural where it is not one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
