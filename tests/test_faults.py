"""Every command that writes meets a full disk, a folder that it may not write in, files that vanish, no memory.

The table is `calls.CALLS`; kills of whole processes are in `fuzz/kills.py`.
"""

from __future__ import annotations

import errno
import os
import random
import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from zlib import crc32

import matplotlib
import pytest
from typer.testing import CliRunner

import blemish.cli
import studies
from blemish.errors import BlemishError, OutputError
from blemish.files import sole_writer
from blemish.images.preprocess import Preprocess
from blemish.presets import PRESETS, Preset
from blemish.station.logbook import FILE
from blemish.study.store import Store
from calls import CALLS, READS, WRITES_NOTHING, begin, check_whole, commands, files_in, prepare
from faults import FAULTS, WriteFault, failing, watching
from fuzz import kills
from fuzz.commands import options_of

WRITERS = [name for name, call in CALLS.items() if call.writes]
MMAP = RuntimeError("unable to mmap 9 bytes from file <m.blemish>: Cannot allocate memory (12)")
HEAVY = ("distil descriptor", "export", "ood export")
"""Seconds; the same lines of code write what `distil backbone` writes, and `files.write_whole` what both exports do."""


def rows(names):
    return [pytest.param(name, marks=pytest.mark.heavy) if name in HEAVY else name for name in names]


def test_every_command_has_a_row():
    assert sorted(name for name, _ in commands()) == sorted(CALLS)


def test_every_command_that_writes_is_attacked():
    """A new command, or a new option of one, joins the table, or is said to write nothing, or to read."""
    assert {name for name, row in CALLS.items() if not row.writes} == WRITES_NOTHING
    for name, function in commands():
        row, options = CALLS[name], [o.name for o in options_of(function) if o.kind is Path and o.name]
        in_place = {"--out"} if row.begins_with else set()  # which goes through the same lines of code
        missing = set(options) - READS - in_place - set(row.arguments.split())
        assert not missing, f"{name}: say in tests/calls.py what {missing} writes, or that it reads"


@pytest.mark.parametrize("name", sorted(WRITES_NOTHING))
def test_a_command_that_is_said_to_write_nothing_writes_nothing(name, call, ready):
    ready(name)
    matplotlib.get_configdir()  # which it makes when it is asked for the first time
    written = []
    with watching(lambda event, path, is_written: written.append(path) if is_written else None):
        assert call(name).exit_code == 0
    assert [path for path in written if not path.startswith((os.devnull, tempfile.gettempdir() + os.sep + "tmp"))] == []


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("calls"))


@pytest.fixture
def call(places, tmp_path, monkeypatch):
    """Call a command with a folder `out`; an error that is not of our own tree is a traceback."""
    monkeypatch.setattr("blemish.study.run.LocalExecutor.run", lambda self, group: studies.Inline().run(group))
    monkeypatch.setitem(PRESETS, "default", Preset("small", preprocess=Preprocess(32)))  # else the demo takes long
    monkeypatch.setattr(blemish.cli, "OSError", BlemishError, raising=False)

    def call(name):
        arguments = CALLS[name].arguments.format(out=tmp_path / "out", **places).split()
        done = CliRunner(charset="cp1252").invoke(blemish.cli.app, [*name.split(), *arguments])  # as on Windows
        assert not re.search(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}", done.output)
        return done

    return call


@pytest.fixture
def ready(places, tmp_path):
    """Make the folder `out` for a command."""
    return lambda name: begin(CALLS[name], places, tmp_path / "out")


def fits(name, patterns):
    """Whether one of the patterns, between blanks, is that of a file or of a folder above it."""
    return any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in patterns.split())


@pytest.mark.parametrize("name", rows(WRITERS))
def test_a_write_that_fails_is_one_line_and_leaves_nothing_torn(name, call, ready, tmp_path):
    ready(name)
    out, row, draw = tmp_path / "out", CALLS[name], crc32(name.encode())
    # Where the disk fills up differs from command to command, so that all of them together see most of the moments.
    fault = list(FAULTS)[draw % len(FAULTS)]
    at = 1 if name in ("watch", "stream") else draw % 3  # which opens one, behind its lock
    with watching(WriteFault(out, at, failing(FAULTS[fault]))):
        stopped = call(name)
    last = stopped.stderr.splitlines()[-1]
    assert (stopped.exit_code, type(stopped.exception)) == (1, SystemExit), repr(stopped.exception)
    assert last.startswith(f"error: {out}"), last
    assert os.strerror(FAULTS[fault]) in last or "unable to open" in last, last
    for path in files_in(out):
        assert fits(path, f"{row.writes} {row.stops_with} {row.begins_with}"), path
        check_whole(out / path)
    assert call(name).exit_code == 0
    assert sorted(path for path in files_in(out) if not fits(path, row.writes)) == []
    for pattern in row.writes.split():
        assert any(fits(path, pattern) for path in files_in(out)), pattern


SHARED = {
    "predict": "r/results.jsonl", "watch-scores": "d.json", "watch": "w.jsonl", "stream": "s.jsonl",
    "serve": f"s/{FILE}", "study": "s/study.sqlite", "update": "model.blemish", "recalibrate": "model.blemish",
    "feedback": "model.blemish", "forget": "other.blemish", "upgrade": "old.blemish",
    "distil backbone": "c.safetensors",
}  # fmt: skip
"""What a command adds to, or reads and then replaces: two processes at a time would spoil it."""


@pytest.mark.parametrize("name", SHARED)
def test_what_another_process_writes_is_refused_and_left_as_it_is(name, call, ready, tmp_path):
    ready(name)
    out, path = tmp_path / "out", tmp_path / "out" / SHARED[name]
    path.parent.mkdir(exist_ok=True)
    before = files_in(out)
    with sole_writer(path):
        refused = call(name)
        assert files_in(out) == before | {path.with_name(f".{path.name}.lock").relative_to(out).as_posix()}
    assert (refused.exit_code, type(refused.exception)) == (1, SystemExit), repr(refused.exception)
    assert refused.stderr.splitlines()[-1].startswith(f"error: {path}: another process writes to it. ")
    assert call(name).exit_code == 0
    assert not [name for name in files_in(out) if name.endswith(".lock")]


@pytest.mark.parametrize("name", rows(name for name in CALLS if name not in ("list", "report", "store export")))
def test_an_input_that_vanishes_is_one_line(name, call, ready, tmp_path):
    ready(name)
    out, seen = tmp_path / "out", []
    at = 0 if name == "upgrade" else crc32(name.encode()) % 3  # which has one

    def vanish(event, path, written):
        is_input = f"{os.sep}calls" in path or path.startswith(f"{out}{os.sep}")
        if event == "open" and is_input and not written and os.path.isfile(path):
            seen.append(path)
            if len(seen) > at:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    with watching(vanish):
        done = call(name)
    lines = done.output.splitlines()
    assert (done.exit_code, type(done.exception)) in ((1, SystemExit), (0, type(None))), repr(done.exception)
    assert seen
    assert any(path in line or Path(path).name in line for line in lines for path in seen), lines[-3:]
    last = done.stderr.splitlines()[-1]
    assert done.exit_code == 0 or last.startswith("error: ") or (name == "study" and "failed" in last), last


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread"), MMAP, RuntimeError("else")])
def test_too_little_memory_is_one_line_and_another_error_is_none(call, ready, monkeypatch, error):
    ready("fit")

    def fit(*_args, **_options):
        raise error

    monkeypatch.setattr("blemish.detector.Detector.fit", fit)
    done = call("fit")
    if str(error) == "else":
        assert done.exception is error
    else:
        assert (done.exit_code, done.stderr.splitlines()[-1][:25]) == (1, "error: not enough memory ")


def test_a_study_in_a_folder_that_cannot_be_written_is_not_another_file(tmp_path):
    cells = studies.plan(tmp_path, data=(str(tmp_path),)).cells()
    with Store(tmp_path / "study.sqlite") as store:
        store._file.execute("PRAGMA query_only = ON")
        with pytest.raises(OutputError, match=r"study\.sqlite: cannot be read or written"):
            store.add(cells)


@pytest.mark.skipif(os.name != "posix", reason="kills processes that it has forked")
def test_some_kills_of_real_processes_tear_nothing(places, tmp_path):
    kinds = ("at a write", "full disk")  # which come at a place in the work, not at a time
    attack = kills.Attack("predict", places, tmp_path)
    ends = [attack.stop(kind, random.Random(2), number) for number, kind in enumerate(kinds)]  # 2: no byte fits
    assert ends == ["killed", "refused"]
