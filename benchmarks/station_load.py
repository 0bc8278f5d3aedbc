"""A station under load: requests a second and waiting times by the number of clients, beside a plain loop of `predict`.

    python benchmarks/station_load.py --requests 400
    python benchmarks/station_load.py --requests 5000 --clients 1,4,16,64      (20 000 requests: is the memory flat?)
    python benchmarks/station_load.py --requests 0 --kills 20                  (is what was answered in the store?)

A model of 40 drawn pictures is served by a process of its own on loopback, with one thread for the network; the loop
runs before and after in fresh processes, on the same pictures and with the same batches. Clients keep their connection
and ask again as soon as they have an answer. Every answer must be in the store. Times on a busy machine mean nothing;
the ratio of both in one run means something.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blemish.datasets.synthetic import write_dataset
from blemish.detector import Detector
from blemish.station.logbook import read_lines

LOOPED = 2000
"""Pictures of the plain loop, at most."""
MARKS = 10
"""So many times the memory is read while one number of clients asks."""
_LOOP = """
import sys, time
from blemish.detector import Detector
detector = Detector.load(sys.argv[1])
detector.batch_size = int(sys.argv[2])
paths = sys.argv[4:]
list(detector.predict(paths[:8]))
many = [paths[i % len(paths)] for i in range(int(sys.argv[3]))]
start = time.perf_counter()
count = sum(1 for _ in detector.predict(many))
print(count / (time.perf_counter() - start))
"""


def environment() -> dict[str, str]:
    """One thread for the network, wherever it runs."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def loop(model: Path, paths: list[Path], count: int, batch: int) -> float:
    """Pictures a second of a plain loop, in a fresh process."""
    command = [sys.executable, "-c", _LOOP, str(model), str(batch), str(count), *map(str, paths)]
    return float(subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout)


class Served:
    """A station in a process of its own."""

    def __init__(self, model: Path, store: Path, batch: int) -> None:
        command = [sys.executable, "-m", "blemish", "serve", str(model), "--store", str(store), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--batch-size", str(batch)], env=environment(), stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if not line.startswith("http"):
            raise SystemExit(line + self.process.stderr.read())
        self.port = int(line.split("/")[2].rpartition(":")[2])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def held(self) -> int:
        """Bytes of memory, where the system says it."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        """End it as a service manager does, and wait."""
        self.process.terminate()
        self.process.wait()


def ask(
    port: int, contents: list[bytes], take: Callable[[], int | None], answered: Callable[[], None]
) -> tuple[list[float], list[int]]:
    """One client: seconds of each answer, and the numbers of the verdicts; calls `answered` after each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    seconds: list[float] = []
    numbers: list[int] = []
    while (number := take()) is not None:
        start = time.perf_counter()
        try:
            body = contents[number % len(contents)]
            connection.request("POST", "/v1/models/model/predict", body, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            break  # killed, or it closed the connection: the sum of the answers tells
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {found}")
        seconds.append(time.perf_counter() - start)
        numbers += [row["id"] for row in found["results"]]
        answered()
    connection.close()
    return seconds, numbers


def load(
    port: int, contents: list[bytes], clients: int, count: int, *, answered: Callable[[], None] = lambda: None
) -> tuple[list[float], list[int], float]:
    """So many requests by so many clients: seconds of each, numbers of the verdicts, seconds of all."""
    left, lock = iter(range(count)), threading.Lock()
    found: list[tuple[list[float], list[int]]] = []

    def take() -> int | None:
        with lock:
            return next(left, None)

    threads = [
        threading.Thread(target=lambda: found.append(ask(port, contents, take, answered))) for _ in range(clients)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    return [s for one, _ in found for s in one], [n for _, numbers in found for n in numbers], took


def kept(store: Path) -> set[int]:
    """Numbers of the verdicts in the store."""
    return {row["id"] for row in read_lines(store)}


def measure(model: Path, paths: list[Path], given: argparse.Namespace, folder: Path) -> None:
    """The table of loads."""
    contents = [path.read_bytes() for path in paths]
    looped = min(given.requests, LOOPED)
    before = loop(model, paths, looped, given.batch)
    station, answered = Served(model, folder / "store", given.batch), set[int]()
    load(station.port, contents, max(given.clients), 32 * max(given.clients))
    rows, first, memory = [], station.held(), []
    for clients in given.clients:
        marks_at, at = itertools.count(1), max(1, given.requests // MARKS)

        def answer(marks_at: Iterator[int] = marks_at, at: int = at) -> None:
            if next(marks_at) % at == 0:
                memory.append(station.held())

        seconds, numbers, took = load(station.port, contents, clients, given.requests, answered=answer)
        answered |= set(numbers)
        seconds.sort()
        marks = [1000 * seconds[min(len(seconds) - 1, int(q * len(seconds)))] for q in (0.5, 0.95, 0.99)]
        rows.append((clients, len(seconds) / took, *marks, station.held()))
    station.end()
    after = loop(model, paths, looped, given.batch)
    plain = (before + after) / 2
    print(f"loop of predict, batches of {given.batch}: {before:.1f} and {after:.1f} pictures/s")
    print("clients  requests/s  of the loop  p50 ms  p95 ms  p99 ms   MB")
    for clients, rate, p50, p95, p99, held in rows:
        print(f"{clients:7} {rate:11.1f} {rate / plain:12.2f} {p50:7.0f} {p95:7.0f} {p99:7.0f} {held / 1e6:5.0f}")
    if first:
        print(f"memory, MB: {first / 1e6:.0f} when warm, then", *(f"{held / 1e6:.0f}" for held in memory))
        print(f"of that when warm: {min(memory) / first:.3f} to {max(memory) / first:.3f}")
    asked = given.requests * len(given.clients)
    lost = len(answered - kept(folder / "store"))
    print(f"{len(answered)} answers to {asked} requests, {lost} of them not in the store")


def kill(model: Path, paths: list[Path], times: int, folder: Path) -> None:
    """Kill the station in mid-load, again and again on one store."""
    contents, draw, lost, answered = [path.read_bytes() for path in paths], random.Random(0), 0, 0
    for _ in range(times):
        station = Served(model, folder / "killed", 8)
        left = iter(range(draw.randrange(1, 60)))  # so many answers, and it is killed while others wait

        def count(left: Iterator[int] = left, process: subprocess.Popen[str] = station.process) -> None:
            if next(left, None) is None:
                process.kill()

        _, numbers, _ = load(station.port, contents, 16, 1_000_000, answered=count)
        station.process.wait()
        answered += len(numbers)
        lost += len(set(numbers) - kept(folder / "killed"))
    print(f"{times} kills in mid-load, {answered} answers before them, {lost} of these not in the store")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="for each number of clients")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16, 64])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_dataset(folder / "data", product="washer", n_train=40, n_test_normal=20, n_per_defect=4, size=256)
        Detector(false_alarm_rate=0.1).fit(data).save(folder / "model.blemish")
        paths = sorted((folder / "data" / "test").rglob("*.png"))
        if given.requests:
            measure(folder / "model.blemish", paths, given, folder)
        if given.kills:
            kill(folder / "model.blemish", paths, given.kills, folder)


if __name__ == "__main__":
    main()
