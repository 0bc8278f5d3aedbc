"""A station: models, the judge, the store and the figures, put together; what the routes of `app` call."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BlemishError, ImageError, log
from ..files import sweep
from ..images.decode import as_image, decode_bytes, upright_size
from ..report.heatmap import write_heatmap, write_layer
from ..report.lines import judged, not_judged
from ..report.overlay import photograph
from ..types import Decision, PartDecision
from .guard import Refusal
from .judge import Busy, Judge, Judgement, Sent
from .learning import Learning
from .limits import Limits
from .logbook import Logbook, Verdict
from .meters import Meters
from .models import Loaded, Models
from .reasons import Reasons
from .revising import Revising
from .together import judge_together
from .watching import Watching
from .work import Work

_LONGEST_SAVE = 3600.0
"""Seconds that a model may be written, and wait for its entry in the store."""
_DRAWN_BYTES = 64_000_000
"""Of overlays that are at hand; older ones are drawn again."""


class Station:
    """What the routes call. `close` drains it: what was taken is judged, kept and answered."""

    def __init__(
        self, models: Models, logbook: Logbook, *, limits: Limits, keep_pictures: bool = True, device: str = "auto"
    ) -> None:
        self.models, self.logbook, self.limits, self.meters = models, logbook, limits, Meters()
        self.work = Work()
        _clear(logbook)
        self.revising = Revising(logbook.folder, models, logbook, self.work)
        self.learning = Learning(logbook.folder, models, self.revising, self.work, device=device)
        self.watching = Watching(logbook)
        self._reasons = Reasons(logbook, self.learning.learned)
        self._keep_pictures = keep_pictures
        self._judge = Judge(limits, batch_done=self.meters.batch_done)
        self._open = 0
        self._drawn: OrderedDict[int, bytes] = OrderedDict()
        self._drawing = threading.Lock()

    def close(self) -> None:
        """Judge and write what waits; then nothing runs any more."""
        self._judge.close()
        self.work.close()
        self.watching.close()
        self.logbook.close()
        self.models.close()

    @property
    def is_ready(self) -> bool:
        """Whether it takes pictures."""
        return self._judge.is_alive

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One request that brings pictures, from its head to its answer. Raises `Refusal` (429)."""
        if self._open >= self.limits.requests:
            raise Refusal(429, f"{self._open} requests are at work already. Come again in a second.", retry_after=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def model(self, name: str) -> Loaded:
        """The model of a name; a thread is taken for one that must be loaded alone. Raises `Refusal` (404, 503)."""
        known = self.models.known(name)
        if known is not None:
            return known
        self.models.require(name)
        try:
            return await asyncio.to_thread(self.models.get, name)
        except (BlemishError, OSError) as error:
            log.warning("%s: %s", name, error)
            raise Refusal(503, "The file of this model cannot be read; the station's log says why.") from error

    async def predict(
        self, loaded: Loaded, sent: Sequence[Sent], *, part: str | None = None, draw: bool = False
    ) -> tuple[list[dict[str, Any]], list[PartDecision]]:
        """Judge pictures; gives their lines once they are on the disk, and the parts' verdicts. Raises `Refusal`."""
        start = time.perf_counter()
        outcomes = await self._outcomes(loaded, sent, maps=draw)
        good = [(one, outcome) for one, outcome in zip(sent, outcomes, strict=True) if isinstance(outcome, Decision)]
        parts = judge_together(loaded.detector, [(one.name, decision) for one, decision in good], part=part)
        verdicts = [
            self._verdict(loaded, one, decision, part=part, own=own)
            for (one, decision), own in zip(good, parts, strict=True)
        ]
        kept = await asyncio.wrap_future(self.logbook.add(verdicts)) if verdicts else []
        lines = iter(kept)
        rows = [
            dict(not_judged(one.name, f"{one.name}: {outcome}")) if isinstance(outcome, str) else next(lines)
            for one, outcome in zip(sent, outcomes, strict=True)
        ]
        if draw:
            for line, (_, decision) in zip(kept, good, strict=True):
                await asyncio.to_thread(self._draw, line["id"], decision)
        for outcome in outcomes:
            self.meters.verdicts.labels(loaded.name, _spell(outcome)).inc()
        self.meters.seconds.observe(time.perf_counter() - start)
        return rows, list({id(own): own for own in parts if own is not None}.values())

    async def heatmap(self, loaded: Loaded, one: Sent) -> bytes:
        """The heat map of a picture as `predict --out` writes it; no verdict is kept. Raises `Refusal`."""
        (outcome,) = await self._outcomes(loaded, [one], maps=True)
        decision, map = _require_map(outcome)
        file = io.BytesIO()
        await asyncio.to_thread(write_heatmap, file, map, threshold=decision.threshold)
        return file.getvalue()

    async def overlay(self, number: int) -> bytes:
        """What to lay over the picture of a verdict; drawn again by the model that judged it. Raises `Refusal`."""
        with self._drawing:
            known = self._drawn.get(number)
        if known is not None:
            return known
        loaded, line, content = await self._again(number)
        one = Sent(line["image"], line["picture"], content)
        (outcome,) = await self._outcomes(loaded, [one], maps=True)
        return await asyncio.to_thread(self._draw, number, _require_map(outcome)[0])

    async def reasons(self, number: int) -> dict[str, Any]:
        """Why the regions of a verdict were reported: see `Reasons.of`. Raises `Refusal`."""
        loaded, line, content = await self._again(number)
        return await asyncio.to_thread(self._reasons.of, loaded, line, content)

    async def _again(self, number: int) -> tuple[Loaded, dict[str, Any], bytes]:
        """The model, the line and the picture of a verdict. Raises `Refusal` (404, 410)."""
        line = await asyncio.to_thread(self.logbook.verdict, number)
        if line is None:
            raise Refusal(404, "There is no verdict of this number.")
        content = await asyncio.to_thread(self.logbook.picture, line["picture"])
        if content is None:
            raise Refusal(410, "The picture of this verdict is not kept any more.")
        loaded = await self.model(line["model_name"])
        if loaded.digest != line["model"]:
            raise Refusal(410, "The model that judged this picture has been replaced.")
        return loaded, line, content

    async def picture(self, digest: str, *, side: int) -> bytes:
        """A kept picture as a browser shows it, at most `side` pixels. Raises `Refusal`."""
        content = await asyncio.to_thread(self.logbook.picture, digest)
        if content is None:
            raise Refusal(404, "No picture of this digest is kept.")
        return await self.viewable(content, side=side)

    async def viewable(self, content: bytes, *, side: int) -> bytes:
        """A picture of any format that is read, as a small JPEG for a browser. Raises `Refusal` (422)."""
        return await asyncio.to_thread(_jpeg, content, side=side, max_pixels=self.limits.max_pixels)

    def figures(self) -> bytes:
        """All figures in Prometheus's text format."""
        loaded = self.models.loaded().values()
        self.meters.waiting.set(self._judge.waiting)
        self.meters.open.set(self._open)
        self.meters.loaded.set(len(loaded))
        self.meters.held.set(sum(one.held for one in loaded))
        self.meters.commits.set(self.logbook.commits)
        self.meters.pictures.set(self.logbook.picture_bytes)
        for one in loaded:
            drift = self.watching.drift(one)
            if drift is not None:
                self.meters.drift.labels(one.name).set(drift["is_alarm"])
        return self.meters.text()

    async def _outcomes(self, loaded: Loaded, sent: Sequence[Sent], *, maps: bool) -> list[Judgement]:
        try:
            answer = asyncio.wrap_future(self._judge.submit(loaded, sent, maps=maps))
        except Busy as error:
            raise Refusal(429, str(error), retry_after=1) from None
        try:
            return await asyncio.wait_for(answer, self.limits.seconds)
        except asyncio.TimeoutError:
            raise Refusal(503, f"No turn came within {self.limits.seconds:g} s.", retry_after=5) from None

    def _verdict(
        self, loaded: Loaded, one: Sent, decision: Decision, *, part: str | None, own: PartDecision | None
    ) -> Verdict:
        line: Mapping[str, object] = dict(judged(replace(decision, name=one.name))) | {
            "model": loaded.digest, "size": upright_size(one.content),
        }  # fmt: skip
        if own is not None:
            part = own.name
            line = dict(line) | {"part_p_value": own.p_value, "part_anomalous": own.is_anomalous}
        return Verdict(
            model=loaded.name,
            picture=one.digest,
            part=part,
            score=decision.score,
            p_value=decision.p_value,
            anomalous=decision.is_anomalous,
            line=line,
            content=one.content if self._keep_pictures else None,
        )

    def _draw(self, number: int, decision: Decision) -> bytes:
        file = io.BytesIO()
        if decision.map is not None:
            write_layer(file, decision.map, threshold=decision.threshold)
        with self._drawing:
            self._drawn[number] = file.getvalue()
            while sum(map(len, self._drawn.values())) > _DRAWN_BYTES and len(self._drawn) > 1:
                self._drawn.popitem(last=False)
        return file.getvalue()


def _clear(logbook: Logbook) -> None:
    """Remove what a killed station left: half-written files, and models that it did not come to enter in the store."""
    for name in ("models", "tray"):
        sweep(logbook.folder / name)
    known, long_ago = logbook.model_files(), time.time() - _LONGEST_SAVE
    for path in (logbook.folder / "models").glob("*.blemish"):
        if path.name not in known and path.stat().st_mtime < long_ago:
            path.unlink()


def sent_of(name: str, content: bytes) -> Sent:
    """A picture of a request; its name becomes printable text."""
    text = "".join(letter for letter in name if letter.isprintable())[:200]
    return Sent(text or "picture", hashlib.sha256(content).hexdigest(), content)


def _jpeg(content: bytes, *, side: int, max_pixels: int) -> bytes:
    try:
        image = as_image(decode_bytes(content, name="picture", max_pixels=max_pixels))
    except ImageError as error:
        raise Refusal(422, str(error)) from None
    file = io.BytesIO()
    photograph(image, min(side, max(image.size))).save(file, "JPEG", quality=88)
    return file.getvalue()


def _require_map(outcome: Judgement) -> tuple[Decision, NDArray[np.float32]]:
    if isinstance(outcome, str):
        raise Refusal(422, f"The picture cannot be judged: {outcome}")
    if outcome.map is None:
        raise Refusal(404, "This model's method gives no maps.")
    return outcome, outcome.map


def _spell(outcome: Judgement) -> str:
    if isinstance(outcome, str):
        return "not judged"
    return {True: "anomalous", False: "normal", None: "no threshold"}[outcome.is_anomalous]
