"""Another rate, or what operators said of pictures, becomes a new version of a model: looked at first, then saved."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..detector import Detector
from ..feedback import take_feedback
from ..files import make_folder
from ..images.decode import Picture, decode_bytes
from ..images.source import ImageSource
from ..methods import Incremental
from ..promises import spell_promise
from ..report.lines import model_digest
from .guard import Refusal
from .logbook import Logbook
from .models import Models
from .work import Work

_MOST_SHOWN = 200
"""Pictures with feedback that a new version is tried on."""


@dataclass(frozen=True)
class _Version:
    """A new version of a model that nobody has saved yet."""

    name: str
    detector: Detector
    how: str


class Revising:
    """Makes new versions of models. Nothing is saved before `save`; `undo` goes back by one version.

    Versions of a file that was given belong to that file: when another one is given under its name, that one counts.
    """

    def __init__(self, folder: Path, models: Models, logbook: Logbook, work: Work) -> None:
        self._made, self._models, self._logbook, self._work = make_folder(folder / "models"), models, logbook, work
        self._given = {name: models.path(name) for name in models.names()}
        self._bases = {name: model_digest(path) for name, path in self._given.items()}
        self._lock = threading.Lock()
        self._version: _Version | None = None
        for name in {row["name"] for row in logbook.models()}:
            self._take_latest(name)

    def try_rate(self, name: str, rate: float) -> None:
        """Begin to make a version with another false-alarm rate. Raises `Refusal` (409)."""
        self._begin(lambda: self._try(name, self._copy(name).recalibrate(rate), f"rate {rate:g}", learned=0, sample=0))

    def try_feedback(self, name: str, days: float) -> None:
        """Begin to make a version from what was said: see `_from_feedback`. Raises `Refusal` (409)."""
        self._begin(lambda: self._from_feedback(name, time.time() - 86_400 * days))

    def save(self) -> str:
        """Let the version that was tried answer from now on; gives the model's name. Raises `Refusal` (409)."""
        with self._lock:
            version, self._version = self._version, None
        if version is None:
            raise Refusal(409, "There is no new version to be saved.")
        self.keep(version.name, version.detector, how=version.how)
        self._work.clear()
        return version.name

    def discard(self) -> None:
        """Forget the version that was tried. Raises `Refusal` (409) while it is being made."""
        self._work.clear()
        with self._lock:
            self._version = None

    def keep(self, name: str, detector: Detector, *, how: str) -> None:
        """Write a version, and let it answer. Raises `OutputError`."""
        path = self._made / f"{secrets.token_hex(8)}.blemish"
        detector.save(path)
        self._logbook.add_model(name, path.name, how=how, base=self._bases.get(name)).result()
        self._models.put(name, path)

    def undo(self, name: str) -> None:
        """Go back to the version before. Raises `Refusal` (404, 409)."""
        self._models.require(name)
        versions = self._versions(name)
        if len(versions) + (name in self._given) < 2:
            raise Refusal(409, "There is no version before this one.")
        self._logbook.undo_model(name).result()
        self._take_latest(name)

    def history(self, name: str) -> list[str]:
        """How the versions of a model came to be that nobody took back, the oldest first."""
        return [row["how"] for row in self._versions(name)]

    def _versions(self, name: str) -> list[dict[str, Any]]:
        base = self._bases.get(name)
        return [row for row in self._logbook.models() if row["name"] == name and row["base"] == base]

    def _take_latest(self, name: str) -> None:
        versions = self._versions(name)
        if versions:
            self._models.put(name, self._made / versions[-1]["file"])
        elif name in self._given:
            self._models.put(name, self._given[name])

    def _begin(self, make: Callable[[], dict[str, Any]]) -> None:
        self.discard()
        self._work.begin("revise", make)

    def _copy(self, name: str) -> Detector:
        """The model once more, so that the one that answers stays as it is."""
        return self._models.read(name).detector

    def _from_feedback(self, name: str, since: float) -> dict[str, Any]:
        """Calibrate on all pictures since a time, and learn those before it that were said to be fine.

        The sample must be complete: what was flagged in it has an answer, all is kept, and only defects are left out. A
        choice by score would break the promise; so what was learned because it was flagged never calibrates.
        """
        said = self._logbook.told(name)
        fresh = {digest: row for digest, row in said.items() if row["time"] >= since}
        open_ = sum(row["anomalous"] == 1 and row["said"] is None for row in fresh.values())
        if open_:
            raise Refusal(409, f"{open_} pictures of this period were flagged and have no answer: fine, or a defect?")
        wanted = [digest for digest, row in fresh.items() if row["said"] != "defect"]
        kept = self._logbook.kept()
        gone = sum(digest not in kept for digest in wanted)
        if gone:
            raise Refusal(
                409,
                f"{gone} pictures of this period are no longer kept, so the sample would not be complete. "
                "Take a shorter period, or keep pictures longer (--keep-days, --keep-gb).",
            )
        detector = self._copy(name)
        detector.on_error = "raise"  # a sample that lacks one is not complete
        fine: list[str] = []
        if isinstance(detector.method_, Incremental):
            fine = [digest for digest, row in said.items()
                    if row["time"] < since and row["said"] == "fine" and digest in kept]  # fmt: skip
        sample = self._pictures(wanted, detector)
        learned = take_feedback(
            detector, fine=self._pictures(fine, detector), sample=sample, progress=self._work.progress
        )
        how = f"feedback: {len(learned)} learned, {len(sample)} for the threshold"
        return self._try(name, detector, how, learned=len(learned), sample=len(sample))

    def _pictures(self, digests: Sequence[str], detector: Detector) -> ImageSource:
        """Pictures of the store, each read when its turn has come: all of them may be more than the memory holds."""

        def load(number: int) -> Picture:
            content = self._logbook.picture(digests[number])
            if content is None:
                raise Refusal(409, "A picture is no longer kept that was a moment ago. Try again.")
            return decode_bytes(content, name=digests[number], max_pixels=detector.max_pixels)

        return ImageSource(tuple(digests), load)

    def _try(self, name: str, detector: Detector, how: str, *, learned: int, sample: int) -> dict[str, Any]:
        """Judge what was spoken of by the new version, beside what the old one said."""
        kept = self._logbook.kept()
        told = [(digest, row) for digest, row in self._logbook.told(name).items() if row["said"] and digest in kept]
        some = dict(told[-_MOST_SHOWN:])
        again = detector.predict(self._pictures(list(some), detector), maps=False) if some else ()
        now: Mapping[str, bool | None] = {found.name: found.is_anomalous for found in again}
        rows = {said: [digest for digest, row in some.items() if row["said"] == said and digest in now]
                for said in ("fine", "defect")}  # fmt: skip
        with self._lock:
            self._version = _Version(name, detector, how)
        calibration = detector.calibration_
        return {
            "model": name,
            "learned_from": learned,
            "sample": sample,
            "promise": None if calibration is None else asdict(calibration.promise),
            "promise_words": None if calibration is None else spell_promise(calibration.promise),
            "tried": {
                said: {
                    "pictures": len(digests),
                    "flagged_before": sum(bool(some[digest]["anomalous"]) for digest in digests),
                    "flagged_after": sum(bool(now[digest]) for digest in digests),
                }
                for said, digests in rows.items()
            },
        }
