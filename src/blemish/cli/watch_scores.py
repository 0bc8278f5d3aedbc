"""`blemish watch-scores`: whether the scores of `predict` still are what they were, on the command line."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ArgumentError
from ..files import check_input, check_output, parse_json, read_text, require_file, sole_writer, write_whole
from ..report.lines import is_number, is_of_several, look_of, read_line
from ..types import Look
from .options import JsonOption, SeedOption

if TYPE_CHECKING:
    from ..drift import StreamMonitor

_FORMAT = 2
"""Of the state file."""


def watch_scores(
    model: Annotated[Path, typer.Argument(help="Model file that judged the images.")],
    results: Annotated[Path, typer.Argument(help="Lines of `blemish predict`, such as DIR/results.jsonl; may grow.")],
    *,
    state: Annotated[
        Path | None, typer.Option(help="What is known of the stream, read and written; default: RESULTS.drift.json.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability of an alarm, ever, while nothing changes.")] = 0.01,
    alone: Annotated[
        bool, typer.Option("--alone", help="Compare the stream with itself, not with the calibration scores.")
    ] = False,
    scores_only: Annotated[
        bool, typer.Option("--scores-only", help="Watch the scores, not the looks of the pictures.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin a new stream, after the lines that are there already.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say whether a stream of images has changed, so that the promise about false alarms may be gone.

    Watched are the scores and, of each picture, brightness, contrast, sharpness and position.

    Each call reads the lines that are new since the last one; call it as often as you like. A new file under the same
    name, or another file, continues the stream: give each part's line once, in the order of production. A changed
    share of defects alarms too.

    Exit status: 0 no sign of a change, 1 refused, 2 wrong options, 3 alarm.

    Example: blemish predict part.blemish photos --out r; blemish watch-scores part.blemish r/results.jsonl
    """
    target = check_output(state or results.with_name(f"{results.name}.drift.json"))
    check_input(results, of="RESULTS")
    with sole_writer(target):
        watch = _begin(model, target, delta=delta, alone=alone, scores_only=scores_only, seed=seed, restart=restart)
        fresh = watch.read(results, only_new=restart)
        write_whole(target, json.dumps(watch.as_json()) + "\n")
    drift = watch.monitor.drift
    if as_json:
        row = {**asdict(drift), "alarm": drift.is_alarm, "alarm_image": watch.alarm_image, "delta": watch.monitor.delta}
        row["evidence_of"] = watch.monitor.evidence_of
        typer.echo(json.dumps({"new": fresh, **row, "calibration_images": watch.monitor.calibration_images}))
    else:
        typer.echo(_said(watch, results, fresh))
    if drift.is_alarm:
        raise typer.Exit(3)


@dataclass
class _Watch:
    """A monitor, and which lines it has taken."""

    monitor: StreamMonitor
    model: str
    """Its digest."""
    threshold: float | None
    alone: bool
    scores_only: bool = False
    taken: int = 0
    """Bytes of the latest file of lines."""
    digest: str = field(default_factory=lambda: hashlib.sha256().hexdigest())
    """Of these bytes: they say whether a file is the one that was read before."""
    alarm_image: str | None = None

    def read(self, path: Path, *, only_new: bool) -> int:
        """Take the lines that are new, whole ones alone; gives the number of scores. `only_new`: pass them over."""
        require_file(path, expected="lines of `blemish predict`")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArgumentError(f"{path}: cannot be read ({error.strerror}). Give a file of `predict`.") from None
        is_same = hashlib.sha256(content[: self.taken]).hexdigest() == self.digest
        start, end = self.taken if is_same else 0, content.rfind(b"\n") + 1
        rows = [] if only_new else [self._row(line, path) for line in content[start:end].splitlines() if line.strip()]
        images = [row for row in rows if row is not None]
        known = self.monitor.drift.is_alarm
        for name, score, look in images:
            found = self.monitor.update(score, look).is_alarm
            if found and not known:
                self.alarm_image = name
            known = found
        self.taken, self.digest = end, hashlib.sha256(content[:end]).hexdigest()
        return len(images)

    def _row(self, line: bytes, path: Path) -> tuple[str, float, Look | None] | None:
        """Name, score and look of an image; None for one that could not be judged, and for a part or a batch."""
        row = read_line(line)
        if is_of_several(line) if row is None else "error" in row and "score" not in row:
            return None
        try:
            if row is None or not is_number(row.get("score")):
                raise ValueError(line)
            name, score, model = row["image"], float(row["score"]), row.get("model", self.model)
            threshold, look = row.get("threshold"), look_of(row.get("look"))
        except (ValueError, OverflowError):
            got = line[:60].decode(errors="replace")
            raise ArgumentError.about(f"{path}", expected="lines of `blemish predict`", got=got) from None
        if model != self.model or threshold != self.threshold:
            raise ArgumentError.about(
                f"{path}", expected="lines of this model", got=f"one of another model, {name}",
                instead="Give the model that judged it; a new model begins a new stream: another --state.",
            )  # fmt: skip
        return name, score, look

    def as_json(self) -> dict[str, Any]:
        """What the state file holds."""
        kept = ("model", "threshold", "alone", "scores_only", "taken", "digest", "alarm_image")
        return {"format": _FORMAT, **{name: getattr(self, name) for name in kept}, "monitor": self.monitor.state()}


def _begin(
    model: Path, state: Path, *, delta: float, alone: bool, scores_only: bool, seed: int, restart: bool
) -> _Watch:
    """Go on with what the state file knows, or begin a stream."""
    from ..drift import StreamMonitor
    from ..report.lines import model_digest

    digest = model_digest(model)
    known = _read(state) if state.exists() else None
    if known is not None and not restart:
        _require_same(known, state, digest, (delta, seed, alone, scores_only))
        return known
    from ..detector import Detector
    from ..edges.faiss import index_from_name

    calibration = Detector.load(model, device="cpu", make_index=index_from_name).calibration_
    if alone:
        made = StreamMonitor([], delta=delta, seed=seed, scores_only=scores_only)
    elif calibration is not None:
        made = StreamMonitor.of(calibration, delta=delta, seed=seed, scores_only=scores_only)
    else:
        raise ArgumentError.about(
            "MODEL", expected="a model with calibration scores", got=f"{model}, which has none",
            instead="Compare the stream with itself: --alone.",
        )  # fmt: skip
    watch = _Watch(made, digest, None if calibration is None else calibration.threshold, alone, scores_only)
    if known is not None:
        watch.taken, watch.digest = known.taken, known.digest
    return watch


def _require_same(known: _Watch, state: Path, digest: str, options: tuple[float, int, bool, bool]) -> None:
    """Refuse to go on with the stream of another model, or with other options than those with which it began."""
    if known.model != digest:
        raise ArgumentError.about(
            f"{state}", expected="the stream of this model", got="that of another model",
            instead="A new model begins a new stream: --restart, or another --state.",
        )  # fmt: skip
    began = (known.monitor.delta, known.monitor.seed, known.alone, known.scores_only)
    if began != options:
        flags = (" --alone" if known.alone else "") + (" --scores-only" if known.scores_only else "")
        spelled = f"--delta {began[0]:g} --seed {began[1]}{flags}"
        raise ArgumentError.about(
            f"{state}", expected=f"the options with which the stream began ({spelled})", got="others",
            instead="Write these, or begin a new stream: --restart.",
        )  # fmt: skip


def _read(path: Path) -> _Watch:
    from ..drift import StreamMonitor

    text = read_text(path, expected="the state that `blemish watch-scores` wrote")
    try:
        found = parse_json(text)
        version, monitor = found.pop("format"), StreamMonitor.restore(found["monitor"])
        if version not in (1, _FORMAT):  # 1 knew scores alone
            raise ValueError
        watch = _Watch(**{"scores_only": version == 1, **found, "monitor": monitor})
        if not (type(watch.taken) is int and watch.taken >= 0 and isinstance(watch.digest, str)):
            raise ValueError("not how far a file was read")
        return watch
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"{path}: expected the state that `blemish watch-scores` wrote, got something else ({error}). "
            "Move it away, or give another --state."
        ) from None


def _said(watch: _Watch, results: Path, fresh: int) -> str:
    """The state in words, and what to do."""
    drift, monitor = watch.monitor.drift, watch.monitor
    line = (
        f"{results}: {fresh} new scores, {drift.images} in the stream, compared with "
        f"{monitor.calibration_images or 'no'} calibration scores and each other. Evidence of a change "
        f"{drift.evidence:.1f}, at most so far {drift.highest:.1f}; the alarm is at {-math.log(monitor.delta):.1f}."
    )
    if not drift.is_alarm:
        return f"{line}\nNo sign of a change. That is no proof that there is none."
    return (
        f"{line}\nALARM at score {drift.alarm_at} of the stream, {watch.alarm_image}: while nothing changes, this "
        f"happens with a probability of at most {monitor.delta:g}, ever.\n"
        f"What changed, by the bets that gained most: {drift.sign}.\n"
        "What to do: look at the images before and after that one. Mend the cause, or, where the new look is normal, "
        "fit anew or calibrate with new normal images; until then the promised rate is gone. Then begin a new stream "
        "(--restart)."
    )
