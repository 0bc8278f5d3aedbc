"""Frames of a camera or a video: judged as they come, in bounded memory; what there is no time for is counted."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..detector import Detector
from ..errors import BlemishError
from ..images.source import from_arrays
from ..report.lines import judged, not_judged
from .logbook import spell_time

_WAITS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each try to open a source again that has broken off; the last one again and again."""


class Frames(Protocol):
    """What gives frames, such as `edges.video.Video`."""

    name: str
    is_live: bool
    rate: float | None

    def skip(self) -> bool:
        """Pass over the next frame; gives whether there was one."""

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame; None at the end, or where the source has broken off."""

    def close(self) -> None:
        """Let the source go."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame on its way."""

    number: int
    """Of the source, from 0; those that nobody wanted count too."""
    time: float
    """When it came, in seconds since 1970."""
    pixels: NDArray[np.uint8]


@dataclass
class Counts:
    """What became of the frames."""

    came: int = 0
    judged: int = 0
    dropped: int = 0
    """For which there was no time."""
    passed_over: int = 0
    """Beyond the wanted rate, or judged before."""
    breaks: int = 0
    """How often the source broke off and was opened again."""
    seconds: float = 0.0
    """From the first frame to the latest one."""


class Buffer:
    """At most so many frames between who reads and who judges.

    Where it is full, the reader waits; of a live source, which does not wait, the oldest frame is dropped, so that
    what is judged is never older than the buffer is long.
    """

    def __init__(self, most: int, *, drops: bool) -> None:
        self._most, self._drops = most, drops
        self._frames: deque[VideoFrame] = deque()
        self._news = threading.Condition()
        self._ends = False
        self._lost = 0

    def put(self, frame: VideoFrame) -> int:
        """Add a frame; gives how many were dropped for it. After `end` it is not kept."""
        with self._news:
            dropped = 0
            if self._drops:
                while len(self._frames) >= self._most:
                    self._frames.popleft()
                    dropped += 1
            self._lost += dropped
            self._news.wait_for(lambda: self._ends or len(self._frames) < self._most)
            if not self._ends:
                self._frames.append(frame)
            self._news.notify_all()
            return dropped

    def take(self, most: int) -> tuple[list[VideoFrame], int]:
        """Wait for a frame; gives the oldest ones, none when all is over, and how many were dropped before them."""
        with self._news:
            self._news.wait_for(lambda: self._ends or self._frames)
            taken = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
            lost, self._lost = self._lost, 0
            self._news.notify_all()
            return taken, lost

    def end(self) -> None:
        """No frame comes any more; those that are there can still be taken."""
        with self._news:
            self._ends = True
            self._news.notify_all()


class Stream:
    """Judges the frames of a source as they come; `lines` gives a line for each.

    Parameters
    ----------
    detector: what judges, up to `batch_size` frames in one go.
    source: the frames.
    reopen: opens a live source once more after it has broken off.
    done: numbers of the frames of a file that were judged before.
    rate: judge at most so many frames a second, evenly; None: all.
    clock: seconds since 1970.
    say: told what somebody should know who watches.

    A file waits until its frames are judged, so none is dropped. A live source goes on: what comes meanwhile waits in a
    buffer of one batch, and the oldest go first.
    """

    def __init__(
        self,
        detector: Detector,
        source: Frames,
        *,
        reopen: Callable[[], Frames] | None = None,
        done: Collection[int] = (),
        rate: float | None = None,
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self.name, self._is_live, self._stated_rate = source.name, source.is_live, source.rate
        self._detector, self._source, self._reopen, self._done = detector, source, reopen, done
        self._rate, self._clock, self._say = rate, clock, say
        self._buffer = Buffer(detector.batch_size, drops=source.is_live)
        self._stops = threading.Event()
        self._fault: BaseException | None = None
        self._due: float | None = None
        self._first: float | None = None

    def lines(self) -> Iterator[dict[str, Any]]:
        """Judge until the source ends. Raises what reading or judging raised."""
        reader = threading.Thread(target=self._read_all, name="blemish-frames")
        reader.start()
        try:
            while (taken := self._buffer.take(self._detector.batch_size))[0]:
                frames, lost = taken
                for at, line in enumerate(self._judge(frames)):
                    yield line | {"dropped": 0 if at else lost}
            if self._fault is not None:
                raise self._fault
        finally:
            self._stops.set()
            self._buffer.end()
            reader.join()

    def _judge(self, frames: Sequence[VideoFrame]) -> Iterator[dict[str, Any]]:
        names = [self._spell(frame) for frame in frames]
        source = from_arrays([frame.pixels for frame in frames], names=names)
        found: dict[str, Any] = {d.name: dict(judged(d)) for d in self._detector.predict(source, maps=False)}
        reasons = dict(self._detector.skipped_)
        for name, frame in zip(names, frames, strict=True):
            line = found[name] if name in found else dict(not_judged(name, reasons[name]))
            self.counts.judged += 1
            yield line | {"frame": frame.number} | ({"time": spell_time(frame.time)} if self._is_live else {})

    def _spell(self, frame: VideoFrame) -> str:
        moment = f"@{spell_time(frame.time)}" if self._is_live else ""
        return f"{self.name}#{frame.number}{moment}"

    def _read_all(self) -> None:
        try:
            while not self._stops.is_set():
                if not self._read_one() and not self._open_again():
                    break
        except BaseException as error:  # a fault of ours must reach who waits for lines
            self._fault = error
        finally:
            self._source.close()
            self._buffer.end()

    def _read_one(self) -> bool:
        """Read the next frame, or pass over it; gives whether there was one."""
        number = self.counts.came
        if not self._is_wanted(number):
            if not self._source.skip():
                return False
            self.counts.passed_over += 1
            self._count()
            return True
        pixels = self._source.read()
        if pixels is None:
            return False
        self._count()
        self.counts.dropped += self._buffer.put(VideoFrame(number, self._clock(), pixels))
        return True

    def _count(self) -> None:
        now = self._clock()
        self._first = now if self._first is None else self._first
        self.counts.came += 1
        self.counts.seconds = now - self._first

    def _is_wanted(self, number: int) -> bool:
        if number in self._done:
            return False
        if self._rate is None:
            return True
        now = self._clock() if self._is_live or self._stated_rate is None else number / self._stated_rate
        if self._due is None:
            self._due = now
        late = self._rate * (now - self._due) + 1e-9
        if late < 0:
            return False
        self._due += (math.floor(late) + 1) / self._rate  # evenly: what comes late does not put off the next ones
        return True

    def _open_again(self) -> bool:
        """Open a live source that has broken off, for as long as it takes; False: this is the end."""
        if not self._is_live or self._reopen is None:
            return False
        self._source.close()
        self.counts.breaks += 1
        self._say(f"{self.name}: broke off after frame {self.counts.came - 1}; it is opened again.")
        tries = 0
        while not self._stops.wait(_WAITS[min(tries, len(_WAITS) - 1)]):
            try:
                self._source = self._reopen()
            except BlemishError as error:
                if tries == 0:
                    self._say(f"{error} It is tried again and again.")
                tries += 1
            else:
                return True
        return False
