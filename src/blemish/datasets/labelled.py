"""Images with the class of each, where it is known: for classifiers, and for one-class protocols."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import random
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError, DatasetError, NotEnoughMemoryError
from ..files import read_text
from ..images.decode import MAX_PIXELS, Picture, from_memory
from ..images.groups import grouped
from ..images.listing import subfolders
from ..images.source import ImageInput, ImageSource, as_source, from_arrays, from_folder, from_paths
from ..memory import available_bytes, spell_bytes


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
    classes: tuple[str, ...] = ()
    """Names of the classes by number, where they are known."""

    def __len__(self) -> int:
        return len(self.source)

    def of(self, names: Sequence[str]) -> NDArray[np.int64] | None:
        """Labels of the images with these names, `(n,)`; None where there are none."""
        return None if self.labels is None else np.array([self.labels[name] for name in names], dtype=np.int64)

    def class_names(self) -> list[str]:
        """Name of each image's class, in the order of the source: its number where no name is known."""
        if self.labels is None:
            raise DatasetError.about(self.name, expected="images with labels", got="images without")
        numbers = [self.labels[name] for name in self.source.names]
        return [self.classes[i] for i in numbers] if self.classes else [str(i) for i in numbers]

    def subset(self, indices: Sequence[int]) -> LabelledImages:
        """Choose images by position, in the given order."""
        return replace(self, source=self.source.subset(indices))

    def sample(self, count: int | None, *, seed: int) -> LabelledImages:
        """A seeded random choice of at most `count` images, in the old order."""
        if count is None or count >= len(self):
            return self
        return self.subset(sorted(random.Random(seed).sample(range(len(self)), count)))

    def renamed(self, prefix: str) -> LabelledImages:
        """Put a word before each name."""
        source = ImageSource(tuple(f"{prefix} {name}" for name in self.source.names), self.source.load)
        labels = self.labels and {f"{prefix} {name}": label for name, label in self.labels.items()}
        return replace(self, source=source, labels=labels)

    def split(self, fraction: float, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """Hold out a seeded random `fraction` of each class: returns (rest, held out), both in the old order."""
        members = grouped(range(len(self)), self.class_names().__getitem__)
        draw = random.Random(seed)
        held_out = {
            i for name in sorted(members) for i in draw.sample(members[name], round(len(members[name]) * fraction))
        }
        return self.subset([i for i in range(len(self)) if i not in held_out]), self.subset(sorted(held_out))


LabelledInput = LabelledImages | ImageInput | ImageDataset


def open_labelled(
    images: LabelledInput, *, folders_are_classes: bool = False, max_pixels: int = MAX_PIXELS
) -> LabelledImages:
    """Open images with what labels there are.

    A folder (with `folders_are_classes`, each folder in it is a class, numbered in sorted order), an `.npz` file with
    `images` and perhaps `labels`, a `.csv` file with lines `path,class number` (paths relative to it), a file of images
    in MNIST's idx format with its file of labels beside it, a torch-style dataset, a list of paths or arrays, or an
    `ImageSource`. `max_pixels` is for image files.
    """
    if isinstance(images, LabelledImages):
        return images
    if isinstance(images, str | Path):
        return _from_path(Path(images), folders_are_classes=folders_are_classes, max_pixels=max_pixels)
    if isinstance(images, ImageSource | np.ndarray | torch.Tensor | Image.Image | Mapping | list | tuple):
        return LabelledImages(as_source(images, max_pixels=max_pixels))
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return _from_dataset(images)
    raise ArgumentError.about("images", expected="a folder, .npz, .csv, arrays or a dataset", got=images)


def _from_path(path: Path, *, folders_are_classes: bool, max_pixels: int) -> LabelledImages:
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix == ".csv":
        return _from_csv(path, max_pixels)
    if _IDX in path.name and os.path.isfile(path):
        return _from_idx(path)
    if folders_are_classes:
        return from_class_folders(path, max_pixels=max_pixels)
    return LabelledImages(as_source(path, max_pixels=max_pixels), None, path.name)


def from_class_folders(folder: str | Path, *, max_pixels: int = MAX_PIXELS) -> LabelledImages:
    """One folder a class, in sorted order; images beside the folders are an error."""
    folder = Path(folder)
    source = from_folder(folder, max_pixels=max_pixels)
    parts = [Path(name).relative_to(folder).parts for name in source.names]
    loose = [name for name, part in zip(source.names, parts, strict=True) if len(part) < 2]
    if loose or not parts:
        raise DatasetError.about(
            str(folder), expected="one folder of images for each class", got=f"{len(loose)} images beside no folder"
        )
    number = {name: i for i, name in enumerate(sorted({part[0] for part in parts}))}
    labels = {name: number[part[0]] for name, part in zip(source.names, parts, strict=True)}
    return LabelledImages(source, labels, folder.name, tuple(number))


def open_parts(path: str | Path) -> tuple[LabelledImages, LabelledImages | None]:
    """Open the training and the test part of a labelled image set; None where it does not come in two.

    `train/<class>/*` and `test/<class>/*`; `train.npz` and `test.npz`; MNIST's four files, gzipped or not; CIFAR-10's
    binary version. In one part: a folder of class folders, one pair of idx files, or what file `open_labelled` takes.
    """
    path = Path(path)
    packed = _packed_parts(path)
    if packed is not None:
        return packed
    if os.path.isdir(path / "train") and os.path.isdir(path / "test"):
        return from_class_folders(path / "train"), from_class_folders(path / "test")
    return from_class_folders(path), None


def find_packed_classes(path: str | Path) -> list[str]:
    """Names of the classes of a folder whose images are packed in few files, as `open_parts` reads; none of others."""
    packed = _packed_parts(Path(path))
    return [] if packed is None else sorted(set(packed[0].class_names()))


def find_classes(path: str | Path) -> list[str]:
    """Names of the classes that `open_parts` would find, without listing the images of class folders."""
    path = Path(path)
    packed = find_packed_classes(path)
    if packed:
        return packed
    folder = path / "train" if os.path.isdir(path / "train") and os.path.isdir(path / "test") else path
    if not folder.is_dir():
        raise DatasetError.about(str(path), expected="a labelled image set", got="nothing there")
    return [p.name for p in subfolders(folder)]


def _packed_parts(path: Path) -> tuple[LabelledImages, LabelledImages | None] | None:
    """The parts of `open_parts` where they are files of many images; None for class folders."""
    if path.is_file():
        return open_labelled(path), None
    if (path / "train.npz").is_file() and (path / "test.npz").is_file():
        return open_labelled(path / "train.npz"), open_labelled(path / "test.npz")
    if (path / "test_batch.bin").is_file():
        return _from_cifar(sorted(path.glob("data_batch_*.bin"))), _from_cifar([path / "test_batch.bin"])
    files = sorted(path.glob(f"*{_IDX}*"), key=lambda file: not file.name.startswith("train-"))
    if not files:
        return None
    return _from_idx(files[0]), _from_idx(files[1]) if len(files) == 2 else None


_IDX, _IDX_LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def _from_idx(path: Path) -> LabelledImages:
    """A file of images in MNIST's format, and the file of their labels beside it."""
    images, labels = _idx_array(path), _idx_array(path.with_name(path.name.replace(_IDX, _IDX_LABELS)))
    if len(labels) != len(images):
        raise DatasetError.about(str(path), expected=f"{len(images)} labels beside it", got=len(labels))
    return _packed({path.name: images}, labels)


def _idx_array(path: Path) -> NDArray[np.uint8]:
    """Two zero bytes, 8 for bytes, the number of axes, the length of each in 4 bytes, then the numbers."""
    _check_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            axes = head[3] if len(head) == 4 and head[:3] == b"\0\0\x08" else 0
            lengths = file.read(4 * axes)
            shape = np.frombuffer(lengths[: len(lengths) // 4 * 4], ">u4").tolist()
            claimed = math.prod(shape) if axes and len(shape) == axes else 0
            _check_memory(path, claimed)
            content = file.read(claimed + 1)  # not all: a small file can unpack to any size
    except NotEnoughMemoryError:
        raise
    except (OSError, EOFError, OverflowError, MemoryError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    if not claimed or len(content) != claimed:
        raise DatasetError.about(str(path), expected="a whole idx file of bytes", got=f"{path.stat().st_size} bytes")
    numbers: NDArray[np.uint8] = np.frombuffer(content, np.uint8).reshape(shape)
    return numbers


def _from_cifar(paths: Sequence[Path]) -> LabelledImages:
    """CIFAR-10's binary version: a byte for the class, then the red, green and blue plane of 32 x 32 bytes."""
    records = {}
    for path in paths:
        _check_regular(path)
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error}).") from error
        if len(content) % 3073:
            raise DatasetError.about(str(path), expected="records of 3073 bytes", got=f"{len(content)} bytes")
        records[path.name] = content.reshape(-1, 3073)
    if not records:
        raise DatasetError("CIFAR-10: expected data_batch_1.bin ... data_batch_5.bin beside test_batch.bin, got none.")
    names = paths[0].with_name("batches.meta.txt")
    classes = tuple(read_text(names, error=DatasetError).split()) if names.is_file() else ()
    numbers = np.concatenate([part[:, 0] for part in records.values()])
    if classes and len(numbers) and numbers.max() >= len(classes):
        raise DatasetError.about(str(names), expected=f"{int(numbers.max()) + 1} names of classes", got=len(classes))
    images = {name: part[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for name, part in records.items()}
    return _packed(images, numbers, classes)


def _packed(
    files: Mapping[str, NDArray[np.generic]], labels: NDArray[np.generic] | None, classes: tuple[str, ...] = ()
) -> LabelledImages:
    """The images of one file or more, named `file[0]`, `file[1]` ..."""
    names = [f"{file}[{i}]" for file, images in files.items() for i in range(len(images))]
    source = from_arrays([image for images in files.values() for image in images], names=names)
    numbers = None if labels is None else dict(zip(names, labels.tolist(), strict=True))
    return LabelledImages(source, numbers, Path(next(iter(files))).stem, classes)


def _from_npz(path: Path) -> LabelledImages:
    content = {key: value for key, value in _npz_arrays(path).items() if key in ("images", "labels")}
    images, labels = content.get("images"), content.get("labels")
    if images is None or images.ndim not in (3, 4) or not (labels is None or _fit(images, labels)):
        got = ", ".join(f"{key} {value.shape} {value.dtype}" for key, value in content.items()) or "neither"
        expected = "`images` (n, height, width[, 3]), perhaps whole numbers `labels` (n,)"
        raise DatasetError.about(str(path), expected=expected, got=got)
    return _packed({path.name: images}, labels)


def _fit(images: NDArray[np.generic], labels: NDArray[np.generic]) -> bool:
    return labels.shape == images.shape[:1] and labels.dtype.kind in "iu"


def _npz_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    _check_regular(path)
    try:
        with zipfile.ZipFile(path) as packed:
            _check_memory(path, sum(member.file_size for member in packed.infolist()))
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file}
    except (DatasetError, NotEnoughMemoryError):
        raise
    except MemoryError:
        raise DatasetError(f"{path}: its arrays claim more memory than there is.") from None
    except Exception as error:  # zip, zlib, the headers of arrays: each has errors of its own for damaged data
        raise DatasetError(f"{path}: cannot be read as an .npz file of arrays ({error}).") from error


def _check_regular(path: Path) -> None:
    """Refuse what would block for ever, or never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DatasetError.about(str(path), expected="a file", got="a folder, pipe, socket or device")


def _check_memory(path: Path, claimed: int) -> None:
    free = available_bytes()
    if free is not None and claimed > 0.9 * free:
        raise NotEnoughMemoryError(
            f"{path}: unpacks to {spell_bytes(claimed)}, {spell_bytes(free)} are free. Keep the images as files."
        )


def _from_csv(path: Path, max_pixels: int) -> LabelledImages:
    text = read_text(path, expected="a table of images and numbers of classes", error=DatasetError)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise DatasetError(f"{path}: not a CSV file ({error}).") from error
    labels: dict[str, int] = {}
    for row in rows:
        if len(row) != 2 or not row[1].strip().isdecimal() or len(row[1].strip()) > 9:
            raise DatasetError.about(str(path), expected="lines `path,class number`", got=",".join(row)[:120])
        labels[str(path.parent / row[0])] = int(row[1])
    return LabelledImages(from_paths(labels, max_pixels=max_pixels), labels, path.stem)


def _from_dataset(dataset: ImageDataset) -> LabelledImages:
    """Read labels once, images on demand: a Pillow image, an array, or a `(3, h, w)` tensor in [0, 1]."""
    count = len(dataset)
    names = [f"item {i}" for i in range(count)]
    has_labels = count > 0 and isinstance(dataset[0], tuple)
    labels = {name: int(dataset[i][1]) for i, name in enumerate(names)} if has_labels else None

    def load(index: int) -> Picture:
        item = dataset[index]
        return from_memory(item[0] if isinstance(item, tuple) else item, name=names[index])

    return LabelledImages(ImageSource(tuple(names), load), labels, type(dataset).__name__)
