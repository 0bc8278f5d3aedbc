"""Large images as overlapping tiles: the network sees small images, the map of the whole has no seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..types import ImageBatch, Scores, Size

Corner = tuple[int, int]
"""`(top, left)` in pixels."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Square tiles of `side` pixels, evenly spread, that overlap by at least `overlap` pixels."""

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if not isinstance(self.side, int) or self.side < 16:
            raise ArgumentError.about("tile", expected="a whole number of at least 16 pixels", got=self.side)
        if not isinstance(self.overlap, int) or not 0 <= self.overlap <= self.side // 2:
            raise ArgumentError.about("overlap", expected=f"0 to {self.side // 2}, half a tile", got=self.overlap)

    def corners(self, size: Size) -> list[Corner]:
        """Where the tiles of an image of this `(height, width)` begin, row by row."""
        return [(top, left) for top in self._starts(size[0]) for left in self._starts(size[1])]

    def cut(self, batch: ImageBatch, *, at_once: int) -> Iterator[ImageBatch]:
        """The tiles of all images of a batch as batches of at most `at_once` images."""
        height, width = batch.pixels.shape[2:]
        corners = self.corners((height, width))
        tiles = [(i, corner) for i in range(len(batch)) for corner in corners]
        for start in range(0, len(tiles), at_once):
            part = tiles[start : start + at_once]
            pixels = [batch.pixels[i, :, y : y + self.side, x : x + self.side] for i, (y, x) in part]
            names = tuple(f"{batch.names[i]} [{y}:{y + self.side}, {x}:{x + self.side}]" for i, (y, x) in part)
            yield ImageBatch(torch.stack(pixels), names, ((self.side, self.side),) * len(part))

    def join(self, parts: list[Scores], size: Size) -> Scores:
        """The scores of whole images of this `(height, width)` from those of their tiles, in the order of `cut`."""
        n, each = len(self.corners(size)), (self.side, self.side)
        images = torch.cat([part.images for part in parts]).reshape(-1, n).amax(dim=1)
        maps = [part.maps for part in parts if part.maps is not None]
        p_values = [part.p_values for part in parts if part.p_values is not None]
        return Scores(
            images,
            torch.stack([self.stitch(tiles, size) for tiles in torch.cat(maps).view(-1, n, *each)]) if maps else None,
            # Bonferroni: n tiles had a chance to look unlikely.
            (torch.cat(p_values).reshape(-1, n).amin(dim=1) * n).clamp(max=1) if p_values else None,
        )

    def stitch(self, maps: Tensor, size: Size) -> Tensor:
        """One map `(height, width)` from those of all tiles `(tile, side, side)`, in the order of `corners`.

        Each tile counts fully inside and fades linearly to its edge over the overlap, so nothing jumps at an edge.
        """
        ramp = torch.arange(self.side, device=maps.device) + 0.5
        fade = (torch.minimum(ramp, self.side - ramp) / max(self.overlap, 0.5)).clamp_(max=1)
        weight = torch.outer(fade, fade)
        total, weights = maps.new_zeros(size), maps.new_zeros(size)
        for map, (top, left) in zip(maps, self.corners(size), strict=True):
            where = slice(top, top + self.side), slice(left, left + self.side)
            total[where] += map * weight
            weights[where] += weight
        return total.div_(weights)

    def _starts(self, length: int) -> list[int]:
        if length < self.side:
            raise ArgumentError.about(
                "tile", expected=f"at most the preprocessed image's {length} pixels", got=self.side
            )
        count = 1 if length == self.side else -((length - self.overlap) // -(self.side - self.overlap))
        return [round(i * (length - self.side) / max(1, count - 1)) for i in range(count)]
