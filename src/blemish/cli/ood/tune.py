"""`blemish ood tune | ablate`: temperature and step of a detector that runs the network again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...files import check_output
from ..console import Speaker, print_rows
from ..options import JsonOption, ReportOption, SeedOption, check_report, read_option, spelled_out
from .inputs import digests_of, make_detector, open_images, opened, read_tunings, tunable
from .options import LimitOption, ModelOption, NetworkOptions, ReadingOptions
from .results import ablation_cells, print_tuning, write_findings


@spelled_out
def tune(
    inliers: Annotated[Path, typer.Argument(help="In-distribution images to tune on; test on others.")],
    *,
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="File for the result, for `evaluate --tuned`.")] = Path("tuning.json"),
    outliers: Annotated[
        Path | None, typer.Option(help="Outliers to tune on: then the choice has seen outliers.")
    ] = None,
    objective: Annotated[
        Literal["outliers", "synthetic", "inliers"] | None,
        typer.Option(
            help="outliers: AUROC against --outliers. synthetic: against outliers made from INLIERS. inliers: "
            "confidence of INLIERS after the step, at a fixed temperature."
        ),
    ] = None,
    detector: Annotated[str, typer.Option(help="gradient or odin, perhaps with parameters.")] = "gradient",
    temperatures: Annotated[str | None, typer.Option(help="Such as 1,2,5; default: the published ten.")] = None,
    eps: Annotated[str | None, typer.Option(help="Such as 0,0.001; default: 21 from 0 to 0.004.")] = None,
    limit: Annotated[int, typer.Option(min=2, help="Images of each set, drawn by --seed.")] = 500,
    report: ReportOption = None,
    network: NetworkOptions,
    seed: SeedOption = 0,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Choose temperature and step of ODIN or of the gradient method on a grid with shared passes.

    Without outliers the choice is made on synthetic ones, or on the confidence of INLIERS; the file says which, and
    `evaluate --tuned` refuses test images that were tuned on.

    Example: blemish ood tune validation --model resnet50 --detector odin --objective inliers
    """
    from ...evaluation.tuning import Grid, tune_ood

    say = Speaker()
    check_output(out)
    check_report(report)
    _, chosen = make_detector(detector)
    normal, unusual = opened(inliers, outliers)
    assert normal is not None
    classifier = network.open(model)
    given = {
        "temperatures": temperatures and read_option("--temperatures", tuple[float, ...], temperatures, above=0),
        "eps": eps and read_option("--eps", tuple[float, ...], eps, at_least=0, at_most=10),
    }
    grid = Grid(**{name: values for name, values in given.items() if values})
    with say.progress() as progress:
        result = tune_ood(
            classifier,
            tunable(chosen),
            normal,
            unusual,
            objective=objective,
            grid=grid,
            limit=limit,
            seed=seed,
            reading=reading.reader(progress),
        )
    result.save(out)
    if as_json:
        typer.echo(json.dumps({key: value for key, value in asdict(result).items() if key != "digests"}))
    else:
        print_tuning(result, out)
    write_findings(report, say, f"{classifier.name}: tuning", tunings=[result])


@spelled_out
def ablate(
    inliers: Annotated[Path, typer.Argument(help="In-distribution images.")],
    *,
    model: ModelOption,
    outliers: Annotated[Path, typer.Option(help="Outliers.")],
    detector: Annotated[str, typer.Option(help="gradient or odin, perhaps with parameters.")] = "gradient",
    tuned: Annotated[Path | None, typer.Option(help="File of `blemish ood tune`: its parameters are used.")] = None,
    limit: LimitOption = None,
    report: ReportOption = None,
    network: NetworkOptions,
    seed: SeedOption = 0,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Show what temperature, step and each block of the network are worth, by AUROC with its 95 % interval.

    Images that were tuned on are left out. With --tuned, temperature and step alone are each the best of its grid.

    Example: blemish ood ablate test --model resnet18 --outliers textures --detector gradient,temperature=5
    """
    from ...evaluation.tuning import ablate_ood

    say = Speaker()
    check_report(report)
    chosen = tunable(make_detector(detector)[1])
    tunings = read_tunings(None if tuned is None else [tuned])
    for tuning in tunings:
        chosen = tuning.apply(chosen)
    normal, unusual = (open_images(path, "none", limit, seed) for path in (inliers, outliers))
    classifier = network.open(model)
    with say.progress() as progress:
        rows = ablate_ood(
            classifier,
            chosen,
            normal,
            unusual,
            tuned_on=digests_of(tunings),
            tuning=tunings[0] if tunings else None,
            reading=reading.reader(progress),
        )
    if as_json:
        typer.echo(json.dumps({"ablation": [asdict(row) for row in rows]}))
    else:
        print_rows([ablation_cells(row) for row in rows])
    write_findings(report, say, f"{classifier.name}: ablation", ablation=rows)
