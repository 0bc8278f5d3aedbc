"""Runs the groups of a study on a Ray cluster: `blemish study ... --ray ADDRESS`.

Every node needs this version of blemish with its packages, and the data sets and weights under the same paths. Results
come back to the process that started the study, which alone writes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from ..errors import ArgumentError, MissingPackageError
from ..study.messages import Message, WorkerDied, WorkerSettings
from ..study.plan import Group


class RayExecutor(AbstractContextManager["RayExecutor"]):
    """Runs groups on a cluster, each in a fresh process with `settings.threads` CPUs.

    Parameters
    ----------
    address: of the cluster (`auto`: the one that this machine belongs to); `local` starts one here.
    workers: groups at a time; None: as many as the cluster has CPUs for.
    settings: how a group's process works.
    """

    def __init__(self, address: str, *, workers: int | None = None, settings: WorkerSettings | None = None) -> None:
        self.settings = settings or WorkerSettings()
        self._ray = _import_ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            self._start(address, workers or 1)
        cpus = self._ray.cluster_resources().get("CPU", 1)
        self.workers = workers or max(1, int(cpus // self.settings.threads))
        self._task = self._ray.remote(
            num_cpus=self.settings.threads,
            num_returns="streaming",
            max_retries=0,  # the study decides what runs again
            max_calls=1,  # a process a group, as on one machine
        )(_work)
        self._streams: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False

    def _start(self, address: str, workers: int) -> None:
        own = {"num_cpus": workers * self.settings.threads, "include_dashboard": False} if address == "local" else {}
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError.about(
                "--ray", expected="the address of a running cluster, auto or local", got=f"{address} ({reason})"
            ) from None

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._closed = True
            for stream in self._streams:
                self._ray.cancel(stream, force=True)
        if self._started:
            self._ray.shutdown()

    def run(self, group: Group) -> Iterator[Message]:
        """See `blemish.study.run.Executor`."""
        with self._lock:
            if self._closed:
                raise WorkerDied("the study was stopped")
            stream = self._task.remote(group, self.settings)
            self._streams.append(stream)
        try:
            for reference in stream:
                yield self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(f"Ray says {type(error).__name__}: {' '.join(str(error).split())[:500]}") from None
        finally:
            with self._lock:
                self._streams.remove(stream)


def _work(group: Group, settings: WorkerSettings) -> Iterator[Message]:
    from ..study.group import run_group

    yield from run_group(group, settings)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its maker how it is used
    try:
        import ray
    except ImportError:
        raise MissingPackageError("--ray: Ray is not installed. Run `pip install blemish[ray]`.") from None
    return ray
