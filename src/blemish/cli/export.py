"""`blemish export`: a fitted model as one file for another program, on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..files import check_output
from .console import Speaker
from .options import JsonOption, ModelArgument

if TYPE_CHECKING:
    from ..export.write import Exported


def export(
    model: ModelArgument,
    *,
    format: Annotated[
        Literal["onnx", "openvino", "torch"], typer.Option(help="Of the file; torch: a program of torch.export.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; run.py comes beside it. Default: model.onnx, model.xml or model.pt2."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of normal images to compare on, best those of the fit; default: drawn pictures."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole decision as one file that needs no blemish, and but for --format torch no torch.

    Pictures of 8 bits and any size go in; score, map, p-value, threshold and verdict come out. Both ways are compared
    on images first: a file that would say something else is not written. Beside it lies run.py, which prints the lines
    of `blemish predict` and needs numpy, Pillow and onnxruntime, openvino or torch, alone.

    Example: blemish export bottle.blemish --images bottle --out device/bottle.onnx
    """
    from ..datasets.layouts import normal_images
    from ..detector import Detector
    from ..export.write import SUFFIXES, export_model

    say = Speaker()
    out = out or Path(f"model{SUFFIXES[format]}")
    check_output(out, beside=[model])
    source = None if images is None else normal_images(images)
    detector = Detector.load(model, device="cpu")
    with say.progress() as progress:
        made = export_model(detector, out, format=format, images=source, model=model, progress=progress)
    print_exported(made, format, as_json=as_json)


def print_exported(made: Exported, format: str, *, as_json: bool) -> None:
    """Say what was written, and what the comparison found."""
    row = asdict(made) | {"path": str(made.path), "run": str(made.run), "format": format}
    if as_json:
        typer.echo(json.dumps(row))
        return
    parity = made.parity
    maps = "" if parity.map is None else f", maps by {parity.map:.1e}"
    typer.echo(
        f"{made.path}: {made.bytes / 1e6:.1f} MB; on {parity.images} {'drawn' if parity.drawn else 'given'} images "
        f"scores differ by {parity.score:.1e} of the largest{maps}, and no verdict does.\n{made.run}: judges pictures "
        f"with it: python {made.run} {made.path} PICTURES"
    )
