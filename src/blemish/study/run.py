"""Runs a plan: group by group, each in a process of its own, every cell's row written as soon as it is known.

The processes come from an executor: `LocalExecutor` here, a cluster's in `edges/`. All decisions, and all writing, are
made in one thread of this process; a worker that dies costs its group a new process, and a cell that dies twice is
recorded as failed.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import ArgumentError
from ..memory import available_bytes
from .messages import Executor, Finished, Message, Started, StudyProgress, WorkerDied, WorkerSettings
from .plan import Cell, Group, StudyPlan, groups
from .store import Store


def run_study(
    plan: StudyPlan,
    store: Store,
    *,
    executor: Executor,
    progress: Callable[[StudyProgress], None] | None = None,
    retry_failed: bool = False,
) -> None:
    """Run the cells of a plan that the store does not have yet; every result is in the store when this returns.

    It may end at any moment, by a kill as well: called again, it goes on where it was. `retry_failed` also runs the
    cells that failed before.
    """
    cells = plan.cells()
    store.add(cells)
    if retry_failed:
        store.retry(cells)
    course = _Course(cells, store, progress)
    with executor, _Crew(executor) as crew:
        for group in course.open_groups():
            crew.submit(group)
        while crew.busy:
            group, news = crew.news()
            if isinstance(news, _Ended):
                again = course.ended(group, news.reason)
                if again is not None:
                    crew.submit(again)
            else:
                course.heard(group, news)


@dataclass(frozen=True)
class _Ended:
    """A group's process has ended; `reason` says why where it was not done."""

    reason: str


class _Crew(AbstractContextManager["_Crew"]):
    """Threads that feed the executor and pass on what its processes say."""

    def __init__(self, executor: Executor) -> None:
        self.busy = 0
        self._executor = executor
        self._work: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[Group, Message | _Ended | Exception]] = queue.SimpleQueue()
        for _ in range(executor.workers):
            threading.Thread(target=self._serve, daemon=True, name="blemish-study").start()

    def __exit__(self, *_error: object) -> None:
        for _ in range(self._executor.workers):
            self._work.put(None)

    def submit(self, group: Group) -> None:
        self.busy += 1
        self._work.put(group)

    def news(self) -> tuple[Group, Message | _Ended]:
        group, news = self._news.get()
        if isinstance(news, Exception):
            raise news
        self.busy -= isinstance(news, _Ended)
        return group, news

    def _serve(self) -> None:
        while (group := self._work.get()) is not None:
            try:
                for message in self._executor.run(group):
                    self._news.put((group, message))
                self._news.put((group, _Ended("its process ended early")))
            except WorkerDied as error:
                self._news.put((group, _Ended(str(error))))
            except Exception as error:
                self._news.put((group, error))


@dataclass
class _Open:
    """What is left of a group on its way."""

    cells: dict[str, Cell]
    at: str | None = None
    """The cell in work; None: the images are being read."""


class _Course:
    """Keeps the books: what is open, what is done, who died how often."""

    def __init__(self, cells: tuple[Cell, ...], store: Store, progress: Callable[[StudyProgress], None] | None) -> None:
        self._store, self._progress = store, progress
        self._status = store.status(cells)
        self._before = len(cells) - self._count("waiting")
        waiting = groups(cell for cell in cells if self._status[cell.key] == "waiting")
        self._open = {group: _Open({cell.key: cell for cell in group.cells}) for group in waiting}
        self._deaths: Counter[str] = Counter()
        self._start = time.monotonic()

    def open_groups(self) -> list[Group]:
        return list(self._open)

    def heard(self, group: Group, message: Message) -> None:
        rest = self._open[group]
        if isinstance(message, Started):
            rest.at = message.key
        if isinstance(message, Finished):
            cell = rest.cells.pop(message.key)
            self._record(cell, message)
            return
        self._tell(rest.cells[rest.at] if rest.at else group.cells[0], message)

    def ended(self, group: Group, reason: str) -> Group | None:
        """What to run again after a process ended with work left."""
        rest = self._open.pop(group)
        if not rest.cells:
            return None
        where = "" if rest.at else "while the images were read: "
        suspects = [rest.at] if rest.at else list(rest.cells)
        for key in suspects:
            self._deaths[key] += 1
            cell = rest.cells.pop(key)
            if self._deaths[key] == 1:
                rest.cells[key] = cell  # once more, after all others
            else:
                values = {"status": "failed", "reason": f"WorkerDied: {where}{reason}, twice"}
                self._record(cell, Finished(key, values))
        if not rest.cells:
            return None
        again = Group(tuple(rest.cells.values()))
        self._open[again] = _Open(rest.cells)
        return again

    def _record(self, cell: Cell, message: Finished) -> None:
        self._store.record(cell.key, message.values)
        self._status[cell.key] = message.values["status"]
        self._tell(cell, message)

    def _tell(self, cell: Cell, message: Message) -> None:
        if self._progress is None:
            return
        waiting = self._count("waiting")
        done = len(self._status) - self._before - waiting
        self._progress(
            StudyProgress(
                finished=self._count("finished"),
                failed=self._count("failed"),
                total=len(self._status),
                seconds_left=(time.monotonic() - self._start) / done * waiting if done else None,
                cell=cell,
                message=message,
            )
        )

    def _count(self, status: str) -> int:
        return sum(found == status for found in self._status.values())


class LocalExecutor(AbstractContextManager["LocalExecutor"]):
    """Runs groups on this machine, `workers` at a time; they share its memory evenly where `settings` do not say."""

    def __init__(self, workers: int = 1, settings: WorkerSettings | None = None) -> None:
        if workers < 1:
            raise ArgumentError.about("workers", expected="at least 1", got=workers)
        self.workers, self.settings = workers, settings or WorkerSettings()
        free = available_bytes()
        if workers > 1 and self.settings.memory_gb is None and free is not None:
            self.settings = replace(self.settings, memory_gb=0.9 * free / 1e9 / workers)
        self._processes: set[multiprocessing.process.BaseProcess] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()

    def run(self, group: Group) -> Iterator[Message]:
        """See `Executor`."""
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in any state
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sender, group, self.settings), daemon=True)
        with self._lock:
            if self._closed:
                raise WorkerDied("the study was stopped")
            process.start()
            self._processes.add(process)
        sender.close()
        try:
            with receiver, suppress(EOFError, OSError):  # the other end is closed, perhaps in the middle of a message
                while True:
                    yield receiver.recv()
            process.join()
            if process.exitcode:
                raise WorkerDied(_how(process.exitcode))
        finally:
            with self._lock:
                self._processes.discard(process)
            process.kill()


def _how(exitcode: int) -> str:
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ": most often, the system ran out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit status {exitcode}"


def _work(sender: Connection[Any, Any], group: Group, settings: WorkerSettings) -> None:
    """The life of a group's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # read when NumPy and torch are imported, which is now
    from .group import run_group

    for message in run_group(group, settings):
        sender.send(message)


def _follow_parent() -> None:
    """A killed parent must not leave work going on behind it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
