"""Files come into being whole, or not at all: the one place that replaces a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


def check_output(path: str | Path) -> Path:
    """Refuse, before any work, a file that could not be written; gives its path with all links followed.

    An existing file must be a regular one: a device, a pipe or a folder is never replaced. What a link leads to is
    written, the link stays.
    """
    text = str(path)
    if not text or "\0" in text:
        raise OutputError.about("path", expected="the name of a file", got=repr(text))
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise OutputError(f"{path}: expected a file in an existing folder, {target.parent} is none. Make it first.")
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise _unwritable(path, error) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise OutputError(f"{path}: expected a file, got {kind}, which is not replaced. Choose another name.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {target.parent}. Choose another folder.")
    return target


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a new, empty file beside `path` to write to; at the end it takes that one's place in one step.

    An error, a kill or a full disk leaves the old file as it was. Raises `OutputError`.
    """
    target = check_output(path)
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = target.stat().st_mode if target.exists() else temporary.stat().st_mode
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # some writers make files that only the owner can read
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # the new name must not reach the disk before the content
        os.replace(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file in one step, text as UTF-8; see `whole_file`."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with whole_file(path) as file:
        file.write_bytes(data)


def _sweep(target: Path) -> None:
    """Remove what killed processes of this machine left of earlier tries."""
    prefix = f".{target.name}."
    for leftover in target.parent.glob(f"{_literal(prefix)}*.tmp"):
        pid = leftover.name.removeprefix(prefix).removesuffix(".tmp")
        if pid.isdecimal() and not _is_alive(int(pid)):
            with suppress(OSError):
                leftover.unlink()


def _literal(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, asking is killing
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _unwritable(path: str | Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror or error}).")
