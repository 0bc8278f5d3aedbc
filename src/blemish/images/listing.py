"""The image files below a folder, and what there was beside them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .decode import SUFFIXES


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies below a folder."""

    files: tuple[Path, ...]
    """The image files, sorted by path."""
    folders: tuple[Path, ...]
    """The folders that were listed, sorted by path, the first one left out."""
    passed_over: tuple[tuple[str, str], ...]
    """Name and reason of everything else."""


def list_folder(folder: str | Path) -> Listing:
    """List what lies below a folder; links are followed, but no folder is listed twice, so loops end.

    Raises `DatasetError` for a folder that cannot be read: images would be missing without a word. A link with the
    name of an image that leads nowhere is listed, so that decoding it says so.
    """
    root = Path(folder)
    if not _is_folder(root):
        raise DatasetError.about(str(folder), expected="a folder", got="nothing there or a file")
    files: list[Path] = []
    folders: list[Path] = []
    passed_over: list[tuple[str, str]] = []
    real = os.path.realpath(root)
    seen = {str(parent) for parent in Path(real).parents}  # a link to one of them would lead here again
    waiting, links = [root], list[Path]()
    while waiting or links:
        # Links come last: what has two names is listed by its own.
        here = waiting.pop() if waiting else links.pop(links.index(min(links)))
        real = os.path.realpath(here)
        if real in seen:
            passed_over.append((str(here), "a link to a folder that is listed already"))
            continue
        seen.add(real)
        folders.append(here)
        for entry in _entries(here):
            path, reason = Path(here, entry.name), _reason_against(entry)
            if reason is not None:
                passed_over.append((str(path), reason))
            elif not _is_folder(entry):
                files.append(path)
            else:
                (links if entry.is_symlink() else waiting).append(path)
    return Listing(tuple(sorted(files)), tuple(sorted(folders[1:])), tuple(sorted(passed_over)))


def image_files(folder: str | Path) -> list[Path]:
    """List the image files below a folder, sorted by path; see `list_folder`."""
    return list(list_folder(folder).files)


def subfolders(folder: str | Path) -> list[Path]:
    """List the folders directly in a folder, sorted by name; hidden ones are passed over."""
    return sorted(
        Path(folder, entry.name) for entry in _entries(folder) if not _is_hidden(entry.name) and _is_folder(entry)
    )


def _entries(folder: str | Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry[str] | Path) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself leads nowhere
            return False
        raise _unreadable(os.fspath(entry), error) from error


def _reason_against(entry: os.DirEntry[str]) -> str | None:
    """Why not to list a file or folder; None for an image by its name, and for a folder."""
    if _is_hidden(entry.name):
        return "hidden"
    if _is_folder(entry):
        return None
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
        return "not an image by its name"
    if os.path.exists(entry.path) and not os.path.isfile(entry.path):
        return "a pipe, socket or device"
    return None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _unreadable(folder: str | Path, error: OSError) -> DatasetError:
    reason = "no permission" if isinstance(error, PermissionError) else error.strerror
    return DatasetError(f"{folder}: the folder cannot be read ({reason}); its images would be missing.")
