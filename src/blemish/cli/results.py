"""What `blemish predict` writes: a JSON line for each image as soon as it is judged, and heat maps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from ..errors import ArgumentError, OutputError
from ..files import check_output, make_folder, naming, open_lines, require_file, whole_file, write_whole
from ..report.lines import (
    VERSION,
    Judged,
    NotJudged,
    RegionLine,
    file_state,
    holds_regions,
    is_number,
    judged,
    judged_batch,
    judged_part,
    model_digest,
    not_judged,
    read_line,
)
from ..types import Decision, PartDecision
from .coco import write_coco

if TYPE_CHECKING:
    from ..discoveries import BatchAlarms
    from ..images.source import Skipped


class JudgedInFolder(Judged, total=False):
    """What `--out` adds."""

    model: str
    file: str | None
    heatmap: str
    overlay: str


class ResultWriter:
    """Writes each decision at once: to stdout, or to DIR/results.jsonl with a heat map per image.

    A run that was stopped goes on: lines of the same model on files that have not changed since stay, and their images
    need not be judged again. Use it in a `with` statement.
    """

    def __init__(
        self,
        out: Path | None,
        heatmaps: Literal["png", "npy", "none"],
        *,
        model: Path,
        overlays: bool = False,
        coco: Path | None = None,
    ) -> None:
        self._out, self._heatmaps, self._overlays, self._coco = out, heatmaps, overlays, coco
        self._regions: dict[str, list[RegionLine]] = {}
        self._model = "" if out is None else model_digest(model)
        self._kept: dict[str, dict[str, Any]] = {}
        self._pictures: set[str] = set()
        self._lines: IO[str] = sys.stdout
        self._anomalous = self._unknown = False
        self._parts: Sequence[PartDecision] | None = None
        self._batch: BatchAlarms | None = None
        if coco is not None:
            check_output(coco, beside=[model])
        if out is not None:
            self._kept = {row["image"]: row for row in read_rows(lines_in(out)) if self._still_holds(row)}

    def __enter__(self) -> ResultWriter:
        if self._out is not None:
            path = self._out / "results.jsonl"
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self._kept.values()))
            pictures = [row.get(kind) for row in self._kept.values() for kind in ("heatmap", "overlay")]
            self._pictures = {name.casefold() for name in pictures if name}
            with naming(path):
                self._lines = open_lines(path, "a")
        return self

    def __exit__(self, *_error: object) -> None:
        if self._out is not None:
            with suppress(OSError):  # of what could not be written before, which was said
                self._lines.close()

    def left(self, paths: Sequence[Path]) -> list[Path]:
        """Those of the images that have no line yet; lines of other images are dropped."""
        wanted = {str(path) for path in paths}
        self._kept = {name: row for name, row in self._kept.items() if name in wanted}
        return [path for path in paths if str(path) not in self._kept]

    def verdict(self) -> Literal["normal", "anomalous", "not judged"]:
        """What one exit status can say of all images, those of an earlier run with them: the first finding counts.

        Of all parts, where parts are judged; the alarms of the batch, where these are chosen together.
        """
        if self._batch is not None:
            found = any(self._batch.alarms)
        elif self._parts is not None:
            found = any(part.is_anomalous for part in self._parts)
        else:
            found = self._anomalous or any(row.get("anomalous") for row in self._kept.values())
        if found:
            return "anomalous"
        return "not judged" if self._unknown else "normal"

    def write(self, decision: Decision) -> None:
        """Write the line of an image, and its heat map before it."""
        row = cast(JudgedInFolder, judged(decision))
        self._anomalous |= decision.is_anomalous is True
        if self._out is not None:
            row["model"], row["file"] = self._model, file_state(decision.name)
            if decision.map is not None and self._heatmaps != "none":
                row["heatmap"] = self._write_map(self._out, decision)
            if decision.regions and self._overlays:
                row["overlay"] = self._write_overlay(self._out, decision)
        if self._coco is not None:
            self._regions[decision.name] = row["regions"] or []
        self._write_line(row)

    def write_coco(self) -> None:
        """Write the COCO file of all images, those of an earlier run with them, where one is wanted."""
        if self._coco is not None:
            kept = {name: row["regions"] for name, row in self._kept.items()}
            write_coco(self._coco, kept | self._regions)

    def earlier(self) -> list[Decision]:
        """What the lines of an earlier run say of their images, as far as a part needs it."""
        rows = self._kept.values()
        return [Decision(row["image"], row["score"], None, row["p_value"], row["threshold"]) for row in rows]

    def write_parts(self, parts: Sequence[PartDecision]) -> None:
        """Write a line for each part, behind those of images or to DIR/parts.jsonl; the verdict is of parts then."""
        self._parts = parts
        self._write_last("parts.jsonl", "".join(json.dumps(judged_part(part)) + "\n" for part in parts))

    def write_batch(self, names: Sequence[str], found: BatchAlarms) -> None:
        """Write the line of all images or parts together, last of all or to DIR/batch.json; the verdict is its own."""
        self._batch = found
        self._write_last("batch.json", json.dumps(judged_batch(names, found)) + "\n")

    def _write_last(self, name: str, lines: str) -> None:
        """Lines behind those of images, or in a file of their own."""
        if self._out is not None:
            write_whole(self._out / name, lines)
            return
        with naming(self._lines.name):
            self._lines.write(lines)
            self._lines.flush()

    def write_skipped(self, skipped: Iterable[Skipped]) -> None:
        """Write a line with `error` for each file that could not be judged."""
        for name, reason in skipped:
            self._unknown = True
            self._write_line(not_judged(name, reason))

    def _still_holds(self, row: dict[str, Any]) -> bool:
        """Whether a line of an earlier run says what this run would say; one changed by hand may hold anything."""
        assert self._out is not None
        if not _is_sound(row):
            return False
        wants_map = self._heatmaps != "none" and "heatmap" in row
        wants_overlay = self._overlays and bool(row.get("regions"))
        return (
            row.get("version") == VERSION
            and "regions" in row
            and row.get("model") == self._model
            and row.get("file") == file_state(str(row.get("image")))
            and ("heatmap" not in row or row["heatmap"].endswith(f".{self._heatmaps}"))
            and (not wants_map or (self._out / row["heatmap"]).is_file())
            and (not wants_overlay or (self._out / row.get("overlay", "")).is_file())
        )

    def _write_line(self, row: JudgedInFolder | NotJudged) -> None:
        with naming(self._lines.name):
            self._lines.write(json.dumps(row) + "\n")
            self._lines.flush()

    def _write_map(self, out: Path, decision: Decision) -> str:
        import numpy as np

        from ..report.heatmap import write_heatmap

        assert decision.map is not None
        with self._picture(out, "heatmaps", decision.name, self._heatmaps) as (path, file):
            if self._heatmaps == "npy":
                np.save(file, decision.map)
            else:
                write_heatmap(file, decision.map, threshold=decision.threshold)
        return path

    def _write_overlay(self, out: Path, decision: Decision) -> str:
        from ..report.overlay import write_overlay

        assert decision.regions is not None
        assert decision.map is not None
        with self._picture(out, "overlays", decision.name, "png") as (path, file):
            height, width = decision.map.shape
            write_overlay(file, decision.name, decision.regions, size=(height, width))
        return path

    @contextmanager
    def _picture(self, out: Path, folder: str, name: str, ending: str) -> Iterator[tuple[str, IO[bytes]]]:
        """A file of its own for an image in a folder of the results: its path there, and where to write."""
        image = Path(name)
        path = Path(folder, image.resolve().parent.name, f"{image.stem}.{ending}")
        number = 2
        # The same file name in two folders of the same name; on some systems letter case makes no difference.
        while path.as_posix().casefold() in self._pictures:
            path = path.with_name(f"{image.stem}-{number}{path.suffix}")
            number += 1
        self._pictures.add(path.as_posix().casefold())
        make_folder((out / path).parent)
        with whole_file(out / path, durable=False) as temporary, temporary.open("wb") as file:
            yield path.as_posix(), file


def _is_sound(row: dict[str, Any]) -> bool:
    """Whether what this run reads of a line is of the right types."""
    numbers = [row.get(name) for name in ("p_value", "threshold")]
    names = [row.get(name, "") for name in ("heatmap", "overlay")]
    return (
        holds_regions(row)
        and all(value is None or is_number(value) for value in numbers)
        and all(isinstance(name, str) and "\0" not in name for name in names)
    )


def lines_in(out: Path) -> Path:
    """The file of lines in a folder, which is made where it is missing. Raises `OutputError`."""
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError(f"{out}: expected a folder for the results, got a file. Choose another name.")
    make_folder(out)
    check_output(out / "results.jsonl")
    return out / "results.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of images in a file of results; a kill may have torn the last one. None where no file is."""
    require_file(path, expected="lines of `blemish predict`")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror}). Give a file of `predict`.") from None
    rows = (read_line(line) for line in lines)
    return [row for row in rows if row is not None and is_number(row.get("score"))]
