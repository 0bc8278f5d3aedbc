"""Whether the pictures of a station still are what its models learned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from typing import Any, TypeVar

from ..calibrate import Calibration
from ..drift import Drift, StreamMonitor
from .logbook import Logbook
from .models import Loaded

_T = TypeVar("_T")
_PIECE = 1000
"""Verdicts that are read at a time: who reads others waits for no more."""


class Watching:
    """One monitor for each model; all verdicts that the store has of this version of it are the stream.

    A monitor takes what is new in the store when somebody asks, so it says the same after a restart. That takes seconds
    for a long stream, in a thread of its own; who asks waits at most `patience` seconds.
    """

    def __init__(self, logbook: Logbook, *, patience: float = 0.5) -> None:
        self.patience = patience
        self._logbook = logbook
        self._monitors: dict[str, tuple[str, int, StreamMonitor]] = {}
        self._ends = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="blemish-drift")

    def close(self) -> None:
        """Read no further."""
        self._ends = True
        self._pool.shutdown(cancel_futures=True)

    def drift(self, loaded: Loaded) -> dict[str, Any] | None:
        """How far the stream has gone from what was learned.

        None for a model without a calibration, and while a stream is read that is too long for our patience.
        """
        calibration = loaded.detector.calibration_
        if calibration is None:
            return None
        asked = self._pool.submit(self._catch_up, loaded, calibration)
        try:
            found = asked.result(self.patience)
        except TimeoutError:
            asked.cancel()  # where it waits for another one; what runs goes on, for the next question
            return None
        return {
            "images": found.images, "evidence": found.evidence, "is_alarm": found.is_alarm,
            "alarm_at": found.alarm_at, "sign": found.sign,
        }  # fmt: skip

    def _catch_up(self, loaded: Loaded, calibration: Calibration) -> Drift:
        """Take what is new. It runs in one thread alone."""
        digest, last, monitor = self._monitors.get(loaded.name, ("", 0, None))
        if monitor is None or digest != loaded.digest:
            last, monitor = 0, StreamMonitor.of(calibration)
        latest = self._logbook.latest()
        for after in range(last, latest, _PIECE):
            if self._ends:
                break
            until = min(after + _PIECE, latest)
            monitor.extend(_politely(self._logbook.scores(loaded.name, loaded.digest, after=after, until=until)))
            self._monitors[loaded.name] = (loaded.digest, until, monitor)
        return monitor.drift


def _politely(images: Iterable[_T]) -> Iterator[_T]:
    """The images; between two of them who judges goes first: Python would let that thread wait 5 ms at each turn."""
    for image in images:
        yield image
        time.sleep(0)
