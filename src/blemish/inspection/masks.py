"""What may be wrong with the masks of defects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from ..datasets.layouts import Sample
from ..errors import ImageError
from ..images.decode import Picture, decode, extent
from ..images.source import Skipped
from ..images.upright import drawn_as_stored, have_one_shape
from ..types import Size


def suspicious_masks(samples: Sequence[Sample], sizes: dict[str, Size], *, workers: int = 2) -> Iterator[Skipped]:
    """Mask and what is odd about it; `sizes` are those of the images by name."""

    def look(sample: Sample) -> list[Skipped]:
        assert sample.mask is not None
        return [(str(sample.mask), remark) for remark in _remarks(sample.mask, sample, sizes.get(str(sample.path)))]

    with ThreadPoolExecutor(workers, thread_name_prefix="blemish-masks") as pool:
        for found in pool.map(look, [sample for sample in samples if sample.mask is not None]):
            yield from found


def _remarks(mask: Path, sample: Sample, size: Size | None) -> Iterator[str]:
    try:
        levels, counts, corners, shape = _summary(decode(mask, behind="black"))
    except ImageError as error:
        yield f"unreadable: {error}"
        return
    highest = float(levels[counts > 0].max())
    marked = float(counts[levels > highest / 2].sum() / counts.sum()) if highest else 0.0
    between = float(counts[(levels > 0.1 * highest) & (levels < 0.9 * highest)].sum() / counts.sum())
    if not highest and sample.anomalous:
        yield "empty: no pixel of the defect is marked"
    if highest and not sample.anomalous:
        yield f"marks {marked:.1%} of an image that is normal"
    if between > 0:
        yield f"soft: {between:.2%} of its pixels are neither black nor white"
    if marked > 0.5 and min(corners) > highest / 2:
        yield f"inverted, it seems: {marked:.0%} is marked, all corners among it"
    if size is not None:
        yield from _remarks_on_shape(mask, shape, sample.path, size)


def _summary(picture: Picture) -> tuple[NDArray[np.floating], NDArray[np.int64], list[float], Size]:
    """The levels of a mask, how often each is there, those of its corners, and its size."""
    size, ends = extent(picture), [(i, j) for i in (0, -1) for j in (0, -1)]
    if isinstance(picture, Image.Image) and picture.mode == "RGB":  # no array of it: a tenth of the time
        red, green, blue = picture.split()
        grey = ImageChops.lighter(ImageChops.lighter(red, green), blue)
        corners = [float(grey.getpixel((j % size[1], i % size[0]))) for i, j in ends]  # type: ignore[arg-type]
        return np.arange(256.0), np.array(grey.histogram()), corners, size
    pixels = np.asarray(picture)
    brightest = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    levels, counts = np.unique(brightest, return_counts=True)
    return levels, counts, [float(brightest[i, j]) for i, j in ends], size


def _remarks_on_shape(mask: Path, shape: Size, image: Path, size: Size) -> Iterator[str]:
    is_turned = drawn_as_stored(mask, shape, image, size)
    if is_turned is None:
        yield "EXIF turns its image, and no shape tells whether it was drawn before or after"
    if is_turned:
        yield "drawn on the stored pixels of an image that EXIF turns; it is turned with it"
    elif not have_one_shape(shape, size):
        yield f"of another shape ({shape[0]} x {shape[1]}) than its image ({size[0]} x {size[1]})"
