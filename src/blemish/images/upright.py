"""Whether a mask was drawn on its picture as it is stored, or as EXIF turns it; and the turn."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import Size
from .decode import orientation

_A = TypeVar("_A", bound=np.generic)

_QUARTERS = {6: 3, 7: 2, 8: 1}
"""Turns to the left by 90 degrees; 5 and 7 are mirrored before, at the diagonal."""


def at_size(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Bring a `(height, width)` mask to another size, nearest neighbour."""
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(bool)


def have_one_shape(first: Size, second: Size) -> bool:
    """Whether two sizes are one shape: data sets are passed on with images and masks at different scales."""
    aspect = second[0] / second[1]
    return abs(first[0] / first[1] - aspect) <= 0.02 * aspect


def drawn_as_stored(mask: Path, shape: Size, picture: Path, size: Size) -> bool | None:
    """Whether a mask of this `shape` was drawn on the stored pixels of a picture that EXIF turns to `size`.

    None where nothing tells: both are square, or EXIF turns upside down or mirrors only. A mask with the picture's own
    EXIF tag was turned with it.
    """
    how = orientation(picture)
    if how == 1 or orientation(mask) == how:
        return False
    stored = (size[1], size[0])
    if how < 5 or stored == size:
        return None
    if have_one_shape(shape, size) and have_one_shape(shape, stored):  # nearly square: only equal sizes tell
        return {size: False, stored: True}.get(shape)
    return have_one_shape(shape, stored)


def as_turned(array: NDArray[_A], picture: Path) -> NDArray[_A]:
    """A `(height, width)` array as EXIF turns the picture whose height and width change places then."""
    how = orientation(picture)
    mirrored = array.T if how in (5, 7) else array
    return np.rot90(mirrored, _QUARTERS.get(how, 0))
