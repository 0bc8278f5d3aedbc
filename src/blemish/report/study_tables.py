"""Every configuration of a study as whole tables, a row a backbone and a column a data set: what papers print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ..features.backbones import BACKBONES
from ..files import write_whole
from ..images.groups import grouped
from ..study.compare import QUALITIES, Configuration, StudyRow
from .page import NOTHING
from .study_markdown import escaped
from .study_words import Names, figure, megabytes, short, weights_name

_RANDOM = "random"
_HEAD = (
    "A row is a backbone with its weights, a column a data set, a figure the mean over the seeds. *r*: by a network "
    "with random weights. Channels: of the layers that PaDiM reads, together; d: of those that it keeps. Times and "
    "memory are those of the machine that ran the study."
)


def write_study_tables(path: str | Path, rows: Sequence[StudyRow]) -> None:
    """Write `tables.md`: for each method its figures by data set, and its costs; nothing is left out or compared."""
    write_whole(Path(path), study_tables(rows))


def study_tables(rows: Sequence[StudyRow]) -> str:
    """The text of `tables.md`, from the rows of a store."""
    names = Names(rows)
    finished = [row for row in rows if row["status"] == "finished"]
    parts = ["# Tables by data set", _HEAD]
    for shape, found in grouped(finished, _shape).items():
        settings = [names.settings(shape)] if names.settings(shape) else []
        layers = [] if shape.taps == "default" else [f"layers {shape.taps}"]
        title = escaped(", ".join([shape.spec, *layers, *settings]))
        of_rows = sorted(grouped(found, Configuration.of).items(), key=lambda item: _order(item[0]))
        for name, label in QUALITIES.items():
            if any(row[name] is not None for row in found):
                parts += [f"## {title}: {label}", _figures(of_rows, name, names.datasets)]
        parts += [f"## {title}: time and memory", _costs(of_rows)]
    unfinished = len(rows) - len(finished)
    if unfinished:
        parts.append(f"{unfinished} of {len(rows)} cells have no figures: report.md says why.")
    return "\n\n".join(parts) + "\n"


def _shape(row: StudyRow) -> Configuration:
    """What the rows of one table share: all but backbone and weights."""
    return replace(Configuration.of(row), backbone="", weights="")


def _order(choice: Configuration) -> tuple[int, str, str]:
    """As in the table of backbones; those that are not in it come last."""
    listed = list(BACKBONES)
    at = listed.index(choice.backbone) if choice.backbone in BACKBONES else len(listed)
    return at, choice.backbone, choice.weights


def _figures(
    of_rows: Sequence[tuple[Configuration, Sequence[StudyRow]]], name: str, datasets: Mapping[str, str]
) -> str:
    heads = ("backbone", "weights", "channels", "d", *datasets.values(), "mean")
    lines = []
    for choice, found in of_rows:
        mark = " r" if choice.weights == _RANDOM else ""
        values = [_mean(row[name] for row in found if row["dataset"] == path) for path in datasets]
        known = [value for value in values if value is not None]
        mean = fmean(known) if len(known) == len(values) else None
        cells = [figure(value) + mark if value is not None else NOTHING for value in (*values, mean)]
        lines.append([choice.backbone, weights_name(choice.weights), *_widths(choice), *cells])
    return _table(heads, lines, texts=2)


def _costs(of_rows: Sequence[tuple[Configuration, Sequence[StudyRow]]]) -> str:
    heads = ("backbone", "weights", "fit s", "forward ms", "score ms", "peak MB", "model MB")
    lines = []
    for choice, found in of_rows:
        means = [_mean(row[name] for row in found) for name in ("fit_seconds", "forward_ms", "score_ms")]
        bytes_ = [_mean(row[name] for row in found) for name in ("peak_bytes", "model_bytes")]
        lines.append([choice.backbone, weights_name(choice.weights), *map(short, means), *map(megabytes, bytes_)])
    return _table(heads, lines, texts=2)


def _widths(choice: Configuration) -> tuple[str, str]:
    """Channels of PaDiM's layers, and its dimensions, as far as the table of backbones tells."""
    row = BACKBONES.get(choice.backbone)
    if row is None or row.narrow or choice.taps != "default" or choice.method != "padim":
        return NOTHING, NOTHING
    channels = sum(row.channels)
    keeps_all = dict(choice.parameters).get("reduction") == "none"
    return str(channels), str(channels if keeps_all else choice.dimensions or row.d or channels)


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, texts: int) -> str:
    rules = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in (heads, rules, *lines))
