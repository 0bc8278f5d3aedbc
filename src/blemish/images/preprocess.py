"""Resize and crop, and the exact inverse that puts a map back on the original pixels.

Pixel centres lie at half-integer coordinates (as in Pillow and in `torch.nn.functional.interpolate` with
`align_corners=False`), so going there and back shifts nothing.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import ArgumentError, ImageError
from ..types import Size
from .decode import Picture, brightest, extent, levels_of

MAX_SIDE = 8192
"""The largest side of a network's input."""

MOST_ASPECT = 8.0
"""The largest proportion of the sides that `auto` takes: with the area of 256 x 256, the shorter one is 96 then."""

_AUTO = re.compile(r"auto(?::([0-9]{1,5}))?")
"""What is to be found in the images of a fit, and the side of the square whose area it shall have."""

_PLAIN = 2**24
"""Up to so many pixels, an image is resized as a whole and cropped then, as the papers do and as scores depend on.

Beyond, only the region that is kept is resized. That is the same up to rounding, but not bit for bit: Pillow takes the
corners of a region in single precision. A short side of 256 gets there at 256 : 1, one of 1024 at 16 : 1.
"""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes the network's input.

    With `crop=None` every image is stretched to `resize`, a side or `(height, width)`: no border is blind. "auto" takes
    the aspect ratio of most images of a fit at the area of 256 x 256, "auto:448" at that of 448 x 448. With a crop the
    short side becomes `resize`, the aspect ratio stays, and the central `crop` x `crop` pixels are taken, as the papers
    do.

    `white_level` is what a camera of fewer than 16 bits calls white in a file of 16: 1023 for 10 bits, 4095 for 12.
    None takes the file's full range; "auto" the least number of bits that holds the first images of a fit. 8-bit files
    and floats are as they are.

    Memory follows the pixels that come in and go out, not the aspect ratio: at most 32 bytes for each pixel of the
    image, 32 for each of the network's input, and 150 MB.
    """

    resize: int | Size | str = 256
    crop: int | None = None
    white_level: float | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        white = self.white_level
        if not (white is None or white == "auto" or (isinstance(white, int | float) and 0 < white <= 65535)):
            raise ArgumentError.about("white_level", expected="a number in (0, 65535], or auto", got=white)
        sides = self.resize if isinstance(self.resize, tuple) else (self._side(),)
        for side in sides:
            _check_side("resize", side)
        if self.crop is not None:
            _check_side("crop", self.crop)
        if len(sides) > (2 if self.crop is None else 1):
            got = f"{self.resize} and crop {self.crop}"
            raise ArgumentError.about("resize", expected="a side, or (height, width) without a crop", got=got)
        if self.crop is not None and isinstance(self.resize, str):
            raise ArgumentError.about("resize", expected="a side with a crop", got=self.resize)
        if self.crop is not None and self.crop > sides[0]:
            raise ArgumentError.about(
                "crop", expected=f"at most resize = {self.resize}", got=self.crop, instead="Write crop=None."
            )

    @property
    def is_open(self) -> bool:
        """Whether something is left to be found in the images of a fit: see `settle`."""
        return isinstance(self.resize, str) or self.white_level == "auto"

    @property
    def size(self) -> Size:
        """`(height, width)` of the network's input."""
        if self.crop is not None:
            return self.crop, self.crop
        if isinstance(self.resize, str):
            raise ArgumentError.about("resize", expected="numbers, which `fit` finds", got=self.resize)
        return self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)

    def with_aspect(self, aspect: float, *, multiple: int) -> Preprocess:
        """What `auto` is for images of this width : height: sides that are a multiple of `multiple`.

        Where both are the same, the square is the whole one that was asked for.

        >>> Preprocess("auto").with_aspect(2.5, multiple=16).size
        (160, 400)
        """
        side, root = self._side(), math.sqrt(min(max(aspect, 1 / MOST_ASPECT), MOST_ASPECT))
        height, width = (max(1, round(length / multiple)) * multiple for length in (side / root, side * root))
        return replace(self, resize=side if height == width else (height, width))

    def _side(self) -> int:
        """Of the square whose area the input has, where `resize` is no pair."""
        if not isinstance(self.resize, str):
            return self.resize  # type: ignore[return-value]
        found = _AUTO.fullmatch(self.resize)
        if found is None:
            raise ArgumentError.about("resize", expected="a side, (height, width), auto, or auto:SIDE", got=self.resize)
        return int(found[1] or 256)

    def pixels(self, picture: Picture) -> Tensor:
        """Turn what `decode` gave into `(3, height, width)` float32 in [0, 1].

        Raises `ImageError` where a level of the file is above `white_level`.
        """
        if isinstance(picture, Image.Image) and picture.mode == "RGB":
            return torch.from_numpy(self._placed(picture)).permute(2, 0, 1).float().div_(255.0)
        white = self._white(picture)
        if isinstance(picture, Image.Image):
            return torch.from_numpy(self._placed(picture)).div_(white).clamp_(0, 1).expand(3, -1, -1)
        bands = [self._placed(Image.fromarray(np.ascontiguousarray(picture[:, :, i]))) for i in range(3)]
        return torch.from_numpy(np.stack(bands)).div_(white).clamp_(0, 1)

    def middle(self, picture: Picture) -> float:
        """The value of a decoded picture that is half-way between black and white."""
        levels = levels_of(picture)
        of_camera = levels is not None and isinstance(self.white_level, int | float)
        return 127.5 * self.white_level / levels if of_camera else 127.5  # type: ignore[operator]

    def _white(self, picture: Picture) -> float:
        """What value of a decoded picture is white; 255 where all its levels are used."""
        levels = levels_of(picture)
        if self.white_level is None or levels is None:
            return 255.0
        if self.white_level == "auto":
            raise ArgumentError.about("white_level", expected="a number, which `fit` finds", got="auto")
        highest = round(brightest(picture) * levels / 255)
        if highest > self.white_level:
            raise ImageError(
                f"a level of {highest}, above the white level of {self.white_level:g}. "
                f"Give the camera's own (white_level=, --white-level): 1023 for 10 bits, 4095 for 12, 65535 for 16."
            )
        return self.white_level * 255 / levels

    def _placed(self, image: Image.Image) -> NDArray[np.float32]:
        """An image on the pixels of the network's input; values stay what they are."""
        height, width = self._resized(extent(image))
        if self.crop is None:
            kept = _stretch(image, width, height)
        elif height * width <= _PLAIN:
            kept = _stretch(image, width, height).crop(self._box(height, width))
        else:
            kept = _resize_region(image, width, height, self._box(height, width))
        return np.array(kept)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Carry a `(height, width)` bool mask to the network's input, nearest neighbour."""
        height, width = self._resized((mask.shape[0], mask.shape[1]))
        if self.crop is not None and height * width > _PLAIN:
            left, top, right, bottom = self._box(height, width)
            rows = _centres(top, bottom, mask.shape[0] / height).astype(np.intp)
            columns = _centres(left, right, mask.shape[1] / width).astype(np.intp)
            return mask[rows[:, None], columns]
        image = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        return np.array(image if self.crop is None else image.crop(self._box(height, width))).astype(bool)

    def to_original(self, map: Tensor, size: Size, region: Tensor | None = None) -> NDArray[np.float32]:
        """Put one `(height, width)` map back on an image of original `size`; NaN where the crop never looked.

        And outside a region of interest, bool of the map's shape.
        """
        placed = self._to_original(map, size)
        if region is not None:
            placed[~self.inside(region, size)] = np.nan
        return placed

    def _to_original(self, map: Tensor, size: Size) -> NDArray[np.float32]:
        height, width = self._resized(size)
        if self.crop is None:
            return _enlarged(map, size)
        left, top, right, bottom = self._box(height, width)
        rows, columns = self._seen(size)
        result = np.full(size, np.nan, np.float32)
        if height * width <= _PLAIN:
            margins = (left, width - right, top, height - bottom)
            whole = _enlarged(torch.nn.functional.pad(map[None, None], margins, mode="replicate")[0, 0], size)
            result[rows, columns] = whole[rows, columns]
            return result
        down = _centres(rows.start, rows.stop, height / size[0]) - top
        across = _centres(columns.start, columns.stop, width / size[1]) - left
        result[rows, columns] = _read_between(_read_between(map, down).T, across).T.cpu().numpy()
        return result

    def placement(self, size: Size) -> tuple[float, float, float, float]:
        """Where the network's input lies on an image of original `size`, in pixels of that.

        x and y of its upper left corner, then width and height of one of its pixels.
        """
        height, width = self._resized(size)
        left, top, _, _ = self._box(height, width)
        across, down = size[1] / width, size[0] / height
        return left * across, top * down, across, down

    def inside(self, region: Tensor, size: Size) -> NDArray[np.bool_]:
        """A region `(height, width)` bool of the network's input on an image of original `size`."""
        return self._to_original(region.float(), size) > 0.5  # False where that is NaN

    def visible(self, size: Size) -> NDArray[np.bool_]:
        """Say for each pixel of an image of original `size` whether its centre lies inside the crop."""
        inside = np.zeros(size, np.bool_)
        inside[self._seen(size)] = True
        return inside

    def _seen(self, size: Size) -> tuple[slice, slice]:
        """The rows and the columns of an image of original `size` whose centres lie inside the crop."""
        height, width = self._resized(size)
        left, top, right, bottom = self._box(height, width)
        return _inside(size[0], height, top, bottom), _inside(size[1], width, left, right)

    def _resized(self, size: Size) -> Size:
        if self.crop is None or not isinstance(self.resize, int):
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


def _check_side(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 16:
        raise ArgumentError.about(name, expected="a whole number of at least 16 pixels", got=value)
    if value > MAX_SIDE:
        raise ArgumentError.about(name, expected=f"at most {MAX_SIDE} pixels", got=value)


def _stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize an image to this size: columns, then rows.

    In two calls, because 8-bit values are rounded in between, and Pillow 13 takes another order than Pillow 12 for some
    shapes: scores must not depend on that, nor differ from those of an exported graph, which takes this order.

    Where the image becomes wider and less high, what is between would be larger than both ends (10 million times 256
    for a line of 10 million x 1); beyond a bound, rows go first then.
    """
    rows_first = width > image.width and height < image.height and width * image.height > _PLAIN
    between = (image.width, height) if rows_first else (width, image.height)
    return image.resize(between, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)


def _resize_region(image: Image.Image, width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """What `box` would cut out of the image at this size, without the rest of it."""
    scales = image.width / width, image.height / height
    region, origin = [], []
    for length, scale, low, high in zip(image.size, scales, box[:2], box[2:], strict=True):
        reach = math.ceil(max(scale, 1)) + 1  # of the interpolation, in pixels of the image
        first = max(0, math.floor(low * scale) - reach)
        region.append(min(length, math.ceil(high * scale) + reach) - first)
        origin.append(first)
    # Cut first: corners in single precision are too coarse in an image of millions of rows. By `paste`, since `crop`
    # asks Pillow's own limit of pixels.
    part = Image.new(image.mode, (region[0], region[1]))
    part.paste(image, (-origin[0], -origin[1]))
    corners = [min(at * scales[i % 2] - origin[i % 2], region[i % 2]) for i, at in enumerate(box)]
    size = box[2] - box[0], box[3] - box[1]
    return part.resize(size, Image.Resampling.BILINEAR, box=(corners[0], corners[1], corners[2], corners[3]))


def _centres(first: int, last: int, scale: float) -> NDArray[np.float64]:
    """Centres of these pixels in the pixels of another scale."""
    return (np.arange(first, last, dtype=np.float64) + 0.5) * scale


def _inside(length: int, resized: int, low: float, high: float) -> slice:
    """Those of `length` pixels whose centres lie in `[low, high)` once there are `resized`."""

    def centre(index: int) -> float:
        return (index + 0.5) * (resized / length)

    every = range(length)
    return slice(bisect_left(every, low, key=centre), bisect_left(every, high, key=centre))


def _enlarged(map: Tensor, size: Size) -> NDArray[np.float32]:
    placed = torch.nn.functional.interpolate(map[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return placed.cpu().numpy()


def _read_between(map: Tensor, places: NDArray[np.float64]) -> Tensor:
    """Rows of a map at these places, where the centre of the first is 0.5: linear in between, the edges repeated."""
    at = torch.from_numpy(places - 0.5).to(map.device).clamp_(0, len(map) - 1)
    above = at.long()
    return map[above].lerp(map[(above + 1).clamp_max(len(map) - 1)], (at - above).to(map.dtype)[:, None])
