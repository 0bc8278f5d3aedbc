"""What goes wrong while a command writes: the system calls of this process, seen and stopped before they happen."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FAULTS = {
    "full disk": errno.ENOSPC,
    "read-only": errno.EROFS,
    "no permission": errno.EACCES,
    "failing disk": errno.EIO,
}
_MAKES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.mkdir", "sqlite3.connect", "os.link", "os.symlink", "os.truncate")

Watch = Callable[[str, str, bool], None]
"""Told of an event, a path and whether it is written, before it happens; what it raises happens instead."""
_watch: list[Watch] = []


def _tell(event: str, arguments: tuple[object, ...]) -> None:
    if not _watch or not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    if event == "open":
        flags = arguments[2]
        _watch[0](event, os.fsdecode(arguments[0]), isinstance(flags, int) and bool(flags & _MAKES))
    elif event in _CHANGES:
        _watch[0](event, os.fsdecode(arguments[0]), True)


sys.addaudithook(_tell)  # cannot be taken away again, so there is one


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Tell `watch` of every file that this process opens, makes or replaces."""
    _watch.append(watch)
    try:
        yield
    finally:
        _watch.clear()


class WriteFault:
    """Counts what is written below a folder, and lets the `at`-th write fail, and all later ones; None: none fails."""

    def __init__(self, folder: Path, at: int | None = None, stop: Callable[[str], None] | None = None) -> None:
        self.count = 0
        self.at = at
        self._folder, self._stop = f"{folder}{os.sep}", stop

    def __call__(self, event: str, path: str, written: bool) -> None:
        if not written or not path.startswith(self._folder):
            return
        self.count += 1
        if self._stop is not None and self.at is not None and self.count > self.at:
            self._stop(path)


def failing(number: int) -> Callable[[str], None]:
    """What raises an error of the system."""

    def stop(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    return stop
