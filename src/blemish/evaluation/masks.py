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
from ..images.upright import as_turned, drawn_as_stored, have_one_shape
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

    def of(self, sample: Sample, size: Size) -> NDArray[np.bool_] | None:
        """The mask of an image of this size, as EXIF turns the image; None where it has none.

        Raises `DatasetError` where the mask has another shape.
        """
        if sample.mask is None:
            return None
        kept = self._read(sample.mask)
        is_turned = self.drawn_as_stored(sample, size)
        count = kept.shape[0] * kept.shape[1]
        bits = np.unpackbits(np.frombuffer(zlib.decompress(kept.bits), np.uint8), count=count)
        mask = bits.reshape(kept.shape).view(np.bool_)
        return as_turned(mask, sample.path) if is_turned else mask

    def drawn_as_stored(self, sample: Sample, size: Size) -> bool | None:
        """Whether a mask has to be turned with its image of this size; None where that cannot be told.

        Raises `DatasetError` where the mask has another shape.
        """
        assert sample.mask is not None
        shape = self._read(sample.mask).shape
        is_turned = drawn_as_stored(sample.mask, shape, sample.path, size)
        if not is_turned and not have_one_shape(shape, size):
            lies = have_one_shape((shape[1], shape[0]), size)
            raise DatasetError.about(
                f"{sample.mask}",
                expected=f"the shape of its image, {size}",
                got=f"{shape}",
                instead="The mask lies on its side." if lies else "",
            )
        return is_turned

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
    sizes = ((sample, mask, upright_size(sample.path)) for sample, mask in marked)
    turned = [(mask, masks.drawn_as_stored(sample, size)) for sample, mask, size in sizes if size is not None]
    of_defects = [mask for sample, mask in marked if sample.anomalous]
    large = [mask for mask in of_defects if masks.share(mask) > 0.5]
    notes = (
        _note([m for m in of_defects if masks.share(m) == 0], "empty, though its image is anomalous"),
        _note(
            large if 2 * len(large) > len(of_defects) else [],
            "marked over more than half of its picture: are black and white exchanged?",
        ),
        _note([m for s, m in marked if not s.anomalous and masks.share(m) > 0], "a defect marked on a normal image"),
        _note(
            [m for m, is_turned in turned if is_turned], "drawn on the stored pixels; turned as EXIF turns its image"
        ),
        _note(
            [m for m, is_turned in turned if is_turned is None],
            "EXIF turns its image, and no shape tells whether the mask was drawn before or after; taken as drawn "
            "after. Compare the two",
        ),
        _note([m for _, m in marked if masks.is_soft(m)], "soft: what is above half of its highest level is anomalous"),
    )
    return tuple(note for note in notes if note)


def _note(paths: Iterable[Path], what: str) -> str:
    found = [*paths]
    more = f" ({len(found)} such masks)" if len(found) > 1 else ""
    return f"{found[0]}: {what}{more}" if found else ""
