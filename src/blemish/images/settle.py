"""What a `Preprocess` leaves open, found once in the images of a fit: numbers, which a model file keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ..errors import ImageError, log
from ..types import Size
from .decode import brightest, levels_of
from .preprocess import MOST_ASPECT, Preprocess
from .source import ImageSource

_SIZES = 256
"""Images whose size is looked at, spread over all of them: more do not move a median."""
_LARGE = 512 * 512
"""Pixels of the median image from which on a larger input was seen to pay: docs/experiments/size.md."""
_LEVELS = 8
"""Images whose levels are looked at, the first ones."""


def settle(
    preprocess: Preprocess, images: ImageSource, *, multiple: int, levels: bool = True, larger_pays: bool = False
) -> Preprocess:
    """Find the aspect ratio and the white level that `preprocess` leaves to `auto`.

    The input's sides become a multiple of `multiple`, the pixels of one position of the network. `larger_pays`: say so
    where no area is named and most images have more pixels to show. Without `levels` nothing is decoded, and nothing is
    said of dark images.
    """
    found = preprocess
    if isinstance(found.resize, str):
        sizes = _sizes(images)
        aspect = _median_aspect(sizes)
        found = found.with_aspect(aspect, multiple=multiple)
        log.info("The network's input is %d x %d: the images' aspect ratio is %.2f.", *found.size, aspect)
        if larger_pays and preprocess.resize == "auto" and sizes and median(h * w for h, w in sizes) >= _LARGE:
            log.info("The images are large: --preset accurate shows more of them, in 1.5 times the time.")
    if levels and found.white_level == "auto":
        return replace(found, white_level=_find_white_level(images))
    if levels and found.white_level is None:
        warn_of_dark(images)
    return found


def is_found_in(preprocess: Preprocess, images: ImageSource) -> bool:
    """Whether what `settle` finds could be another one without one of the images."""
    if preprocess.white_level == "auto" and _find_white_level(images) is not None:
        return True
    return isinstance(preprocess.resize, str) and len({images.size(i) for i in range(len(images))}) > 1


def _sizes(images: ImageSource) -> list[Size]:
    """`(height, width)` of some of the images, of those that can be read."""
    step = max(1, math.ceil(len(images) / _SIZES))
    return [size for i in range(0, len(images), step) if (size := images.size(i)) is not None]


def _median_aspect(sizes: Sequence[Size]) -> float:
    """Width : height of the middle one, 1 where there is none."""
    if not sizes:
        return 1.0
    # In logarithms, so that the same images on their sides give the same input on its side.
    aspect = math.exp(median(math.log(width / height) for height, width in sizes))
    if not 1 / MOST_ASPECT <= aspect <= MOST_ASPECT:
        log.warning(
            "The images' aspect ratio is 1 : %.1f; the network's input gets 1 : %g. Tiles keep the shape of long "
            "strips (tile=, --tile).", max(aspect, 1 / aspect), MOST_ASPECT,
        )  # fmt: skip
    return aspect


def _find_white_level(images: ImageSource) -> int | None:
    """The white level of the least number of bits that holds the first images; None where they are not deep."""
    found = _highest_level(images)
    if found is None:
        return None
    highest, full = found
    white = min(full, _of_bits(highest))
    log.warning("White level %d: the first images have levels up to %d.", white, highest)
    return white


def warn_of_dark(images: ImageSource) -> None:
    """Warn where the first images are so dark that the white level is likely not the file's own."""
    found = _highest_level(images)
    if found is not None and found[0] < found[1] / 4:
        white = _of_bits(found[0])
        log.warning(
            "The first images have levels up to %d of %d, so all look dark. If the camera has %d bits, say "
            "white_level=%d (--white-level %d).",
            *(*found, white.bit_length(), white, white),
        )


def _of_bits(level: int) -> int:
    """The highest level of as many bits as this one has, and of 8 at least."""
    return int(2 ** max(8, level.bit_length()) - 1)


def _highest_level(images: ImageSource) -> tuple[int, int] | None:
    """The highest level in the first images that are deep, and the level that is white in such a file.

    None where they are of 8 bits, or cannot be read.
    """
    found = None
    for index in range(min(_LEVELS, len(images))):
        try:
            picture = images.load(index)
        except ImageError:
            continue
        if (levels := levels_of(picture)) is not None:
            found = max((round(brightest(picture) * levels / 255), levels), found or (0, 0))
    return found
