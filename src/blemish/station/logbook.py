"""What a station keeps: every verdict, what operators said of it, pictures by digest, models that it made.

One SQLite file in WAL mode. A change is on the disk (`synchronous=FULL`) before its future is done, and changes that
come at the same time share one commit. A kill at any moment, or a power cut on a disk that keeps its word, leaves whole
changes only, and all of those that were confirmed.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import ArgumentError, OutputError
from ..files import make_folder, naming, parse_json, sole_writer
from ..report.lines import look_of
from ..types import Look

_T = TypeVar("_T")
_Change = tuple[Callable[[sqlite3.Connection], Any], Future[Any]]
FILE = "station.sqlite"
SCHEMA_VERSION = 1
_DIGEST = re.compile("[0-9a-f]{64}")
_AT_ONCE = 256
"""Changes in one commit at most."""
_LOOK_EVERY = 60.0
"""Seconds between looks for pictures that are too old."""
_SCHEMA = (
    "CREATE TABLE verdicts (id INTEGER PRIMARY KEY, time REAL NOT NULL, model TEXT NOT NULL, "
    "picture TEXT NOT NULL, part TEXT, score REAL NOT NULL, p_value REAL, anomalous INTEGER, line TEXT NOT NULL)",
    "CREATE INDEX verdicts_by_model ON verdicts (model, time)",
    "CREATE INDEX verdicts_by_picture ON verdicts (picture)",
    "CREATE TABLE feedback (id INTEGER PRIMARY KEY, verdict INTEGER NOT NULL REFERENCES verdicts, "
    "time REAL NOT NULL, said TEXT)",
    "CREATE INDEX feedback_by_verdict ON feedback (verdict)",
    "CREATE TABLE pictures (digest TEXT PRIMARY KEY, time REAL NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL)",
    "CREATE INDEX pictures_by_time ON pictures (time)",
    "CREATE TABLE models (id INTEGER PRIMARY KEY, time REAL NOT NULL, name TEXT NOT NULL, file TEXT NOT NULL, "
    "how TEXT NOT NULL, base TEXT, undone INTEGER NOT NULL DEFAULT 0)",
)
_SAID = "(SELECT said FROM feedback WHERE verdict = verdicts.id ORDER BY feedback.id DESC LIMIT 1)"

_SPOKEN = {"anything": (f"{_SAID} IS NOT NULL OR ?", 0), "nothing": (f"{_SAID} IS NULL OR ?", 0)}

Said = Literal["fine", "defect"]
"""What an operator says of a verdict's picture."""


@dataclass(frozen=True)
class Retention:
    """How long pictures stay; verdicts stay for ever. Pictures that an operator spoke of outlive the others."""

    days: float = 30.0
    """Older ones go, but for those with feedback."""
    max_bytes: int = 10_000_000_000
    """Of all pictures: the oldest go first, those with feedback last."""


@dataclass(frozen=True)
class Verdict:
    """One picture that was judged, to be kept."""

    model: str
    picture: str
    """Digest of its bytes."""
    part: str | None
    score: float
    p_value: float | None
    anomalous: bool | None
    line: Mapping[str, object]
    """All that is answered, but for `id`, time, name of the model and part, which this adds."""
    content: bytes | None
    """The file itself; None: the picture is not kept."""


class Logbook(AbstractContextManager["Logbook"]):
    """The store of a station; one process has it open for writing. Use it in a `with` statement.

    Raises `ArgumentError` for a file of another kind or version, `OutputError` where it cannot be written.
    """

    def __init__(self, folder: str | Path, *, retention: Retention | None = None) -> None:
        self.folder = make_folder(folder)
        self.path = self.folder / FILE
        self._retention = retention or Retention()
        with ExitStack() as held:
            held.enter_context(sole_writer(self.path))
            self._file = held.enter_context(closing(_connect(self.path)))
            _open(self._file, self.path)
            self._bytes = int(self._file.execute("SELECT coalesce(sum(size), 0) FROM pictures").fetchone()[0])
            self._reader = held.enter_context(closing(_connect(self.path)))
            self._held = held.pop_all()
        self._look_at = 0.0
        self._reading = threading.Lock()
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self.commits = 0
        """How many there were, for the metrics."""
        self._thread = threading.Thread(target=self._run, name="blemish-logbook")
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._changes.put(None)
        self._thread.join()
        self._held.close()

    @property
    def picture_bytes(self) -> int:
        """Of all pictures that are kept."""
        return self._bytes

    def add(self, verdicts: Sequence[Verdict]) -> Future[list[dict[str, Any]]]:
        """Keep verdicts; gives their lines, which are on the disk when the future is done."""
        return self._change(lambda file: [self._insert(file, verdict) for verdict in verdicts])

    def say(self, verdict: int, said: Said | None) -> Future[bool]:
        """Keep what an operator says of a verdict, None to take it back; gives whether there is such a verdict."""

        def change(file: sqlite3.Connection) -> bool:
            if file.execute("SELECT 1 FROM verdicts WHERE id = ?", (verdict,)).fetchone() is None:
                return False
            file.execute("INSERT INTO feedback (verdict, time, said) VALUES (?, ?, ?)", (verdict, time.time(), said))
            return True

        return self._change(change)

    def add_model(self, name: str, file: str, *, how: str, base: str | None) -> Future[None]:
        """Keep that a model of this name is now in a file of the store, and which model file it came from."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO models (time, name, file, how, base) VALUES (?, ?, ?, ?, ?)",
                (time.time(), name, file, how, base),
            )

        return self._change(change)

    def undo_model(self, name: str) -> Future[bool]:
        """Take the latest model of a name back; gives whether there was one."""
        undo = "UPDATE models SET undone = 1 WHERE id = (SELECT max(id) FROM models WHERE name = ? AND NOT undone)"
        return self._change(lambda file: file.execute(undo, (name,)).rowcount > 0)

    def models(self) -> list[dict[str, Any]]:
        """The models that the station made and nobody took back, the oldest first."""
        return self._rows("SELECT * FROM models WHERE NOT undone ORDER BY id", ())

    def model_files(self) -> set[str]:
        """Names of the files of all models that the station made, also of those that were taken back."""
        return {row["file"] for row in self._rows("SELECT file FROM models", ())}

    def verdict(self, number: int) -> dict[str, Any] | None:
        """One line with its feedback."""
        found = self._lines("WHERE id = ?", (number,))
        return found[0] if found else None

    def history(
        self,
        *,
        model: str | None = None,
        anomalous: bool | None = None,
        said: Said | Literal["anything", "nothing"] | None = None,
        part: str | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Lines with their feedback, the latest first, those that all conditions hold for."""
        wanted: list[tuple[str, object]] = [
            ("model = ?", model),
            ("anomalous = ?", anomalous),
            ("part = ?", part),
            ("time >= ?", since),
            ("id < ?", before),
            _SPOKEN.get(said or "", (f"{_SAID} = ?", said)),
        ]
        held = [(f"({text})", value) for text, value in wanted if value is not None]
        where = "WHERE " + " AND ".join(text for text, _ in held) if held else ""
        return self._lines(f"{where} ORDER BY id DESC LIMIT ?", (*(value for _, value in held), limit))

    def p_values(self, model: str, *, since: float, limit: int = 100_000) -> list[float]:
        """Of the verdicts of a model since a time, the latest first."""
        rows = self._rows(
            "SELECT p_value FROM verdicts WHERE model = ? AND time >= ? AND p_value IS NOT NULL "
            "ORDER BY time DESC LIMIT ?",
            (model, since, limit),
        )
        return [row["p_value"] for row in rows]

    def sample(self, model: str, *, since: float) -> dict[str, int]:
        """How many pictures a model judged since a time: all, those with an answer of each kind, and what is missing.

        `unanswered` were flagged, and nobody has said what they are; `gone` are no longer kept. Only without these two
        is it a complete sample, in which no picture was chosen by its score.
        """
        row = self._rows(
            f"WITH latest AS (SELECT picture, anomalous, {_SAID} AS said FROM verdicts WHERE id IN "
            "(SELECT max(id) FROM verdicts WHERE model = ? AND time >= ? GROUP BY picture)) "
            "SELECT count(*) AS pictures, coalesce(sum(said = 'fine'), 0) AS fine, "
            "coalesce(sum(said = 'defect'), 0) AS defects, "
            "coalesce(sum(anomalous = 1 AND said IS NULL), 0) AS unanswered, "
            "coalesce(sum(picture NOT IN (SELECT digest FROM pictures)), 0) AS gone FROM latest",
            (model, since),
        )[0]
        return {name: int(value) for name, value in row.items()}

    def told(self, model: str) -> dict[str, dict[str, Any]]:
        """The latest verdict of each picture that a model judged, by digest: `time`, `anomalous`, `said`."""
        rows = self._rows(
            f"SELECT picture, time, anomalous, {_SAID} AS said FROM verdicts WHERE model = ? ORDER BY id", (model,)
        )
        return {row["picture"]: row for row in rows}

    def latest(self) -> int:
        """The number of the latest verdict; 0 without any."""
        return int(self._rows("SELECT coalesce(max(id), 0) AS id FROM verdicts", ())[0]["id"])

    def scores(self, model: str, digest: str, *, after: int, until: int) -> list[tuple[float, Look | None]]:
        """Score and look of verdicts of one version of a model, of the numbers behind `after`, the oldest first."""
        rows = self._rows(  # an index would lead to all verdicts of the model, however few are new
            "SELECT score, json_extract(line, '$.look') AS look FROM verdicts NOT INDEXED "
            "WHERE id > ? AND id <= ? AND model = ? AND json_extract(line, '$.model') = ? ORDER BY id",
            (after, until, model, digest),
        )
        return [(row["score"], look_of(row["look"] and json.loads(row["look"]))) for row in rows]

    def kept(self) -> set[str]:
        """Digests of all pictures that are kept."""
        return {row["digest"] for row in self._rows("SELECT digest FROM pictures", ())}

    def picture(self, digest: str) -> bytes | None:
        """The file of a picture; None where it is not kept, or not any more."""
        found = self._rows("SELECT content FROM pictures WHERE digest = ?", (digest,))
        return found[0]["content"] if found else None

    def _lines(self, condition: str, values: Sequence[object]) -> list[dict[str, Any]]:
        rows = self._rows(f"SELECT line, {_SAID} AS said FROM verdicts {condition}", values)
        return [json.loads(row["line"]) | {"feedback": row["said"]} for row in rows]

    def _rows(self, sql: str, values: Sequence[object]) -> list[dict[str, Any]]:
        with self._reading, _blaming_the_disk(self.path), closing(self._reader.execute(sql, values)) as found:
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def _change(self, change: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        waiting: Future[_T] = Future()
        self._changes.put((change, waiting))
        return waiting

    def _insert(self, file: sqlite3.Connection, verdict: Verdict) -> dict[str, Any]:
        now = time.time()
        if verdict.content is not None:
            size = len(verdict.content)
            added = file.execute(
                "INSERT INTO pictures VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
                (verdict.picture, now, size, verdict.content),
            ).rowcount
            self._bytes += size if added else 0
        (number,) = file.execute(
            "INSERT INTO verdicts (time, model, picture, part, score, p_value, anomalous, line) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, '') RETURNING id",
            (
                now, verdict.model, verdict.picture, verdict.part, verdict.score, verdict.p_value, verdict.anomalous
            ),
        ).fetchone()  # fmt: skip
        own = {"id": number, "time": spell_time(now), "model_name": verdict.model, "picture": verdict.picture}
        line = dict(verdict.line) | own | ({} if verdict.part is None else {"part": verdict.part})
        file.execute("UPDATE verdicts SET line = ? WHERE id = ?", (json.dumps(line), number))
        return line

    def _run(self) -> None:
        """Commit what has come, again and again: while one commit reaches the disk, the next changes gather."""
        ends = False
        while not ends:
            waiting = [self._changes.get()]
            with suppress(queue.Empty):
                while len(waiting) < _AT_ONCE:
                    waiting.append(self._changes.get_nowait())
            ends = None in waiting
            changes = [change for change in waiting if change is not None]
            if changes:
                self._commit(changes)

    def _commit(self, changes: Sequence[_Change]) -> None:
        changes = [(change, waiting) for change, waiting in changes if waiting.set_running_or_notify_cancel()]
        before = self._bytes
        try:
            with _blaming_the_disk(self.path):
                self._file.execute("BEGIN IMMEDIATE")
                found = [change(self._file) for change, _ in changes]
                self._sweep()
                self._file.execute("COMMIT")
            self.commits += 1
        except Exception as error:
            self._bytes = before
            with suppress(sqlite3.Error):
                self._file.execute("ROLLBACK")
            for _, waiting in changes:
                waiting.set_exception(error)
            return
        for (_, waiting), result in zip(changes, found, strict=True):
            waiting.set_result(result)

    def _sweep(self) -> None:
        """Let pictures go that are too old, or too many; not at each commit, as all pictures are looked through."""
        pictures = "SELECT digest, size FROM pictures"
        spoken = "(SELECT picture FROM verdicts WHERE id IN (SELECT verdict FROM feedback))"
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY
            limit = time.time() - 86_400 * self._retention.days
            self._forget(
                self._file.execute(f"{pictures} WHERE time < ? AND digest NOT IN {spoken}", (limit,)).fetchall()
            )
        most = self._retention.max_bytes
        if self._bytes > most:
            oldest = self._file.execute(f"{pictures} ORDER BY digest IN {spoken}, time").fetchall()
            self._forget(oldest, until=most - most // 100)

    def _forget(self, rows: Sequence[tuple[str, int]], *, until: int = -1) -> None:
        for digest, size in rows:
            if self._bytes > until:
                self._file.execute("DELETE FROM pictures WHERE digest = ?", (digest,))
                self._bytes -= size


def read_lines(folder: str | Path) -> Iterator[dict[str, Any]]:
    """All verdicts of a store with their feedback, the oldest first, also while a station writes."""
    with _reading(folder) as (file, path):
        for number, text, said in file.execute(f"SELECT id, line, {_SAID} FROM verdicts ORDER BY id"):
            try:
                line = parse_json(text)
            except (ValueError, TypeError):
                line = None
            if not isinstance(line, dict):
                raise OutputError(f"{path}: damaged: verdict {number} is no JSON.")
            yield line | {"feedback": said}


def read_pictures(folder: str | Path) -> Iterator[tuple[str, bytes]]:
    """All pictures that are kept, with their digests: file names are made of them, and anybody may write a store."""
    with _reading(folder) as (file, path):
        for digest, content in file.execute("SELECT digest, content FROM pictures ORDER BY time"):
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or not isinstance(content, bytes):
                raise OutputError(f"{path}: damaged: a picture that is none, or has no digest for a name.")
            yield digest, content


def spell_time(seconds: float) -> str:
    """A moment in ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def _reading(folder: str | Path) -> Iterator[tuple[sqlite3.Connection, Path]]:
    path = Path(folder) / FILE
    if not os.path.isfile(path):
        raise ArgumentError.about(str(folder), expected=f"the folder of a store, with {FILE}", got="another one")
    with closing(_connect(path)) as file:
        _check_version(file, path)
        with _blaming_the_disk(path):
            yield file, path


def _connect(path: Path) -> sqlite3.Connection:
    with _blaming_the_disk(path):
        return sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)


def _check_version(file: sqlite3.Connection, path: Path) -> int:
    """The file's version, 0 for a new one; refuses other ones."""
    try:
        (version,) = file.execute("PRAGMA user_version").fetchone()
        (tables,) = file.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise ArgumentError.about(str(path), expected="a store of a station", got=f"another file ({error})") from None
    if version != SCHEMA_VERSION and (version or tables):
        raise ArgumentError.about(
            str(path), expected=f"a store of version {SCHEMA_VERSION}", got=f"version {version}",
            instead="Name another folder.",
        )  # fmt: skip
    return int(version)


def _open(file: sqlite3.Connection, path: Path) -> None:
    version = _check_version(file, path)
    with _blaming_the_disk(path):
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        if version:
            return
        file.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            file.execute(statement)
        file.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        file.execute("COMMIT")


@contextmanager
def _blaming_the_disk(path: Path) -> Iterator[None]:
    """A full disk, a folder that cannot be written, a lock, pages that are damaged. Raises `OutputError`."""
    with naming(path):
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                raise OutputError(f"{path}: cannot be read or written ({str(error)[:200]}).") from error
            raise  # what is left are faults of ours
