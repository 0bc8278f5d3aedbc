"""Ground-truth masks: each decoded once, and looked at before anything is scored."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets.dataset import Sample
from ..errors import DatasetError
from ..images.decode import MAX_PIXELS, read_mask, upright_size
from ..types import Size


@dataclass(frozen=True, slots=True)
class _Kept:
    bits: bytes
    shape: Size
    share: float
    """Of the pixels that are marked."""
    is_soft: bool


class Masks:
    """Mask files, each decoded once and kept small; several evaluations of one data set may share them."""

    def __init__(self, *, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._kept: dict[Path, _Kept] = {}

    def __getitem__(self, path: Path) -> NDArray[np.bool_]:
        kept = self._read(path)
        count = kept.shape[0] * kept.shape[1]
        bits = np.unpackbits(np.frombuffer(zlib.decompress(kept.bits), np.uint8), count=count)
        return bits.reshape(kept.shape).view(np.bool_)

    def shape(self, path: Path) -> Size:
        """Height and width of a mask."""
        return self._read(path).shape

    def share(self, path: Path) -> float:
        """Share of a mask's pixels that are marked."""
        return self._read(path).share

    def is_soft(self, path: Path) -> bool:
        """Whether a mask had levels between normal and anomalous."""
        return self._read(path).is_soft

    def _read(self, path: Path) -> _Kept:
        if path not in self._kept:
            mask, is_soft, _ = read_mask(path, max_pixels=self._max_pixels)
            # Zeros for the most part: a few kilobytes, and read back much faster than a picture.
            bits = zlib.compress(np.packbits(mask).tobytes(), 1)
            self._kept[path] = _Kept(bits, (mask.shape[0], mask.shape[1]), float(mask.mean()), is_soft)
        return self._kept[path]


def look_at_masks(samples: Sequence[Sample], masks: Masks) -> tuple[str, ...]:
    """Decode all masks, and say what is suspicious about them.

    Raises `DatasetError` where a mask has another shape than its image, and `ImageError` where it cannot be read.
    """
    marked = [(sample, sample.mask) for sample in samples if sample.mask is not None]
    for sample, mask in marked:
        size = upright_size(sample.path)
        if size is not None:
            require_shape(sample, size, masks.shape(mask))
    of_defects = [mask for sample, mask in marked if sample.anomalous]
    large = [mask for mask in of_defects if masks.share(mask) > 0.5]
    notes = (
        _note([m for m in of_defects if masks.share(m) == 0], "empty, though its image is anomalous"),
        _note(
            large if 2 * len(large) > len(of_defects) else [],
            "marked over more than half of its picture: are black and white exchanged?",
        ),
        _note([m for s, m in marked if not s.anomalous and masks.share(m) > 0], "a defect marked on a normal image"),
        _note([m for _, m in marked if masks.is_soft(m)], "soft: what is above half of its highest level is anomalous"),
    )
    return tuple(note for note in notes if note)


def require_shape(sample: Sample, size: Size, mask: Size) -> None:
    """Refuse a mask of another shape than its image, `(height, width)` both; another scale is fine."""
    height, width = size
    # Data sets are passed on with images and masks at different scales; another shape is a mistake.
    if abs(mask[0] / mask[1] - height / width) > 0.02 * height / width:
        is_turned = abs(mask[1] / mask[0] - height / width) <= 0.02 * height / width
        raise DatasetError.about(
            f"{sample.mask}",
            expected=f"the shape of its image, {size}",
            got=f"{mask}",
            instead="The image is turned by its EXIF tag, or the mask lies on its side." if is_turned else "",
        )


def _note(paths: Iterable[Path], what: str) -> str:
    found = [*paths]
    more = f" ({len(found)} such masks)" if len(found) > 1 else ""
    return f"{found[0]}: {what}{more}" if found else ""
