"""The results of studies: one SQLite file, one row a cell.

A row is written in one transaction, so a kill at any moment leaves whole rows only. Rows are added and filled in, never
deleted, and a finished one is never touched again.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, OutputError
from ..files import make_folder, naming, whole_file
from ..metrics.table import TABLE
from .plan import Cell

_VERSION = 1
_CELL = {
    "key": "TEXT PRIMARY KEY",
    "status": "TEXT NOT NULL",  # waiting, finished or failed
    "reason": "TEXT",  # of a failure
    "dataset": "TEXT NOT NULL",
    "method": "TEXT NOT NULL",
    "parameters": "TEXT NOT NULL",  # JSON
    "backbone": "TEXT NOT NULL",
    "weights": "TEXT NOT NULL",
    "taps": "TEXT",  # joined by +; NULL: the method's own
    "seed": "INTEGER NOT NULL",
    "resize": "TEXT NOT NULL",  # JSON
    "crop": "INTEGER",
    "held_out": "REAL NOT NULL",
    "false_alarm_rate": "REAL NOT NULL",
    "white_level": "TEXT",  # JSON; NULL: the file's own
}
FIGURES = {
    **{name: "REAL" for name, row in TABLE.items() if not row.is_count},
    "n_fit": "INTEGER",
    "n_held_out": "INTEGER",
    **{name: "INTEGER" for name, row in TABLE.items() if row.is_count},
    "model_bytes": "INTEGER",
    "intervals": "TEXT",  # JSON: name to [low, high]
    "rest": "TEXT",  # JSON: kinds, skipped files ...
    "dataset_digest": "TEXT",  # of the list of files with their sizes
    "weights_digest": "TEXT",
}
"""Columns that are the same each time a cell runs on one machine with one number of threads."""
COSTS = {
    "fit_seconds": "REAL",  # without decoding and forward passes
    "decode_ms": "REAL",  # an image
    "forward_ms": "REAL",
    "score_ms": "REAL",
    "seconds": "REAL",  # of the whole cell, figures included
    "peak_bytes": "INTEGER",
    "shared_bytes": "INTEGER",  # of the group's features, part of the peak where they are in memory
    "threads": "INTEGER",
    "device": "TEXT",
    "versions": "TEXT",  # JSON
    "finished_at": "TEXT",  # UTC
    "trace": "TEXT",  # of a failure that is not an error of blemish's own
}
COLUMNS = _CELL | FIGURES | COSTS


class Store(AbstractContextManager["Store"]):
    """The file; use it in a `with` statement. One process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        with self._blaming_the_disk():
            self._file = sqlite3.connect(self.path, isolation_level=None, timeout=60)
        try:
            with self._blaming_the_disk():
                self._open()
        except sqlite3.DatabaseError as error:
            self._file.close()
            raise ArgumentError.about(str(self.path), expected="a study file", got=f"another one ({error})") from None
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != _VERSION and (version or tables):
            raise ArgumentError.about(
                str(self.path),
                expected=f"a study file of version {_VERSION}",
                got=f"version {version}",
                instead="Name another folder.",
            )
        self._file.execute("PRAGMA journal_mode = WAL")
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        self._file.execute("BEGIN IMMEDIATE")
        self._file.execute(f"CREATE TABLE IF NOT EXISTS cells ({columns})")
        known = {name for _, name, *_ in self._file.execute("PRAGMA table_info(cells)")}
        for name in COLUMNS.keys() - known:  # figures that are newer than the file
            self._file.execute(f"ALTER TABLE cells ADD COLUMN {name} {COLUMNS[name]}")
        self._file.execute(f"PRAGMA user_version = {_VERSION}")
        self._file.execute("COMMIT")

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    @contextmanager
    def _blaming_the_disk(self) -> Iterator[None]:
        """A full disk, a folder that cannot be written, a lock: not the file's fault. Raises `OutputError`."""
        with naming(self.path):
            try:
                yield
            except sqlite3.OperationalError as error:
                raise OutputError(f"{self.path}: cannot be read or written ({error}).") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, on disk when it ends."""
        with self._blaming_the_disk():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._file.execute("COMMIT")
            finally:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")

    def add(self, cells: Iterable[Cell]) -> None:
        """Give every cell its row, waiting; cells that have one keep it."""
        rows = [_identity(cell) for cell in cells]
        for text in (value for row in rows for value in row.values() if isinstance(value, str)):
            if text != text.encode(errors="ignore").decode():  # a name of a file may have bytes that are no text
                raise ArgumentError.about("data", expected="names that are UTF-8", got=repr(text)[:200])
        names = ", ".join(rows[0]) if rows else ""
        with self._transaction():
            for row in rows:
                marks = ", ".join("?" * len(row))
                self._file.execute(f"INSERT OR IGNORE INTO cells ({names}) VALUES ({marks})", tuple(row.values()))

    def retry(self, cells: Iterable[Cell]) -> None:
        """Let failed cells wait again."""
        with self._transaction():
            for cell in cells:
                self._file.execute(
                    "UPDATE cells SET status = 'waiting', reason = NULL, trace = NULL "
                    "WHERE key = ? AND status = 'failed'",
                    (cell.key,),
                )

    def record(self, key: str, values: Mapping[str, Any]) -> None:
        """Fill in a cell's row in one step; `status` among the values says what it has become."""
        settings = ", ".join(f"{name} = ?" for name in values)
        with self._transaction():
            self._file.execute(
                f"UPDATE cells SET {settings} WHERE key = ? AND status != 'finished'",
                (*(_stored(value) for value in values.values()), key),
            )

    def status(self, cells: Iterable[Cell]) -> dict[str, str]:
        """`waiting`, `finished` or `failed`, by key."""
        with self._blaming_the_disk():
            found = dict(self._file.execute("SELECT key, status FROM cells"))
        return {cell.key: found[cell.key] for cell in cells}

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which they were added."""
        everything = f"SELECT {', '.join(COLUMNS)} FROM cells ORDER BY rowid"
        with self._blaming_the_disk(), closing(self._file.execute(everything)) as found:
            return [dict(zip(COLUMNS, row, strict=True)) for row in found]

    def write_csv(self, path: str | Path) -> None:
        """Copy all rows to a CSV file, replaced in one step."""
        with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows())


def _identity(cell: Cell) -> dict[str, Any]:
    values = asdict(cell)
    return {
        "key": cell.key,
        "status": "waiting",
        **{name: values[name] for name in _CELL if name in values},
        "parameters": json.dumps(dict(cell.parameters)),
        "taps": "+".join(cell.taps) if cell.taps else None,
        "resize": json.dumps(cell.resize),
        "white_level": None if cell.white_level is None else json.dumps(cell.white_level),
    }


def _stored(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value
