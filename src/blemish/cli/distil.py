"""`blemish distil`: teach a small network of our own what a pretrained one knows, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..files import check_input, check_output, sole_writer, write_whole
from ..parameters import read_texts, split_settings
from .console import Speaker, print_rows
from .options import DeviceOption, SeedOption, SetOption, WorkersOption, spelled_out
from .progress import ProgressView, duration

if TYPE_CHECKING:
    from ..distil.backbone import BackboneRecipe
    from ..distil.descriptor import DescriptorRecipe
    from ..training.loop import TrainingProgress

_Recipe = TypeVar("_Recipe", "DescriptorRecipe", "BackboneRecipe")

distil_app = typer.Typer(
    no_args_is_help=True,
    help="Train a small network on what a large one says of any images. Killed, the same command goes on.",
)

PhotographsArgument = Annotated[
    Path, typer.Argument(help="Folder of any images, such as photographs; labels are not needed.")
]
TeacherOption = Annotated[str, typer.Option(help="Whom to learn from; see `blemish list backbones`.")]
TeacherWeightsOption = Annotated[
    Path | None, typer.Option(help="The teacher's: a file, or random; else $BLEMISH_WEIGHTS, then hub.")
]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every command: how a run goes, and what is told of it."""

    seed: SeedOption = 0
    settings: SetOption = None
    every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between two checkpoints.")] = 500
    time_limit: Annotated[
        float | None, typer.Option(min=0, metavar="MINUTES", help="Stop training then, and write what there is.")
    ] = None
    figure: Annotated[Path | None, typer.Option("--figure", help="Also draw the losses into this PNG file.")] = None
    device: DeviceOption = "auto"
    workers: WorkersOption = 2
    as_json: Annotated[bool, typer.Option("--json", help="Print the card instead of a table.")] = False


@distil_app.command()
@spelled_out
def descriptor(
    data: PhotographsArgument,
    *,
    out: Annotated[Path, typer.Option(help="Weights file to write; its card is beside it.")] = Path(
        "descriptor.safetensors"
    ),
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels: 17, 33 or 65.")] = 33,
    backbone: TeacherOption = "resnet18",
    weights: TeacherWeightsOption = None,
    tap: Annotated[str | None, typer.Option(help="Layer to learn from; default: the deepest.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 50_000,
    run: RunOptions,
) -> None:
    """Train a patch descriptor network: it learns on random crops what a pretrained backbone says of them.

    Kill it at any moment, and the same command goes on from the last checkpoint, OUT.checkpoint, to the same weights.

    Example: blemish distil descriptor photographs --patch 33 --set metric=1 --out patch33.safetensors
    """
    from ..distil.descriptor import DescriptorRecipe, distil_descriptor
    from ..features.descriptors import write_descriptor
    from ..features.weights import check_weights

    options = {"patch": patch, "backbone": backbone, "tap": tap, "steps": steps, "seed": run.seed}
    recipe = _recipe(DescriptorRecipe, options, run.settings)
    check_weights(weights)
    train = partial(distil_descriptor, recipe=recipe, weights=weights)
    _teach(train, write_descriptor, data, out, recipe=recipe, run=run)


@distil_app.command()
@spelled_out
def backbone(
    data: PhotographsArgument,
    *,
    out: Annotated[Path, typer.Option(help="Weights file to write; its card is beside it.")] = Path(
        "compact.safetensors"
    ),
    teacher: TeacherOption = "resnet18",
    weights: TeacherWeightsOption = None,
    start: Annotated[Path | None, typer.Option(help="Weights of an earlier run, to begin with.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 8000,
    run: RunOptions,
) -> None:
    """Train a compact backbone for CPUs: it learns to give the feature maps of a larger one.

    Kill it at any moment, and the same command goes on from the last checkpoint, OUT.checkpoint, to the same weights.

    Example: blemish distil backbone photographs --steps 8000 --out compact.safetensors
    """
    from ..distil.backbone import BackboneRecipe, distil_backbone, write_backbone
    from ..features.weights import check_weights

    recipe = _recipe(BackboneRecipe, {"teacher": teacher, "steps": steps, "seed": run.seed}, run.settings)
    check_weights(weights)
    if start is not None:
        check_input(start, of="--start")
    train = partial(distil_backbone, recipe=recipe, weights=weights, start=start)
    _teach(train, write_backbone, data, out, recipe=recipe, run=run)


def _teach(
    train: Callable[..., Any],
    write: Callable[[Any, Path], None],
    data: Path,
    out: Path,
    *,
    recipe: DescriptorRecipe | BackboneRecipe,
    run: RunOptions,
) -> None:
    """Train on the images, and write what comes of it; nobody else writes it, or its checkpoint, meanwhile."""
    from ..augment.crops import read_cache
    from ..training.run import check_checkpoint

    for path in (out, run.figure):
        if path is not None:
            check_output(path)
    with sole_writer(out):
        check_checkpoint(_checkpoint(out), recipe)
        with Speaker().progress() as reading:
            images = read_cache(data, side=recipe.image_side, workers=run.workers, progress=reading)
        with ProgressView("steps") as view:
            made = train(
                images,
                device=run.device,
                checkpoint=_checkpoint(out),
                checkpoint_every=run.every,
                time_limit=None if run.time_limit is None else 60 * run.time_limit,
                progress=lambda p: view("steps", p.step, p.steps, _news(p)),
            )
        write(made.network, out)
        _finish(made.card, data, out, run)


def _checkpoint(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")


def _finish(card: dict[str, Any], data: Path, out: Path, run: RunOptions) -> None:
    """Write the card and the picture, and say what was made."""
    card = card | {"data": data.resolve().name, "file": out.name, "bytes": out.stat().st_size}
    write_whole(out.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    if run.figure is not None:
        from ..report.training import loss_plot

        write_whole(run.figure, loss_plot(card["terms"], card["curve"]))
    if card["ended"] == "steps":
        _checkpoint(out).unlink(missing_ok=True)
    _print(card, out, run.as_json)


def _recipe(kind: type[_Recipe], options: dict[str, Any], settings: list[str] | None) -> _Recipe:
    """The recipe with these options and `--set KEY=VALUE`, each like the default that it replaces."""
    chosen = split_settings(settings or [], of="--set")
    return kind(**options, **read_texts(kind, chosen, of="--set", without=tuple(options)))


def _news(progress: TrainingProgress) -> str:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in progress.terms.items())
    return f"loss {progress.loss:.4g} ({terms}); about {duration(progress.seconds_left)} left"


def _print(card: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(card))
        return
    losses = dict(zip(card["terms"], card["last_losses"], strict=True))
    rows: list[dict[str, object]] = [{"figure": f"loss, {name}", "value": f"{v:.4f}"} for name, v in losses.items()]
    names = {name: name.replace("_", " ") for name in card["held_out"]}
    rows += [{"figure": f"held out, {names[name]}", "value": f"{v:.4f}"} for name, v in card["held_out"].items()]
    print_rows(rows)
    typer.echo(
        f"{out}: {card['steps']} steps in {card['seconds']:.0f} s on {card['images']} images, "
        f"{card['bytes'] / 1e6:.2f} MB; card: {out.with_suffix('.json')}"
    )
    if card["ended"] == "time":
        Speaker().line("The time was up before the last step; the same command goes on.")
