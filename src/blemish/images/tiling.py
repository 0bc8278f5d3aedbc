"""Large images as overlapping tiles: the network sees small images, the map of the whole has no seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..types import ImageBatch, Scores, Size
from .source import Reporting

Corner = tuple[int, int]
"""`(top, left)` in pixels."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of `(height, width)` pixels, evenly spread, that overlap by at least `overlap` pixels."""

    tile: Size
    overlap: int

    def __post_init__(self) -> None:
        for side in self.tile:
            if not isinstance(side, int) or side < 16:
                raise ArgumentError.about("tile", expected="whole numbers of at least 16 pixels", got=side)
        most = min(self.tile) // 2
        if not isinstance(self.overlap, int) or not 0 <= self.overlap <= most:
            expected = f"0 to {most}, half a tile's shorter side"
            raise ArgumentError.about("overlap", expected=expected, got=self.overlap)

    def corners(self, size: Size) -> list[Corner]:
        """Where the tiles of an image of this `(height, width)` begin, row by row."""
        rows, columns = (self._starts(*lengths) for lengths in zip(size, self.tile, strict=True))
        return [(top, left) for top in rows for left in columns]

    def cut(self, batch: ImageBatch, *, at_once: int) -> Iterator[ImageBatch]:
        """The tiles of all images of a batch as batches of at most `at_once` images."""
        height, width = batch.pixels.shape[2:]
        corners = self.corners((height, width))
        down, across = self.tile
        tiles = [(i, corner) for i in range(len(batch)) for corner in corners]
        for start in range(0, len(tiles), at_once):
            part = tiles[start : start + at_once]
            pixels = [batch.pixels[i, :, y : y + down, x : x + across] for i, (y, x) in part]
            names = tuple(f"{batch.names[i]} [{y}:{y + down}, {x}:{x + across}]" for i, (y, x) in part)
            inside = None
            if batch.inside is not None:
                inside = torch.stack([batch.inside[i, y : y + down, x : x + across] for i, (y, x) in part])
            yield ImageBatch(torch.stack(pixels), names, (self.tile,) * len(part), inside=inside)

    def join(self, parts: list[Scores], size: Size) -> Scores:
        """The scores of whole images of this `(height, width)` from those of their tiles, in the order of `cut`."""
        n = len(self.corners(size))
        images = torch.cat([part.images for part in parts]).reshape(-1, n).amax(dim=1)
        maps = [part.maps for part in parts if part.maps is not None]
        p_values = [part.p_values for part in parts if part.p_values is not None]
        return Scores(
            images,
            torch.stack([self.stitch(tiles, size) for tiles in torch.cat(maps).view(-1, n, *self.tile)])
            if maps
            else None,
            # Bonferroni: n tiles had a chance to look unlikely.
            (torch.cat(p_values).reshape(-1, n).amin(dim=1) * n).clamp(max=1) if p_values else None,
        )

    def stitch(self, maps: Tensor, size: Size) -> Tensor:
        """One map `(height, width)` from those of all tiles `(tile, height, width)`, in the order of `corners`.

        Each tile counts fully inside and fades linearly to its edge over the overlap, so nothing jumps at an edge.
        """
        weight = torch.outer(*(self._fade(side, maps.device) for side in self.tile))
        total, weights = maps.new_zeros(size), maps.new_zeros(size)
        for map, (top, left) in zip(maps, self.corners(size), strict=True):
            where = slice(top, top + self.tile[0]), slice(left, left + self.tile[1])
            total[where] += map * weight
            weights[where] += weight
        return total.div_(weights)

    def _fade(self, side: int, device: torch.device) -> Tensor:
        """Weights along one side of a tile."""
        ramp = torch.arange(side, device=device) + 0.5
        return (torch.minimum(ramp, side - ramp) / max(self.overlap, 0.5)).clamp_(max=1)

    def _starts(self, length: int, side: int) -> list[int]:
        if length < side:
            raise ArgumentError.about("tile", expected=f"at most the preprocessed image's {length} pixels", got=side)
        count = 1 if length == side else -((length - self.overlap) // -(side - self.overlap))
        return [round(i * (length - side) / max(1, count - 1)) for i in range(count)]


def scored_inside(scores: Scores, tiles: ImageBatch) -> Scores:
    """The scores of tiles; of those without a pixel in the region of interest none that could count."""
    if tiles.inside is None:
        return scores
    outside = ~tiles.inside.flatten(1).any(dim=1).to(scores.images.device)
    p_values = None if scores.p_values is None else scores.p_values.masked_fill(outside, 1)
    return replace(scores, images=scores.images.masked_fill(outside, -torch.inf), p_values=p_values)


def _with_something_inside(batch: ImageBatch) -> Iterator[ImageBatch]:
    """Those images that have a pixel in the region of interest."""
    if batch.inside is None:
        yield batch
        return
    kept = batch.inside.flatten(1).any(dim=1)
    if kept.any():
        which = kept.tolist()
        names, sizes = tuple(compress(batch.names, which)), tuple(compress(batch.sizes, which))
        yield ImageBatch(batch.pixels[kept], names, sizes, inside=batch.inside[kept])


class Tiles:
    """The tiles of all images of one `size`, as batches of their own."""

    def __init__(self, batches: Reporting, tiling: Tiling, *, size: Size, at_once: int) -> None:
        self._batches, self._tiling, self._at_once = batches, tiling, at_once
        self._each = len(tiling.corners(size))

    def __len__(self) -> int:
        return len(self._batches) * self._each

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self._batches:
            for tiles in self._tiling.cut(batch, at_once=self._at_once):
                yield from _with_something_inside(tiles)
