"""A first model without a command line: pictures of good parts are gathered, looked at, and learned."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..datasets.layouts import open_dataset
from ..detector import Detector
from ..files import make_folder, write_whole
from ..inspection.inspect import Inspection, inspect_dataset
from ..promises import images_needed
from .guard import Refusal
from .judge import Sent
from .models import Models
from .revising import Revising
from .work import Work

FIRST_RATES = (0.05, 0.1, 0.2)
"""False-alarm rates that a first model may have; the lowest that its pictures can hold."""
FEWEST_NORMALS = 2 * images_needed(FIRST_RATES[-1])
"""So few pictures that half of them still support a threshold."""
MOST_NORMALS = 2000
"""Pictures in the tray: more are learned by `blemish fit`."""
MOST_BYTES = 4_000_000_000
"""Of them together, so that a page cannot fill the disk."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


class Learning:
    """The tray of pictures to learn from.

    Its files have names that the station makes: digests.
    """

    def __init__(self, folder: Path, models: Models, revising: Revising, work: Work, *, device: str = "auto") -> None:
        self._tray = make_folder(folder / "tray")
        self._models, self._revising, self._work, self._device = models, revising, work, device
        self._names: dict[str, str] = {path.stem: path.stem[:8] for path in sorted(self._tray.glob("*.png"))}
        self._findings: list[dict[str, Any]] | None = None
        self._learned: tuple[str, list[str]] = ("", [])
        self._lock = threading.Lock()

    def status(self) -> dict[str, Any]:
        """What is in the tray, what was found, how far the work has come."""
        with self._lock:
            pictures = [{"picture": digest, "name": name} for digest, name in self._names.items()]
            found = {"pictures": pictures, "count": len(pictures), "least": FEWEST_NORMALS, "findings": self._findings}
        return found | {"learned": None, "rate": None} | self._work.status()

    def add(self, pictures: Iterable[Sent]) -> None:
        """Put pictures into the tray. Raises `Refusal` (409 while one learns, 413 where it is full), `OutputError`."""
        self._work.clear()
        held = sum(path.stat().st_size for path in self._tray.glob("*.png"))
        for picture in pictures:
            if picture.digest not in self._names:
                held += len(picture.content)
                if len(self._names) >= MOST_NORMALS or held > MOST_BYTES:
                    full = f"The tray is full, with {len(self._names)} pictures. Learn from them, or remove some."
                    raise Refusal(413, full)
            write_whole(self._tray / f"{picture.digest}.png", picture.content)  # the content says the format
            with self._lock:
                self._names[picture.digest] = picture.name
                self._findings = None

    def remove(self, digest: str | None) -> None:
        """Take one picture out, or all. Raises `Refusal` (404, 409)."""
        self._work.clear()
        with self._lock:
            if digest is not None:
                self._require(digest)
            for name in list(self._names) if digest is None else [digest]:
                (self._tray / f"{name}.png").unlink(missing_ok=True)
                del self._names[name]
            self._findings = None

    def content(self, digest: str) -> bytes:
        """A picture of the tray. Raises `Refusal` (404)."""
        with self._lock:
            self._require(digest)
        return (self._tray / f"{digest}.png").read_bytes()

    def learned(self, name: str) -> dict[str, bytes]:
        """The pictures that a model was learned from, if it is the latest one, as far as they are still here."""
        with self._lock:
            latest, digests = self._learned
            held = [digest for digest in digests if digest in self._names] if name == latest else []
        return {digest: self.content(digest) for digest in held}

    def inspect(self) -> None:
        """Begin to look at the pictures. Raises `Refusal` (409)."""
        self._work.begin("inspect", self._inspect)

    def learn(self, name: str) -> None:
        """Begin to learn a model of this name. Raises `Refusal` (409, 422)."""
        if not _NAME.fullmatch(name):
            raise Refusal(422, "name: 1 to 40 letters, digits and . _ -, with a letter or digit first.")
        if name in self._models.names():
            raise Refusal(409, "There is a model of this name already. Choose another one.")
        if len(self._names) < FEWEST_NORMALS:
            raise Refusal(422, f"At least {FEWEST_NORMALS} pictures are needed, there are {len(self._names)}.")
        self._work.begin("fit", lambda: self._learn(name))

    def _require(self, digest: str) -> None:
        if digest not in self._names:
            raise Refusal(404, "There is no such picture in the tray.")

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._work.progress("inspect" if stage == "train" else stage, done, total)

    def _inspect(self) -> dict[str, Any]:
        found = inspect_dataset(open_dataset(self._tray), device=self._device, progress=self._progress)
        with self._lock:
            self._findings = _findings(found)
        return {}

    def _learn(self, name: str) -> dict[str, Any]:
        detector = Detector(false_alarm_rate=_rate_for(len(self._names)), on_error="skip")
        detector.method_.set_params(device=self._device)
        digests = list(self._names)
        detector.fit(self._tray, progress=self._progress)
        self._revising.keep(name, detector, how="learned")
        with self._lock:
            self._learned = (name, digests)
        return {"learned": name, "rate": detector.false_alarm_rate}


def _rate_for(count: int) -> float:
    """The lowest of our rates that can be held where at most half of so many pictures are held out."""
    return next((rate for rate in FIRST_RATES if 2 * images_needed(rate) <= count), FIRST_RATES[-1])


def _findings(inspection: Inspection) -> list[dict[str, Any]]:
    """Kinds of findings, with the digests of the pictures."""
    found = {
        "identical": [name for names in inspection.identical for name in names[1:]],
        "nearly_identical": [name for names in inspection.nearly_identical for name in names[1:]],
        "constant": list(inspection.constant),
        "exposure": [name for name, _ in inspection.exposure],
        "unlike": [name for name, _ in inspection.most_unlike],
    }
    return [
        {"kind": kind, "pictures": [Path(name).stem for name in Counter(names)]}
        for kind, names in found.items()
        if names
    ]
