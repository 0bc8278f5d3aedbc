"""One safe decoder for images and masks.

What comes out is always either mode `RGB` (8 bit) or mode `F` (one channel of floats in [0, 255], for deep grey):

| file | becomes |
|---|---|
| EXIF-rotated photo | turned upright; sizes and maps refer to the upright image |
| 8-bit grey, palette, bilevel, CMYK, YCbCr, Lab | RGB |
| 16-bit grey | floats, linear over the full range 0 ... 65535, nothing rounded |
| alpha channel or transparent palette entry | composed over white, as a viewer shows it |
| animation or multi-page file | its first frame |
| image of any size down to 1 x 1 | itself |
| more pixels than `max_pixels`, truncated, not an image | `ImageError` that names the file |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ArgumentError, ImageError

MAX_PIXELS = 80_000_000
"""Default pixel limit. A small file can claim any size and take all memory when it is opened."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings (lower case) that a folder scan takes for images."""

_DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})


def decode(path: str | Path, *, max_pixels: int = MAX_PIXELS, behind: str = "white") -> Image.Image:
    """Read one image file, upright, as mode `RGB` or `F`; transparent parts show the colour `behind`.

    Raises `ImageError` with the path and the reason for every file that cannot be used.

    >>> decode("no-such-file.png")
    Traceback (most recent call last):
    blemish.errors.ImageError: no-such-file.png: the file does not exist.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(path, image, max_pixels)
            image.load()
            return _normal_mode(path, ImageOps.exif_transpose(image), behind)
    except FileNotFoundError:
        raise ImageError(f"{path}: the file does not exist.") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image, or a format that Pillow cannot read.") from None
    except Image.DecompressionBombError:
        raise ImageError(_too_large(path, "far more", max_pixels)) from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged data, in EXIF blocks above all
        raise ImageError(f"{path}: damaged or truncated ({error}). Copy or record it again.") from error


def decode_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Read a ground-truth mask as `(height, width)` bool: every pixel above 0 is anomalous, transparency is not."""
    image = decode(path, max_pixels=max_pixels, behind="black")
    pixels = np.asarray(image)
    anomalous: NDArray[np.bool_] = pixels > 0
    return anomalous if pixels.ndim == 2 else np.logical_or.reduce(anomalous, axis=2)


def from_array(array: NDArray[np.generic], *, name: str = "image") -> Image.Image:
    """Take pixels in memory: `(height, width)` or `(height, width, 3)`; uint8, uint16 (grey) or float in [0, 1]."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or 0 in array.shape:
        raise ArgumentError.about(
            name,
            expected="an array of shape (height, width) or (height, width, 3)",
            got=array,
            instead="Move the channels to the last axis and drop an alpha channel.",
        )
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype == np.uint8:
        return Image.fromarray(array).convert("RGB")
    if array.ndim == 2 and array.dtype == np.uint16:
        return Image.fromarray(array.astype(np.float32) / np.float32(257.0))
    if array.dtype.kind == "f":
        return _from_floats(array, name)
    raise ArgumentError.about(
        name, expected="dtype uint8, uint16 (grey) or float in [0, 1]", got=array, instead="Convert it first."
    )


def _from_floats(array: NDArray[np.generic], name: str) -> Image.Image:
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ArgumentError.about(
            name,
            expected="float values in [0, 1]",
            got=f"values from {values.min()} to {values.max()}",
            instead="Divide by the white level of your camera, and remove NaN.",
        )
    if array.ndim == 2:
        return Image.fromarray(values * np.float32(255.0))
    return Image.fromarray(np.round(values * 255).astype(np.uint8))


def _check_pixels(path: str | Path, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(_too_large(path, f"{height} x {width} = {height * width:,}", max_pixels))


def _too_large(path: str | Path, claimed: str, max_pixels: int) -> str:
    return (
        f"{path}: claims {claimed} pixels, the limit is {max_pixels:,} (a guard against decompression bombs). "
        "Cut or shrink it."
    )


def _normal_mode(path: str | Path, image: Image.Image, behind: str) -> Image.Image:
    if image.mode in _DEEP_GREY:
        return _deep_grey(path, image)
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point pixels have no fixed white level. Save it as 8 or 16 bit.")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, behind), image).convert("RGB")
    return image.convert("RGB")


def _deep_grey(path: str | Path, image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path}: grey values from {values.min()} to {values.max()}, expected 0 to 65535.")
    return Image.fromarray(values / np.float32(257.0))
