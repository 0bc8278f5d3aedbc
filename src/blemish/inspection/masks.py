"""What may be wrong with the masks of defects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..datasets.layouts import Sample
from ..errors import ImageError
from ..images.decode import decode
from ..images.source import Skipped
from ..images.upright import drawn_as_stored, have_one_shape
from ..types import Size


def suspicious_masks(samples: Sequence[Sample], sizes: dict[str, Size]) -> Iterator[Skipped]:
    """Mask and what is odd about it; `sizes` are those of the images by name."""
    for sample in samples:
        if sample.mask is not None:
            for remark in _remarks(sample.mask, sample, sizes.get(str(sample.path))):
                yield str(sample.mask), remark


def _remarks(mask: Path, sample: Sample, size: Size | None) -> Iterator[str]:
    try:
        image = np.asarray(decode(mask, behind="black"))
    except ImageError as error:
        yield f"unreadable: {error}"
        return
    levels = image if image.ndim == 2 else image.max(axis=2)
    highest = float(levels.max())
    marked = levels > highest / 2 if highest else levels > 0
    between = float(((levels > 0.1 * highest) & (levels < 0.9 * highest)).mean())
    if not highest and sample.anomalous:
        yield "empty: no pixel of the defect is marked"
    if highest and not sample.anomalous:
        yield f"marks {marked.mean():.1%} of an image that is normal"
    if between > 0:
        yield f"soft: {between:.2%} of its pixels are neither black nor white"
    if highest and marked.mean() > 0.5 and all(marked[i, j] for i in (0, -1) for j in (0, -1)):
        yield f"inverted, it seems: {marked.mean():.0%} is marked, all corners among it"
    if size is not None:
        yield from _remarks_on_shape(mask, (levels.shape[0], levels.shape[1]), sample.path, size)


def _remarks_on_shape(mask: Path, shape: Size, image: Path, size: Size) -> Iterator[str]:
    is_turned = drawn_as_stored(mask, shape, image, size)
    if is_turned is None:
        yield "EXIF turns its image, and no shape tells whether it was drawn before or after"
    if is_turned:
        yield "drawn on the stored pixels of an image that EXIF turns; it is turned with it"
    elif not have_one_shape(shape, size):
        yield f"of another shape ({shape[0]} x {shape[1]}) than its image ({size[0]} x {size[1]})"
