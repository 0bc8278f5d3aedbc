"""`blemish compare`: two models on the same images, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import Speaker, print_rows
from .models import Subfolders, load_model
from .options import check_report, spelled_out


@spelled_out
def compare_models(
    a: options.ModelArgument,
    b: Annotated[Path, typer.Argument(help="Another one.")],
    data: options.LabelledArgument,
    *,
    folders: Subfolders,
    group_by: options.GroupByOption = None,
    report: options.ReportOption = None,
    pixels: options.PixelsOption = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Of the bootstrap and of the swaps.")] = 1000,
    pixel_repetitions: Annotated[
        int, typer.Option(min=0, help="The same of pixel figures, which take longer; 0 leaves them out.")
    ] = 100,
    allow_overlap: options.OverlapOption = False,
    device: options.DeviceOption = "auto",
    batch_size: options.BatchOption = 16,
    workers: options.WorkersOption = 2,
    as_json: options.JsonOption = False,
) -> None:
    """Say which of two models is better on the same images, by how much, and whether chance explains it.

    Every figure of `evaluate`: a, b, their difference with a 95 % interval, and a p-value, paired by image.

    Example: blemish compare old.blemish new.blemish bottle --report compare.html
    """
    from ..evaluation.pair import evaluate_pair
    from ..metrics.table import TABLE
    from ..report.pair import say_difference, write_pair

    say = Speaker()
    check_report(report, beside=[a, b])
    dataset, taken = folders.open(data, say)
    first, second = (load_model(model, device) for model in (a, b))
    for detector in (first, second):
        detector.batch_size, detector.workers = batch_size, workers
    with say.progress() as progress:
        pair = evaluate_pair(
            first, second, dataset, group_by=group_by, pixels=pixels, repetitions=repetitions,
            pixel_repetitions=pixel_repetitions, allow_overlap=allow_overlap, progress=progress,
        )  # fmt: skip
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))
    if report is not None:
        from ..report.facts import facts

        write_pair(pair, report, title=data.resolve().name, names=names, facts=(facts(first), facts(second)))
        say.line(f"Report: {report}")
    if as_json:
        extra = {"data": taken.as_json()} | ({} if report is None else {"report": str(report)})
        typer.echo(json.dumps({"models": [str(a), str(b)]} | pair.as_json() | extra))
        return
    print_rows(
        [
            {
                "figure": name + (" (smaller is better)" if TABLE[name].better == "smaller" else ""),
                "a": f"{found.a:.4f}",
                "b": f"{found.b:.4f}",
                "a - b": f"{found.difference:+.4f}",
                "95 % interval": f"{found.interval.low:+.4f} to {found.interval.high:+.4f}",
                "p": f"{found.p_value:.3g}",
            }
            for name, found in pair.differences.items()
        ]
    )
    typer.echo(say_difference(pair, names, "image_auroc"))
