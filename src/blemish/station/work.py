"""The one long thing that a station does at a time, in a thread of its own, and how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..errors import BlemishError, log
from .guard import Refusal


class Work:
    """Runs one function at a time; `status` says what it does and what came of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="blemish-work")
        self._work: Future[None] | None = None
        self._said: dict[str, Any] = _nothing()

    def close(self) -> None:
        """Wait for what is being done."""
        self._pool.shutdown(cancel_futures=True)

    def settle(self) -> None:
        """Wait until what was begun is done."""
        if self._work is not None:
            self._work.result()

    def status(self) -> dict[str, Any]:
        """`state` (idle, working, done or failed), `stage`, `done` of `total`, `error`, and what the work gave."""
        with self._lock:
            return dict(self._said)

    def require_rest(self) -> None:
        """Raise `Refusal` (409) while something is being done."""
        if self._work is not None and not self._work.done():
            raise Refusal(409, "The station is looking or learning just now. Wait for its end.")

    def clear(self) -> None:
        """Forget what came of the latest work. Raises `Refusal` (409) while something is being done."""
        self.require_rest()
        with self._lock:
            self._said = _nothing()

    def begin(self, stage: str, work: Callable[[], dict[str, Any]]) -> None:
        """Begin with something; what it gives is added to the status. Raises `Refusal` (409)."""
        with self._lock:
            self.require_rest()
            self._said = _nothing() | {"state": "working", "stage": stage}
            self._work = self._pool.submit(self._run, work)

    def progress(self, stage: str, done: int, total: int) -> None:
        """As `progress.Progress`: called by what is being done."""
        with self._lock:
            self._said |= {"stage": stage, "done": done, "total": total}

    def _run(self, work: Callable[[], dict[str, Any]]) -> None:
        try:
            done = {"state": "done"} | work()
        except Refusal as refusal:
            done = {"state": "failed", "error": refusal.reason}
        except (BlemishError, OSError, MemoryError) as error:
            done = {"state": "failed", "error": str(error) or "not enough memory"}
        except Exception:
            log.exception("the work of the station failed")
            done = {"state": "failed", "error": "A fault of the station; its log says more."}
        with self._lock:
            self._said |= done


def _nothing() -> dict[str, Any]:
    return {"state": "idle", "stage": None, "done": 0, "total": 0, "error": None}
