"""Commands as real processes that are killed, or find no room: nothing torn, nothing left, and a second run completes.

    python tests/fuzz/kills.py --count 50 --seed 0 --only fit --only predict

Each command of `tests/calls.py` that writes is started and stopped again and again, in processes that are forked from
this one, so that nothing is loaded twice. The kinds of ends, by turns:

- `killed`: SIGKILL at a random moment of its time.
- `at a write`: SIGKILL just before one of the files that it makes or replaces, each of them in turn.
- `full disk`: no file may grow beyond a random size (RLIMIT_FSIZE).
- `no permission`: another user's folder.
- `little memory`: some further megabytes (RLIMIT_AS); with none, Python itself waits for ever for a thread's begin.
- `slow disk`: killed while each file that it makes takes a while.

`serve` is stopped while it works: a client of its own judges pictures, says what they were, and has a new version made
and saved; at the end it sends SIGTERM. Whatever was answered must be in the store.

After a kill, or an error of one line, every file must be whole and be one that may be there; then the same command
runs undisturbed, must end with 0, and leave what it should and nothing else.
"""

from __future__ import annotations

import argparse
import encodings.idna  # noqa: F401 - which another user may not be allowed to load
import errno
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share

import studies
from blemish.cli import app
from blemish.images.preprocess import Preprocess
from blemish.presets import PRESETS, Preset
from blemish.station.logbook import FILE, Logbook, read_lines
from blemish.study.run import LocalExecutor
from calls import CALLS, Call, begin, check_whole, files_in, prepare
from campaign import limit_memory, stop_at_sigterm
from faults import WriteFault, watching

KINDS = ("killed", "at a write", "full disk", "no permission", "little memory", "slow disk")
NOBODY = 65534
MOST_SECONDS = 1800.0  # to end what never ends, on the busiest machine


SERVES = {"serve": f"s/{FILE} s/models"}
"""Commands that work until they are told to end, and what they have written then."""


ONCE = {"forget": "expected pictures that were learned"}
"""Commands that refuse to do again what was done, and what they say."""


class Fault(Exception):
    """What must not happen."""


def fork(run: Callable[[], None], log: Path) -> int:
    """Run in a process of its own, which writes to `log`; gives its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 98
    except OSError as error:  # its last line did not fit on a full disk: Python then ends with 1
        status = 1 if error.errno == errno.EFBIG else 99
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """Exit status, negative for a signal; killed after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not come so far
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fits(name: str, patterns: str) -> bool:
    """Whether one of the patterns, between blanks, is that of a file or of a folder above it."""
    return any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in patterns.split())


class Attack:
    """One command, its undisturbed run, and what is done to it."""

    def __init__(self, name: str, places: dict[str, Path], folder: Path) -> None:
        self.name, self.call, self.places = name, CALLS[name], places
        self.out, self.log, self.answers = folder / "out", folder / "log", folder / "answers"
        self.serves = name in SERVES
        self._notes = os.open(self.answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # before another user runs it
        # In this process, so that those that are forked have all modules.
        self._begin()
        with watching(watch := WriteFault(self.out)):
            done = CliRunner().invoke(app, [*self.name.split(), *self.arguments])
        if done.exit_code:
            raise Fault(f"{name} does not even run undisturbed: {done.output[-2000:]} {done.exception!r}")
        self._begin()
        start = time.monotonic()
        status = wait(fork(self._run, self.log), MOST_SECONDS)
        self.seconds, self.writes = time.monotonic() - start, watch.count
        if self.serves:
            self.call = replace(self.call, writes=SERVES[name], stops_with=f"s {SERVES[name]}")
        if status not in self._good_ends:
            raise Fault(f"{name} does not run in a fork: {self.log.read_text()[-2000:]}")
        self._check_complete()

    def _begin(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.arguments = begin(self.call, self.places, self.out)
        self._before = files_in(self.out)

    @property
    def _good_ends(self) -> tuple[int, ...]:
        return (0, -signal.SIGTERM) if self.serves else (0,)

    def _run(self) -> None:
        arguments = self.arguments
        if self.serves:
            port = _free_port()
            arguments = [a for a in arguments if a != "--check"]
            arguments[arguments.index("--port") + 1] = str(port)
            pictures = [path.read_bytes() for path in sorted(self.places["more"].iterdir())]
            threading.Thread(target=work_with, args=(port, pictures, self._notes), daemon=True).start()
        app([*self.name.split(), *arguments], prog_name="blemish")

    def stop(self, kind: str, draw: random.Random, number: int) -> str:
        """Stop a run in one way, check what it left, and run it again; says how it was, and raises `Fault`."""
        self._begin()
        seconds = MOST_SECONDS
        room, at = draw.choice((0, 100, 5000, 20_000)), number % max(1, self.writes)
        megabytes, pause = draw.choice((5, 20, 60, 150)), draw.uniform(0, 0.05)
        if kind in ("killed", "slow disk"):
            seconds = draw.uniform(0, 1.1 * self.seconds) + (pause * self.writes if kind == "slow disk" else 0)

        def run() -> None:
            watch = WriteFault(self.out)
            if kind == "at a write":
                watch = WriteFault(self.out, at, lambda _: os.kill(os.getpid(), signal.SIGKILL))
            elif kind == "slow disk":
                watch = WriteFault(self.out, -1, lambda _: time.sleep(pause))
            elif kind == "full disk":
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            elif kind == "little memory":
                limit_memory(megabytes * 1_000_000, for_good=True)
            elif kind == "no permission":
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            with watching(watch):
                self._run()

        how = self._how(wait(fork(run, self.log), seconds), kind)
        self._check_left()
        status = wait(fork(self._run, self.log), MOST_SECONDS)
        is_done = status == 1 and self.name in ONCE and ONCE[self.name] in self.log.read_text()
        if status not in self._good_ends and not is_done:
            raise Fault(f"a second run ended with {status}: {self.log.read_text()[-2000:]}")
        self._check_complete()
        return how

    def _how(self, status: int | None, kind: str) -> str:
        """How a run ended; raises `Fault` where it may not end so."""
        said = self.log.read_text(errors="replace") if self.log.exists() else ""  # killed before its first line
        if kind in ("killed", "at a write", "slow disk"):
            ends = {0: "ended", -signal.SIGKILL: "killed"}
        else:
            ends = {0: "ended", 1: "refused"}
        if self.serves:
            ends[-signal.SIGTERM] = "ended"
        # On a full disk, what it says is cut as well.
        is_said = kind == "full disk" or status != 1 or (said.splitlines() or [""])[-1].startswith("error: ")
        if status not in ends or not is_said:
            raise Fault(f"ended with {status}: {said[-2000:]}")
        return ends[status]

    def _check_left(self) -> None:
        """Whole files only, and temporary ones, which the next run removes."""
        row: Call = self.call
        self._check_answers()
        for path in files_in(self.out) - self._before:
            is_temporary = path.rpartition("/")[2].startswith(".") and path.endswith((".tmp", ".lock"))
            if not is_temporary and not fits(path, f"{row.writes} {row.stops_with}"):
                raise Fault(f"left {path}")
        for path in files_in(self.out):
            if not path.endswith((".tmp", ".jsonl")) and "/." not in f"/{path}":  # a torn last line is passed over
                self._check_whole(path)

    def _check_answers(self) -> None:
        """Whatever a station has answered is in its store."""
        answers = [json.loads(line) for line in self.answers.read_text().splitlines() if line.endswith("}")]
        os.truncate(self.answers, 0)
        if not answers:
            return
        kept = {row["id"]: row["feedback"] for row in read_lines(self.out / "s")}
        for answer in answers:
            if "id" in answer and kept.get(answer["id"], "none") not in (answer["feedback"], "defect"):
                raise Fault(f"answered, and not in the store: {answer}")
        with Logbook(self.out / "s") as book:
            rows = book.models()
        if len(rows) < sum("model" in answer for answer in answers):
            raise Fault("a version was saved, and is not in the store")
        for row in rows:
            check_whole(self.out / "s" / "models" / row["file"])

    def _check_complete(self) -> None:
        self._check_answers()
        found = files_in(self.out)
        for path in found:
            if not fits(path, self.call.writes):
                raise Fault(f"left behind after a second run: {path}")
            self._check_whole(path)
        for pattern in self.call.writes.split():
            if not any(fits(path, pattern) for path in found):
                raise Fault(f"not there after a second run: {pattern}")

    def _check_whole(self, path: str) -> None:
        try:
            check_whole(self.out / path)
        except Exception as error:
            raise Fault(f"torn: {path}: {error!r}") from error


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def work_with(port: int, pictures: list[bytes], answers: int) -> None:
    """Ask the station of this process for all that it writes, write down what it answers, and end it."""
    try:
        while not _answers(port):
            time.sleep(0.01)
        for picture in pictures:
            found = _ask(port, "POST", "/v1/models/model/predict", picture)
            for row in found["results"]:
                _note(answers, id=row["id"], feedback=None)
                _ask(port, "POST", f"/v1/verdicts/{row['id']}/feedback?said=defect")
                _note(answers, id=row["id"], feedback="defect")
        _ask(port, "POST", "/v1/models/model/revise?rate=0.4")
        while _ask(port, "GET", "/v1/revision")["state"] == "working":
            time.sleep(0.01)
        _ask(port, "POST", "/v1/revision/save")
        _note(answers, model="model")
    except (OSError, ValueError, KeyError, http.client.HTTPException, MemoryError):
        pass  # it was refused, by a disk that is full or the like
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _ask(port: int, method: str, target: str, body: bytes | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, target, body, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status not in (200, 202):
        raise ValueError(content)
    return json.loads(content)


def _note(answers: int, **about: object) -> None:
    os.write(answers, (json.dumps(about) + "\n").encode())


def main() -> int:
    """Parse, run, and exit with 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="kills, and other ends, of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[name for name, call in CALLS.items() if call.writes])
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--spawn", action="store_true", help="a study in processes of its own, as for a user; slow")
    given = parser.parse_args()
    stop_at_sigterm()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    PRESETS["default"] = Preset("small", preprocess=Preprocess(32))  # else the demo takes long
    if not given.spawn:
        LocalExecutor.run = lambda self, group: studies.Inline().run(group)  # type: ignore[method-assign]
    names = given.only or [name for name, call in CALLS.items() if call.writes]
    kinds = [kind for kind in given.kind or KINDS if kind != "no permission" or os.geteuid() == 0]
    faults = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        (folder / "in").mkdir()
        places = prepare(folder / "in")
        (folder / "work").mkdir()
        for name in names:
            attack, counts, start = Attack(name, places, folder / "work"), Counter[str](), time.monotonic()
            try:
                for number in range(given.count):
                    draw = random.Random(f"{given.seed} {name} {number}")
                    kind = kinds[number % len(kinds)]
                    try:
                        how = attack.stop(kind, draw, number // len(kinds))
                    except Fault as fault:
                        how, faults = "FAULT", faults + 1
                        print(f"FAULT {given.seed} {name} {number}: {kind}\n    {fault}", flush=True)
                    counts[f"{kind}: {how}"] += 1
            finally:  # also where somebody stops it
                found = ", ".join(f"{how} {times}" for how, times in sorted(counts.items()))
                print(f"{name}: {counts.total()} stops: {found} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{given.count * len(names)} stops of {len(names)} commands, {faults} faults")
    return min(1, faults)


if __name__ == "__main__":
    sys.exit(main())
