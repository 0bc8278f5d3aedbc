"""Images in memory, for training takes them again and again, in random order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .. import persist
from ..errors import ArgumentError, NotEnoughMemoryError
from ..memory import spell_bytes
from ..types import ImageBatch, Size
from .loop import batch_of

_AT_ONCE = 16
"""Images in one pass of a network that is not being trained."""


class Pictures:
    """Preprocessed images of one size: a byte a number where that loses nothing, which is so for 8-bit images."""

    def __init__(self, kept: Sequence[Tensor]) -> None:
        self._kept = kept
        """Each `(3, height, width)`, uint8 or float32."""

    @classmethod
    def read(cls, batches: Iterable[ImageBatch], *, of: str, expected: int | None, left: int | None) -> Pictures:
        """Decode all images once; refuses what `left` bytes do not hold as soon as the first batch tells the size.

        `of` is named in that error, `expected` is the number of images where it is known.
        """
        kept: list[Tensor] = []
        for batch in batches:
            small = as_bytes(batch.pixels)
            if kept and small.shape[1:] != kept[0].shape:
                raise ArgumentError.about("images", expected=f"{tuple(kept[0].shape[1:])} pixels", got=batch.pixels)
            needed = small[0].numel() * small.element_size() * max(expected or 0, len(kept) + len(small))
            if left is not None and needed > left:
                raise NotEnoughMemoryError(
                    f"{of}: {expected or len(kept)} images in memory take {spell_bytes(needed)}; "
                    f"{spell_bytes(max(0, left))} are left for it. Use smaller images (--resize), or fewer."
                )
            kept += small.unbind()
        if len(kept) < 2:
            raise ArgumentError.about("images", expected="at least 2 normal images", got=len(kept) or "none")
        return cls(kept)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> Size:
        """`(height, width)` of every image."""
        return self._kept[0].shape[1], self._kept[0].shape[2]

    def take(self, indices: Tensor) -> Tensor:
        """Some images, `(n, 3, height, width)` float32 in [0, 1], bit for bit as they came."""
        return torch.stack([_as_pixels(self._kept[i]) for i in indices.tolist()])

    def subset(self, indices: Tensor) -> Pictures:
        """Some images, in this order, without a copy."""
        return Pictures([self._kept[i] for i in indices.tolist()])

    def split(self, share: float, *, seed: int) -> tuple[Pictures, Pictures]:
        """Hold a share out by a seeded draw: (rest, held out), at least one image each."""
        rest, held_out = split_off(len(self), share, seed=seed)
        return self.subset(rest), self.subset(held_out)

    def batches(self, size: int = _AT_ONCE) -> Iterator[Tensor]:
        """All images in their order, a few at a time."""
        for some in torch.arange(len(self)).split(size):  # type: ignore[no-untyped-call]
            yield self.take(some)

    def all(self) -> Tensor:
        """All images at once."""
        return self.take(torch.arange(len(self)))

    def draw(self, step: int, size: int, *, seed: int) -> Tensor:
        """The images of a training step: `size` of them, or all where there are no more."""
        return self.take(batch_of(len(self), min(size, len(self)), seed=seed, step=step))

    def steps(self, size: int) -> int:
        """Training steps of so many images that pass over all of them."""
        return -(-len(self) // min(size, len(self)))

    def digest(self) -> str:
        """Tells these images from others."""
        return persist.digest({str(i): image for i, image in enumerate(self._kept)})


def as_bytes(pixels: Tensor) -> Tensor:
    """`pixels` as uint8 where dividing by 255 gives back the same, else a copy."""
    small = (pixels * 255).round().to(torch.uint8)
    return small if torch.equal(_as_pixels(small), pixels) else pixels.clone()


def split_off(count: int, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split `count` normal images by a seeded draw into (rest, held out), sorted indices, at least one image each."""
    if count < 2:
        raise ArgumentError.about("images", expected="at least 2 normal images", got=count)
    held = min(count - 1, max(1, round(share * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


def _as_pixels(kept: Tensor) -> Tensor:
    return kept.float().div_(255.0) if kept.dtype == torch.uint8 else kept
