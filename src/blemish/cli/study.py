"""`blemish study`: compare methods, backbones and settings over data sets, on the command line."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ArgumentError
from ..files import make_folder, sole_writer, write_whole
from ..memory import MOST_GB
from . import options
from .console import Speaker, print_rows
from .options import read_option, read_resize, read_white_level, spelled_out
from .progress import ProgressView, duration

if TYPE_CHECKING:
    from ..study.messages import Executor, StudyProgress, WorkerSettings
    from ..study.plan import StudyPlan
    from ..study.store import Store


@dataclass(frozen=True)
class PlanOptions:
    """What a plan says, where options say it; None: the plan's default."""

    methods: Annotated[
        str | None,
        typer.Option(help="Such as padim,dimensions=50,spade,patchcore,ratio=0.1; default: all that train nothing."),
    ] = None
    backbones: Annotated[str | None, typer.Option(help="Separated by commas; thesis: its 71; default: compact.")] = None
    taps: Annotated[str | None, typer.Option(help="default, layer1+layer2, all-subsets ...; separated by commas.")] = (
        None
    )
    dimensions: Annotated[str | None, typer.Option(help="For padim; separated by commas.")] = None
    seeds: Annotated[str | None, typer.Option(help="Separated by commas; default: 0.")] = None
    weights: Annotated[
        str | None,
        typer.Option(help="pretrained, random, available (pretrained where at hand, else random), or a file."),
    ] = None
    preset: Annotated[Literal["default", "paper"] | None, typer.Option(help="As in `blemish fit`.")] = None
    resize: Annotated[str | None, typer.Option(help="Size of the network's input: SIDE, HEIGHTxWIDTH, or auto.")] = None
    white_level: options.WhiteLevelOption = None
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of the normal images that fix the threshold, or what it takes; 0: no threshold."),
    ] = None
    false_alarm_rate: Annotated[float | None, typer.Option(help="Share of normal images that may be flagged.")] = None
    intervals: Annotated[
        bool | None, typer.Option("--intervals/--no-intervals", help="95 % intervals of the image figures.")
    ] = None
    repetitions: Annotated[
        int | None, typer.Option(min=0, help="Bootstrap repetitions for pixel figures; each as long as the figures.")
    ] = None

    def given(self) -> dict[str, Any]:
        """By the plan's own names, as texts or values."""
        found = vars(self) | {"white_level": read_white_level(self.white_level)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class WorkOptions:
    """Where a study runs, and on how much at a time."""

    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time. Default: 1; with --ray: all CPUs.")
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MOST_THREADS,
            help="Threads a process; default: the cores, shared out (--ray: 1). As many give the same last digits.",
        ),
    ] = None
    memory: Annotated[
        float | None, typer.Option(min=options.LEAST_GB, max=MOST_GB, metavar="GB", help="What each process may hold.")
    ] = None
    device: options.DeviceOption = "auto"
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
    ] = None

    def settings(self) -> WorkerSettings:
        """How each process works."""
        from ..study.messages import WorkerSettings

        wanted = os.environ.get("OMP_NUM_THREADS", "")
        cpus = int(wanted) if wanted.isdigit() else os.cpu_count() or 1
        shared = 1 if self.ray else max(1, cpus // (self.workers or 1))  # a cluster's nodes are not like this machine
        return WorkerSettings(threads=self.threads or shared, device=self.device, memory_gb=self.memory)

    def executor(self) -> Executor:
        """Where the processes run."""
        from ..study.run import LocalExecutor

        if self.ray is None:
            return LocalExecutor(self.workers or 1, self.settings())
        from ..edges.ray import RayExecutor

        return RayExecutor(self.ray, workers=self.workers, settings=self.settings())


@spelled_out
def study(
    data: Annotated[list[Path] | None, typer.Argument(help="Dataset folders with labelled test images.")] = None,
    *,
    plan: Annotated[
        Path | None, typer.Option(help="TOML file that says all this; see docs/study.md. Instead of the options below.")
    ] = None,
    asked: PlanOptions,
    out: Annotated[Path, typer.Option(help="Folder for study.sqlite, study.csv, tables.md and plan.toml.")] = Path(
        "study"
    ),
    work: WorkOptions,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what they will need; run none.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Measure every combination of data sets, methods, backbones, layers and seeds, each a row of one SQLite file.

    Stop it at any moment and start it again: what is finished stays. A combination that fails is recorded with its
    reason, and the rest goes on; the exit status is then 1.

    Example: blemish study mvtec_ad/* --methods padim,spade,knn --backbones resnet18,mobilenet_v2 --out study
    """
    chosen = _plan(plan, data or [], asked.given())
    if dry_run:
        _print_estimate(chosen, work.settings(), out, as_json)
        return
    _run(chosen, out, work.executor(), retry_failed=retry_failed, as_json=as_json)


def _run(chosen: StudyPlan, out: Path, executor: Executor, *, retry_failed: bool, as_json: bool) -> None:
    from ..study.run import run_study
    from ..study.store import Store

    keys = {cell.key for cell in chosen.cells()}
    make_folder(out)
    with sole_writer(out / "study.sqlite"), Store(out / "study.sqlite") as store:
        write_whole(out / "plan.toml", chosen.text())
        try:
            with ProgressView("cells") as view:
                run_study(chosen, store, executor=executor, progress=partial(_show, view), retry_failed=retry_failed)
        except BaseException:
            with suppress(OSError):  # what stopped it is what is said
                _write_tables(store, out)
            raise
        _write_tables(store, out)
        rows = [row for row in store.rows() if row["key"] in keys]
    _print_results(rows, out, as_json)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


def _write_tables(store: Store, out: Path) -> None:
    from ..report.study_tables import write_study_tables

    store.write_csv(out / "study.csv")
    write_study_tables(out / "tables.md", store.rows())


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, the --out of `blemish study`.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, report.md, tables.md and study.csv; default: the study's."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the picks and the summary as one JSON object.")
    ] = False,
) -> None:
    """Say what a study found: one HTML page, the same as Markdown, the rows as CSV; finished or not.

    Example: blemish report study
    """
    from ..report.study import write_study_report
    from ..report.study_tables import write_study_tables
    from ..study.store import Store

    file, out = folder / "study.sqlite", out or folder
    if not os.path.isfile(file):  # a name may be too long for `Path.is_file`
        raise ArgumentError.about("FOLDER", expected="the folder of a study, with study.sqlite", got=str(folder))
    with Store(file) as store:
        rows = store.rows()
        if not rows:
            raise ArgumentError.about(str(file), expected="at least one cell", got="an empty study")
        make_folder(out)
        store.write_csv(out / "study.csv")
    write_study_tables(out / "tables.md", rows)
    summary = write_study_report(out, rows)
    if as_json:
        typer.echo(json.dumps(summary | {"csv": str(out / "study.csv")}))
        return
    for warning in summary["warnings"]:
        Speaker().line(warning)
    for goal, pick in summary["picks"].items():
        typer.echo(f"{goal}: {pick['words']}")
    typer.echo(f"Report: {summary['report']}, {summary['markdown']}, {out / 'study.csv'}")


# From options to a plan


def _plan(path: Path | None, data: list[Path], given: dict[str, Any]) -> StudyPlan:
    from ..study.plan import StudyPlan, split_methods

    if path is not None:
        if data or given:
            also = ", ".join([*(["DATA"] if data else []), *(f"--{name.replace('_', '-')}" for name in given)])
            raise ArgumentError.about("--plan", expected="all in the file", got=f"{also} as well")
        return StudyPlan.load(path)
    if not data:
        raise ArgumentError.about("DATA", expected="dataset folders, or --plan FILE", got="none")
    for name in ("backbones", "taps"):  # layers are joined by +, so that only commas part their sets
        if name in given:
            given[name] = tuple(given[name].split(","))
    for name in ("dimensions", "seeds"):
        if name in given:
            given[name] = read_option(f"--{name}", tuple[int, ...], given[name])
    if "resize" in given:
        given["resize"] = read_resize(given["resize"])
    given["methods"] = split_methods(given["methods"]) if "methods" in given else _quick_methods()
    return StudyPlan(data=tuple(str(folder.absolute()) for folder in data), **given)


def _quick_methods() -> tuple[str, ...]:
    """Those that share the features of a backbone and train nothing."""
    from ..methods import FeatureMethod
    from ..methods.registry import METHODS

    return tuple(
        name
        for name, method in METHODS.items()
        if issubclass(method, FeatureMethod) and method().reads_features and not hasattr(method, "checkpoint")
    )


# What is shown


def _show(view: ProgressView, progress: StudyProgress) -> None:
    from ..study.messages import Finished

    done = progress.finished + progress.failed
    view("cells", done, progress.total, _news(progress), is_news=isinstance(progress.message, Finished))


def _news(progress: StudyProgress) -> str:
    from ..study.messages import Finished, ImagesRead

    parts = [f"{progress.failed} failed"] if progress.failed else []
    if progress.seconds_left is not None:
        parts.append(f"about {duration(progress.seconds_left)} left")
    text = str(progress.cell)
    if isinstance(progress.message, ImagesRead):
        text = f"reading {Path(progress.cell.dataset).name} with {progress.cell.backbone}: "
        text += f"{progress.message.done}/{progress.message.total} images"
    if isinstance(progress.message, Finished):
        values = progress.message.values
        text += f": {values['reason'] or 'image AUROC ' + _figure(values['image_auroc'])}"
    return "; ".join([*parts, text])


def _print_results(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    failed = sum(row["status"] == "failed" for row in rows)
    if as_json:
        counts = {"finished": len(rows) - failed, "failed": failed}
        typer.echo(json.dumps({"out": str(out), **counts, "cells": rows}))
        return
    if failed < len(rows):
        print_rows([_shown(row) for row in rows if row["status"] == "finished"])
    typer.echo(f"{len(rows) - failed} cells finished, {failed} failed: {out / 'study.sqlite'}, {out / 'study.csv'}")
    for reason, count in Counter(row["reason"] for row in rows if row["status"] == "failed").items():
        Speaker().line(f"{count} failed: {reason}")
    if failed:
        Speaker().line("The same command with --retry-failed tries them again.")


def _shown(row: dict[str, Any]) -> dict[str, object]:
    parameters = "".join(f" {name}={value}" for name, value in json.loads(row["parameters"]).items())
    return {
        "data": Path(row["dataset"]).name,
        "method": row["method"] + parameters,
        "backbone": row["backbone"],
        "taps": row["taps"] or "default",
        "seed": row["seed"],
        "image AUROC": _figure(row["image_auroc"]),
        "pixel AUROC": _figure(row["pixel_auroc"]),
        "AU-PRO": _figure(row["au_pro_30"]),
        "F1": _figure(row["f1"]),
        "fit s": _figure(row["fit_seconds"], 2),
        "score ms": _figure(row["score_ms"], 2),
    }


def _figure(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _print_estimate(chosen: StudyPlan, settings: WorkerSettings, out: Path, as_json: bool) -> None:
    from ..study.estimate import estimate
    from ..study.plan import groups
    from ..study.store import Store

    cells = chosen.cells()
    known: dict[str, str] = {}
    if (out / "study.sqlite").exists():
        with Store(out / "study.sqlite") as store:
            known = {row["key"]: row["status"] for row in store.rows()}
    start = time.perf_counter()
    waiting = [group for group in groups(cells) if any(known.get(cell.key) != "finished" for cell in group.cells)]
    found = []
    with ProgressView("groups") as view:  # each has its network built and tried: of many, minutes
        for done, some in enumerate(waiting):
            view("groups", done, len(waiting), str(some.cells[0]))
            found.append(estimate(some, settings))
    planned = {cell.cell.key: (group, cell) for group in found for cell in group.cells}
    rows: list[dict[str, object]] = []
    for cell in cells:
        row: dict[str, object] = {"cell": str(cell), "status": known.get(cell.key, "waiting")}
        row |= dict.fromkeys(("images", "features GB", "model GB", "peak GB", "problem"), "")
        if cell.key in planned:
            group, one = planned[cell.key]
            row |= {
                "images": group.images,
                "features GB": _billions(group.feature_bytes),
                "model GB": _billions(one.model_bytes),
                "peak GB": _billions(one.peak_bytes),
                "problem": one.problem,
            }
        rows.append(row)
    seconds = sum(group.seconds for group in found)
    if as_json:
        typer.echo(json.dumps({"cells": rows, "groups": len(found), "seconds": seconds}))
        return
    print_rows(rows)
    typer.echo(
        f"{len(cells)} cells, {len(found)} groups to read; about {duration(seconds)} of reading and fitting in one "
        f"process, scoring and figures on top. (Estimated in {duration(time.perf_counter() - start)}.)"
    )


def _billions(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.3f}"
