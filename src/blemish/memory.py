"""How much memory there is and how much this program holds; None where the system does not say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MOST_GB = 1e6
"""That somebody may give; far above what there is, and far below what no whole number of bytes can be."""


def spell_bytes(count: float) -> str:
    """So many bytes for a reader: `3.2 MB`, `4.10 GB`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def resident_bytes() -> int | None:
    """Memory that this process holds now."""
    pages = _read("/proc/self/statm")
    return int(pages.split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages else None


def peak_bytes() -> int | None:
    """The most memory that this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> bool:
    """Begin to measure `peak_since` anew; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_since() -> int | None:
    """The most memory that this process has held since `forget_peak`, or so far where the system cannot forget."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return peak_bytes()


def available_bytes() -> int | None:
    """Memory that this process can still take, a container's limit included."""
    limits = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        statistics = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
        limits.append(int(limit) - int(used) + int(statistics.get("inactive_file", 0)))  # cached files give way
    return min(limits, default=None)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory, or a thread's share of it, could not be had; torch has no type for it."""
    words = (
        "can't allocate memory",
        "Cannot allocate memory",
        "not enough memory",
        "out of memory",
        "can't start new thread",
        "bad_alloc",
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
