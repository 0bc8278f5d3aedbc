"""Resize and crop, and the exact inverse that puts a map back on the original pixels.

Pixel centres lie at half-integer coordinates (as in Pillow and in `torch.nn.functional.interpolate` with
`align_corners=False`), so going there and back shifts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import ArgumentError
from ..types import Size


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes the network's input.

    With `crop=None` every image is stretched to `resize`, a side or `(height, width)`: no border is blind. With a crop
    the short side becomes `resize`, the aspect ratio stays, and the central `crop` x `crop` pixels are taken, as the
    papers do.
    """

    resize: int | Size = 256
    crop: int | None = None

    def __post_init__(self) -> None:
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        for name, value in (*(("resize", side) for side in sides), ("crop", 16 if self.crop is None else self.crop)):
            if not isinstance(value, int) or value < 16:
                raise ArgumentError.about(name, expected="a whole number of at least 16 pixels", got=value)
        if len(sides) > 2 or (len(sides) == 2 and self.crop is not None):
            raise ArgumentError.about(
                "resize",
                expected="a side, or (height, width) without a crop",
                got=f"{self.resize} and crop {self.crop}",
            )
        if self.crop is not None and self.crop > sides[0]:
            raise ArgumentError.about(
                "crop", expected=f"at most resize = {self.resize}", got=self.crop, instead="Write crop=None."
            )

    @property
    def size(self) -> Size:
        """`(height, width)` of the network's input."""
        if self.crop is not None:
            return self.crop, self.crop
        return self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn an image of mode `RGB` or `F` into `(3, height, width)` float32 in [0, 1]."""
        height, width = self._resized(image.size[::-1])
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        array = np.array(resized if self.crop is None else resized.crop(self._box(height, width)))
        if array.ndim == 2:
            return torch.from_numpy(array).div_(255.0).clamp_(0, 1).expand(3, -1, -1)
        return torch.from_numpy(array).permute(2, 0, 1).float().div_(255.0)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Carry a `(height, width)` bool mask to the network's input, nearest neighbour."""
        height, width = self._resized((mask.shape[0], mask.shape[1]))
        image = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        return np.array(image if self.crop is None else image.crop(self._box(height, width))).astype(bool)

    def to_original(self, map: Tensor, size: Size) -> NDArray[np.float32]:
        """Put one `(height, width)` map back on an image of original `size`; NaN where the crop never looked."""
        canvas = map[None, None]
        height, width = self._resized(size)
        if self.crop is not None:
            left, top, right, bottom = self._box(height, width)
            margins = (left, width - right, top, height - bottom)
            canvas = torch.nn.functional.pad(canvas, margins, mode="replicate")
        placed = torch.nn.functional.interpolate(canvas, size, mode="bilinear", align_corners=False)[0, 0]
        result: NDArray[np.float32] = placed.cpu().numpy()
        if self.crop is not None:
            result[~self.visible(size)] = np.nan
        return result

    def visible(self, size: Size) -> NDArray[np.bool_]:
        """Say for each pixel of an image of original `size` whether its centre lies inside the crop."""
        height, width = self._resized(size)
        left, top, right, bottom = (0, 0, width, height) if self.crop is None else self._box(height, width)
        rows = (np.arange(size[0]) + 0.5) * (height / size[0])
        columns = (np.arange(size[1]) + 0.5) * (width / size[1])
        inside: NDArray[np.bool_] = np.outer((rows >= top) & (rows < bottom), (columns >= left) & (columns < right))
        return inside

    def _resized(self, size: Size) -> Size:
        if self.crop is None or isinstance(self.resize, tuple):
            return self.size
        height, width = size
        # The long side is truncated, as torchvision's Resize does.
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, width, height
        top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
        return left, top, left + self.crop, top + self.crop


PRESETS = {"default": Preprocess(resize=256), "paper": Preprocess(resize=256, crop=224)}
"""`default` looks at every pixel; `paper` is the protocol of the published tables."""
