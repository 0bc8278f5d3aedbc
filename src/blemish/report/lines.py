"""One JSON line for an image that was judged: what `blemish predict` writes, and what a station answers."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from ..errors import ModelFileError
from ..files import parse_json
from ..types import AnomalousRegion, Decision, Look, PartDecision

if TYPE_CHECKING:
    from ..discoveries import BatchAlarms

VERSION = 1
"""Of the lines: another one where a field goes, or changes its type or meaning; a new field changes nothing."""


class RegionLine(TypedDict):
    """One region of a line: the fields of `AnomalousRegion`, x and y in pixels of the picture."""

    box: Sequence[float]
    contour: Sequence[Sequence[float]]
    centre: Sequence[float]
    area: float
    peak: float
    mean: float
    p_value: float


class LookLine(TypedDict):
    """The fields of `types.Look`."""

    level: float
    contrast: float
    sharpness: float
    x: float
    y: float


class Judged(TypedDict):
    """The line of an image that was judged; docs/decisions.md says what each field means."""

    version: int
    image: str
    score: float
    p_value: float | None
    model_p_value: float | None
    threshold: float | None
    false_alarm_rate: float | None
    guaranteed_rate: float | None
    certain: float | None
    anomalous: bool | None
    regions: list[RegionLine] | None
    look: LookLine | None


class PartLine(TypedDict):
    """The line of a part, from all its images; docs/parts.md says what each field means."""

    version: int
    part: str
    images: Sequence[str]
    worst: str
    score: float
    p_value: float
    threshold: float | None
    false_alarm_rate: float
    guaranteed_rate: float | None
    certain: float | None
    anomalous: bool


class BatchLine(TypedDict):
    """The line of all images or parts together; docs/parts.md says what each field means."""

    version: int
    batch: int
    false_discovery_rate: float
    rule: str
    needed: int
    alarms: Sequence[str]


class NotJudged(TypedDict):
    """The line of a file that could not be judged."""

    version: int
    image: str
    error: str


def judged(decision: Decision) -> Judged:
    """The line of a decision."""
    promise = decision.promise
    return {
        "version": VERSION,
        "image": decision.name,
        "score": decision.score,
        "p_value": decision.p_value,
        "model_p_value": decision.model_p_value,
        "threshold": decision.threshold,
        "false_alarm_rate": None if promise is None else promise.false_alarm_rate,
        "guaranteed_rate": None if promise is None else promise.guaranteed_rate,
        "certain": None if promise is None else promise.certain,
        "anomalous": decision.is_anomalous,
        "regions": None if decision.regions is None else [_place(region) for region in decision.regions],
        "look": None if decision.look is None else cast(LookLine, decision.look._asdict()),
    }


def look_of(row: Any) -> Look | None:
    """The look that a line holds; None in a line without pixels, or of an older version. Raises `ValueError`."""
    if row is None:
        return None
    try:
        values = {name: float(row[name]) for name in Look._fields}
    except (KeyError, TypeError, OverflowError):
        raise ValueError("no look") from None
    if not all(map(is_number, values.values())):
        raise ValueError("no look")
    return Look(**values)


def _place(region: AnomalousRegion) -> RegionLine:
    return cast(RegionLine, {name: getattr(region, name) for name in RegionLine.__annotations__})


def judged_part(decision: PartDecision) -> PartLine:
    """The line of the verdict on a part."""
    return {
        "version": VERSION,
        "part": decision.name,
        "images": decision.images,
        "worst": decision.worst,
        "score": decision.score,
        "p_value": decision.p_value,
        "threshold": decision.threshold,
        "false_alarm_rate": decision.promise.false_alarm_rate,
        "guaranteed_rate": decision.promise.guaranteed_rate,
        "certain": decision.promise.certain,
        "anomalous": decision.is_anomalous,
    }


def judged_batch(names: Sequence[str], found: BatchAlarms) -> BatchLine:
    """The line of the alarms of a batch, whose images or parts have these names."""
    return {
        "version": VERSION,
        "batch": len(names),
        "false_discovery_rate": found.level,
        "rule": found.rule,
        "needed": found.needed,
        "alarms": [name for name, is_alarm in zip(names, found.alarms, strict=True) if is_alarm],
    }


def not_judged(name: str, reason: str) -> NotJudged:
    """The line of a file that could not be judged."""
    return {"version": VERSION, "image": name, "error": reason}


def read_line(text: str | bytes) -> dict[str, Any] | None:
    """The line of an image, out of a file that a kill may have torn or a hand has changed; None for anything else."""
    try:
        row = parse_json(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("image"), str) else None


def is_of_several(text: str | bytes) -> bool:
    """Whether it is the line of a part, or of a batch, which come behind those of images on stdout."""
    try:
        row = parse_json(text)
    except ValueError:
        return False
    kinds = (PartLine, BatchLine)
    return isinstance(row, dict) and any(row.keys() >= kind.__annotations__.keys() for kind in kinds)


def is_number(value: object) -> bool:
    """Whether a field is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def holds_regions(row: Mapping[str, Any]) -> bool:
    """Whether a line has regions as this version writes them, or says that there can be none."""
    regions = row.get("regions", ())
    return regions is None or (isinstance(regions, list) and all(map(_is_region, regions)))


def _is_region(row: Any) -> bool:
    if not isinstance(row, dict) or not row.keys() >= RegionLine.__annotations__.keys():
        return False
    numbers = [row[name] for name in ("area", "peak", "mean", "p_value")]
    for points in ([row["box"]], [row["centre"]], row["contour"]):
        if not isinstance(points, list) or not all(isinstance(point, list) for point in points):
            return False
        numbers += [number for point in points for number in point]
    return all(map(is_number, numbers))


def model_digest(path: str | Path) -> str:
    """Which model a line is of: 64 bits of the SHA-256 of its file, in hexadecimal. Raises `ModelFileError`."""
    found = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}).") from error
    return found.hexdigest()[:16]


def file_state(path: str | Path) -> str | None:
    """Size and time of a file, which change with its content; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return f"{found.st_size} {found.st_mtime_ns}"
