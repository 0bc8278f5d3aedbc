"""`blemish serve` and `store`: a station beside the line, and what was kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError, MissingPackageError
from ..files import check_input, check_output, make_folder, open_lines, whole_file, write_whole
from ..memory import MOST_GB, available_bytes
from .console import Speaker
from .options import LEAST_GB, AtOnceOption, DeviceOption, MaxPixelsOption, RuntimeOption

_PORT = 8321
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="Folder of the store; made where missing.")]

store_app = typer.Typer(no_args_is_help=True, help="What a station has kept: verdicts, feedback, pictures.")


def serve(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[MODEL]...", help="Model files; each is asked for by its name.")
    ] = None,
    *,
    store: StoreOption = Path("station"),
    host: Annotated[str, typer.Option(help="Address to listen at. Any but this machine's own takes a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = _PORT,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token that callers send as `Authorization: Bearer`.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name of this machine; repeatable.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=LEAST_GB,
            max=MOST_GB,
            metavar="GB",
            help="What all loaded models may take, each counted as twice its file; default: half of what is free.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = None,
    batch_size: AtOnceOption = 8,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of one request.")] = 32,
    max_pixels: MaxPixelsOption = None,
    requests: Annotated[int, typer.Option(min=1, help="Read or judged at a time; more get 429.")] = 128,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait; more get 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to send a request, and to be judged.")] = 30,
    keep_days: Annotated[float, typer.Option(min=0, help="For so long pictures stay; verdicts stay for ever.")] = 30,
    keep_gb: Annotated[float, typer.Option(min=0, help="So much all pictures may take; 0: none is kept.")] = 10,
    check: Annotated[bool, typer.Option("--check", help="Open port and store, load the models, and end.")] = False,
) -> None:
    """Judge pictures over HTTP, with a page for people: http://127.0.0.1:8321/ by default.

    Without a model, the page learns the first one from pictures that you drop on it.

    Ends at Ctrl-C or SIGTERM, after what was begun has been answered.

    Example: blemish serve bottle.blemish --store /var/lib/blemish
    """
    _require_packages()
    from ..edges.faiss import index_from_name
    from ..images.decode import MAX_PIXELS
    from ..station.app import make_app
    from ..station.limits import Limits
    from ..station.logbook import Logbook, Retention
    from ..station.models import Models
    from ..station.server import bind, listen, make_server, read_token
    from ..station.station import Station

    say = Speaker()
    token = read_token(token_file, host=host)
    limits = Limits(
        max_bytes=int(max_mb * 1e6), max_pixels=max_pixels or MAX_PIXELS, requests=requests, waiting=queue,
        seconds=timeout, batch=batch_size,
    )  # fmt: skip
    files = _named(models or [])
    for file in files.values():
        check_input(file, of="MODEL")
    table = Models(
        files, max_bytes=int(memory * 1e9 if memory else (available_bytes() or 4e9) / 2), device=device,
        runtime=runtime, make_index=index_from_name, batch=batch_size, max_pixels=limits.max_pixels,
    )  # fmt: skip
    # Whatever fails from here on, no thread of theirs may be left: the process would never end.
    with ExitStack() as held:
        bound = held.enter_context(bind(host, port))  # refused before a model is loaded, which takes seconds
        retention = Retention(days=keep_days, max_bytes=int(keep_gb * 1e9))
        logbook = held.enter_context(Logbook(store, retention=retention))
        station = Station(table, logbook, limits=limits, keep_pictures=keep_gb > 0, device=device)
        held.callback(station.close)
        for name in files:
            table.get(name)  # in its latest version; a file that cannot be read stops here, and not at the first part
        address = listen(bound)
        if check:
            say.line(f"{len(table.names())} models, {store}: all is well.")
            return
        say.line(f"{address}  Ctrl-C ends it.")
        app = make_app(station, token=token, names=allow_host or ())
        make_server(app, limits=limits).run(sockets=[bound])


@store_app.command("export")
def export(
    store: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the store.")],
    *,
    out: Annotated[Path, typer.Option(help="JSON lines to write: verdicts as `predict` writes them, with feedback.")],
    pictures: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also write the pictures here.")] = None,
) -> None:
    """Write what a station has kept, also while it runs; the oldest verdict first."""
    from ..station.logbook import FILE, read_lines, read_pictures

    say = Speaker()
    check_output(out, beside=[store / f"{FILE}{part}" for part in ("", "-wal", "-shm")])
    count = 0
    with whole_file(out) as temporary, open_lines(temporary, "w") as file:
        for line in read_lines(store):
            file.write(json.dumps(line) + "\n")
            count += 1
    say.line(f"{count} verdicts: {out}")
    if pictures is not None:
        make_folder(pictures)
        for digest, content in read_pictures(store):
            write_whole(pictures / f"{digest}{_suffix(content)}", content)
        say.line(f"Pictures: {pictures}")


def _require_packages() -> None:
    if find_spec("fastapi") is None or find_spec("uvicorn") is None or find_spec("prometheus_client") is None:
        raise MissingPackageError("A station needs more packages. Run: pip install 'blemish[serve]'.")


def _named(models: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for model in models:
        if model.stem in named:
            raise ArgumentError.about(
                "MODEL", expected="files of different names", got=f"{named[model.stem]} and {model}"
            )
        named[model.stem] = model
    return named


def _suffix(content: bytes) -> str:
    """The ending that fits a picture's first bytes; empty for a format that has no short mark."""
    marks = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"GIF8", ".gif"), (b"RIFF", ".webp"))
    tiffs = ((b"II*\0", ".tif"), (b"MM\0*", ".tif"))
    return next((suffix for mark, suffix in (*marks, *tiffs) if content.startswith(mark)), "")
