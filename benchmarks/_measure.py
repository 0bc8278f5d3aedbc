"""What the benchmarks share: a fresh process for each contender, its time and its peak memory."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_json(command: list[str]) -> dict[str, Any]:
    """Run a process whose last line on stdout is a JSON object."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return row


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time after one run that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


def least_processor_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least processor time of all threads, after two runs that are not counted: no other process is in it."""
    for _ in range(2):
        work()
    seconds = []
    for _ in range(repeats):
        start = process_time()
        work()
        seconds.append(process_time() - start)
    return min(seconds)


def write(path: Path | None, rows: object) -> None:
    """Keep the figures as JSON where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")
