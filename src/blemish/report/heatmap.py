"""Heat maps as small picture files from which the scores can be read back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

UNSEEN = 255
"""Palette index of pixels that preprocessing cropped away."""


def write_heatmap(path: Path, map: NDArray[np.float32], *, threshold: float | None) -> None:
    """Write a `(height, width)` anomaly map as a palette PNG.

    Index 0 is score 0 and index 254 is twice the threshold, so anything brighter than the middle is anomalous; without
    a threshold, index 254 is the map's own maximum. score = index / 254 * scale, up to the rounding to 255 steps.
    """
    seen = np.isfinite(map)
    scale = 2 * threshold if threshold else float(map[seen].max(initial=1e-12))
    values = np.clip(map / scale, 0, 1)
    values *= 254
    np.rint(values, out=values)
    values[~seen] = UNSEEN
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(_palette())
    image.save(path, compress_level=1)


@lru_cache(maxsize=1)
def _palette() -> bytes:
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, 255), bytes=True)[:, :3]
    return np.vstack([colours, [[128, 128, 128]]]).astype(np.uint8).tobytes()
