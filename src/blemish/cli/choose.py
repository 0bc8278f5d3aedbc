"""`blemish choose`: which method, without a defect."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import Speaker, print_rows
from .options import read_names, read_resize, read_white_level, spelled_out

if TYPE_CHECKING:
    from ..choosing.choose import Choice, Ranked


@spelled_out
def choose(
    data: options.DataArgument,
    *,
    backbone: Annotated[str, typer.Option(help="See `blemish list backbones`; or timm:NAME.")] = "compact",
    weights: options.WeightsOption = None,
    resize: Annotated[
        list[str] | None, typer.Option(help="Size of the network's input, as in `blemish fit`; repeatable.")
    ] = None,
    white_level: options.WhiteLevelOption = None,
    split: options.SplitOptions,
    exclude: options.ExcludeOption = None,
    memory: options.MemoryOption = None,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Rank methods and layers for these parts from normal images alone, and say what to fit.

    Example: blemish choose bottle --resize 256 --resize 384
    """
    from ..choosing.candidates import candidates
    from ..datasets.layouts import open_dataset
    from ..datasets.taken import take
    from ..detector import Detector
    from ..features.weights import check_weights
    from ..images.preprocess import Preprocess

    say = Speaker()
    check_weights(weights)
    dataset = open_dataset(data)
    say.lines(take(dataset).lines())
    white = read_white_level(white_level)
    sizes = [Preprocess(read_resize(text) or "auto", white_level=white) for text in resize or ("auto",)]
    rows = [
        row
        for size in sizes
        for row in candidates(
            backbone, weights=weights, seed=seed, device=device, memory_gb=memory, preprocess=size
        )
    ]  # fmt: skip
    detector = Detector(preprocess=sizes[0], seed=seed, **vars(split))
    left_out = () if exclude is None else read_names(exclude)
    with say.progress() as progress:
        choice = detector.choose(dataset.train_images(), rows, exclude=left_out, progress=progress)
    given = {"white_level": white_level, **vars(split), "exclude": exclude, "memory": memory, "seed": seed}
    command = _fit_command(data, choice, given | {"device": device})
    say.skipped(choice.skipped)
    if as_json:
        typer.echo(json.dumps(_as_json(choice) | {"command": command}))
        return
    print_rows([_row(row, choice) for row in choice.ranking])
    families: list[dict[str, object]] = [
        {"AUROC of": row.candidate.name, **{name: f"{value:.2f}" for name, value in row.families.items()}}
        for row in choice.ranking
    ]
    print_rows(families)
    for name, reason in choice.left_out:
        typer.echo(f"left out: {name}: {reason}")
    typer.echo(
        f"{choice.learned} images learned, {len(choice.held_out)} held out with {choice.changed} changed copies; "
        f"{choice.seconds:.0f} s\n{choice.reason}\n{command}"
    )


def _fit_command(data: Path, choice: Choice, given: Mapping[str, object]) -> str:
    """What to fit: the pick, and the options that were given, where they are not what they are by default."""
    # Images that chose cannot calibrate: those that were set aside do.
    command = f"blemish fit {shlex.quote(str(data))} {choice.picked.options} --calibration split"
    usual = vars(options.SplitOptions()) | {"seed": 0, "device": "auto"}
    for name, value in given.items():
        if value != usual.get(name):
            command += f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
    return command


def _row(row: Ranked, choice: Choice) -> dict[str, object]:
    mark = "picked" if row.candidate is choice.picked else "alike" if row.alike else ""
    return {
        "candidate": row.candidate.name,
        "input": row.candidate.size,
        "criterion": f"{row.criterion:.3f}",
        "95 % interval": "{:.3f} to {:.3f}".format(*row.interval),
        "behind the first": "{:.3f} to {:.3f}".format(*row.behind),
        "": mark,
        "pixels": "-" if row.pixel_auroc is None else f"{row.pixel_auroc:.3f}",
        "fit": f"{row.fit_seconds:.1f} s",
        "score": f"{row.score_ms:.1f} ms",
        "model": f"{row.model_bytes / 1e6:.1f} MB",
    }


def _as_json(choice: Choice) -> dict[str, Any]:
    ranking = [
        {"candidate": row.candidate.name, "input": row.candidate.size, "options": row.candidate.options}
        | {key: value for key, value in vars(row).items() if key != "candidate"}
        for row in choice.ranking
    ]
    others = {key: value for key, value in vars(choice).items() if key not in ("ranking", "picked")}
    return {"ranking": ranking, "picked": choice.picked.name} | others
