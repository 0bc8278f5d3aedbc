"""What `open_dataset` gives: normal images to learn from, labelled images to test on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..images.decode import MAX_PIXELS
from ..images.source import ImageSource, from_paths


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image: its kind (`good`, the name of a defect, or of a class) and its mask, where there is one."""

    path: Path
    kind: str
    anomalous: bool
    mask: Path | None = None
    """A file; or a folder of files, whose union is the mask."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Normal images to learn from and, in some layouts, labelled images to test on."""

    root: Path
    layout: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    packed: ImageSource | None = None
    """Reads images that have no file of their own, by the names in `train` and `test`."""
    has_test_part: bool = True
    """False where some normal images had to be drawn for `test`, because the folder does not say which ones."""

    def train_images(self, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
        """The normal training images."""
        return self._source(self.train, max_pixels)

    def test_images(self, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
        """The test images, in the order of `test`."""
        return self._source([sample.path for sample in self.test], max_pixels)

    def _source(self, paths: Iterable[Path], max_pixels: int) -> ImageSource:
        if self.packed is None:
            return replace(from_paths(paths, max_pixels=max_pixels), root=self.root)
        position = {name: i for i, name in enumerate(self.packed.names)}
        return self.packed.subset([position[str(path)] for path in paths])
