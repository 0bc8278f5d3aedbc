"""`blemish benchmark`: where the time of a model goes on this machine, on the command line."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ArgumentError
from .console import Speaker, print_rows
from .models import image_paths, load_model
from .options import MOST_THREADS, JsonOption, ModelArgument, WorkersOption, read_option
from .results import ResultWriter

if TYPE_CHECKING:
    from ..features.runtime import RuntimeName


def benchmark(
    model: ModelArgument,
    images: Annotated[list[Path] | None, typer.Argument(help="Image files or folders; none: drawn pictures.")] = None,
    *,
    runtimes: Annotated[
        str | None, typer.Option(help="Only these, comma-separated. Default: all that are installed.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Images a forward pass, comma-separated.")] = "1,8",
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="Of the network; default: as many as there are.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images to judge, spread over those given.")] = 32,
    heatmaps: Annotated[Literal["png", "npy", "none"], typer.Option(help="What is written of each.")] = "png",
    workers: WorkersOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Time each stage of `predict`, on each runtime: decode, the network, the score, regions, writing.

    Stages are timed one after the other, in ms an image, decoding with one thread. images_per_second is that of
    `predict`, whose threads decode while the network works: the longest of both bounds it. A first batch is not
    counted.

    Example: blemish benchmark bottle.blemish bottle/test
    """
    import torch

    from ..evaluation.speed import time_stages
    from ..features.runtime import RuntimeName
    from ..images.source import from_paths

    names = None if runtimes is None else read_option("--runtimes", tuple[RuntimeName, ...], runtimes, least=1)
    sizes = read_option("--batch-sizes", tuple[int, ...], batch_sizes, at_least=1, least=1)
    say = Speaker()
    if threads is not None:
        torch.set_num_threads(threads)
    given = image_paths(images, say) if images else None  # before a network is recorded, which takes seconds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        detectors = _detectors(model, names)
        paths = given or _drawn(Path(folder), detectors[0].preprocessing.size)
        source = from_paths(paths[:: max(1, len(paths) // count)][:count], max_pixels=detectors[0].max_pixels)
        for detector in detectors:
            for size in sizes:
                say.line(f"{len(source)} images on {detector.runtime}, {size} a batch ...")
                with ResultWriter(Path(folder, f"{detector.runtime}-{size}"), heatmaps, model=model) as writer:
                    found = time_stages(
                        detector, source, writer.write, batch_size=size, workers=workers, maps=heatmaps != "none"
                    )
                rows.append(asdict(found))
    if as_json:
        typer.echo(json.dumps({"threads": torch.get_num_threads(), "images": len(source), "rows": rows}))
        return
    print_rows([{name: f"{v:.1f}" if isinstance(v, float) else v for name, v in row.items()} for row in rows])


def _detectors(model: Path, runtimes: tuple[RuntimeName, ...] | None) -> list[Any]:
    """The model on each runtime that was asked for, or that is installed and can run it."""
    from ..features.runtime import runtimes_at_hand

    if runtimes:
        return [load_model(model, "cpu", runtime=name) for name in runtimes]
    kept = load_model(model, "cpu")
    found = [kept]
    for name in runtimes_at_hand():
        try:
            found += [load_model(model, "cpu", runtime=name)] if name != kept.runtime else []
        except ArgumentError as error:
            typer.echo(f"{name}: passed over. {error}", err=True)
    return found


def _drawn(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Files of drawn pictures at the size of the network's input."""
    from PIL import Image

    from ..images.drawn import clouds

    paths = [folder / f"{number}.png" for number in range(16)]
    for path, pixels in zip(paths, clouds([size] * len(paths)), strict=True):
        Image.fromarray(pixels).save(path)
    return paths
