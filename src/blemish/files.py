"""Files come into being whole, or not at all: the one place that replaces a file, and that reads one of text.

Whatever the system says against it becomes an error of ours that names the file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from .errors import ArgumentError, BlemishError, OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_IS_WINDOWS = sys.platform == "win32"
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between tries to replace a file that another program has open, such as a scanner: Windows forbids that."""
_OLD_SECONDS = 3600.0
"""Age from which on a temporary file is left over, where one cannot ask whether its process lives."""
_DEVICES = frozenset({"aux", "con", "nul", "prn", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))})
"""Names that Windows takes for a device in every folder, whatever the ending."""


def check_output(path: str | Path, *, beside: Iterable[str | Path] = ()) -> Path:
    """Refuse, before any work, a file that could not be written; gives its path with all links followed.

    An existing file must be a regular one: a device, a pipe or a folder is never replaced, nor one of those `beside` it
    which are read. What a link leads to is written, the link stays.
    """
    _check_name(path, "a file")
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise OutputError(f"{path}: expected a file in an existing folder, {target.parent} is none. Make it first.")
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise _unwritable(path, error) from None
    if any(target == Path(os.path.realpath(other)) for other in beside):
        raise OutputError(f"{path}: is read, and cannot be written as well. Choose another name.")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise OutputError(f"{path}: expected a file, got {kind}, which is not replaced. Choose another name.")
    if target.exists() and not os.access(target, os.W_OK):  # Windows would say so after the work
        raise OutputError(f"{path}: is write-protected. Take that off, or choose another name.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {target.parent}. Choose another folder.")
    return target


def check_input(path: str | Path, *, of: str) -> None:
    """Refuse, before any work, what is not there. Raises `ArgumentError`."""
    if not os.path.exists(path):
        raise ArgumentError.about(of, expected="what is there", got=f"{path}, which is not")


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, where they are missing. Raises `OutputError`."""
    _check_name(path, "a folder")
    with naming(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file in what the system says against writing it. Raises `OutputError`; not where nobody reads stdout."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if str(path) == "<stdout>" and is_broken_pipe(error):
            raise
        raise _unwritable(path, error) from error


@contextmanager
def whole_file(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a new, empty file beside `path` to write to; at the end it takes that one's place in one step.

    An error, a kill or a full disk leaves the old file as it was; so does a power failure, where it is `durable`, which
    takes the disk some milliseconds. Raises `OutputError`.
    """
    target = check_output(path)
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with naming(path):
            temporary.touch()
            mode = target.stat().st_mode if target.exists() else temporary.stat().st_mode
            yield temporary
            temporary.chmod(stat.S_IMODE(mode))  # some writers make files that only the owner can read
            if durable:
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())  # the new name must not reach the disk before the content
            _replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def sole_writer(path: str | Path) -> Iterator[None]:
    """Keep every other process from writing a file as well, and be refused where one does. Raises `OutputError`.

    What is locked is an empty file beside it, as Windows would lock readers out and a file that is replaced loses its
    lock. It goes at the end; one that a killed process has left is locked no more. A disk that knows no locks has none.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.lock")
    with naming(beside):
        file = _locked(beside)
    if file is None:
        raise OutputError(f"{path}: another process writes to it. Wait for its end, or choose another name.")
    try:
        yield
    finally:
        if _IS_WINDOWS:  # an open file stays there
            file.close()
        with suppress(OSError):
            beside.unlink()
        file.close()


def sweep(folder: str | Path) -> None:
    """Remove from a folder what killed processes of this machine left there, whatever file it should have become."""
    for leftover in Path(folder).glob(".*.tmp"):
        _remove(leftover, leftover.name.rpartition(".tmp")[0].rpartition(".")[2])


def is_broken_pipe(error: Exception) -> bool:
    """Whether the other end of a pipe is closed; Windows says that an argument is invalid, and of no file."""
    is_like_it = isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or (_IS_WINDOWS and is_like_it)


def sweep_folders(folder: str | Path, prefix: str) -> None:
    """Remove what killed processes left: folders of a prefix, an hour old, whose files are mapped while they are used.

    Windows does not let go a file that is mapped; elsewhere it has no name by then.
    """
    for leftover in Path(folder).glob(f"{_literal(prefix)}*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _OLD_SECONDS:
                shutil.rmtree(leftover)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file in one step, text as UTF-8; see `whole_file`."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with whole_file(path) as file:
        file.write_bytes(data)


def open_lines(path: str | Path, mode: Literal["w", "a"]) -> IO[str]:
    """Open a text to write line by line: in UTF-8, and with the same line ends on every system."""
    return Path(path).open(mode, encoding="utf-8", newline="\n")


def read_text(
    path: str | Path, *, expected: str = "a text file", instead: str = "", error: type[BlemishError] = ArgumentError
) -> str:
    """Read a file of UTF-8 text, with or without a byte order mark. Raises `error`, which names the file.

    A pipe or a device, which would block for ever or never end, is refused.
    """
    try:
        require_file(path, expected=expected, instead=instead, error=error)
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path}: the file does not exist, expected {expected}. {instead}".rstrip()) from None
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}), expected {expected}.") from reason
    except ValueError as reason:
        if isinstance(reason, BlemishError):
            raise
        raise error(f"{path}: cannot be read as UTF-8 text ({reason}), expected {expected}.") from reason


def require_file(
    path: str | Path, *, expected: str, instead: str = "", error: type[BlemishError] = ArgumentError
) -> None:
    """Refuse a folder, and a pipe or a device, which would block for ever or never end. Raises `error`."""
    if os.path.exists(path) and not os.path.isfile(path):
        got = "a folder" if os.path.isdir(path) else "a pipe, socket or device"
        raise error.about(str(path), expected=expected, got=got, instead=instead)


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says. Raises `ValueError` for what is none, or is nested so deep that no reader ends."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _check_name(path: str | Path, kind: str) -> None:
    """Refuse a name that no file can have, or that Windows takes for something else."""
    text = str(path)
    try:
        is_name = bool(text) and "\0" not in text and bool(os.fsencode(text))
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise OutputError.about("path", expected=f"the name of {kind}", got=repr(text))
    reason = _reason_against(Path(text).name) if _IS_WINDOWS else None
    if reason is not None:
        raise OutputError(f"{path}: {reason} on Windows. Choose another name.")


def _locked(path: Path) -> IO[bytes] | None:
    """The file, open and locked until it is closed; None where another one has it."""
    while True:
        file = path.open("ab")
        try:
            if not _lock(file):
                file.close()
                return None
            if _IS_WINDOWS or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:  # the one that had it removed it meanwhile
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file without waiting; False where another one has it. A killed process has it no more."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # some disks of other machines
        return True
    return True


def _replace(temporary: Path, target: Path) -> None:
    for wait in _WAITS:
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            if not _IS_WINDOWS:
                raise
            time.sleep(wait)
    os.replace(temporary, target)


def _reason_against(name: str) -> str | None:
    """Why Windows would make something else than a file of this name, without a word.

    >>> [_reason_against(name) for name in ("model.blemish", "con.html", "a:b", "end.")]
    [None, 'con is a device', 'a name with a colon is a part of another file', 'a name cannot end in a dot or blank']
    """
    stem = name.partition(".")[0].rstrip().casefold()
    if stem in _DEVICES:
        return f"{stem} is a device"
    if ":" in name:
        return "a name with a colon is a part of another file"
    return "a name cannot end in a dot or blank" if name.endswith((".", " ")) else None


def _sweep(target: Path) -> None:
    """Remove what killed processes of this machine left of earlier tries."""
    prefix = f".{target.name}."
    for leftover in target.parent.glob(f"{_literal(prefix)}*.tmp"):
        _remove(leftover, leftover.name.removeprefix(prefix).removesuffix(".tmp"))


def _remove(leftover: Path, owner: str) -> None:
    """Remove a temporary file where nobody writes it any more; `owner` are the numbers of a process and a thread."""
    found = re.fullmatch("([0-9]+)(-[0-9]+)?", owner)
    with suppress(OSError):
        if found and not _is_in_use(leftover, int(found[1])):
            leftover.unlink()


def _literal(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _is_in_use(leftover: Path, pid: int) -> bool:
    if _IS_WINDOWS:  # there, asking is killing
        return time.time() - leftover.stat().st_mtime < _OLD_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _unwritable(path: str | Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}).")
