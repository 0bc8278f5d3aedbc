"""Images with the class of each, where it is known: for classifiers, and for one-class protocols."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DatasetError
from .decode import from_array
from .source import ImageInput, ImageSource, as_source, from_arrays, from_folder, from_paths


class ImageDataset(Protocol):
    """A torch-style dataset: `len`, and items `(image, label)` or images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class LabelledImages:
    """A source of images and the class number of each, by name."""

    source: ImageSource
    labels: Mapping[str, int] | None = None
    name: str = "images"

    def __len__(self) -> int:
        return len(self.source)

    def of(self, names: Sequence[str]) -> NDArray[np.int64] | None:
        """Labels of the images with these names, `(n,)`; None where there are none."""
        return None if self.labels is None else np.array([self.labels[name] for name in names], dtype=np.int64)

    def sample(self, count: int | None, *, seed: int) -> LabelledImages:
        """A seeded random choice of at most `count` images, in the old order."""
        if count is None or count >= len(self):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self)), count))
        return LabelledImages(self.source.subset(chosen), self.labels, self.name)


LabelledInput = LabelledImages | ImageInput | ImageDataset


def open_labelled(images: LabelledInput, *, folders_are_classes: bool = False) -> LabelledImages:
    """Open images with what labels there are.

    A folder (with `folders_are_classes`, each folder in it is a class, numbered in sorted order), an `.npz` file with
    `images` and perhaps `labels`, a `.csv` file with lines `path,class number` (paths relative to it), a torch-style
    dataset, a list of paths or arrays, or an `ImageSource`.
    """
    if isinstance(images, LabelledImages):
        return images
    if isinstance(images, str | Path):
        path = Path(images)
        if path.suffix == ".npz":
            return _from_npz(path)
        if path.suffix == ".csv":
            return _from_csv(path)
        return from_class_folders(path) if folders_are_classes else LabelledImages(as_source(path), None, path.name)
    if isinstance(images, ImageSource | np.ndarray | list | tuple):
        return LabelledImages(as_source(images))
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return _from_dataset(images)
    raise ArgumentError.about("images", expected="a folder, .npz, .csv, arrays or a dataset", got=images)


def from_class_folders(folder: str | Path) -> LabelledImages:
    """One folder a class, in sorted order; images beside the folders are an error."""
    folder = Path(folder)
    source = from_folder(folder)
    parts = [Path(name).relative_to(folder).parts for name in source.names]
    loose = [name for name, part in zip(source.names, parts, strict=True) if len(part) < 2]
    if loose or not parts:
        raise DatasetError.about(
            str(folder), expected="one folder of images for each class", got=f"{len(loose)} images beside no folder"
        )
    number = {name: i for i, name in enumerate(sorted({part[0] for part in parts}))}
    labels = {name: number[part[0]] for name, part in zip(source.names, parts, strict=True)}
    return LabelledImages(source, labels, folder.name)


def _from_npz(path: Path) -> LabelledImages:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {key: file[key] for key in ("images", "labels") if key in file}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as an .npz file of arrays ({error}).") from error
    if "images" not in content or ("labels" in content and len(content["labels"]) != len(content["images"])):
        got = ", ".join(f"{key} {value.shape}" for key, value in content.items()) or "neither"
        raise DatasetError.about(str(path), expected="`images` (n, height, width[, 3]), perhaps `labels` (n,)", got=got)
    names = [f"{path.name}[{i}]" for i in range(len(content["images"]))]
    source = from_arrays(list(content["images"]), names=names)
    labels = dict(zip(names, content["labels"].tolist(), strict=True)) if "labels" in content else None
    return LabelledImages(source, labels, path.stem)


def _from_csv(path: Path) -> LabelledImages:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as a UTF-8 text file ({error}).") from error
    labels: dict[str, int] = {}
    for row in rows:
        if len(row) != 2 or not row[1].strip().isdigit():
            raise DatasetError.about(str(path), expected="lines `path,class number`", got=",".join(row))
        labels[str(path.parent / row[0])] = int(row[1])
    return LabelledImages(from_paths(labels), labels, path.stem)


def _from_dataset(dataset: ImageDataset) -> LabelledImages:
    """Read labels once, images on demand: a Pillow image, an array, or a `(3, h, w)` tensor in [0, 1]."""
    count = len(dataset)
    names = [f"item {i}" for i in range(count)]
    has_labels = count > 0 and isinstance(dataset[0], tuple)
    labels = {name: int(dataset[i][1]) for i, name in enumerate(names)} if has_labels else None

    def load(index: int) -> Any:
        item = dataset[index]
        image = item[0] if isinstance(item, tuple) else item
        if hasattr(image, "permute"):  # a tensor
            image = image.permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
            image = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
        return from_array(np.asarray(image), name=names[index])

    return LabelledImages(ImageSource(tuple(names), load), labels, type(dataset).__name__)
