"""The command line: parse, call, print. torch is imported inside the commands, so that `--help` is instant."""

from __future__ import annotations

import errno
import sys
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import BlemishError
from ..files import is_broken_pipe
from ..memory import is_shortage
from . import (
    benchmark,
    choose,
    compare,
    detector,
    distil,
    explain,
    export,
    feedback,
    inspect,
    judge,
    line,
    lists,
    ood,
    station,
    study,
    upgrade,
    watch_scores,
)
from .console import notes_on_stderr
from .options import with_finite_numbers


class _Group(TyperGroup):
    """Turns every error of our own into one line on stderr and exit status 1."""

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that the terminal's encoding has not
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            with notes_on_stderr():
                return super().invoke(ctx)
        except (BlemishError, OSError) as error:
            if is_broken_pipe(error):  # `| head -1`: whoever read has seen enough
                raise BrokenPipeError(errno.EPIPE, "the other end of the pipe is closed") from None
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except typer.BadParameter as error:
            if not error.message.endswith("is not readable."):
                raise
            typer.echo(f"error: {error.message} There is no permission for it.", err=True)  # a file's fault, not of use
            raise typer.Exit(1) from None
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            typer.echo(
                f"error: not enough memory ({str(error).splitlines()[0] if str(error) else 'none left'}).", err=True
            )
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds what does not belong in images, after seeing normal images only.\n\n"
    "Start with `blemish demo`, then `blemish fit FOLDER --out part.blemish` and "
    "`blemish predict part.blemish IMAGES`.",
)
for name, command in (
    ("demo", detector.demo),
    ("inspect", inspect.inspect),
    ("choose", choose.choose),
    ("fit", detector.fit),
    ("update", detector.update),
    ("recalibrate", detector.recalibrate),
    ("forget", detector.forget),
    ("feedback", feedback.feedback),
    ("upgrade", upgrade.upgrade),
    ("predict", judge.predict),
    ("explain", explain.explain_regions),
    ("evaluate", judge.evaluate_model),
    ("compare", compare.compare_models),
    ("watch-scores", watch_scores.watch_scores),
    ("export", export.export),
    ("benchmark", benchmark.benchmark),
    ("list", lists.list_),
    ("study", study.study),
    ("report", study.report),
    ("serve", station.serve),
    ("watch", line.watch),
    ("stream", line.stream),
):
    app.command(name)(command)
app.add_typer(ood.ood_app, name="ood")
app.add_typer(station.store_app, name="store")
app.add_typer(distil.distil_app, name="distil")
for group in (app, ood.ood_app, station.store_app, distil.distil_app):
    for row in group.registered_commands:
        assert row.callback is not None
        row.callback = with_finite_numbers(row.callback)
