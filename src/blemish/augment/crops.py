"""Random square crops of many images, for training: images decoded once, small, and held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .. import persist
from ..errors import ArgumentError, NotEnoughMemoryError
from ..images.decode import as_image
from ..images.source import ImageInput, as_source
from ..memory import available_bytes, spell_bytes
from .views import grey


@dataclass(frozen=True)
class ImageCache:
    """Images in memory; build one with `read_cache`."""

    pixels: tuple[Tensor, ...]
    """Each `(3, height, width)` uint8."""
    digest: str
    """Of names and sizes of the files, in their order; of images in memory, of names and content."""

    def __len__(self) -> int:
        return len(self.pixels)

    def split(self, fraction: float, *, seed: int) -> tuple[ImageCache, ImageCache]:
        """Hold out a seeded random `fraction` of the images, at least one: returns (rest, held out)."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        held_out = set(order[: max(1, round(len(self) * fraction))])
        parts = ([p for i, p in enumerate(self.pixels) if (i in held_out) == wanted] for wanted in (False, True))
        rest, out = (ImageCache(tuple(part), self.digest) for part in parts)
        return rest, out


def read_cache(
    images: ImageInput, *, side: int = 256, workers: int = 2, progress: Callable[[str, int, int], None] | None = None
) -> ImageCache:
    """Decode a folder, manifest, paths or arrays, each with a short side of at most `side` pixels.

    Raises `NotEnoughMemoryError` as soon as the first images tell that all would not fit.
    """
    source = as_source(images)
    if len(source) < 2:
        raise ArgumentError.about("images", expected="at least 2 images", got=len(source))
    free, taken = available_bytes(), 0
    pixels: list[Tensor] = []
    found = hashlib.sha256()
    with ThreadPoolExecutor(workers, thread_name_prefix="blemish-decode") as pool:
        decoded = pool.map(lambda i: _small(as_image(source.load(i)), side), range(len(source)))
        for name, small in zip(source.names, decoded, strict=True):
            taken += small.numel()
            # A few images tell what all will take; until then, only what they take themselves.
            expected = taken * len(source) / (len(pixels) + 1) if len(pixels) >= 16 else taken
            if free is not None and expected > 0.9 * free:
                pool.shutdown(cancel_futures=True)
                raise NotEnoughMemoryError(
                    f"images: {len(source)} with a short side of {side} px take {spell_bytes(expected)}, "
                    f"{spell_bytes(free)} are free. Take a smaller image_side, or fewer images."
                )
            pixels.append(small)
            found.update(f"{Path(name).name} {_size(name, small)}\n".encode())
            if progress is not None:
                progress("reading", len(pixels), len(source))
    return ImageCache(tuple(pixels), found.hexdigest())


@dataclass(frozen=True)
class Boxes:
    """Square crops; all `(crop,)` int64, in pixels of the cached image."""

    image: Tensor
    top: Tensor
    left: Tensor
    side: Tensor


def draw_boxes(cache: ImageCache, image: Tensor, *, zoom: tuple[float, float], generator: torch.Generator) -> Boxes:
    """Draw one crop of each of these images anywhere in it: its short side is `zoom` times the crop's, uniformly."""
    sizes = torch.tensor([cache.pixels[i].shape[1:] for i in image.tolist()])
    times, down, right = torch.rand(3, len(image), generator=generator)
    side = (sizes.min(dim=1).values / (zoom[0] + (zoom[1] - zoom[0]) * times)).round().long().clamp_min(2)
    return Boxes(image, _place(down, sizes[:, 0] - side), _place(right, sizes[:, 1] - side), side)


def move_boxes(cache: ImageCache, boxes: Boxes, *, share: float, generator: torch.Generator) -> Boxes:
    """Shift each crop by up to this share of its side, on both axes uniformly, without leaving the image."""
    sizes = torch.tensor([cache.pixels[i].shape[1:] for i in boxes.image.tolist()])
    down, right = (torch.rand(2, len(boxes.image), generator=generator) * 2 - 1) * share * boxes.side
    top = (boxes.top + down.round().long()).clamp_min(0).minimum(sizes[:, 0] - boxes.side)
    left = (boxes.left + right.round().long()).clamp_min(0).minimum(sizes[:, 1] - boxes.side)
    return Boxes(boxes.image, top, left, boxes.side)


def cut(cache: ImageCache, boxes: Boxes, side: int) -> Tensor:
    """Resize each crop bilinearly, without aliasing: `(crop, 3, side, side)` float32 in [0, 1]."""
    patches = torch.empty(len(boxes.image), 3, side, side)
    numbers = zip(boxes.image.tolist(), boxes.top.tolist(), boxes.left.tolist(), boxes.side.tolist(), strict=True)
    for patch, (image, top, left, size) in zip(patches, numbers, strict=True):
        window = cache.pixels[image][None, :, top : top + size, left : left + size].float()
        patch.copy_(interpolate(window, (side, side), mode="bilinear", antialias=True)[0])
    return patches.div_(255).clamp_(0, 1)


def greyed(pixels: Tensor, which: Tensor) -> Tensor:
    """Make those of `(crop, 3, height, width)` grey for which `which`, `(crop, 1, 1, 1)` bool, holds."""
    return torch.where(which, grey(pixels), pixels)


def _place(chance: Tensor, room: Tensor) -> Tensor:
    return (chance * (room + 1)).long().minimum(room)


def _size(name: str, pixels: Tensor) -> str:
    return str(Path(name).stat().st_size) if Path(name).is_file() else persist.digest({"pixels": pixels})


def _small(image: Image.Image, side: int) -> Tensor:
    scale = side / min(image.size)
    if scale < 1:
        width, height = (max(side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.array(image)
    if array.ndim == 2:
        array = np.repeat(np.clip(np.round(array), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
