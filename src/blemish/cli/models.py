"""What most commands begin with: a model file is loaded, and pictures are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, ImageError
from ..files import check_input, check_output, sole_writer
from . import options
from .console import Speaker

if TYPE_CHECKING:
    from ..datasets.dataset import Dataset
    from ..datasets.taken import Taken
    from ..features.runtime import RuntimeChoice


@dataclass(frozen=True)
class Subfolders:
    """Which folders of a data set hold what, where its layout does not say so."""

    normal: options.NormalOption = None
    anomalous: options.AnomalousOption = None
    masks: options.MasksOption = None

    def open(self, data: Path, say: Speaker, *, use: str = "to learn from") -> tuple[Dataset, Taken]:
        """The data set, and what was taken of it, which is also said on stderr, with the use of its normal images."""
        from ..datasets.layouts import open_dataset
        from ..datasets.taken import take

        dataset = open_dataset(data, normal=self.normal or (), anomalous=self.anomalous or (), masks=self.masks)
        taken = take(dataset)
        say.lines(taken.lines(use=use))
        return dataset, taken


@dataclass(frozen=True)
class JudgeOptions:
    """How a model runs, and how the pictures that it judges are read."""

    roi: options.RoiOption = None
    device: options.DeviceOption = "auto"
    runtime: options.RuntimeOption = None
    batch_size: options.BatchOption = 16
    workers: options.WorkersOption = 2
    max_pixels: options.MaxPixelsOption = None
    on_error: options.ErrorOption = "skip"

    @property
    def most_pixels(self) -> int:
        """Of a picture that is read."""
        from ..images.decode import MAX_PIXELS

        return self.max_pixels or MAX_PIXELS

    def load(self, model: Path) -> Any:
        """The detector of a model file."""
        detector = load_model(model, self.device, self.roi, runtime=self.runtime)
        detector.batch_size, detector.workers, detector.on_error = self.batch_size, self.workers, self.on_error
        detector.max_pixels = self.most_pixels
        return detector


def load_model(model: Path, device: str, roi: Path | None = None, *, runtime: RuntimeChoice | None = None) -> Any:
    """The detector of a model file; `roi` are regions for each image, where it was fitted with such ones."""
    from ..detector import Detector
    from ..edges.faiss import index_from_name

    if roi is not None:
        check_input(roi, of="--roi")
    detector = Detector.load(model, device=device, make_index=index_from_name, runtime=runtime)
    if roi is not None and (detector.region_ is None or detector.region_.is_one):
        kept = "no region" if detector.region_ is None else "its own"
        raise ArgumentError.about("--roi", expected=f"none, as the model has {kept}", got=roi)
    detector.roi = roi
    return detector


def changes_a_model(function: Callable[..., None]) -> Callable[..., None]:
    """The command, while which no other process changes the same file: what one of them did would be lost."""

    @wraps(function)
    def command(model: Path, *others: Any, out: Path | None = None, **given: Any) -> None:
        check_output(out or model)
        with sole_writer(out or model):
            function(model, *others, out=out, **given)

    return command


def normal_source(
    data: Path, say: Speaker, *, max_pixels: int, folders: Subfolders | None = None, use: str = "to learn from"
) -> tuple[Any, dict[str, object]]:
    """Normal images for a use, and what was taken as JSON; says the same on stderr."""
    from ..datasets.layouts import OneClass
    from ..images.source import as_source

    folders = folders or Subfolders()
    if os.path.isdir(data) or OneClass.spelled(data) or folders != Subfolders():
        dataset, taken = folders.open(data, say, use=use)
        return dataset.train_images(max_pixels=max_pixels), taken.as_json()
    source = as_source(data, max_pixels=max_pixels)
    say.line(f"{data}: {len(source)} images, normal, {use}")
    return source, {"root": str(data), "images": len(source)}


def image_paths(images: list[Path], say: Speaker) -> list[Path]:
    """The pictures to judge; of a data set its test part."""
    from ..datasets.layouts import open_to_judge
    from ..datasets.taken import take

    paths: list[Path] = []
    for image in images:
        if not os.path.exists(image):
            raise ImageError(f"{image}: the file does not exist.")
        if not image.is_dir():
            paths.append(image)
            continue
        dataset = open_to_judge(image)
        say.lines(take(dataset).lines())
        paths += [sample.path for sample in dataset.test]
        say.line(f"  judged: {len(dataset.test)} images" + (" of the test part" if dataset.train else ""))
    if not paths:
        raise ArgumentError.about("IMAGES", expected="image files or folders", got=", ".join(map(str, images)))
    return paths
