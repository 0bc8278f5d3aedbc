"""Every command that writes meets a full disk, a folder that it may not write in, files that vanish, no memory.

The table is `calls.CALLS`; kills of whole processes are in `fuzz/kills.py`.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from zlib import crc32

import pytest
from typer.testing import CliRunner

import blemish.cli
import studies
from blemish.errors import BlemishError
from blemish.images.preprocess import PRESETS, Preprocess
from calls import CALLS, begin, check_whole, commands, files_in, prepare
from faults import FAULTS, WriteFault, failing, watching

WRITERS = [name for name, call in CALLS.items() if call.writes]


def test_every_command_has_a_row():
    assert sorted(name for name, _ in commands()) == sorted(CALLS)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("calls"))


@pytest.fixture
def call(places, tmp_path, monkeypatch):
    """Call a command with a folder `out`; an error that is not of our own tree is a traceback."""
    monkeypatch.setattr("blemish.study.run.LocalExecutor.run", lambda self, group: studies.Inline().run(group))
    monkeypatch.setitem(PRESETS, "default", Preprocess(32))  # else the demo takes long
    monkeypatch.setattr(blemish.cli, "OSError", BlemishError, raising=False)

    def call(name, **changed):
        arguments = CALLS[name].arguments.format(out=tmp_path / "out", **{**places, **changed}).split()
        return CliRunner().invoke(blemish.cli.app, [*name.split(), *arguments])

    return call


def fits(name, patterns):
    """Whether one of the patterns, between blanks, is that of a file or of a folder above it."""
    return any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in patterns.split())


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_is_one_line_and_leaves_nothing_torn(name, call, places, tmp_path):
    out, row, draw = tmp_path / "out", CALLS[name], crc32(name.encode())
    begin(row, places, out)
    before = files_in(out)
    # Where the disk fills up differs from command to command, so that all of them together see most of the moments.
    fault = list(FAULTS)[draw % len(FAULTS)]
    with watching(WriteFault(out, draw % 3, failing(FAULTS[fault]))):
        stopped = call(name)
    last = stopped.stderr.splitlines()[-1]
    assert (stopped.exit_code, type(stopped.exception)) == (1, SystemExit), repr(stopped.exception)
    assert last.startswith(f"error: {out}"), last
    assert os.strerror(FAULTS[fault]) in last or "unable to open" in last, last
    for path in files_in(out):
        assert path in before or fits(path, f"{row.writes} {row.stops_with}"), path
        check_whole(out / path)
    assert call(name).exit_code == 0
    assert sorted(path for path in files_in(out) if not fits(path, row.writes)) == []
    for pattern in row.writes.split():
        assert any(fits(path, pattern) for path in files_in(out)), pattern
