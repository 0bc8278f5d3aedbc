"""Addresses that lines are sent to, split once and refused at once: a wrong one would be tried again for ever."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def split_address(text: str) -> SplitResult:
    """The parts of an address, `scheme://[NAME[:PASSWORD]@]HOST[:PORT][/PATH]`; raises `ValueError` for any other.

    >>> split_address("http://line:8080/lines").port
    8080
    >>> split_address("http://a..b/")
    Traceback (most recent call last):
    ValueError: http://a..b/
    """
    found = urlsplit(text)
    if not found.hostname or not text.isprintable():
        raise ValueError(text)
    try:
        found.hostname.encode("idna")
    except UnicodeError:  # a name that no resolver takes; what is said of it changes with Python
        raise ValueError(text) from None
    _ = found.port  # which is read now
    return found
