"""One safe decoder for images and masks.

What comes out is always either mode `RGB` (8 bit) or mode `F` (one channel of floats in [0, 255], for deep grey):

| file | becomes |
|---|---|
| EXIF-rotated photo | turned upright; sizes and maps refer to the upright image |
| 8-bit grey, palette, bilevel, CMYK, YCbCr, Lab | RGB |
| 16-bit grey | floats, linear over the full range 0 ... 65535, nothing rounded |
| alpha channel or transparent palette entry | composed over white, as a viewer shows it |
| animation or multi-page file, several pictures in one `.jpg` (MPO) | its first frame |
| image of any size down to 1 x 1 | itself |
| more pixels than `max_pixels`, truncated, not an image, a format that is not in `FORMATS` | `ImageError` |
| no permission, a folder, a pipe or device, a failing disk | `ImageError` that says so |
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import ArgumentError, ImageError

MAX_PIXELS = 80_000_000
"""Default pixel limit. A small file can claim any size and take all memory when it is opened."""

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "JPEG2000": (".j2k", ".jp2"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The formats that are read, by Pillow's names, and their file name endings.

Content decides, not the name; but nothing else is ever opened. Pillow knows formats that start other programs.
"""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""File name endings (lower case) that a folder scan takes for images."""

_DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})

_MOST_LABELS = 8
"""A mask without losses that has no more levels than these between 0 and the highest numbers kinds of defects."""

_ORIENTATION = 0x0112
"""The EXIF tag; from 5 on, height and width change places."""


def decode(path: str | Path, *, max_pixels: int = MAX_PIXELS, behind: str = "white") -> Image.Image:
    """Read one image file, upright, as mode `RGB` or `F`; transparent parts show the colour `behind`.

    Raises `ImageError` with the path and the reason for every file that cannot be used. Takes at most 40 bytes of
    memory a pixel, and no more pixels than `max_pixels`. A `max_pixels` above Pillow's own limit, 89 million,
    raises that one too, for the whole program.

    >>> decode("no-such-file.png")
    Traceback (most recent call last):
    blemish.errors.ImageError: no-such-file.png: the file does not exist.
    """
    _let_pillow_read(max_pixels)
    with _open_file(path) as file:
        try:
            image = _recognise(path, file, max_pixels)
            _check_pixels(path, image.size, max_pixels)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _normal_mode(path, image, behind)
        except ImageError:
            raise
        except MemoryError:
            raise ImageError(f"{path}: too large for the memory that is free.") from None
        except Exception as error:  # Pillow's readers raise almost anything on damaged data, in EXIF blocks above all
            if isinstance(error, OSError) and error.errno is not None:
                raise _unreadable(path, error) from error
            raise ImageError(f"{path}: damaged or truncated ({error}). Copy or record it again.") from error


class Mask(NamedTuple):
    """A ground-truth mask."""

    anomalous: NDArray[np.bool_]
    is_soft: bool
    """Whether there were levels between normal and anomalous, so that half of the highest had to be the limit."""
    between: float = 0.0
    """Share of the pixels that are neither nearly 0 nor nearly the highest: above a quarter, it is hardly a mask."""


def decode_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Read a ground-truth mask as `(height, width)` bool; see `read_mask`."""
    return read_mask(path, max_pixels=max_pixels).anomalous


def read_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Mask:
    """Read a ground-truth mask, or the union of those in a folder.

    Every pixel above 0 is anomalous, transparency is not: masks hold 1, 255, or a number for each kind of defect.
    In a soft mask, a JPEG file or one of more than eight levels between 0 and the highest, what is above half of the
    highest is.
    """
    folder = Path(path)
    if not os.path.isdir(path):  # `Path.is_dir` raises where there is no permission
        return _binarise(_mask_levels(path, max_pixels), is_lossy=folder.suffix.lower() in (".jpg", ".jpeg"))
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    masks = [read_mask(file, max_pixels=max_pixels) for file in files]
    if len({mask.anomalous.shape for mask in masks}) != 1:
        raise ImageError(f"{path}: expected masks of one size in this folder, got {len(masks)} of other sizes or none.")
    return Mask(np.logical_or.reduce([mask.anomalous for mask in masks]), any(mask.is_soft for mask in masks))


def _mask_levels(path: str | Path, max_pixels: int) -> NDArray[Any]:
    try:
        pixels = np.asarray(decode(path, max_pixels=max_pixels, behind="black"))
    except ImageError:
        floats = _float_pixels(path, max_pixels)
        if floats is None:
            raise
        return floats
    return pixels if pixels.ndim == 2 else np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _float_pixels(path: str | Path, max_pixels: int) -> NDArray[np.float32] | None:
    """Pixels of a floating-point file: a mask of them needs no white level. None for any other file."""
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            if image.mode != "F" or image.width * image.height > max_pixels:
                return None
            pixels = np.asarray(image, dtype=np.float32)
    except Exception:  # then the error of `decode` says what is wrong
        return None
    if not np.isfinite(pixels).all():
        raise ImageError(f"{path}: a mask with NaN or infinity. Save it as 8 bit.")
    return pixels


def _binarise(levels: NDArray[Any], *, is_lossy: bool) -> Mask:
    highest = levels.max()
    between = np.unique(levels[(levels > 0) & (levels < highest)])
    is_soft = bool(between.size) and (is_lossy or between.size > _MOST_LABELS)
    middle = (levels > highest / 8) & (levels < highest * (7 / 8)) if is_soft else np.zeros(1, dtype=bool)
    return Mask(levels > (highest / 2 if is_soft else 0), is_soft, float(middle.mean()))


def upright_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width that `decode` would give, from the file's head alone; None where it cannot be told."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)
    except Exception:  # `decode` says what is wrong, when its turn comes
        return None


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


def _open_file(path: str | Path) -> BinaryIO:
    """Open a regular file: a pipe would block for ever, a device never end."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(f"{path}: the file does not exist.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:  # a null byte
        raise ImageError(f"{str(path)!r}: not the name of a file ({error}).") from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise ImageError(f"{path}: {kind}, not an image file.")


def _unreadable(path: str | Path, error: OSError) -> ImageError:
    if isinstance(error, PermissionError):
        return ImageError(f"{path}: no permission to read it.")
    return ImageError(f"{path}: cannot be read ({error.strerror}).")


def _let_pillow_read(max_pixels: int) -> None:
    """Some of Pillow's readers ask its own limit, which is one for the whole program."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _recognise(path: str | Path, file: BinaryIO, max_pixels: int) -> Image.Image:
    """Open as the first format that fits, without decoding.

    `Image.open` would speak of Pillow's own pixel limit before ours could be asked.
    """
    Image.init()
    start = file.read(30)
    if (size := _webp_size(start)) is not None:
        _check_pixels(path, size, max_pixels)  # its reader takes the memory when it opens
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        try:
            if accept is None or accept(start[:16]) is True:
                file.seek(0)
                return factory(file, str(path))
        except (SyntaxError, IndexError, TypeError, struct.error):  # how Pillow's readers say: not mine
            continue
    raise ImageError(f"{path}: not an image, or of a format that is not read. Read are {', '.join(FORMATS)}.")


def _webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height out of the first 30 bytes of a WebP file."""
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP" or len(start) < 30:
        return None
    if start[12:16] == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF


def _check_pixels(path: str | Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: claims {height} x {width} = {height * width:,} pixels, the limit is {max_pixels:,} "
            "(a guard against decompression bombs). Cut or shrink it."
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
