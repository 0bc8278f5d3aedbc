"""Images as a re-iterable source: the same order on every pass, decoded in background threads."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError, DatasetError, ImageError
from ..files import read_text
from ..progress import Progress
from ..types import ImageBatch, Size
from .decode import (
    MAX_PIXELS,
    Picture,
    check_shape,
    decode,
    decode_bytes,
    extent,
    from_memory,
    is_constant,
    upright_size,
)  # fmt: skip
from .listing import list_folder
from .preprocess import Preprocess

OnError = Literal["raise", "skip"]
Skipped = tuple[str, str]
"""Name of a skipped image and the reason."""


InMemory = np.ndarray[Any, Any] | torch.Tensor | Image.Image
"""One picture in memory: see `decode.from_memory`."""


@dataclass(frozen=True)
class ImageSource:
    """A fixed sequence of images, by path or in memory; nothing is read before it is iterated.

    Build one with `from_paths`, `from_folder`, `from_manifest` or `from_arrays`.
    """

    names: tuple[str, ...]
    _load: Callable[[int], Picture] = field(repr=False)
    passed_over: tuple[Skipped, ...] = field(default=(), repr=False)
    """What lay in the folder and was not listed, with the reason of each."""
    root: Path | None = field(default=None, repr=False)
    """The folder whose images these are."""
    _size: Callable[[int], Size | None] | None = field(default=None, repr=False)
    """Reads the size of an image without decoding it; None where that is not possible."""

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Picture:
        """Decode one image; raises `ImageError`."""
        return self._load(index)

    def size(self, index: int) -> Size | None:
        """`(height, width)` of one image, of a file from its head alone; None where it cannot be read."""
        try:
            return extent(self.load(index)) if self._size is None else self._size(index)
        except ImageError:  # said when its turn comes
            return None

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Choose images by position, in the given order."""
        chosen = tuple(indices)
        return ImageSource(
            tuple(self.names[i] for i in chosen),
            lambda i: self._load(chosen[i]),
            root=self.root,
            _size=lambda i: self.size(chosen[i]),
        )

    def joined(self, other: ImageSource) -> ImageSource:
        """These images, and those of another source behind them."""
        count = len(self)
        return ImageSource(
            self.names + other.names,
            lambda i: self._load(i) if i < count else other.load(i - count),
            _size=lambda i: self.size(i) if i < count else other.size(i - count),
        )

    def paths(self) -> list[str]:
        """The images' paths below `root`, with `/` in between; else their names."""
        paths = map(Path, self.names)
        root = self.root
        return [
            (path.relative_to(root) if root is not None and path.is_relative_to(root) else path).as_posix()
            for path in paths
        ]

    def without(self, excluded: Collection[str]) -> ImageSource:
        """All images but those that are named, by path below `root` or by name; each name must be there."""
        if not excluded:
            return self
        wanted = {Path(name).as_posix() for name in excluded}
        both = list(zip(self.paths(), (Path(name).as_posix() for name in self.names), strict=True))
        missing = wanted.difference(*both)
        if missing:
            raise ArgumentError.about("exclude", expected="names of normal training images", got=min(missing))
        return self.subset([i for i, names in enumerate(both) if wanted.isdisjoint(names)])

    def split(self, fraction: float, *, seed: int) -> tuple[ImageSource, ImageSource]:
        """Hold out a seeded random `fraction` of the images: returns (rest, held out), both in the old order."""
        count = round(len(self) * fraction)
        held_out = set(random.Random(seed).sample(range(len(self)), count))
        rest = [i for i in range(len(self)) if i not in held_out]
        return self.subset(rest), self.subset(sorted(held_out))


def from_paths(paths: Iterable[str | Path], *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take image files in the given order."""
    names = tuple(str(path) for path in paths)
    return ImageSource(names, lambda i: decode(names[i], max_pixels=max_pixels), _size=lambda i: upright_size(names[i]))


def from_folder(folder: str | Path, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take every image below a folder, in sorted order; `passed_over` names what else was there."""
    found = list_folder(folder)
    return replace(from_paths(found.files, max_pixels=max_pixels), passed_over=found.passed_over, root=Path(folder))


def from_manifest(manifest: str | Path, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take the files named in a text file, one path a line, relative to that file; `#` begins a comment."""
    manifest = Path(manifest)
    text = read_text(manifest, expected="a list of images, a path a line", error=DatasetError)
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return from_paths((manifest.parent / line for line in lines if line), max_pixels=max_pixels)


def from_bytes(files: Mapping[str, bytes], *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Take image files whose bytes are at hand, by name; a name is a text, and nothing is opened by it."""
    names, contents = tuple(files), tuple(files.values())
    return ImageSource(names, lambda i: decode_bytes(contents[i], name=names[i], max_pixels=max_pixels))


def from_arrays(arrays: Sequence[InMemory], *, names: Sequence[str] | None = None) -> ImageSource:
    """Take images in memory: arrays `(height, width[, 3])`, tensors `(3, height, width)`, or Pillow images.

    Arrays and tensors are uint8, uint16, or float in [0, 1].
    """
    names = tuple(f"image {i}" for i in range(len(arrays))) if names is None else tuple(names)
    if len(names) != len(arrays):
        raise ArgumentError.about("names", expected=f"{len(arrays)} names, one an array", got=len(names))
    return ImageSource(names, lambda i: from_memory(arrays[i], name=names[i]))


ImageInput = ImageSource | str | Path | InMemory | Sequence[str | Path | InMemory] | Mapping[str, str | Path | InMemory]
"""What `fit` and `predict` take for images."""


def as_source(images: ImageInput, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Turn a source, folder, file, manifest (`.txt`), or images into an `ImageSource`.

    Images are one or a list of paths, arrays, Pillow images or tensors, or a mapping of a name to each. Four axes are a
    stack of pictures; three are one picture, and a stack of grey ones must be said: `list(stack)`. `max_pixels` is for
    files; a source keeps its own. Raises `ArgumentError` that says what to write, and `DatasetError`.
    """
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, str | Path):
        try:
            return _from_one_path(Path(images), max_pixels)
        except OSError as error:
            raise DatasetError(f"{images}: cannot be read ({error.strerror}).") from error
    if isinstance(images, Mapping):
        return _from_items(list(images.values()), tuple(map(str, images)), max_pixels)
    if isinstance(images, np.ndarray | torch.Tensor | Image.Image):
        is_stack = not isinstance(images, Image.Image) and images.ndim == 4
        items: Any = list(images) if is_stack else [images]  # type: ignore[arg-type]
    elif isinstance(images, Sequence):
        items = images
    else:
        raise ArgumentError.about(
            "images",
            expected="a folder, paths, arrays, Pillow images, tensors or an ImageSource",
            got=images,
            instead="Write list(images): they are read more than once." if isinstance(images, Iterator) else "",
        )
    return _from_items(items, _names(items), max_pixels)


def sources(
    images: ImageInput | Iterable[str | Path | InMemory], *, at_once: int, max_pixels: int = MAX_PIXELS
) -> Iterator[ImageSource]:
    """The images as sources: as one, or, where they come from an iterator, one for each `at_once` of them.

    No more than those are taken from an iterator ahead, and it may never end.
    """
    if not isinstance(images, Iterator):
        yield as_source(images, max_pixels=max_pixels)  # type: ignore[arg-type]
        return
    done = 0
    while items := list(islice(images, at_once)):
        yield _from_items(items, _names(items, first=done), max_pixels)
        done += len(items)


def _names(items: Sequence[object], *, first: int = 0) -> tuple[str, ...]:
    return tuple(str(item) if isinstance(item, str | Path) else f"image {first + i}" for i, item in enumerate(items))


def _from_items(items: Sequence[Any], names: tuple[str, ...], max_pixels: int) -> ImageSource:
    for name, item in zip(names, items, strict=True):
        if not isinstance(item, str | Path):
            check_shape(item, name=name)

    def load(index: int) -> Picture:
        item = items[index]
        if isinstance(item, str | Path):
            return decode(item, max_pixels=max_pixels)
        return from_memory(item, name=names[index])

    def size(index: int) -> Size | None:
        item = items[index]
        return upright_size(item) if isinstance(item, str | Path) else extent(load(index))

    return ImageSource(names, load, _size=size)


def _from_one_path(path: Path, max_pixels: int) -> ImageSource:
    if os.path.isdir(path):
        return from_folder(path, max_pixels=max_pixels)
    if path.suffix == ".txt":
        return from_manifest(path, max_pixels=max_pixels)
    if not os.path.isfile(path):
        got = "a pipe, socket or device" if os.path.exists(path) else "nothing there"
        raise DatasetError.about(str(path), expected="a folder, an image file or a manifest", got=got)
    return from_paths([path], max_pixels=max_pixels)


_Read = tuple[Size, torch.Tensor, torch.Tensor | None]
"""Size, pixels, and where to look."""


class KnownFeatures(Protocol):
    """Feature maps of images that were made before, such as `features.memory.FeatureMemory`."""

    preprocess: Preprocess

    def __contains__(self, name: object) -> bool:
        """Whether an image of this name is known."""

    def batch(self, names: Sequence[str]) -> ImageBatch:
        """Images by name, with their maps."""


class RegionOfInterest(Protocol):
    """Where to look in a picture, such as `datasets.region.Region`."""

    def of(self, path: str, size: Size) -> NDArray[np.bool_]:
        """The region of the picture with this path, at its size."""


def within(source: ImageSource, region: RegionOfInterest | None) -> ImageSource:
    """The same pictures, black outside their regions."""
    if region is None:
        return source
    paths = source.paths()

    def load(index: int) -> Picture:
        picture = source.load(index)
        return _filled(picture, region.of(paths[index], extent(picture)), 0)

    return replace(source, _load=load)


def _filled(picture: Picture, inside: NDArray[np.bool_], value: float) -> Picture:
    pixels = np.array(picture)
    pixels[~inside] = value
    if isinstance(picture, np.ndarray):
        return pixels
    image = Image.fromarray(pixels)
    image.info |= picture.info
    return image


def _is_constant_within(picture: Picture, inside: NDArray[np.bool_]) -> bool:
    pixels = np.asarray(picture)[inside]
    return bool((pixels == pixels[:1]).all())


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
    refuse_constant: bool = False
    """Whether a picture of a single colour is a bad file: nothing can be learned from it."""
    region: RegionOfInterest | None = None
    """Where to look: what is outside becomes mid-grey before anything looks at the picture."""

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
            names, sizes, pixels, inside = zip(*chunk, strict=True)
            yield ImageBatch(
                torch.stack(pixels), names, sizes, inside=None if self.region is None else torch.stack(inside)
            )

    def _images(self) -> Iterator[tuple[str, Size, torch.Tensor, torch.Tensor | None]]:
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

    def _prefetched(self) -> Iterator[Future[_Read]]:
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

    @cached_property
    def _paths(self) -> list[str]:
        return self.source.paths()

    def _read(self, index: int) -> _Read:
        picture, name = self.source.load(index), self.source.names[index]
        size, inside = extent(picture), None
        if self.region is not None:
            inside = self.region.of(self._paths[index], size)
        if self.refuse_constant and (is_constant(picture) if inside is None else _is_constant_within(picture, inside)):
            raise ImageError(f"{name}: all its pixels have one colour, so there is nothing to learn. Leave it out.")
        try:
            if inside is None:
                return size, self.preprocess.pixels(picture), None
            pixels = self.preprocess.pixels(_filled(picture, inside, self.preprocess.middle(picture)))
        except ImageError as error:  # which knows no name
            raise ImageError(f"{name}: {error}") from None
        kept = self.preprocess.mask(inside)
        if not kept.any():
            raise DatasetError(f"{name}: nothing of its region of interest is left at the network's input.")
        return size, pixels, torch.from_numpy(kept)


class Reporting:
    """Batches that report progress as they are taken."""

    def __init__(self, batches: Batches, stage: str, progress: Progress | None) -> None:
        self._batches, self._stage, self._progress = batches, stage, progress

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[ImageBatch]:
        done = 0
        for batch in self._batches:
            yield batch
            done += len(batch)
            if self._progress is not None:
                self._progress(self._stage, done, len(self._batches))
