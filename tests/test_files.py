"""Files come into being whole or not at all, and nothing but a regular file is ever replaced."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blemish import files
from blemish.errors import BlemishError, DatasetError, OutputError
from blemish.files import check_output, make_folder, read_text, sole_writer, whole_file, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices are made as on Unix")


def test_a_file_is_written_whole(tmp_path):
    write_whole(tmp_path / "new.txt", "grün\n")
    assert (tmp_path / "new.txt").read_bytes() == "grün\n".encode()
    write_whole(str(tmp_path / "new.txt"), b"again")
    assert (tmp_path / "new.txt").read_bytes() == b"again"
    assert os.listdir(tmp_path) == ["new.txt"]


@pytest.mark.parametrize(
    "error", [RuntimeError("half way"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_what_stops_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    expected = OutputError if isinstance(error, OSError) else type(error)

    def write():
        with whole_file(path) as file:
            file.write_bytes(b"half")
            raise error

    with pytest.raises(expected):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model"]


def test_a_full_disk_is_named_as_such(tmp_path, monkeypatch):
    def replace(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match=r"model: cannot be written \(No space left on device\)"):
        write_whole(tmp_path / "model", b"x")


def test_what_a_killed_process_left_is_swept_away_and_a_living_ones_is_not(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for left in (f".m[1].{int(gone.stdout)}.tmp", f".m[1].{int(gone.stdout)}-7.tmp"):
        (tmp_path / left).touch()
    living = tmp_path / f".m[1].{os.getppid()}.tmp"
    living.touch()
    others = [tmp_path / ".m[1].bak.tmp", tmp_path / f".m1.{int(gone.stdout)}.tmp"]
    for other in others:
        other.touch()
    write_whole(tmp_path / "m[1]", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "m[1]", living, *others])


def test_threads_that_write_one_file_do_not_share_what_they_write_to(tmp_path):
    with whole_file(tmp_path / "m") as mine, ThreadPoolExecutor(1) as pool:
        mine.write_bytes(b"mine")
        pool.submit(write_whole, tmp_path / "m", b"theirs").result()
        assert mine.read_bytes() == b"mine"
    assert (tmp_path / "m").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["m"]


_HOLDS = "import sys; from blemish.files import sole_writer\nwith sole_writer(sys.argv[1]): print(flush=True); input()"


def held_by_another(path):
    """Another process that keeps a file for itself until it is told to end."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "lines"
    with held_by_another(path) as other:
        for name in (path, tmp_path / ".." / tmp_path.name / "lines"):
            with pytest.raises(OutputError, match="lines: another process writes to it"), sole_writer(name):
                pass
        with sole_writer(tmp_path / "else"):
            pass
        other.communicate(b"\n")
    assert os.listdir(tmp_path) == []
    with sole_writer(path), pytest.raises(OutputError), sole_writer(path):
        pass


def test_a_killed_process_keeps_no_file(tmp_path):
    with held_by_another(tmp_path / "lines") as other:
        other.kill()
    assert os.listdir(tmp_path) == [".lines.lock"]
    with sole_writer(tmp_path / "lines"):
        pass
    assert os.listdir(tmp_path) == []


@posix
def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Else two would hold a file of one name: the old one, and the one that a third has made anew."""
    removed, flock = [], files.fcntl.flock

    def lock(file, how):
        if not removed:
            removed.append(os.unlink(file.name))
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", lock)
    with sole_writer(tmp_path / "lines"):
        assert os.listdir(tmp_path) == [".lines.lock"]


@posix
def test_a_disk_that_knows_no_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with sole_writer(tmp_path / "lines"):
        pass


@posix
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store" / "model")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "model").read_bytes() == b"new"
    assert check_output(tmp_path / "link") == tmp_path / "store" / "model"


@posix
@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "device", "link to a device", "broken parent", "file as folder", ""]
)
def test_nothing_but_a_regular_file_is_replaced(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "broken parent":
        path = tmp_path / "nowhere" / "out"
    elif kind == "file as folder":
        path.touch()
        path = path / "out"
    else:
        path = ""
    for use in (check_output, lambda p: write_whole(p, b"x")):
        with pytest.raises(OutputError, match=r"expected (a file|the name of a file)"):
            use(path)
    assert Path("/dev/null").is_char_device()


@posix
def test_the_rights_of_the_old_file_stay_and_a_new_one_follows_the_umask(tmp_path):
    write_whole(tmp_path / "new", b"x")
    before = os.umask(0)
    os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~before
    (tmp_path / "new").chmod(0o640)
    write_whole(tmp_path / "new", b"y")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_write_protected_file_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "m").write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path / "m")  # root may do everything
    with pytest.raises(OutputError, match="m: is write-protected"):
        check_output(tmp_path / "m")
    assert check_output(tmp_path / "new") == tmp_path / "new"


def test_old_folders_of_killed_processes_are_swept_away(tmp_path):
    for name, age in (("maps-old", 7200), ("maps-new", 0), ("others", 7200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.sweep_folders(tmp_path, "maps-")
    assert sorted(os.listdir(tmp_path)) == ["maps-new", "others"]


def test_a_closed_pipe_is_one_and_a_wrong_argument_is_none():
    assert files.is_broken_pipe(BrokenPipeError(32, "Broken pipe"))
    assert not files.is_broken_pipe(OSError(22, "Invalid argument"))


def test_the_error_is_an_oserror_too():
    assert issubclass(OutputError, OSError)
    assert issubclass(OutputError, BlemishError)


class TestWindows:
    """What differs there, simulated: an open file cannot be replaced, and some names are none."""

    @pytest.fixture(autouse=True)
    def windows(self, monkeypatch):
        monkeypatch.setattr(files, "_IS_WINDOWS", True)
        monkeypatch.setattr(files, "_WAITS", (0, 0))

    @pytest.mark.parametrize("refusals", [1, 2, 3])
    def test_a_file_that_is_open_elsewhere_is_replaced_a_moment_later(self, tmp_path, monkeypatch, refusals):
        replace, tried = os.replace, []

        def busy(old, new):
            tried.append(new)
            if len(tried) <= refusals:
                raise PermissionError(13, "The process cannot access the file")
            replace(old, new)

        monkeypatch.setattr(os, "replace", busy)
        (tmp_path / "m").write_bytes(b"old")
        if refusals < 3:
            write_whole(tmp_path / "m", b"new")
        else:
            with pytest.raises(OutputError, match=r"m: cannot be written \(The process cannot access the file\)"):
                write_whole(tmp_path / "m", b"new")
        assert (tmp_path / "m").read_bytes() == (b"new" if refusals < 3 else b"old")
        assert os.listdir(tmp_path) == ["m"]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("con", "con is a device"), ("NUL.blemish", "nul is a device"), ("a:b", "a colon"), ("m.", "a dot or blank")],
    )
    def test_names_that_would_be_something_else_are_refused(self, tmp_path, name, reason):
        with pytest.raises(OutputError, match=reason):
            check_output(tmp_path / name)
        assert check_output(tmp_path / "console.blemish").name == "console.blemish"

    @pytest.mark.parametrize(
        ("error", "is_one"),
        [(OSError(22, "Invalid"), True), (OSError(22, "Invalid", "m"), False), (OSError(5, "x"), False)],
    )
    def test_a_closed_pipe_is_known_by_what_windows_says(self, error, is_one):
        assert files.is_broken_pipe(error) == is_one

    def test_only_old_temporary_files_are_swept_away(self, tmp_path):
        for pid, age in ((1, 2 * files._OLD_SECONDS), (2, 0)):
            (tmp_path / f".m.{pid}.tmp").touch()
            now = time.time() - age
            os.utime(tmp_path / f".m.{pid}.tmp", (now, now))
        write_whole(tmp_path / "m", b"x")
        assert sorted(os.listdir(tmp_path)) == [".m.2.tmp", "m"]


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_what_is_no_name_of_a_folder_or_file_is_refused(path):
    for use in (make_folder, check_output):
        with pytest.raises(OutputError, match="expected the name of a f"):
            use(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/below: cannot be written \(Not a directory\)|cannot be written"):
        make_folder(tmp_path / "file" / "below")


def _waits_for_a_writer(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "the file does not exist, expected a list. Make one."),
        (Path.mkdir, "expected a list, got a folder. Make one."),
        pytest.param(_waits_for_a_writer, "expected a list, got a pipe, socket or device. Make one.", marks=posix),
        (lambda path: path.write_bytes(b"gr\xf6n"), "cannot be read as UTF-8 text ('utf-8' codec can't decode byte"),
    ],
    ids=["missing", "folder", "pipe", "latin-1"],
)
def test_what_is_no_text_is_refused_by_its_name_and_never_waited_for(tmp_path, make, message):
    path = tmp_path / "names.txt"
    make(path)
    with pytest.raises(DatasetError, match=rf"names\.txt: {re.escape(message)}"):
        read_text(path, expected="a list", instead="Make one.", error=DatasetError)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "names.txt").write_text("a.png", "utf-8-sig")
    assert read_text(tmp_path / "names.txt") == "a.png"
