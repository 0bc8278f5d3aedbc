"""`blemish upgrade`: model files of an older format become files of this one, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError
from ..files import check_output, sole_writer


def upgrade(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Model files, checkpoints, weights of ours.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Where to write the one file; default: replace each.")] = None,
) -> None:
    """Bring model files to the newest format; scores stay the same. A file that has it already is left alone."""
    from .. import persist

    if out is not None and len(files) > 1:
        raise ArgumentError.about("--out", expected="one file with it", got=f"{len(files)} files")
    for file in files:
        target = check_output(out or file)
        with sole_writer(out or file):
            tensors, manifest = persist.load(file)
            if manifest["format"] == persist.FORMAT:
                typer.echo(f"{file}: has format {persist.FORMAT} already, left alone.")
                continue
            persist.save(target, tensors, manifest)
        typer.echo(f"{file}: format {manifest['format']} -> {persist.FORMAT}, written to {out or file}.")
