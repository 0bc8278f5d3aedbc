"""A folder that a camera fills: each picture is judged once, and none before it is whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..detector import Detector
from ..images.listing import image_files
from ..images.source import from_paths
from ..report.lines import file_state, judged, not_judged


@dataclass(frozen=True)
class _Seen:
    """A file that waits for its turn."""

    state: str
    since: float
    """When it was first seen in this state."""


class Folder:
    """Judges the pictures of a folder, and of those below it, as they come.

    Parameters
    ----------
    detector: what judges.
    folder: where to look.
    done: names of pictures that were judged before, each with its state then (size and time), as in a line's `file`.
    settle: seconds that a file must not change before it is read: whoever writes it may have stopped half-way.
    patience: seconds after which a file that cannot be read, and does not change, gets a line that says so.
    clock: seconds from any begin.

    A file that changes while it is read is read again later; one that is written anew is another picture. What is
    remembered are the names that are in the folder.
    """

    def __init__(
        self,
        detector: Detector,
        folder: Path,
        *,
        done: Mapping[str, str | None] | None = None,
        settle: float = 1.0,
        patience: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._detector, self._folder = detector, folder
        self._done = dict(done or {})
        self._settle, self._patience, self._clock = settle, patience, clock
        self._waiting: dict[str, _Seen] = {}

    @property
    def waiting(self) -> int:
        """Files that were seen and have no line yet."""
        return len(self._waiting)

    def look(self) -> Iterator[dict[str, Any]]:
        """Look once; gives the lines of what could be judged, the oldest file first. Raises `DatasetError`."""
        now = self._clock()
        states = {str(path): file_state(path) for path in image_files(self._folder)}
        gone = [name for name in self._waiting if states.get(name) is None]
        for name in gone:  # it was seen, so it is not passed over without a word
            del self._waiting[name]
            yield dict(not_judged(name, f"{name}: it was removed before it was judged."))
        self._done = {name: state for name, state in self._done.items() if name in states}
        for name, state in states.items():
            if state is None or self._done.get(name) == state:
                self._waiting.pop(name, None)
            elif name not in self._waiting or self._waiting[name].state != state:
                self._waiting[name] = _Seen(state, now)
        ready = [name for name, seen in self._waiting.items() if now - seen.since >= self._settle]
        yield from self._judge(sorted(ready, key=_age), now)

    def _judge(self, names: list[str], now: float) -> Iterator[dict[str, Any]]:
        at_once = self._detector.batch_size
        for at in range(0, len(names), at_once):
            some = names[at : at + at_once]
            source = replace(from_paths(some, max_pixels=self._detector.max_pixels), root=self._folder)
            found: dict[str, Any] = {d.name: dict(judged(d)) for d in self._detector.predict(source, maps=False)}
            reasons = dict(self._detector.skipped_)
            for name in some:
                seen = self._waiting[name]
                if file_state(name) != seen.state:
                    continue  # still written: its turn comes again
                if name in found:
                    line = found[name] | {"file": seen.state}
                elif now - seen.since >= self._patience:
                    line = dict(not_judged(name, reasons[name])) | {"file": seen.state}
                else:
                    continue
                del self._waiting[name]
                self._done[name] = seen.state
                yield line


def _age(name: str) -> tuple[int, str]:
    try:
        return os.stat(name).st_mtime_ns, name
    except OSError:
        return 0, name
