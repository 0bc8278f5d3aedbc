"""Options that the commands of `blemish ood` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import ArgumentError
from ..options import BatchOption, DeviceOption, ErrorOption, WorkersOption

if TYPE_CHECKING:
    from ...evaluation.classifiers import Reader
    from ...ood import Classifier

ModelOption = Annotated[str, typer.Option("--model", help="The classifier: torchvision, timm:NAME, module:factory ...")]
MemberOption = Annotated[
    list[str] | None, typer.Option("--member", help="A further network of an ensemble, by name; repeatable.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many images of each set, drawn by --seed.")]
LearnOption = Annotated[
    Path | None, typer.Option(help="In-distribution images for detectors that learn (mahalanobis, knn, vim, react).")
]
LabelsOption = Annotated[
    Literal["folders", "file", "none"],
    typer.Option(help="Classes of INLIERS and --learn-from. folders: each folder is a class. file: from .npz or .csv."),
]
DetectorsOption = Annotated[str | None, typer.Option(help="Separated by spaces; default: all that can run.")]
TunedOption = Annotated[
    list[Path] | None, typer.Option(help="File of `blemish ood tune`: its parameters are used; repeatable.")
]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every command: the classifier beside its name."""

    weights: Annotated[Path | None, typer.Option(help="State dict of the classifier.")] = None
    resize: Annotated[int | None, typer.Option(help="Side to resize to; default: what belongs to the classifier.")] = (
        None
    )
    crop: Annotated[int | None, typer.Option(help="Centre crop after --resize.")] = None
    white_level: Annotated[
        float | None, typer.Option(min=1, max=65535, help="White in 16-bit files: 1023 for 10 bits. Default: 65535.")
    ] = None
    device: DeviceOption = "cpu"

    def open(self, model: str, members: Sequence[str] | None = None) -> Classifier:
        """The classifier of this name, with further members of an ensemble."""
        from ...images.preprocess import Preprocess
        from ...ood import open_classifier

        if self.crop is not None and self.resize is None:
            raise ArgumentError.about("--crop", expected="--resize as well", got="none")
        preprocess = None if self.resize is None else Preprocess(self.resize, self.crop)
        found = open_classifier(
            model, weights=self.weights, preprocess=preprocess, members=members or (), device=self.device
        )
        if self.white_level is not None:
            found.preprocess = replace(found.preprocess, white_level=self.white_level)
        return found


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options of every command: how images are read."""

    batch_size: BatchOption = 16
    workers: WorkersOption = 2
    on_error: ErrorOption = "raise"

    def reader(self, progress: Any) -> Reader:
        """What reads the images."""
        from ...evaluation.classifiers import Reader

        return Reader(self.batch_size, self.workers, self.on_error, progress)


@dataclass(frozen=True, kw_only=True)
class StreamOptions(ReadingOptions):
    """The same for a command that judges whatever comes."""

    on_error: ErrorOption = "skip"
