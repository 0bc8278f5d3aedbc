"""Hooks that stay on a network's layers for one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Reached(Exception):
    """Ends a forward pass early, from within a hook; never leaves `watching`."""


@contextmanager
def watching(handles: Iterable[Any]) -> Iterator[None]:
    """Take hooks, by their handles, off again after a pass, which may end with `Reached`."""
    try:
        yield
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
