"""How long work tells how far it has come, and what else is worth a line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as often as something is done; whoever shows it says less often, by `Throttle`."""
log = logging.getLogger("blemish")
"""What whoever runs the work should know of it; the command line writes it beside the progress."""


class Throttle:
    """Tells when the next line of a log is due: `seconds` after the last one."""

    def __init__(self, seconds: float = 10.0, *, wait: bool = True) -> None:
        self._seconds = seconds
        self._last = monotonic() if wait else float("-inf")

    def is_due(self, *, in_any_case: bool = False) -> bool:
        """Say whether to write a line now, `in_any_case` at a stage's end; if so, the next one waits again."""
        now = monotonic()
        if not in_any_case and now - self._last < self._seconds:
            return False
        self._last = now
        return True
