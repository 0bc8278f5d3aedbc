"""Tokens and passwords, which are read from files: a command line can be seen by everybody on the machine."""

from __future__ import annotations

from pathlib import Path

from ..errors import ArgumentError
from ..files import read_text

_SHORTEST = 16


def read_secret(path: Path, *, least: int = _SHORTEST) -> str:
    """The token in a file: at least so many printable letters without a blank. Raises `ArgumentError`."""
    token = read_text(path, expected="a file with a token").strip()
    if len(token) < least or not token.isascii() or not token.isprintable() or " " in token:
        expected = f"a token of at least {least} letters and digits"
        raise ArgumentError.about(str(path), expected=expected, got=f"one of {len(token)} characters")
    return token
