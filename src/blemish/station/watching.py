"""Whether the pictures of a station still are what its models learned."""

from __future__ import annotations

import threading
from typing import Any

from ..drift import StreamMonitor
from .logbook import Logbook
from .models import Loaded


class Watching:
    """One monitor for each model; all verdicts that the store has of this version of it are the stream.

    A monitor takes what is new in the store when somebody asks, so it says the same after a restart.
    """

    def __init__(self, logbook: Logbook) -> None:
        self._logbook = logbook
        self._monitors: dict[str, tuple[str, int, StreamMonitor]] = {}
        self._lock = threading.Lock()

    def drift(self, loaded: Loaded) -> dict[str, Any] | None:
        """How far the stream has gone from what was learned; None for a model without a calibration."""
        calibration = loaded.detector.calibration_
        if calibration is None:
            return None
        with self._lock:
            digest, last, monitor = self._monitors.get(loaded.name, ("", 0, None))
            if monitor is None or digest != loaded.digest:
                last, monitor = 0, StreamMonitor.of(calibration)
            latest = self._logbook.latest()  # of any model: what is up to here has been looked at
            while new := self._logbook.scores(loaded.name, loaded.digest, after=last):  # not years of them at once
                monitor.extend((score, look) for _, score, look in new)
                last = new[-1][0]
                self._monitors[loaded.name] = (loaded.digest, last, monitor)
            self._monitors[loaded.name] = (loaded.digest, max(last, latest), monitor)
            found = monitor.drift
        return {
            "images": found.images, "evidence": found.evidence, "is_alarm": found.is_alarm,
            "alarm_at": found.alarm_at, "sign": found.sign,
        }  # fmt: skip
