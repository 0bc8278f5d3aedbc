"""Images as a re-iterable source: the same order on every pass, decoded in background threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError, DatasetError, ImageError
from ..types import ImageBatch, Size
from .decode import MAX_PIXELS, decode, from_array
from .listing import list_folder
from .preprocess import Preprocess

OnError = Literal["raise", "skip"]
Skipped = tuple[str, str]
"""Name of a skipped image and the reason."""


@dataclass(frozen=True)
class ImageSource:
    """A fixed sequence of images, by path or in memory; nothing is read before it is iterated.

    Build one with `from_paths`, `from_folder`, `from_manifest` or `from_arrays`.
    """

    names: tuple[str, ...]
    _load: Callable[[int], Image.Image] = field(repr=False)
    passed_over: tuple[Skipped, ...] = field(default=(), repr=False)
    """What lay in the folder and was not listed, with the reason of each."""
    root: Path | None = field(default=None, repr=False)
    """The folder whose images these are."""

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """Decode one image to mode `RGB` or `F`; raises `ImageError`."""
        return self._load(index)

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Choose images by position, in the given order."""
        chosen = tuple(indices)
        return ImageSource(tuple(self.names[i] for i in chosen), lambda i: self._load(chosen[i]), root=self.root)

    def paths(self) -> list[str]:
        """The images' paths below `root`, with `/` in between; else their names."""
        paths = map(Path, self.names)
        root = self.root
        return [
            (path.relative_to(root) if root is not None and path.is_relative_to(root) else path).as_posix()
            for path in paths
        ]

    def split(self, fraction: float, *, seed: int) -> tuple[ImageSource, ImageSource]:
        """Hold out a seeded random `fraction` of the images: returns (rest, held out), both in the old order."""
        count = round(len(self) * fraction)
        held_out = set(random.Random(seed).sample(range(len(self)), count))
        rest = [i for i in range(len(self)) if i not in held_out]
        return self.subset(rest), self.subset(sorted(held_out))


def from_paths(paths: Iterable[str | Path], *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take image files in the given order."""
    names = tuple(str(path) for path in paths)
    return ImageSource(names, lambda i: decode(names[i], max_pixels=max_pixels))


def from_folder(folder: str | Path, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take every image below a folder, in sorted order; `passed_over` names what else was there."""
    found = list_folder(folder)
    return replace(from_paths(found.files, max_pixels=max_pixels), passed_over=found.passed_over, root=Path(folder))


def from_manifest(manifest: str | Path, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take the files named in a text file, one path a line, relative to that file; `#` begins a comment."""
    manifest = Path(manifest)
    try:
        if manifest.exists() and not manifest.is_file():
            raise DatasetError.about(str(manifest), expected="a text file", got="a folder, pipe, socket or device")
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{manifest}: cannot be read as a UTF-8 text file ({error}).") from error
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return from_paths((manifest.parent / line for line in lines if line), max_pixels=max_pixels)


def from_arrays(arrays: Sequence[NDArray[np.generic]], *, names: Sequence[str] | None = None) -> ImageSource:
    """Take images in memory: each `(height, width)` or `(height, width, 3)`; uint8, uint16 grey, or float in [0, 1]."""
    names = tuple(f"image {i}" for i in range(len(arrays))) if names is None else tuple(names)
    if len(names) != len(arrays):
        raise ArgumentError.about("names", expected=f"{len(arrays)} names, one an array", got=len(names))
    return ImageSource(names, lambda i: from_array(np.asarray(arrays[i]), name=names[i]))


ImageInput = ImageSource | str | Path | Sequence[str | Path] | Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""What `fit` and `predict` take for images."""


def as_source(images: ImageInput, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Turn a source, folder, file, manifest (`.txt`), list of paths, or array(s) into an `ImageSource`.

    `max_pixels` is for files; a source keeps its own.
    """
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, str | Path):
        try:
            return _from_one_path(Path(images), max_pixels)
        except OSError as error:
            raise DatasetError(f"{images}: cannot be read ({error.strerror}).") from error
    if isinstance(images, np.ndarray):
        # A stack has the images on its first axis: (n, height, width, 3), or (n, height, width) in grey.
        is_stack = images.ndim == 4 or (images.ndim == 3 and images.shape[2] not in (1, 3))
        return from_arrays(list(images) if is_stack else [images])
    if not isinstance(images, Sequence):
        raise ArgumentError.about("images", expected="a folder, paths, arrays or an ImageSource", got=images)
    if all(isinstance(image, str | Path) for image in images):
        return from_paths((str(path) for path in images), max_pixels=max_pixels)
    if all(isinstance(image, np.ndarray) for image in images):
        return from_arrays([np.asarray(image) for image in images])
    raise ArgumentError.about(
        "images", expected="only paths, or only NumPy arrays", got=type(images[0]), instead="Use numpy.asarray(image)."
    )


def _from_one_path(path: Path, max_pixels: int) -> ImageSource:
    if path.is_dir():
        return from_folder(path, max_pixels=max_pixels)
    if path.suffix == ".txt":
        return from_manifest(path, max_pixels=max_pixels)
    if not path.is_file():
        got = "a pipe, socket or device" if path.exists() else "nothing there"
        raise DatasetError.about(str(path), expected="a folder, an image file or a manifest", got=got)
    return from_paths([path], max_pixels=max_pixels)


class KnownFeatures(Protocol):
    """Feature maps of images that were made before, such as `features.memory.FeatureMemory`."""

    preprocess: Preprocess

    def __contains__(self, name: object) -> bool:
        """Whether an image of this name is known."""

    def batch(self, names: Sequence[str]) -> ImageBatch:
        """Images by name, with their maps."""


@dataclass(frozen=True)
class Batches:
    """Preprocessed batches of a source; iterate as often as you like, the order never changes.

    Decoding and preprocessing run in `workers` threads, at most two batches ahead. With `on_error="skip"` a bad
    file is left out, `skipped` names it with its reason, and the batch is filled from the next files.
    With `features`, batches bring the maps of their images from there, and nothing is decoded.
    """

    source: ImageSource
    preprocess: Preprocess
    batch_size: int = 8
    workers: int = 2
    on_error: OnError = "raise"
    skipped: list[Skipped] = field(default_factory=list)
    """The files left out by the latest pass."""
    features: KnownFeatures | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ArgumentError.about("batch_size", expected="at least 1", got=self.batch_size)
        if self.on_error not in ("raise", "skip"):
            raise ArgumentError.about("on_error", expected="'raise' or 'skip'", got=repr(self.on_error))
        if self.features is not None and self.features.preprocess != self.preprocess:
            raise ArgumentError.about("preprocess", expected=f"{self.features.preprocess}", got=self.preprocess)

    def __len__(self) -> int:
        """Number of images listed, bad ones included."""
        return len(self.source)

    def __iter__(self) -> Iterator[ImageBatch]:
        self.skipped.clear()
        if self.features is not None:
            known = self._known(self.features)
            while some := tuple(islice(known, self.batch_size)):
                yield self.features.batch(some)
            return
        images = self._images()
        while chunk := list(islice(images, self.batch_size)):
            names, sizes, pixels = zip(*chunk, strict=True)
            yield ImageBatch(torch.stack(pixels), names, sizes)

    def with_source(self, source: ImageSource) -> Batches:
        """Read other images in the same way."""
        return replace(self, source=source, skipped=[])

    def _images(self) -> Iterator[tuple[str, Size, torch.Tensor]]:
        for name, image in zip(self.source.names, self._prefetched(), strict=True):
            try:
                yield name, *image.result()
            except ImageError as error:
                self._leave_out(name, error)

    def _known(self, features: KnownFeatures) -> Iterator[str]:
        for index, name in enumerate(self.source.names):
            if name in features:
                yield name
                continue
            try:
                self._read(index)
            except ImageError as error:
                self._leave_out(name, error)
            else:
                raise ArgumentError.about("images", expected="images that `features` knows", got=name)

    def _leave_out(self, name: str, error: ImageError) -> None:
        if self.on_error == "raise":
            raise error
        self.skipped.append((name, str(error)))

    def _prefetched(self) -> Iterator[Future[tuple[Size, torch.Tensor]]]:
        with ThreadPoolExecutor(max(1, self.workers), thread_name_prefix="blemish-decode") as pool:
            indices = iter(range(len(self.source)))
            waiting = [pool.submit(self._read, i) for i in islice(indices, 2 * self.batch_size)]
            try:
                while waiting:
                    yield waiting.pop(0)
                    waiting += [pool.submit(self._read, i) for i in islice(indices, 1)]
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, index: int) -> tuple[Size, torch.Tensor]:
        image = self.source.load(index)
        width, height = image.size
        return (height, width), self.preprocess.pixels(image)
