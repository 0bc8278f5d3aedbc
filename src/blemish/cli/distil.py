"""`blemish distil`: teach a small network of our own what a pretrained one knows, on the command line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import ArgumentError
from ..files import write_whole
from .console import Speaker, parse_settings, print_rows

if TYPE_CHECKING:
    from ..augment.crops import ImageCache
    from ..distil.backbone import BackboneRecipe, DistilledBackbone
    from ..distil.descriptor import DescriptorRecipe, Distilled
    from ..training.loop import TrainingProgress as Progress

_Made = TypeVar("_Made")
_Recipe = TypeVar("_Recipe", "DescriptorRecipe", "BackboneRecipe")

app = typer.Typer(
    no_args_is_help=True,
    help="Train a small network on what a large one says of any images. Killed, the same command goes on.",
)

Data = Annotated[Path, typer.Argument(help="Folder of any images, such as photographs; labels are not needed.")]
Teacher = Annotated[str, typer.Option(help="Whom to learn from; see `blemish list backbones`.")]
Weights = Annotated[
    Path | None, typer.Option(help="The teacher's: a file, or random; else $BLEMISH_WEIGHTS, then hub.")
]
Seed = Annotated[int, typer.Option(help="For everything random; the same seed gives the same weights.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other part of the recipe; repeatable.")
]
Every = Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between two checkpoints.")]
Limit = Annotated[float | None, typer.Option(metavar="MINUTES", help="Stop training then, and write what there is.")]
Curve = Annotated[Path | None, typer.Option("--figure", help="Also draw the losses into this PNG file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Workers = Annotated[int, typer.Option(min=1, help="Decoding threads.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the card instead of a table.")]


@app.command()
def descriptor(
    data: Data,
    *,
    out: Annotated[Path, typer.Option(help="Weights file to write; its card is beside it.")] = Path(
        "descriptor.safetensors"
    ),
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels: 17, 33 or 65.")] = 33,
    backbone: Teacher = "resnet18",
    weights: Weights = None,
    tap: Annotated[str | None, typer.Option(help="Layer to learn from; default: the deepest.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 50_000,
    seed: Seed = 0,
    settings: Settings = None,
    every: Every = 500,
    time_limit: Limit = None,
    figure: Curve = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Train a patch descriptor network: it learns on random crops what a pretrained backbone says of them.

    Kill it at any moment, and the same command goes on from the last checkpoint, OUT.checkpoint, to the same weights.

    Example: blemish distil descriptor photographs --patch 33 --set metric=1 --out patch33.safetensors
    """
    from ..distil.descriptor import DescriptorRecipe, distil_descriptor
    from ..features.descriptors import write_descriptor

    options = {"patch": patch, "backbone": backbone, "tap": tap, "steps": steps, "seed": seed}
    recipe = _recipe(DescriptorRecipe, options, settings)

    def train(images: ImageCache, progress: Callable[[Progress], None]) -> Distilled:
        return distil_descriptor(
            images,
            recipe,
            weights=weights,
            device=device,
            checkpoint=_checkpoint(out),
            checkpoint_every=every,
            time_limit=_seconds(time_limit),
            progress=progress,
        )

    _check_folders(out, figure)
    made = _trained(train, data, side=recipe.image_side, workers=workers)
    write_descriptor(made.network, out)
    _finish(made.card, data, out=out, figure=figure, as_json=as_json)


@app.command()
def backbone(
    data: Data,
    *,
    out: Annotated[Path, typer.Option(help="Weights file to write; its card is beside it.")] = Path(
        "compact.safetensors"
    ),
    teacher: Teacher = "resnet18",
    weights: Weights = None,
    start: Annotated[Path | None, typer.Option(help="Weights of an earlier run, to begin with.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 8000,
    seed: Seed = 0,
    settings: Settings = None,
    every: Every = 500,
    time_limit: Limit = None,
    figure: Curve = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Train a compact backbone for CPUs: it learns to give the feature maps of a larger one.

    Kill it at any moment, and the same command goes on from the last checkpoint, OUT.checkpoint, to the same weights.

    Example: blemish distil backbone photographs --steps 8000 --out compact.safetensors
    """
    from ..distil.backbone import BackboneRecipe, distil_backbone, write_backbone

    recipe = _recipe(BackboneRecipe, {"teacher": teacher, "steps": steps, "seed": seed}, settings)

    def train(images: ImageCache, progress: Callable[[Progress], None]) -> DistilledBackbone:
        return distil_backbone(
            images,
            recipe,
            weights=weights,
            start=start,
            device=device,
            checkpoint=_checkpoint(out),
            checkpoint_every=every,
            time_limit=_seconds(time_limit),
            progress=progress,
        )

    _check_folders(out, figure)
    made = _trained(train, data, side=recipe.image_side, workers=workers)
    write_backbone(made.network, out)
    _finish(made.card, data, out=out, figure=figure, as_json=as_json)


def _trained(
    train: Callable[[ImageCache, Callable[[Progress], None]], _Made], data: Path, *, side: int, workers: int
) -> _Made:
    from ..augment.crops import read_cache

    with Speaker().progress() as reading:
        images = read_cache(data, side=side, workers=workers, progress=reading)
    with _view() as progress:
        return train(images, progress)


def _check_folders(*files: Path | None) -> None:
    for path in files:
        if path is not None and not path.resolve().parent.is_dir():
            raise ArgumentError.about("--out or --figure", expected="a file in an existing folder", got=str(path))


def _checkpoint(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def _finish(card: dict[str, Any], data: Path, *, out: Path, figure: Path | None, as_json: bool) -> None:
    """Write the card and the picture, and say what was made."""
    card = card | {"data": data.resolve().name, "file": out.name, "bytes": out.stat().st_size}
    write_whole(out.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    if figure is not None:
        from ..report.training import loss_plot

        figure.write_bytes(loss_plot(card["terms"], card["curve"]))
    if card["ended"] == "steps":
        _checkpoint(out).unlink(missing_ok=True)
    _print(card, out, as_json)


def _recipe(kind: type[_Recipe], options: dict[str, Any], settings: list[str] | None) -> _Recipe:
    """The recipe with these options and `--set KEY=VALUE`, each like the default that it replaces."""
    defaults = {field.name: field.default for field in fields(kind) if field.name not in options}
    chosen = parse_settings(settings or [], option="--set")
    for key, value in chosen.items():
        if key not in defaults:
            expected = f"a part of the recipe without an option of its own: {', '.join(defaults)}"
            raise ArgumentError.about("--set", expected=expected, got=key)
        default = defaults[key]
        if isinstance(default, float) and type(value) is int:
            chosen[key] = float(value)
        elif isinstance(default, tuple) and isinstance(value, list):
            chosen[key] = tuple(value)
        elif not isinstance(value, type(default)):
            raise ArgumentError.about(f"--set {key}", expected=f"a value like {default!r}", got=value)
    return kind(**options, **chosen)


@contextmanager
def _view() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, description=_news(progress))

        yield show


class _Lines:
    """A line at the first step, every ten seconds, and at the last step."""

    def __init__(self) -> None:
        self._last = -10.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.step == progress.steps or now - self._last > 10:
            self._last = now
            typer.echo(f"{progress.step}/{progress.steps} steps: {_news(progress)}", err=True)


def _news(progress: Progress) -> str:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in progress.terms.items())
    seconds = progress.seconds_left
    left = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"loss {progress.loss:.4g} ({terms}); about {left} left"


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
