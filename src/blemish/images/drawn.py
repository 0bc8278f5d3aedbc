"""Pictures that are drawn where two ways of judging are compared, and no real ones are at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import Size


def clouds(sizes: Sequence[Size]) -> Iterator[NDArray[np.uint8]]:
    """`(height, width, 3)` uint8 for each size: soft patches of colour under noise, always the same ones."""
    random = np.random.default_rng(0)
    for size in sizes:
        noise = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size[::-1])
        yield (0.8 * np.asarray(coarse) + 0.2 * noise).astype(np.uint8)
