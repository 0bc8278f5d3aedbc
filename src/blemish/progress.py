"""How long work tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as often as something is done; whoever shows it says less often, by `Throttle`."""
_SECONDS = 10.0


class Throttle:
    """Tells when the next line of a log is due: 10 seconds after the last one."""

    def __init__(self) -> None:
        self._last = monotonic()

    def is_due(self, *, in_any_case: bool = False) -> bool:
        """Say whether to write a line now, `in_any_case` at a stage's end; if so, the next one waits again."""
        now = monotonic()
        if not in_any_case and now - self._last < _SECONDS:
            return False
        self._last = now
        return True
