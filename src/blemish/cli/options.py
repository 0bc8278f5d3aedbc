"""Options that several commands share, and what reads their texts."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ..errors import ArgumentError
from ..files import check_output, read_text
from ..memory import MOST_GB
from ..parameters import Bounds, Parameter

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
RuntimeOption = Annotated[
    Literal["auto", "torch", "onnxruntime", "openvino"] | None,
    typer.Option(help="What runs the network: auto measures those at hand. Default: the model's."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images a forward pass.")]
MOST_THREADS = 256
"""With tens of thousands the libraries below end the process."""
WorkersOption = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Decoding threads.")]
ErrorOption = Annotated[
    Literal["raise", "skip"], typer.Option(help="At an unreadable file: raise an error, or skip and count it.")
]
LEAST_GB = 1e-6
MemoryOption = Annotated[
    float | None,
    typer.Option(
        min=LEAST_GB, max=MOST_GB, metavar="GB", help="What the program may hold; default: 9/10 of what is free."
    ),
]
SeedOption = Annotated[int, typer.Option(help="For everything random; the same seed gives the same numbers.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other parameter; repeatable.")
]
FdrOption = Annotated[
    float | None,
    typer.Option(help="Also choose alarms among all images together, on average at most this share of them false."),
]
ReportOption = Annotated[Path | None, typer.Option(help="Also write an HTML report here.")]
WhiteLevelOption = Annotated[
    str | None,
    typer.Option(help="White in 16-bit files: 1023 for a camera of 10 bits, 4095 for 12; auto. Default: 65535."),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Refuse files of more pixels, which may be bombs; default: 80 million."),
]
LearnedRoiOption = Annotated[
    Path | None,
    typer.Option(
        "--roi", help="Where to look: a mask (white), a JSON file of polygons, or a folder with a mask an image."
    ),
]
DataArgument = Annotated[Path, typer.Argument(help="Dataset folder (train/good ...), or any folder of normal images.")]
LabelledArgument = Annotated[Path, typer.Argument(help="Dataset folder with labelled test images.")]
ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files or folders.")]
NormalOption = Annotated[
    list[str] | None, typer.Option("--normal", metavar="SUB", help="Sub-folder of normal images; repeatable.")
]
AnomalousOption = Annotated[
    list[str] | None, typer.Option("--anomalous", metavar="SUB", help="Sub-folder of images with defects; repeatable.")
]
MasksOption = Annotated[
    str | None,
    typer.Option("--masks", metavar="SUB", help="Sub-folder of masks, SUB/KIND/IMAGE.png."),
]
RoiOption = Annotated[
    Path | None,
    typer.Option("--roi", metavar="FOLDER", help="Regions for each image, where the model was fitted with such ones."),
]
ModelArgument = Annotated[Path, typer.Argument(help="Model file written by `blemish fit`.")]
ChangedOption = Annotated[Path | None, typer.Option("--out", help="Where to write; default: replace the model.")]
WeightsOption = Annotated[Path | None, typer.Option(help="File, or random; else $BLEMISH_WEIGHTS, then hub.")]
GroupByOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN", help="Keep bursts or parts together: a regular expression whose first group names them."
    ),
]
HeldOutOption = Annotated[
    float | None,
    typer.Option(help="Share of the normal images held out for the threshold. Default: a fifth, or what it takes."),
]
ExcludeOption = Annotated[
    Path | None, typer.Option(help="Text file of images that are not normal, such as `blemish inspect --out`'s.")
]
PixelsOption = Annotated[
    Literal["original", "network"] | None,
    typer.Option(help="Pixel figures on the original pixels, or on the network's input."),
]
OverlapOption = Annotated[
    bool, typer.Option("--allow-overlap", help="Go on at test images that were learned from, and mark the figures.")
]
AtOnceOption = Annotated[int, typer.Option(min=1, max=256, help="Pictures judged in one go at most.")]
RateOption = Annotated[float, typer.Option(help="Share of normal images that may be flagged.")]
CertainOption = Annotated[
    float | None,
    typer.Option(help="Keep that rate with this probability, such as 0.95, not only on average; takes more images."),
]


@dataclass(frozen=True)
class SplitOptions:
    """Which normal images are learned, and which make the threshold."""

    false_alarm_rate: RateOption = 0.05
    certain: CertainOption = None
    held_out: HeldOutOption = None
    group_by: GroupByOption = None
    roi: LearnedRoiOption = None
    workers: WorkersOption = 2
    on_error: ErrorOption = "raise"


def spelled_out(function: Callable[..., None]) -> Callable[..., None]:
    """The command of a function, some of whose parameters are dataclasses: each field of these is an option."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    groups = {p.name: p.annotation for p in own if isinstance(p.annotation, type) and is_dataclass(p.annotation)}
    spelled: list[inspect.Parameter] = []
    for p in own:
        if p.name not in groups:
            spelled.append(p.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = get_type_hints(p.annotation, include_extras=True)
        spelled += [p.replace(name=f.name, annotation=kinds[f.name], default=f.default) for f in fields(p.annotation)]

    @wraps(function)
    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{f.name: given.pop(f.name) for f in fields(kind)})
        function(**given)

    command.__dict__["__signature__"] = inspect.Signature(spelled)  # which typer reads
    command.__annotations__ = {p.name: p.annotation for p in spelled}
    return command


def with_finite_numbers(function: Callable[..., None]) -> Callable[..., None]:
    """The command, which takes no NaN, infinity, or number of 20 digits: these pass all bounds that an option has."""

    @wraps(function)
    def command(*arguments: Any, **given: Any) -> None:
        for name, value in given.items():
            if isinstance(value, float) and not isfinite(value):
                raise ArgumentError.about(f"--{name.replace('_', '-')}", expected="a finite number", got=value)
            if isinstance(value, int) and abs(value) > sys.maxsize:
                raise ArgumentError.about(f"--{name.replace('_', '-')}", expected="a smaller number", got=value)
        function(*arguments, **given)

    return command


def read_option(name: str, kind: Any, text: str, **bounds: Any) -> Any:
    """Read the text of an option as a method's parameter of this type is read."""
    return Parameter(name, kind, MISSING, "", Bounds(**bounds)).of_text(text)


def check_share(name: str, value: float | None) -> None:
    """Refuse, by the option's name, what is no share between 0 and 1."""
    if value is not None and not 0 < value < 1:
        raise ArgumentError.about(name, expected="a number between 0 and 1", got=value)


def check_report(report: Path | None, *, beside: Sequence[Path] = ()) -> None:
    """Refuse, before any work, a report that cannot be written, or that would replace what is read."""
    if report is not None:
        check_output(report, beside=beside)


def read_names(file: Path) -> list[str]:
    """Read the names in a text file, one a line; what follows ` #` and lines that begin with # are remarks."""
    lines = read_text(file, expected="a list of names, one a line").splitlines()
    names = ("" if line.startswith("#") else line.split(" #", 1)[0].strip() for line in lines)
    return [name for name in names if name]


def read_resize(text: str | None) -> int | tuple[int, int] | str | None:
    """Read SIDE, HEIGHTxWIDTH, or what begins with `auto`, of `--resize`."""
    return text if text is None or text.startswith("auto") else read_size(text)


def read_size(text: str, *, of: str = "--resize") -> int | tuple[int, int]:
    """Read SIDE or HEIGHTxWIDTH of an option."""
    try:
        size: int | tuple[int, int] = read_option(of, int | tuple[int, int], text.replace("x", "+"), at_least=16)
    except ArgumentError:
        expected = "SIDE or HEIGHTxWIDTH in pixels, each at least 16, such as 512x256"
        raise ArgumentError.about(of, expected=expected, got=text) from None
    return size


def read_white_level(text: str | None) -> float | Literal["auto"] | None:
    """Read a number or `auto` of `--white-level`."""
    if text is None:
        return None
    level: float | Literal["auto"] = read_option("--white-level", float | Literal["auto"], text, above=0, at_most=65535)
    return level
