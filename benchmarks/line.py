"""Pictures from the line: is each judged once, is none missed, is the memory flat?

    python benchmarks/line.py --count 1200                   (a minute of 20 pictures a second, four times)
    python benchmarks/line.py --count 12000 --only stream

Each command is a process of its own, on a model of 40 drawn pictures of 256 pixels:

- `watch`: this process writes 20 pictures a second into a folder, each in two halves; they stay there.
- `watch, moved`: the same, and whoever has a picture's line moves it away; each line goes to a webhook, which is out of
  order for a third of the time.
- `stream`: a video file.
- `camera`: the same video from a web server that sends 20 frames a second, which stands for a camera.

Printed are lines, pictures without a line, pictures with two, what was dropped, and the memory that the process held in
each quarter of its lines.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2

from blemish.datasets.synthetic import write_dataset
from blemish.detector import Detector

_LONGEST = 900.0
"""Seconds without a new line after which something is wrong."""


class Running:
    """A command in a process of its own that adds lines to a file, and what it held."""

    def __init__(self, out: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "blemish", *arguments, "--out", str(out)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._out, self.said, self.rows = out, list[str](), list[dict[str, object]]()
        self.held: list[tuple[int, int]] = []
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.rstrip())

    def look(self) -> list[dict[str, object]]:
        """The lines that are new; also takes down how much memory it holds."""
        if not self._out.exists():
            return []
        lines = self._out.read_text().splitlines()[len(self.rows) :]
        new = [json.loads(line) for line in lines]
        self.rows += new
        with suppress(OSError):
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="utf-8").split()[1])
            self.held.append((len(self.rows), pages * os.sysconf("SC_PAGE_SIZE")))
        return new

    def wait(self, is_done: Callable[[], bool], new: Callable[[dict[str, object]], None] = lambda _: None) -> None:
        """Look until something holds, or it has ended, or nothing has come for long."""
        last = time.monotonic()
        while not is_done() and self._process.poll() is None and time.monotonic() - last < _LONGEST:
            for row in self.look():
                last = time.monotonic()
                new(row)
            time.sleep(0.2)

    def end(self) -> None:
        """Ctrl-C where it still runs; then take its last lines."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self._reader.join()
        self.look()

    def quarters(self) -> str:
        """Most memory in each quarter of the lines, in MB; the first quarter has the start in it."""
        count = max(1, len(self.rows))
        most = [0.0] * 4
        for lines, held in self.held:
            at = min(3, 4 * lines // count)
            most[at] = max(most[at], held / 1e6)
        return ", ".join(f"{one:.0f}" for one in most)


def fill(folder: Path, contents: list[bytes], count: int, rate: float) -> None:
    """Write so many pictures into a folder, so many a second, each in two halves."""
    start = time.monotonic()
    for number in range(count):
        content = contents[number % len(contents)]
        with (folder / f"{number:06}.png").open("wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            time.sleep(0.005)
            file.write(content[len(content) // 2 :])
        time.sleep(max(0.0, start + (number + 1) / rate - time.monotonic()))


@contextmanager
def receiver(outage: range) -> Iterator[tuple[str, list[bytes]]]:
    """A webhook, and what it took; while as many lines as in `outage` have come, it answers 503."""
    taken: list[bytes] = []
    asked = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal asked
            line = self.rfile.read(int(self.headers["content-length"]))
            asked += 1
            is_out = len(taken) == outage.start and asked < outage.stop
            if not is_out:
                taken.append(line)
            self.send_response(503 if is_out else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_about: object) -> None:
            pass

    with serving(Handler) as address:
        yield address, taken


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server of this machine; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def watch(model: Path, contents: list[bytes], folder: Path, *, count: int, rate: float, moves: bool) -> None:
    """A folder that is filled."""
    camera, out = folder / "camera", folder / "lines.jsonl"
    camera.mkdir()
    with receiver(range(count // 3, count // 3 + 8)) as (address, taken):
        running = Running(out, "watch", str(model), str(camera), *(["--webhook", address] if moves else []))
        filler = threading.Thread(target=fill, args=(camera, contents, count, rate))
        start = time.monotonic()
        filler.start()

        def move(row: dict[str, object]) -> None:
            if moves:
                Path(str(row["image"])).unlink()

        running.wait(lambda: len(running.rows) >= count, move)
        took = time.monotonic() - start
        filler.join()
        if moves:
            running.wait(lambda: len(taken) >= count)
        running.end()
    names = Counter(str(row["image"]) for row in running.rows)
    missed = sum(f"{camera / f'{number:06}.png'}" not in names for number in range(count))
    errors = sum("error" in row for row in running.rows)
    name = "watch, moved" if moves else "watch"
    print(f"{name}: {count} pictures in {count / rate:.0f} s, {len(running.rows)} lines in "
          f"{took:.0f} s, {missed} missed, {sum(n > 1 for n in names.values())} twice, {errors} errors; "
          f"MB by quarter {running.quarters()}", flush=True)  # fmt: skip
    if moves:
        lines = out.read_bytes().splitlines()
        print(f"  webhook: {len(taken)} of {count} lines, in order {taken == lines}", flush=True)


def make_video(path: Path, pictures: list[Path], count: int, rate: float) -> None:
    """A video of so many frames."""
    frames = [cv2.imread(str(picture)) for picture in pictures]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (width, height))
    for number in range(count):
        writer.write(frames[number % len(frames)])
    writer.release()


def stream(model: Path, video: Path, count: int, folder: Path) -> None:
    """A video file."""
    running = Running(folder / "lines.jsonl", "stream", str(model), str(video))
    running.wait(lambda: False)
    running.end()
    _say_frames("stream", running, count)


def camera(model: Path, video: Path, folder: Path, *, count: int, rate: float) -> None:
    """The video, as slowly as a camera sends it, once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            content, start, sent = video.read_bytes(), time.monotonic(), 0
            step = max(1, len(content) // count)
            while sent < len(content):
                try:
                    self.wfile.write(content[sent : sent + step])
                except OSError:
                    return
                sent += step
                time.sleep(max(0.0, start + sent / step / rate - time.monotonic()))

        def log_message(self, *_about: object) -> None:
            pass

    with serving(Handler) as address:
        running = Running(folder / "lines.jsonl", "stream", str(model), f"{address}/camera.avi")
        running.wait(lambda: bool(running.rows) and int(str(running.rows[-1]["frame"])) >= count)  # it began once more
        running.end()
    _say_frames("camera", running, count)


def _say_frames(name: str, running: Running, count: int) -> None:
    frames = Counter(row["frame"] for row in running.rows)
    twice = sum(times > 1 for times in frames.values())
    first = next((at for at, row in enumerate(running.rows) if int(str(row["frame"])) >= count), len(running.rows))
    dropped = sum(int(str(row["dropped"])) for row in running.rows[: first + 1])
    dropped -= max(0, int(str(running.rows[first]["frame"])) - count) if first < len(running.rows) else 0
    seen = {number for number in frames if isinstance(number, int) and number < count}
    print(f"{name}: {count} frames, {len(seen)} judged, {twice} twice, {dropped} dropped, "
          f"{count - len(seen) - dropped} unaccounted; MB by quarter {running.quarters()}", flush=True)  # fmt: skip
    for line in running.said:
        if re.search(r"frames came.*judged", line) and ": " in line:
            print(f"  {line.partition(': ')[2]}", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1200, help="pictures, and frames")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--only", choices=("watch", "moved", "stream", "camera"))
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so its children
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_dataset(folder / "data", product="washer", n_train=40, n_test_normal=20, n_per_defect=4, size=256)
        model, video = folder / "model.blemish", folder / "video.avi"
        Detector(false_alarm_rate=0.1).fit(data).save(model)
        paths = sorted((folder / "data" / "test").rglob("*.png"))
        contents = [path.read_bytes() for path in paths]
        make_video(video, paths, given.count, given.rate)
        runs: dict[str, Callable[[Path], None]] = {
            "watch": lambda at: watch(model, contents, at, count=given.count, rate=given.rate, moves=False),
            "moved": lambda at: watch(model, contents, at, count=given.count, rate=given.rate, moves=True),
            "stream": lambda at: stream(model, video, given.count, at),
            "camera": lambda at: camera(model, video, at, count=given.count, rate=given.rate),
        }
        for kind, run in runs.items():
            if given.only in (None, kind):
                place = folder / kind
                place.mkdir()
                run(place)


if __name__ == "__main__":
    main()
