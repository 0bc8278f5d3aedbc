"""Which pictures are the same: digests of decoded pixels, taken while images are read anyway."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ..errors import ImageError
from .source import ImageSource


def pixel_digest(pixels: Image.Image | ArrayLike) -> int:
    """64 bits of the shape, the type and the values of a decoded picture, as a signed number."""
    array = np.ascontiguousarray(pixels)
    found = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=8)
    found.update(array.data)
    return int.from_bytes(found.digest(), "little", signed=True)


def with_digests(source: ImageSource) -> tuple[ImageSource, dict[str, int]]:
    """The same source, and the digests of its images by name, which come to be known as each is decoded."""
    known: dict[str, int] = {}

    def load(index: int) -> Any:
        image = source.load(index)
        name = source.names[index]
        if name not in known:  # a fit may read its images several times
            known[name] = pixel_digest(image)
        return image

    return replace(source, _load=load), known


def contents(source: ImageSource) -> Iterator[Hashable]:
    """A key an image, equal where the content surely is, without decoding files.

    Files are the same where their bytes are; those of a size of their own are not even read. What has no file is
    compared by its pixels. The same picture in two kinds of file is only found by `pixel_digest`.
    """
    sizes = [_size(name) for name in source.names]
    common = Counter(sizes)
    for index, (name, size) in enumerate(zip(source.names, sizes, strict=True)):
        if size is not None:
            yield _of_file(name) if common[size] > 1 else name
            continue
        try:
            yield pixel_digest(source.load(index))
        except ImageError:  # said when it is learned
            yield name


def _size(name: str) -> int | None:
    try:
        return os.stat(name).st_size if os.path.isfile(name) else None
    except (OSError, ValueError):  # a null byte
        return None


def _of_file(name: str) -> str | bytes:
    try:
        with open(name, "rb") as file:
            found = hashlib.blake2b(digest_size=16)
            while part := file.read(1 << 20):
                found.update(part)
    except OSError:  # said when it is learned
        return name
    return found.digest()
