"""One safe decoder for images and masks.

What comes out, a `Picture`, is an image of mode `RGB` (8 bit), of mode `F` (one channel of floats in [0, 255], for
deep grey), or, for deep colour, which Pillow has no mode for, a `(height, width, 3)` array of floats in [0, 255]:

| file | becomes |
|---|---|
| EXIF-rotated photo | turned upright; sizes and maps refer to the upright image |
| 8-bit grey, palette, bilevel, CMYK, YCbCr, Lab | RGB |
| 16-bit grey, 16-bit colour in PNG and TIFF | floats, linear over the full range 0 ... 65535, nothing rounded |
| 12-bit TIFF | floats, linear over 0 ... 4095 |
| alpha channel or transparent palette entry | composed over white, as a viewer shows it |
| transparent everywhere; deep colour of any other kind | `ImageError`: what it shows would be lost |
| animation or multi-page file, several pictures in one `.jpg` (MPO) | its first frame |
| image of any size down to 1 x 1 | itself |
| more pixels than `max_pixels`, truncated, not an image, a format that is not in `FORMATS` | `ImageError` |
| no permission, a folder, a pipe or device, a failing disk | `ImageError` that says so |
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from ..errors import ArgumentError, ImageError
from ..types import Size

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

Picture = Image.Image | NDArray[np.float32]
"""What a decoded image is; see above. Deep ones have levels: what white is in the file, such as 65535."""

_DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})
_FULL = 65535
_OTHER_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
"""Pillow takes one byte of each 16-bit value, and a raw mode says which; this one takes the other."""

_MOST_LABELS = 8
"""A mask without losses that has no more levels than these between 0 and the highest numbers kinds of defects."""

_ORIENTATION = 0x0112
"""The EXIF tag; from 5 on, height and width change places."""


def extent(picture: Picture) -> Size:
    """`(height, width)`."""
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    return picture.height, picture.width


def levels_of(picture: Picture) -> int | None:
    """The level that is full white in the file of a deep picture; None for 8 bit, and for floats in [0, 1]."""
    return _FULL if isinstance(picture, np.ndarray) else picture.info.get("levels")


def brightest(picture: Picture) -> float:
    """The largest value, in [0, 255]."""
    return max(high for _, high in _extrema(picture))


def as_image(picture: Picture) -> Image.Image:
    """A picture for eyes, and for what takes 8 bits: deep colour is cut to them, its largest value the whitest."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.round(picture * (255 / max(float(picture.max()), 1e-6))).astype(np.uint8))
    return picture


def is_constant(picture: Picture) -> bool:
    """Whether all pixels have one colour."""
    return all(low == high for low, high in _extrema(picture))


def _extrema(picture: Picture) -> list[tuple[float, float]]:
    if isinstance(picture, np.ndarray):
        return [(float(band.min()), float(band.max())) for band in np.moveaxis(picture, -1, 0)]
    found: Any = picture.getextrema()
    return [found] if picture.mode == "F" else list(found)


def decode(path: str | Path, *, max_pixels: int = MAX_PIXELS, behind: str = "white") -> Picture:
    """Read one image file, upright, as a `Picture`; transparent parts show the colour `behind`.

    Raises `ImageError` with the path and the reason for every file that cannot be used. Takes at most 40 bytes of
    memory a pixel, and no more pixels than `max_pixels`. A `max_pixels` above Pillow's own limit, 89 million,
    raises that one too, for the whole program.

    >>> decode("no-such-file.png")
    Traceback (most recent call last):
    blemish.errors.ImageError: no-such-file.png: the file does not exist.
    """
    return _decode(path, lambda: _open_file(path), max_pixels, behind)


def decode_bytes(content: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read one image file whose bytes are at hand, as `decode` does; `name` is for messages alone.

    >>> decode_bytes(b"no image", name="upload")
    Traceback (most recent call last):
    blemish.errors.ImageError: upload: not an image, or of a format that is not read. Read are BMP, ...
    """
    return _decode(name, lambda: BytesIO(content), max_pixels, "white")


def _decode(path: str | Path, open_: Callable[[], BinaryIO], max_pixels: int, behind: str) -> Picture:
    if Image.MAX_IMAGE_PIXELS is not None:  # some of its readers ask this limit, which is one for the whole program
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    with open_() as file:
        try:
            image = _recognise(path, file, max_pixels)
            _check_pixels(path, image.size, max_pixels)
            levels, other_byte = _levels(image), _tiles_of_other_byte(path, image, file)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if other_byte is None:
                return _normal_mode(path, image, behind, levels)
            with open_() as again:
                low = _recognise(path, again, max_pixels)
                low.tile = other_byte
                low.load()
            ImageOps.exif_transpose(low, in_place=True)
            return _deep_colour(path, image, low, behind)
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
    """Share of the pixels that are neither nearly 0 nor nearly the highest."""

    @property
    def is_picture(self) -> bool:
        """Whether so many pixels are neither that it is hardly a mask."""
        return self.between > 0.25


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
        with _open_file(path) as file, Image.open(file, formats=("TIFF",)) as image:
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


def upright_size(file: str | Path | bytes) -> tuple[int, int] | None:
    """Height and width that `decode` would give, from a file's head, or its bytes; None where it cannot be told."""
    head = _read_head(file)
    if head is None:  # `decode` says what is wrong, when its turn comes
        return None
    (width, height), how = head
    return (width, height) if how >= 5 else (height, width)


def orientation(path: str | Path) -> int:
    """The EXIF orientation of a file, 1 to 8: 1 is upright, and what a file has that does not say, or is damaged."""
    head = _read_head(path)
    return 1 if head is None else head[1]


def _read_head(path: str | Path | bytes) -> tuple[tuple[int, int], int] | None:
    """Width and height as stored, and the EXIF orientation; decodes nothing."""
    try:
        with BytesIO(path) if isinstance(path, bytes) else _open_file(path) as file:
            image = _recognise("", file, sys.maxsize)
            if image.format == "PNG" and image.info.keys().isdisjoint(("exif", "Raw profile type exif")):
                image.info["exif"] = _find_exif(file)  # else Pillow decodes all of it to look behind the pixels
            how = image.getexif().get(_ORIENTATION, 1)
            return image.size, how if how in range(1, 9) else 1
    except Exception:  # Pillow's readers raise almost anything on damaged data
        return None


def _find_exif(file: BinaryIO) -> bytes:
    """What a PNG says of itself in EXIF, before its pixels or behind; empty where it says nothing."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf":
            return b"Exif\0\0" + file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    return b""


def from_memory(image: object, *, name: str = "image") -> Picture:
    """Take one picture in memory: an array, a Pillow image, or a tensor with the channels first.

    Arrays are `(height, width)` or `(height, width, 3)`, tensors `(3, height, width)`, `(1, height, width)` or
    `(height, width)`; uint8, uint16, or float in [0, 1]. Raises `ArgumentError` that says what to write instead.
    """
    check_shape(image, name=name)
    if isinstance(image, Image.Image):
        try:
            upright = ImageOps.exif_transpose(image)
            return _normal_mode(name, upright, "white", _levels(image))
        except OSError as error:  # a file that was opened and not read yet
            raise ImageError(f"{name}: damaged or truncated ({error}).") from error
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu().numpy()
        return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, name)
    return _from_array(np.asarray(image), name)


def check_shape(image: object, *, name: str) -> None:
    """Refuse what is not one picture in memory, before a pixel is looked at. Raises `ArgumentError`."""
    if isinstance(image, Image.Image):
        return
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ArgumentError.about(
            name, expected="a path, a NumPy array, a Pillow image or a torch tensor", got=f"{type(image).__name__}"
        )
    shape, is_tensor = tuple(image.shape), isinstance(image, torch.Tensor)
    channels = shape[0 if is_tensor else -1] if len(shape) == 3 else 1
    if len(shape) in (2, 3) and channels in (1, 3) and 0 not in shape:
        return
    expected = "a tensor of shape (3, height, width)" if is_tensor else "an array of shape (height, width, 3)"
    raise ArgumentError.about(
        name, expected=f"{expected}, or (height, width)", got=image, instead=_right_shape(shape, is_tensor=is_tensor)
    )


def _right_shape(shape: tuple[int, ...], *, is_tensor: bool) -> str:
    """What to write for an array or a tensor of a shape that is none of one picture."""
    first, last = (shape[0], shape[-1]) if len(shape) == 3 else (0, 0)
    rules = (
        (0 in shape, "There is nothing in it."),
        (len(shape) > 3, "For several pictures, write list(stack)."),
        (is_tensor and first in (2, 4), f"tensor[:{first - 1}] drops an alpha channel."),
        (is_tensor and last in (1, 3, 4), "tensor.permute(2, 0, 1) puts the channels first."),
        (last in (2, 4), f"array[..., :{last - 1}] drops an alpha channel."),
        (first in (1, 3), "np.moveaxis(array, 0, -1) puts the channels last."),
        (first in (2, 4), f"np.moveaxis(array[:{first - 1}], 0, -1) puts the channels last, without an alpha channel."),
        (len(shape) == 3, "For several grey pictures, write list(stack)."),
    )
    return next((text for holds, text in rules if holds), "")


def _from_array(array: NDArray[Any], name: str) -> Picture:
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype == np.uint8:
        return Image.fromarray(array).convert("RGB")
    if array.dtype == np.uint16:
        return _deep(array.astype(np.float32), _FULL)
    if array.dtype.kind == "f":
        return _from_floats(array, name)
    raise ArgumentError.about(
        name, expected="dtype uint8, uint16 or float in [0, 1]", got=array, instead="Convert it first."
    )


def _from_floats(array: NDArray[np.generic], name: str) -> Picture:
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ArgumentError.about(
            name,
            expected="float values in [0, 1]",
            got=f"values from {values.min()} to {values.max()}",
            instead="Divide by the white level of your camera, and remove NaN.",
        )
    values *= np.float32(255.0)
    rounded = np.round(values)
    # What were 8 bits once are 8 bits again, so that a tensor scores as the picture that it was made of.
    if np.abs(values - rounded).max() < 1e-3:
        return _from_array(rounded.astype(np.uint8), name)
    return Image.fromarray(values) if array.ndim == 2 else values


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


def _recognise(path: str | Path, file: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
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
            "(a guard against decompression bombs). Cut or shrink it, or allow more by max_pixels (--max-pixels)."
        )


def _levels(image: Image.Image) -> int:
    """White in the levels of a deep file."""
    return 4095 if any(_raw_mode(tile) == "I;12" for tile in getattr(image, "tile", ())) else _FULL


def _raw_mode(tile: Any) -> str:
    """How the bytes of a part of a file are arranged, in Pillow's words; "" where its decoder asks for nothing."""
    mode = tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0]
    return mode if isinstance(mode, str) else ""


def _tiles_of_other_byte(path: str | Path, image: ImageFile.ImageFile, file: BinaryIO) -> list[Any] | None:
    """What makes Pillow read the other byte of 16-bit colour, of which it reads one; None for all other images.

    Raises `ImageError` for deep colour of which it cannot be made to: half of the levels would be lost without a word.
    """
    if image.mode in _DEEP_GREY or image.mode == "F" or not _is_deep(image, file):
        return None
    modes = {_raw_mode(tile) for tile in image.tile}
    planar = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(284, 1) != 1
    if planar or not modes <= {f"{bands}{order}" for bands in ("RGB", "RGBA") for order in _OTHER_BYTE}:
        raise ImageError(
            f"{path}: colour (or alpha) of more than 8 bits that would be cut to 8. Save it as a PNG or TIFF with the "
            "channels interleaved, without an alpha channel, or as 8 bit."
        )
    return [(*tile[:3], _swapped(tile[3])) for tile in image.tile]


def _swapped(args: Any) -> Any:
    if isinstance(args, str):
        return args[:-4] + _OTHER_BYTE[args[-4:]]
    return (_swapped(args[0]), *args[1:])


def _is_deep(image: ImageFile.ImageFile, file: BinaryIO) -> bool:
    """Whether a colour file has more than 8 bits a channel."""
    if image.format == "TIFF":
        return bool(max(getattr(image, "tag_v2", {}).get(258, (8,))) > 8)
    if image.format == "PPM":
        args: Any = tuple(image.tile[0])[3]
        return bool(isinstance(args[-1], int) and args[-1] > 255)  # the highest level
    if image.format == "JPEG2000":
        place = file.tell()
        file.seek(0)
        start = file.read(1 << 16)
        file.seek(place)
        at = start.find(b"\xff\x4f\xff\x51")  # the first markers of the code stream; 42 bytes on, bits less 1
        return 0 <= at < len(start) - 42 and (start[at + 42] & 0x7F) + 1 > 8
    return any(";16" in _raw_mode(tile) for tile in image.tile) and image.format == "PNG"


def _normal_mode(path: str | Path, image: Image.Image, behind: str, levels: int) -> Picture:
    if image.mode in _DEEP_GREY:
        return _deep_grey(path, image, levels)
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point pixels have no fixed white level. Save it as 8 or 16 bit.")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        extrema: Any = image.getextrema()
        _check_alpha(path, extrema[3][1])
        return Image.alpha_composite(Image.new("RGBA", image.size, behind), image).convert("RGB")
    return image.convert("RGB")


def _check_alpha(path: str | Path, highest: Any) -> None:
    if highest == 0:
        raise ImageError(f"{path}: transparent everywhere, so it shows nothing. Save it without its alpha channel.")


def _deep_grey(path: str | Path, image: Image.Image, levels: int) -> Picture:
    values = np.asarray(image, dtype=np.float32)
    if values.min() < 0 or values.max() > levels:
        raise ImageError(f"{path}: grey values from {values.min()} to {values.max()}, expected 0 to {levels}.")
    return _deep(values, levels)


def _deep_colour(path: str | Path, high: Image.Image, low: Image.Image, behind: str) -> Picture:
    """From the high and the low bytes of 16-bit colour, perhaps with alpha."""
    values = np.array(high, dtype=np.float32)
    values *= 256
    values += np.asarray(low)
    if values.shape[2] == 4:
        _check_alpha(path, values[:, :, 3].max())
        alpha, white = values[:, :, 3:] / np.float32(_FULL), np.float32(_FULL if behind == "white" else 0)
        values = (values[:, :, :3] - white) * alpha + white
    return _deep(values, _FULL)


def _deep(values: NDArray[np.float32], levels: int) -> Picture:
    """A picture out of the levels of a file."""
    scaled: NDArray[np.float32] = values / np.float32(levels / 255)
    if scaled.ndim == 3:
        return scaled
    image = Image.fromarray(scaled)
    image.info["levels"] = levels
    return image
