"""One thread that judges what requests bring, several pictures in one go."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ..errors import BlemishError, ImageError
from ..images.decode import Picture, decode_bytes
from ..images.source import ImageSource
from ..memory import is_shortage
from ..types import Decision
from .limits import Limits
from .models import Loaded


class Busy(BlemishError):
    """More waits than the station may hold: the caller comes again later."""


@dataclass(frozen=True)
class Sent:
    """One picture of a request."""

    name: str
    """As the caller gave it: a text for the answer and nothing else."""
    digest: str
    """SHA-256 of the content."""
    content: bytes = field(repr=False)


Judgement = Decision | str
"""A verdict, or why there is none."""


AHEAD_PIXELS = 4_000_000
"""Larger pictures are decoded when their turn has come: as many as two batches wait decoded."""


@dataclass(frozen=True)
class _Coming:
    """A picture, and what it becomes while others are judged."""

    sent: Sent
    ahead: Future[Picture | None] | None = None
    """None: decoded when its turn has come; so where the outcome is None."""

    def decode(self, max_pixels: int) -> Picture:
        """Raises `ImageError`."""
        known = None if self.ahead is None else self.ahead.result()
        if known is not None:
            return known
        return decode_bytes(self.sent.content, name=self.sent.digest, max_pixels=max_pixels)


@dataclass(frozen=True)
class _Job:
    loaded: Loaded
    pictures: Sequence[_Coming]
    answer: Future[list[Judgement]]
    maps: bool


class Judge:
    """Takes pictures from any thread; gives futures of their outcomes, in the order of the pictures.

    While some pictures are judged, others gather and are decoded; those of one model go through together, at most
    `limits.batch` of them but whole requests. So nobody waits for company, and under load the network sees full
    batches. `batch_done(pictures, seconds)` is called after each.
    """

    def __init__(self, limits: Limits, *, batch_done: Callable[[int, float], None]) -> None:
        self._limits, self._batch_done = limits, batch_done
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._ends = False
        self._news = threading.Condition()
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="blemish-ahead")
        self._thread = threading.Thread(target=self._run, name="blemish-judge")
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures whose turn has not come."""
        return self._waiting

    @property
    def is_alive(self) -> bool:
        """Whether it takes pictures."""
        return self._thread.is_alive() and not self._ends

    def submit(self, loaded: Loaded, pictures: Sequence[Sent], *, maps: bool = False) -> Future[list[Judgement]]:
        """Judge pictures when their turn comes, or not at all where the future is cancelled before. Raises `Busy`.

        Without `maps` the decisions may have none, which saves time on large pictures.
        """
        with self._news:
            if self._ends or self._waiting + len(pictures) > self._limits.waiting:
                raise Busy(f"{self._waiting} pictures wait already. Come again in a second.")
            has_room = self._waiting + len(pictures) <= 2 * self._limits.batch
            limit = min(AHEAD_PIXELS, loaded.detector.max_pixels)
            coming = [
                _Coming(one, self._decoders.submit(_ahead, one, limit) if has_room else None) for one in pictures
            ]  # fmt: skip
            job = _Job(loaded, coming, Future(), maps)
            self._waiting += len(pictures)
            self._jobs.append(job)
            self._news.notify()
        return job.answer

    def close(self) -> None:
        """Judge what waits, and end."""
        with self._news:
            self._ends = True
            self._news.notify()
        self._thread.join()
        self._decoders.shutdown()

    def _run(self) -> None:
        while jobs := self._next():
            held = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if not held:
                continue
            start = time.perf_counter()
            try:
                pictures = [picture for job in held for picture in job.pictures]
                outcomes = _judge(held[0].loaded, pictures, maps=any(job.maps for job in held))
            except BaseException as error:  # a fault of ours: those who wait must hear of it, and the next ones go on
                for job in held:
                    job.answer.set_exception(error)
                continue
            at = 0
            for job in held:
                job.answer.set_result(outcomes[at : at + len(job.pictures)])
                at += len(job.pictures)
            self._batch_done(len(outcomes), time.perf_counter() - start)

    def _next(self) -> list[_Job]:
        """The oldest job, and those of the same model that fit into its batch; none at the end."""
        with self._news:
            self._news.wait_for(lambda: self._jobs or self._ends)
            taken: list[_Job] = []
            count = 0
            for job in list(self._jobs):
                fits = not taken or (job.loaded is taken[0].loaded and count + len(job.pictures) <= self._limits.batch)
                if fits:
                    taken.append(job)
                    count += len(job.pictures)
                    self._jobs.remove(job)
            self._waiting -= count
            return taken


def _ahead(one: Sent, limit: int) -> Picture | None:
    """A picture that is small enough to wait decoded, and can be read; else its turn says what is the matter."""
    try:
        return decode_bytes(one.content, name=one.digest, max_pixels=limit)
    except (ImageError, MemoryError):
        return None


def _judge(loaded: Loaded, pictures: Sequence[_Coming], *, maps: bool) -> list[Judgement]:
    """Judge pictures of one model; where all together fail, one by one, so that no picture can spoil another's turn."""
    contents = {picture.sent.digest: picture for picture in pictures}
    try:
        found = _outcomes(loaded, contents, maps=maps)
    except (BlemishError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, BlemishError) or is_shortage(error)):
            raise
        found = {digest: _alone(loaded, digest, picture, maps=maps) for digest, picture in contents.items()}
    return [found[picture.sent.digest] for picture in pictures]


def _alone(loaded: Loaded, digest: str, picture: _Coming, *, maps: bool) -> Judgement:
    try:
        return _outcomes(loaded, {digest: picture}, maps=maps)[digest]
    except (BlemishError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, BlemishError) or is_shortage(error)):
            raise
        return str(error).replace(digest, "the picture") or "too large for the memory that is free."


def _outcomes(loaded: Loaded, contents: dict[str, _Coming], *, maps: bool) -> dict[str, Judgement]:
    detector, coming = loaded.detector, list(contents.values())
    source = ImageSource(tuple(contents), lambda i: coming[i].decode(detector.max_pixels))
    found: dict[str, Judgement] = {decision.name: decision for decision in detector.predict(source, maps=maps)}
    return found | {name: reason.removeprefix(f"{name}: ") for name, reason in detector.skipped_}
