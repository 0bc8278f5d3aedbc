"""Lines that others want: each is sent until it was taken, in their order, also after a restart.

What waits is not kept in memory: the lines are in the file of `--out` already, and a small file beside it says how far
they were sent. So no outage, however long, loses a line, and a line can come twice after a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import IO, Protocol

from ..errors import ArgumentError, BlemishError
from ..files import check_output, naming, parse_json, read_text, whole_file

_WAITS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before each further try; the last one again and again."""
_SAVED_EVERY = 100
"""Lines after which it is written down how far they were sent, at the latest."""


class NotTaken(BlemishError):
    """A line that did not arrive; the message says why. The same line is sent again."""

    @classmethod
    def because(cls, name: str, error: Exception) -> NotTaken:
        """Of an error of the connection to a place of this name."""
        own = " SSL_CERT_FILE=FILE names an authority of your own."
        instead = own if isinstance(error, SSLCertVerificationError) else ""
        return cls(f"{name}: {str(error) or type(error).__name__}.{instead}")


class Unwanted(BlemishError):
    """A line that the receiver refuses for what it says: sending it again would not help."""


class Outlet(Protocol):
    """Where lines go, such as `webhook.Webhook`."""

    name: str
    """For people, without secrets."""

    def send(self, line: bytes) -> None:
        """Send one line of JSON; returns when it was taken. Raises `NotTaken`, `Unwanted`."""

    def interrupt(self) -> None:
        """Break off what is under way, which then was not taken; called while another thread sends."""

    def close(self) -> None:
        """Let the connection go."""


class Delivery:
    """Sends the lines that are added to a file, in a thread of its own. Use it in a `with` statement.

    Parameters
    ----------
    lines: the file; what is in it when it is first delivered from is not sent.
    outlet: where they go.
    kind: ending of the file beside it that says how far they were sent.
    say: told what somebody should know who watches.
    waits: seconds before each further try.
    patience: seconds that the end waits for what has not been sent.

    Raises `OutputError`, `ArgumentError` for a damaged file beside it.
    """

    def __init__(
        self,
        lines: Path,
        outlet: Outlet,
        *,
        kind: str,
        say: Callable[[str], None],
        waits: Sequence[float] = _WAITS,
        patience: float = 10.0,
    ) -> None:
        self._lines, self._outlet, self._say = lines, outlet, say
        self._waits, self._patience = waits, patience
        self._place = check_output(lines.with_name(f"{lines.name}.{kind}"))
        self._at, self._last = _read_place(self._place, lines)
        self.sent = self.unwanted = 0
        self._saved = 0
        self._news, self._stops = threading.Event(), threading.Event()
        self._ends = False
        self._save()
        self._news.set()  # for what an earlier run has left
        self._thread = threading.Thread(target=self._run, name=f"blemish-{kind}")

    def __enter__(self) -> Delivery:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Wait a while for what has not been sent, and say what is left. An error that came first is the one raised."""
        self._ends = True
        self._news.set()
        self._thread.join(self._patience)
        self._stops.set()
        self._outlet.interrupt()
        self._thread.join()
        self._outlet.close()
        try:
            self._say_what_is_left()
            self._save()
        except OSError as fault:
            if error is None:
                raise
            self._say(str(fault))

    def tell(self) -> None:
        """There are new lines in the file."""
        self._news.set()

    def _say_what_is_left(self) -> None:
        left = sum(1 for _ in self._new())
        if left:
            self._say(f"{left} lines wait for {self._outlet.name}: the next start sends them.")
        if self.unwanted:
            self._say(f"{self.unwanted} lines were refused by {self._outlet.name}.")

    def _run(self) -> None:
        try:
            self._send_all()
        except (BlemishError, OSError) as error:
            self._say(f"{error} Nothing is sent to {self._outlet.name} before the next start.")

    def _send_all(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            ends = self._ends  # before the lines are read: whatever comes later is no part of this run
            for line, at in self._new():
                if not self._deliver(line):
                    return
                self._at, self._last = at, line
                if self.sent + self.unwanted - self._saved >= _SAVED_EVERY:
                    self._save()
            self._save()
            if ends or self._stops.is_set():
                return

    def _deliver(self, line: bytes) -> bool:
        """Send a line until it is taken, or refused for good; False where the end came before."""
        if not _is_whole(line):
            return True  # torn by a kill: its picture was judged again
        tries = 0
        while not self._stops.is_set():
            try:
                self._outlet.send(line.rstrip(b"\n"))
            except Unwanted as error:
                self.unwanted += 1
                self._say(f"{error} The line is passed over.")
                return True
            except NotTaken as error:
                if tries == 1:  # a connection that was idle may break once without a word
                    self._say(f"{error} It is tried again and again; the lines wait.")
                self._stops.wait(self._waits[min(tries, len(self._waits) - 1)])
                tries += 1
            else:
                self.sent += 1
                if tries > 1:
                    self._say(f"{self._outlet.name}: lines arrive again.")
                return True
        return False

    def _new(self) -> Iterator[tuple[bytes, int]]:
        """Whole lines behind the place, and where each ends."""
        try:
            file = self._lines.open("rb")
        except FileNotFoundError:  # asked first, it could still go before it is opened
            return
        with file:
            if _line_before(file, self._at) != self._last:
                self._say(f"{self._lines}: is another file than before; it is sent from its beginning.")
                self._at, self._last = 0, b""
            file.seek(at := self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                at += len(line)
                yield line, at

    def _save(self) -> None:
        self._saved = self.sent + self.unwanted
        about = {"version": 1, "sent": self._at, "last": _mark(self._last)}
        with whole_file(self._place, durable=False) as temporary:
            temporary.write_bytes(json.dumps(about).encode() + b"\n")


def _read_place(place: Path, lines: Path) -> tuple[int, bytes]:
    """How far the lines of a file were sent, and the last one that was; all that are there, where nothing was yet."""
    at = mark = None
    if place.exists():
        text = read_text(place, expected="how far lines were sent")
        try:
            about = parse_json(text)
            at, mark = about["sent"], about["last"]
            if about["version"] != 1 or type(at) is not int or at < 0:
                raise ValueError(text)
        except (ValueError, TypeError, KeyError):
            raise ArgumentError.about(
                str(place), expected="how far lines were sent, as an earlier run wrote it", got="something else",
                instead="Delete it; then only new lines are sent.",
            ) from None  # fmt: skip
    if not lines.exists():
        return 0, b""
    with naming(lines), lines.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if at is None:
            return size, _line_before(file, size)
        last = _line_before(file, at) if at <= size else b""
    return (at, last) if _mark(last) == mark else (0, b"")


def _line_before(file: IO[bytes], at: int) -> bytes:
    """The line that ends at a place of a file; empty where none does."""
    start, line = at, b""
    while start > 0 and b"\n" not in line[:-1]:
        start = max(0, at - max(4096, 4 * (at - start)))
        file.seek(start)
        line = file.read(at - start)
    return line[line[:-1].rfind(b"\n") + 1 :]


def _mark(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False
