"""The region of interest: where in a picture there is something to learn and to judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import ArgumentError, DatasetError
from ..files import parse_json, read_text
from ..images.decode import MAX_PIXELS, read_mask
from ..images.upright import at_size, have_one_shape
from ..tensors import check_tensors
from ..types import Size
from .masks import MaskFolder, key_of

_EACH = "an image in the folder of regions for each picture (--roi FOLDER), at the picture's own path"
_FARTHEST = 1 << 24
"""Of a point from the first pixel: Pillow counts in 32 bits."""
_FORM = 'a JSON object {"size": [height, width], "polygons": [[[x, y], ...], ...]}'


class Region:
    """Where to look: one mask for all pictures, or, of a folder, one for each.

    `mask` is `(height, width)` bool, True where something is to be seen. With a folder, the region of `a/0.jpg` is
    `a/0.png` there, the path being that below the folder of the pictures. Without either, as after a model of the
    second kind was loaded, the folder has to be given again.
    """

    def __init__(
        self, mask: NDArray[np.bool_] | None = None, folder: Path | None = None, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.mask, self.folder = mask, folder
        self._files = None if folder is None else MaskFolder(folder)
        self._max_pixels = max_pixels
        if mask is not None and not mask.any():
            raise ArgumentError.about("roi", expected="a region with something in it", got="an empty one")

    @classmethod
    def read(cls, source: Region | str | Path | NDArray[Any], *, max_pixels: int = MAX_PIXELS) -> Region:
        """Take a mask (above 0 is looked at), a file of one, a JSON file of polygons, or a folder of masks.

        Raises `ArgumentError`, and `ImageError` for a mask that cannot be read.
        """
        if isinstance(source, Region):
            return source
        if isinstance(source, np.ndarray):
            if source.ndim != 2 or source.dtype.kind not in "bu":
                raise ArgumentError.about("roi", expected="a bool or uint8 array (height, width)", got=source)
            return cls(source > 0)
        path = Path(source)
        if os.path.isdir(path):
            return cls(folder=path, max_pixels=max_pixels)
        if path.suffix.lower() == ".json":
            return cls(_of_polygons(path, max_pixels))
        return cls(_of_file(path, max_pixels))

    @property
    def is_one(self) -> bool:
        """Whether all pictures have the same region."""
        return self.mask is not None

    def of(self, path: str, size: Size) -> NDArray[np.bool_]:
        """The region of the picture with this path, at its size; nearest neighbour.

        Raises `DatasetError` where there is none, or one of another shape.
        """
        mask, name = self.mask, "roi"
        if mask is None:
            file = None if self._files is None else self._files.find(key_of(Path(path), Path()))
            if file is None:
                raise DatasetError.about(f"roi of {path}", expected=_EACH, got=self.folder or "no folder")
            mask, name = _of_file(file, self._max_pixels), str(file)
        shape = (mask.shape[0], mask.shape[1])
        if not have_one_shape(shape, size):
            raise DatasetError.about(
                name, expected=f"a region of the shape of {path}, {size} (as EXIF turns it)", got=f"{shape}"
            )
        return at_size(mask, size)

    def state(self) -> dict[str, torch.Tensor]:
        """For a model file: the bits of a mask; of a folder only that there was one."""
        if self.mask is None:
            return {"region.size": torch.tensor([0, 0])}
        return {"region.size": torch.tensor(self.mask.shape), "region.bits": torch.from_numpy(np.packbits(self.mask))}

    @classmethod
    def restore(cls, state: dict[str, torch.Tensor]) -> Region:
        """Take back what `state` gave. Raises `ModelFileError`."""
        check_tensors(state, {"region.size": "int64 2"} | {name: "uint8 n" for name in state if name == "region.bits"})
        height, width = state["region.size"].tolist()
        if "region.bits" not in state:
            return cls()
        check_tensors({"bits": state["region.bits"]}, {"bits": f"uint8 {-(-height * width // 8)}"})
        bits = np.unpackbits(state["region.bits"].numpy(), count=height * width)
        return cls(bits.reshape(height, width).astype(bool))


def _of_file(path: Path, max_pixels: int) -> NDArray[np.bool_]:
    mask = read_mask(path, max_pixels=max_pixels)
    if mask.is_picture:
        raise ArgumentError.about(
            f"roi {path}", expected="a mask: black outside, white where to look", got="a picture of many levels"
        )
    return mask.anomalous


def _of_polygons(path: Path, max_pixels: int) -> NDArray[np.bool_]:
    text = read_text(path, expected=_FORM)
    try:
        found = parse_json(text)
        height, width = (int(side) for side in found["size"])
        polygons = [[(float(x), float(y)) for x, y in polygon] for polygon in found["polygons"]]
        if not all(abs(number) < _FARTHEST for polygon in polygons for point in polygon for number in point):
            raise ValueError(f"points that are no numbers below {_FARTHEST:,}")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ArgumentError.about(str(path), expected=_FORM, got=f"{type(error).__name__}: {error}") from error
    if not 0 < height * width <= max_pixels or height < 1 or any(len(polygon) < 3 for polygon in polygons):
        raise ArgumentError.about(
            str(path), expected=f"{_FORM}, of at least 3 points each and {max_pixels:,} pixels at most",
            got=f"size {height} x {width} and {len(polygons)} polygons",
        )  # fmt: skip
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon(polygon, fill=1)
    return np.asarray(image).astype(bool)
