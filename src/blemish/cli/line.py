"""`blemish watch` and `stream`: pictures from the line, out of a folder that a camera fills or out of a video."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ArgumentError
from ..files import check_output, naming, open_lines, parse_json, sole_writer
from ..progress import Throttle
from ..report.lines import read_line
from .console import Speaker
from .models import JudgeOptions
from .options import AtOnceOption, DeviceOption, MaxPixelsOption, ModelArgument, RuntimeOption, spelled_out

if TYPE_CHECKING:
    from ..station.delivery import Outlet
    from ..station.stream import Counts

_LONGEST_LINE = 1 << 24
"""Bytes: far more than the regions of any picture take."""


@dataclass(frozen=True)
class LineOptions:
    """How pictures from the line are judged, where the lines go, and who is told of each."""

    out: Annotated[
        Path | None, typer.Option(help="File to which the lines are added; what it has is not judged again.")
    ] = None
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Also POST each line here, again and again until it is taken.")
    ] = None
    webhook_token_file: Annotated[
        Path | None, typer.Option(help="File of a token, sent as `Authorization: Bearer`.")
    ] = None
    mqtt: Annotated[
        str | None,
        typer.Option(metavar="[NAME@]HOST[:PORT]/TOPIC", help="Also publish each line; mqtts:// before it encrypts."),
    ] = None
    mqtt_password_file: Annotated[Path | None, typer.Option(help="File of the password that goes with NAME.")] = None
    device: DeviceOption = "auto"
    runtime: RuntimeOption = None
    batch_size: AtOnceOption = 8
    max_pixels: MaxPixelsOption = None

    def outlets(self) -> dict[str, Outlet]:
        """Where lines go, by the ending of the file that says how far.

        Raises `ArgumentError`, `MissingPackageError`.
        """
        from ..edges.mqtt import Mqtt
        from ..station.secret import read_secret
        from ..station.webhook import Webhook

        for option, file, of, wanted in (
            ("--webhook-token-file", self.webhook_token_file, self.webhook, "--webhook URL"),
            ("--mqtt-password-file", self.mqtt_password_file, self.mqtt, "--mqtt NAME@HOST/TOPIC"),
        ):
            if file is not None and of is None:
                raise ArgumentError.about(option, expected=f"{wanted} as well", got="none")
        found: dict[str, Outlet] = {}
        if self.webhook is not None:
            token = None if self.webhook_token_file is None else read_secret(self.webhook_token_file, least=1)
            found["webhook"] = Webhook(self.webhook, token=token)
        if self.mqtt is not None:
            password = None if self.mqtt_password_file is None else read_secret(self.mqtt_password_file, least=1)
            found["mqtt"] = Mqtt(self.mqtt, password=password)
        return found

    def load(self, model: Path) -> tuple[Any, str]:
        """The detector of a model file, set up for pictures that may be bad, and the file's digest."""
        from ..report.lines import model_digest

        return self.reading.load(model), model_digest(model)

    @property
    def reading(self) -> JudgeOptions:
        """The same as `predict` takes it."""
        return JudgeOptions(
            device=self.device, runtime=self.runtime, batch_size=self.batch_size, max_pixels=self.max_pixels
        )


@spelled_out
def watch(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Folder that a camera fills.")],
    *,
    line: LineOptions,
    every: Annotated[float, typer.Option(min=0, help="Seconds between two looks.")] = 0.5,
    settle: Annotated[float, typer.Option(min=0, help="Seconds that a file must not change before it is read.")] = 1,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds after which a file that cannot be read gets a line with `error`.")
    ] = 30,
    once: Annotated[bool, typer.Option("--once", help="End when all that is there has its line.")] = False,
) -> None:
    """Judge the pictures that come into a folder: a JSON line each, as `predict` writes it, and each picture once.

    Half-written files wait until they are whole. A file that is written anew is another picture. Ends at Ctrl-C.

    Example: blemish watch bottle.blemish /srv/camera --out lines.jsonl
    """
    from ..images.listing import image_files
    from ..station.folder import Folder

    say = Speaker()
    image_files(folder)  # what is no folder is refused before a model is loaded
    with _added_to(line, say) as write:
        detector, digest = line.load(model)
        # A kill may have torn the last line: its picture is judged again.
        done = {} if line.out is None else {row["image"]: row.get("file") for row in _rows(line.out)}
        watched = Folder(detector, folder, done=done, settle=settle, patience=patience)
        count = 0
        try:
            while True:
                for row in watched.look():
                    write(row | {"model": digest})
                    count += 1
                if once and not watched.waiting:
                    break
                time.sleep(every)
        finally:
            say.line(f"{count} pictures of {folder}")


@spelled_out
def stream(
    model: ModelArgument,
    source: Annotated[str, typer.Argument(help="A video file, the number of a camera (0), or rtsp://...")],
    *,
    line: LineOptions,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="Judge at most so many frames a second.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="End after so many lines.")] = None,
) -> None:
    """Judge the frames of a video or a camera: a JSON line each, as `predict` writes it.

    A file is read as fast as it is judged. A camera does not wait: frames for which there is no time are dropped, the
    oldest first, and counted. A camera that breaks off is opened again. Ends with the file, or at Ctrl-C.

    Example: blemish stream bottle.blemish rtsp://camera/1 --rate 5 --out lines.jsonl
    """
    from ..edges.video import Video, import_cv2, spell_source
    from ..report.lines import file_state
    from ..station.stream import Stream

    say = Speaker()
    import_cv2()

    def opened() -> Video:
        return Video(source, max_pixels=line.reading.most_pixels)

    # A look before a model is loaded, which may take seconds; a camera would not wait meanwhile, so it is let go.
    opened().close()
    with _added_to(line, say) as write:
        detector, digest = line.load(model)
        first = opened()
        state = None if first.is_live else file_state(source)
        done = _frames_before(line.out, f"{spell_source(source)}#", state)
        judged = Stream(detector, first, reopen=opened, done=done, rate=rate, say=say.line)
        stated = "no frame rate stated" if first.rate is None else f"{first.rate:.3g} frames a second stated"
        say.line(f"{first.name}: {stated}")
        due = Throttle()
        try:
            for row in islice(judged.lines(), frames):
                write(row | {"model": digest} | ({} if state is None else {"file": state}))
                if due.is_due():
                    say.line(_spell_counts(judged.counts))
        finally:
            say.line(f"{first.name}: {_spell_counts(judged.counts)}")
        if frames is None and first.stated is not None and first.stated > judged.counts.came:
            say.line(f"It states {first.stated} frames; what was read ends before.")


def _spell_counts(counts: Counts) -> str:
    """What became of the frames, in words."""
    a_second = ""
    if counts.seconds > 0:
        a_second = f" ({counts.came / counts.seconds:.3g} and {counts.judged / counts.seconds:.3g} a second)"
    words = [f"{counts.came} frames came, {counts.judged} judged{a_second}"]
    words += [f"{counts.dropped} dropped"]
    words += [f"{counts.passed_over} passed over"] if counts.passed_over else []
    words += [f"{counts.breaks} breaks"] if counts.breaks else []
    left = counts.came - counts.judged - counts.dropped - counts.passed_over
    words += [f"{left} at hand"] if left else []
    return ", ".join(words)


def _frames_before(out: Path | None, prefix: str, state: str | None) -> set[int]:
    """Numbers of the frames of a video file, as it is now, that have a line."""
    if out is None or state is None:
        return set()
    return {
        row["frame"]
        for row in _rows(out)
        if row.get("file") == state and row["image"].startswith(prefix) and isinstance(row.get("frame"), int)
    }


def _rows(out: Path) -> Iterator[dict[str, Any]]:
    if not out.exists():
        return
    with naming(out), out.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            row = read_line(line)
            if row is not None:
                yield row


@contextmanager
def _added_to(options: LineOptions, say: Speaker) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives what adds a line to a file, on stdout where None, and has it sent."""
    from ..station.delivery import Delivery

    out, outlets = options.out, options.outlets()
    if out is None and outlets:
        raise ArgumentError.about(
            "--webhook and --mqtt", expected="--out FILE too, where lines wait until they are taken", got="none"
        )
    with ExitStack() as held:
        deliveries = []
        if out is not None:
            check_output(out)
            held.enter_context(sole_writer(out))
            _check_lines(out)
            _mend(out)
            for kind, outlet in outlets.items():
                deliveries.append(held.enter_context(Delivery(out, outlet, kind=kind, say=say.line)))
        file = held.enter_context(_opened(out))

        def write(line: Mapping[str, Any]) -> None:
            with naming(file.name):
                file.write(json.dumps(line) + "\n")
                file.flush()
            for delivery in deliveries:
                delivery.tell()
            if "error" in line:
                say.line(f"skipped: {line['error']}")

        yield write


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    """A file to which lines are added; stdout where None."""
    if out is None:
        yield sys.stdout
        return
    with naming(out), open_lines(out, "a") as file:
        yield file


def _check_lines(out: Path) -> None:
    """Refuse to add lines to what holds none, such as a model or a video, and to cut off its end."""
    if not out.exists():
        return
    with naming(out), out.open("rb") as file:
        first = file.readline(_LONGEST_LINE)
    if first and read_line(first) is None and not first.startswith(b'{"version"'):  # which a kill may have torn
        raise ArgumentError.about(
            "--out", expected="a new file, or lines of an earlier run", got=f"{out}, which holds something else"
        )


def _mend(out: Path) -> None:
    """End the last line of a file, or cut it off where it was torn by a kill or a full disk: it is judged again."""
    if not out.exists():
        return
    with naming(out), out.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(start := max(0, size - _LONGEST_LINE))
        tail = file.read()
        if not tail or tail.endswith(b"\n"):
            return
        last = tail.rpartition(b"\n")[2]
        if len(last) == len(tail) and start:
            raise ArgumentError.about(str(out), expected="a file of lines", got="one whose last line has no end")
        try:
            parse_json(last)
        except ValueError:
            file.truncate(size - len(last))
        else:
            file.write(b"\n")
