"""What the targets of `fuzz/` share: bounds of memory, and an end that says how far they came."""

from __future__ import annotations

import signal
from pathlib import Path

from blemish.memory import peak_bytes


class Stopped(BaseException):
    """SIGTERM came."""


def stop_at_sigterm() -> None:
    """Let SIGTERM end a campaign in such a way that it says how far it came, whatever is at work."""

    def stop(*_: object) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)


def limit_memory(more: int, *, for_good: bool = False) -> None:
    """Let what needs so many bytes more than this process has now fail at once, where the system can."""
    held = Path("/proc/self/statm")
    if held.exists():
        import resource

        most = int(held.read_text(encoding="ascii").split()[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most if for_good else resource.RLIM_INFINITY))


def peak_megabytes() -> float:
    """The most memory that this process ever had; 0 where the system does not say."""
    return (peak_bytes() or 0) / 1e6
