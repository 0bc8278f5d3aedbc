"""What the processes of a study say to each other, and where they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import BlemishError
from .plan import Cell, Group


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a group's process works; what it finds depends on `threads` and `device` in the last digits at most."""

    threads: int = 1
    """Of torch."""
    decoders: int = 2
    """Decoding threads."""
    device: str = "auto"
    memory_gb: float | None = None
    """What one process may hold, in 10^9 bytes; None: nine tenths of what is free."""


@dataclass(frozen=True)
class ImagesRead:
    """So many of the group's images are read."""

    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """A cell is being worked on."""

    key: str
    pid: int


@dataclass(frozen=True)
class Finished:
    """A cell is done; `values` are columns of its row, `status` among them."""

    key: str
    values: Mapping[str, Any]


Message = ImagesRead | Started | Finished


class WorkerDied(BlemishError):
    """The process of a group ended before its work did."""


class Executor(Protocol):
    """Where groups run; `run` is called from `workers` threads at once."""

    workers: int

    def run(self, group: Group) -> Iterator[Message]:
        """Run a group in a process of its own and hand out its messages as they come; raises `WorkerDied`."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_error: object) -> None:
        """End all that still runs."""


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """How far a study has come."""

    finished: int
    failed: int
    total: int
    seconds_left: float | None
    """By the pace of this run so far; None before its first cell."""
    cell: Cell
    """The latest news is about this cell, or about its group."""
    message: Message
