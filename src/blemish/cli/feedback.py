"""`blemish feedback`: what people said of flagged pictures goes back into the model, on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ArgumentError
from .console import Speaker, print_rows
from .models import changes_a_model, load_model
from .options import ChangedOption, DeviceOption, GroupByOption, JsonOption, ModelArgument, RoiOption, read_names
from .results import read_rows

if TYPE_CHECKING:
    from ..detector import Detector


@changes_a_model
def feedback(
    model: ModelArgument,
    results: Annotated[Path, typer.Argument(help="Lines of `blemish predict` by this model.")],
    *,
    fine: Annotated[Path, typer.Option(metavar="LIST", help="Text file of images that were flagged, but are fine.")],
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST",
            help="Text file of images that were looked at and are fine: all of a period, or drawn at "
            "random, flagged or not. They make the new threshold.",
        ),
    ] = None,
    group_by: GroupByOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Save; without it only what would change is shown.")] = False,
    out: ChangedOption = None,
    roi: RoiOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Learn pictures that were flagged but are fine, and show what changes before it is saved.

    They were chosen by their score, so they never set the threshold: that would raise it without end, and no promise
    would be left. A new threshold takes --sample; a picture in both lists sets the threshold, and is not learned.
    Without a sample the model has no threshold afterwards.

    Example: blemish feedback part.blemish today/results.jsonl --fine fine.txt --sample looked_at.txt
    """
    from ..feedback import take_feedback
    from ..images.source import from_paths

    say = Speaker()
    chosen, confirmed = _read_lists(fine, sample, _rows_of(model, results))
    before, after = (load_model(model, device, roi) for _ in range(2))
    after.group_by = group_by
    with say.progress() as progress:
        learned = take_feedback(after, fine=from_paths(chosen), sample=from_paths(confirmed), progress=progress)
        changes = _changes(before, after, {"fine": learned, "sample": confirmed})
    if yes:
        after.save(out or model)
    if as_json:
        typer.echo(json.dumps({"saved": str(out or model) if yes else None, "changes": changes}))
        return
    print_rows([{"": name, "before": old, "after": new} for name, (old, new) in changes.items()])
    if after.calibration_ is None:
        typer.echo("No threshold afterwards: give --sample, or `blemish recalibrate` with new normal images.")
    typer.echo(f"Saved: {out or model}." if yes else "Nothing was saved. Look at what changes, then add --yes.")


def _read_lists(fine: Path, sample: Path | None, rows: Mapping[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The images that were flagged but are fine, and those to calibrate on."""
    chosen, confirmed = _named(fine, rows), {} if sample is None else _named(sample, rows)
    for name, row in chosen.items():
        if row.get("anomalous") is not True:
            raise ArgumentError.about(
                f"{fine}", expected="images that were flagged", got=f"{name}, which was not",
                instead="Only false alarms teach something; for a new threshold, put it into --sample.",
            )  # fmt: skip
    return list(chosen), list(confirmed)


def _rows_of(model: Path, results: Path) -> dict[str, dict[str, Any]]:
    """Lines by image; refuses those of another model."""
    from ..report.lines import model_digest

    rows = {row["image"]: row for row in read_rows(results)}
    if not rows:
        raise ArgumentError.about("RESULTS", expected="a file of lines of `blemish predict`", got=f"{results}: no line")
    digest = model_digest(model)
    for name, row in rows.items():
        if row.get("model", digest) != digest:
            raise ArgumentError.about(
                f"{results}", expected="lines of this model", got=f"one of another model, {name}",
                instead="Judge the images again: what this model flags may be others.",
            )  # fmt: skip
    return rows


def _named(listed: Path, rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The lines of the images in a list, named as in the lines, or by their file name where that is enough."""
    by_file: dict[str, list[str]] = {}
    for name in rows:
        by_file.setdefault(Path(name).name, []).append(name)
    found = {}
    for text in read_names(listed):
        names = [text] if text in rows else by_file.get(text, [])
        if len(names) != 1:
            got = f"{text}, which {'several lines have' if names else 'none has'}"
            raise ArgumentError.about(f"{listed}", expected="images of the lines", got=got)
        found[names[0]] = rows[names[0]]
    return found


def _changes(before: Detector, after: Detector, images: Mapping[str, Sequence[str]]) -> dict[str, tuple[Any, Any]]:
    """What a reader looks at before he saves: numbers by name, of the model before and after."""
    old, new = _numbers(before, images), _numbers(after, images)
    return {name: (old[name], new[name]) for name in old}


def _numbers(detector: Detector, images: Mapping[str, Sequence[str]]) -> dict[str, float | None]:
    calibration = detector.calibration_
    found: dict[str, float | None] = {
        "images learned": detector.images_,
        "threshold": None if calibration is None else _short(calibration.threshold),
        "guaranteed rate": None if calibration is None else _short(calibration.promise.guaranteed_rate),
    }
    for of, names in images.items():
        if names:
            decisions = list(detector.predict(names))
            flagged = [decision.is_anomalous for decision in decisions if decision.is_anomalous is not None]
            is_known = len(flagged) == len(decisions)
            found[f"flagged of {len(names)} in --{of}"] = _short(sum(flagged)) if is_known else None
            found[f"mean score in --{of}"] = _short(sum(decision.score for decision in decisions) / len(decisions))
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
