"""What happens to a picture before the network and to its map behind it, as nodes: any size in, the same size out.

The resize is Pillow's for 8 bits, bit for bit: whole weights of 22 bits, columns first, rounded to 8 bits after each
axis. A triangle as wide as the scale, in the position of the output, over the pixels that there are. With lengths l of
the input and m of the output, D = max(l, m), output o and input p, the weight is, before all are divided by their sum,

    max(0, 1 - |(2 p + 1) m - (2 o + 1) l| / 2 D).
"""

from __future__ import annotations

import numpy as np

from ..images.preprocess import Preprocess
from .nodes import Made, Nodes

_BLOCK = 8
"""Outputs that share one matrix of weights, and the inputs that any of them sees."""
_HALF = 1 << 11
"""Of the 22 bits of a weight."""


class PictureFrame:
    """The way from pictures `(batch, H, W, 3)` uint8 to the network's input, and of a map back."""

    def __init__(self, graph: Nodes, pictures: Made, preprocess: Preprocess) -> None:
        self._graph, self._pictures, self._preprocess = graph, pictures, preprocess
        shape = graph.make("Shape", pictures)
        self._batch, self._height, self._width = shape[0], shape[1], shape[2]
        self._resized = self._find_resized()
        # The middle, and of two the even one, as Python rounds: half of 0, 1, 2, 3, 4 is 0, 0, 1, 2, 2.
        around = [side - kept for side, kept in zip(self._resized, preprocess.size, strict=True)]
        self._corner = tuple((both + 1) / 4 + (both + 2) / 4 for both in around)

    def _find_resized(self) -> tuple[Made, Made]:
        """`(height, width)` of the whole picture once it is resized."""
        side = self._preprocess.resize
        if self._preprocess.crop is None or not isinstance(side, int):
            height, width = self._preprocess.size
            return self._graph.value(height), self._graph.value(width)
        short = self._height.at_most(self._width)
        return self._height * side / short, self._width * side / short

    def network_input(self) -> Made:
        """`(batch, 3, height, width)` float32 in [0, 1]; of a picture that is cropped, only what is kept is resized."""
        height, width = self._preprocess.size
        # One axis is moved at a time, which runtimes do ten times as fast as several at once.
        columns = self._pictures.turned(0, 3, 1, 2).shaped(-1, self._width).turned(1, 0).to(np.float32)
        columns = self._shrunk(columns, 1).turned(1, 0)
        rows = columns.shaped(-1, self._height, width).turned(1, 0, 2).shaped(self._height, -1)
        placed = self._shrunk(rows, 0)
        placed = placed.shaped(height, -1, width).turned(1, 0, 2).shaped(self._batch, 3, height, width)
        return placed / np.array(255, np.float32)

    def _shrunk(self, rows: Made, axis: int) -> Made:
        """`(length, n)` to `(kept, n)` rows of 8 bits, or the other way round; float32. `axis` 0: of the height.

        Block by block, `_BLOCK` outputs from the inputs around them: one matrix for all would be nearly empty.
        """
        graph, length, wanted = self._graph, (self._height, self._width)[axis], self._resized[axis]
        kept, start, wide = self._preprocess.size[axis], self._corner[axis], length.at_least(wanted)
        blocks = np.arange(-(-kept // _BLOCK) * _BLOCK).reshape(-1, _BLOCK, 1)
        outputs = start + blocks
        first = (((start + blocks[:, :1]) * 2 + 1) * length - wide * 2) / (wanted * 2)
        seen = (length * (2 * _BLOCK - 2) + wide * 4) / (wanted * 2) + 2
        inputs = first.at_least(0) + graph.make("Range", 0, seen, 1)
        away = (inputs * 2 + 1) * wanted - (outputs * 2 + 1) * length
        weights = (wide * 2 - graph.make("Abs", away)).at_least(0) * inputs.is_below(length).to(np.int64)
        total = graph.make("ReduceSum", weights, np.array([2])).at_least(1)  # 0 behind the last output
        # Whole numbers alone, as a runtime may have no float64, in two halves of 11 bits, whose sums float32 holds
        # exactly, in whatever order they are taken.
        high = weights * _HALF / total
        rest = (weights * _HALF - high * total) * _HALF
        low = rest / total
        low = low + ((rest - low * total) * 2).is_at_least(total).to(np.int64)
        # No reshape, for which torch 2.9 would take something for granted of the pictures' size.
        wanted_of_block = graph.make("Squeeze", inputs.at_most(length - 1), np.array([1]))
        there = graph.make("Gather", rows, wanted_of_block, axis=0)
        one, half = np.array(1 / _HALF, np.float32), np.array(_HALF / 2, np.float32)
        # One product of both halves: a runtime lays out the inputs anew for each.
        both = graph.make("Concat", high.to(np.float32), low.to(np.float32), axis=1) @ there
        high_sum, low_sum = (
            graph.make("Slice", both, np.array([start]), np.array([start + _BLOCK]), np.array([1]))
            for start in (0, _BLOCK)
        )
        made = ((high_sum + (low_sum * one).floor() + half) * one).floor().shaped(blocks.size, -1)
        return graph.make("Slice", made, np.array([0]), np.array([kept]))

    def to_original(self, maps: Made) -> Made:
        """`(batch, height, width)` maps on the pictures: `(batch, H, W)`, NaN where the crop never looked."""
        graph, size = self._graph, (self._height, self._width)
        (height, width), (top, left) = self._resized, self._corner
        maps = graph.make("Unsqueeze", maps, np.array([1]))
        crop = self._preprocess.crop
        if crop is not None:
            around = graph.stack(0, 0, top, left, 0, 0, height - top - crop, width - left - crop)
            maps = graph.make("Pad", maps, around, mode="edge")
        sizes = graph.stack(self._batch, 1, *size)
        maps = graph.make("Resize", maps, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        maps = graph.make("Squeeze", maps, np.array([1]))
        if crop is None:
            return maps
        rows, columns = (
            self._looked_at(*of_side, crop) for of_side in zip(size, self._resized, self._corner, strict=True)
        )
        return graph.make("Where", rows.shaped(-1, 1) & columns, maps, np.array(np.nan, np.float32))

    def _looked_at(self, length: Made, resized: Made, low: Made, crop: int) -> Made:
        """Which of the pixels along one side of a picture have their centres inside the crop."""
        centres = self._graph.make("Range", 0, length, 1).to(np.float64) + 0.5
        centres = centres * (resized.to(np.float64) / length.to(np.float64))
        return centres.is_at_least(low.to(np.float64)) & centres.is_below((low + crop).to(np.float64))
