"""`blemish inspect`: look before you learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import check_output, write_whole
from .console import Speaker, print_rows
from .options import DataArgument, DeviceOption, JsonOption, ReportOption, WorkersOption

if TYPE_CHECKING:
    from ..inspection.inspect import Inspection


def inspect(
    data: DataArgument,
    *,
    report: ReportOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Text file to write: the most unlike tenth, to be thrown out by hand.")
    ] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Look at all pictures before anybody learns: copies, leaks, odd masks, and normal images unlike the others.

    Example: blemish inspect bottle --report bottle.html --out list.txt
    """
    from ..datasets.layouts import open_dataset
    from ..inspection.inspect import inspect_dataset, inspection_json

    say = Speaker()
    for path in (report, out):
        if path is not None:
            check_output(path)
    dataset = open_dataset(data)
    with say.progress() as progress:
        inspection = inspect_dataset(dataset, device=device, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps(inspection_json(inspection)))
    else:
        _print(inspection)
    if out is not None:
        write_whole(out, _list(inspection))
        say.line(f"List: {out}")
    if report is not None:
        from ..report.inspection import write_inspection

        write_inspection(inspection, dataset, report)
        say.line(f"Report: {report}")


def _print(inspection: Inspection) -> None:
    print_rows(
        [
            {
                "folder": folder.folder,
                "images": folder.images,
                "sizes": _most(folder.sizes),
                "modes": _most(folder.modes),
                "black": f"{folder.black:.1%}",
                "white": f"{folder.white:.1%}",
            }
            for folder in inspection.folders
        ]
    )
    for title, found in findings(inspection).items():
        typer.echo(f"{title}: {len(found)}")
        for words in found[:5]:
            typer.echo(f"  {words}")
        if len(found) > 5:
            typer.echo(f"  and {len(found) - 5} more; --json or --report names them")
    if inspection.unlike:
        typer.echo(f"most unlike: {', '.join(name for name, _ in inspection.most_unlike[:5])}")


def findings(inspection: Inspection) -> dict[str, list[str]]:
    """What was found, a line each; nothing where all is well."""
    every = {
        "on both sides, train and test": [" = ".join(names) for names in inspection.leaks],
        "identical": [" = ".join(names) for names in inspection.identical],
        "nearly identical": [" ~ ".join(names) for names in inspection.nearly_identical],
        "of one colour": list(inspection.constant),
        "unreadable": [reason for _, reason in inspection.unreadable],
        "passed over": [f"{name}: {reason}" for name, reason in inspection.passed_over],
        "exposure": [f"{name}: {remark}" for name, remark in inspection.exposure],
        "masks": [f"{name}: {remark}" for name, remark in inspection.masks],
    }
    return {title: found for title, found in every.items() if found}


def _most(counts: dict[str, int]) -> str:
    """The most frequent, and how many others there are."""
    first, *others = counts
    return first if not others else f"{first} and {len(others)} others"


def _list(inspection: Inspection) -> str:
    """All lines are remarks: only what somebody has looked at is thrown out."""
    lines = [
        "# The normal images least like the others, the most unlike first.",
        "# Remove the # before those that are not normal, then: blemish fit DATA --exclude THIS_FILE",
        "# Good images that merely look unusual must stay: without them the promised false-alarm rate does not hold.",
        *(f"# {name} # {score:.3f}" for name, score in inspection.most_unlike),
    ]
    return "\n".join(lines) + "\n"
