"""Heat maps as small picture files from which the scores can be read back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import IO

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

UNSEEN = 255
"""Palette index of pixels that preprocessing cropped away."""


def write_heatmap(file: str | Path | IO[bytes], map: NDArray[np.float32], *, threshold: float | None) -> None:
    """Write a `(height, width)` anomaly map as a palette PNG, in which what is brighter than the middle is anomalous.

    score = low + index / 254 (high - low), up to the rounding to 255 steps, with the ends of `ends_of`. The file holds
    them as the texts `low` and `high`.
    """
    low, high = ends_of(map, threshold=threshold)
    image = _drawn(map, low, high)
    ends = PngInfo()
    ends.add_text("low", repr(low))
    ends.add_text("high", repr(high))
    image.save(file, "PNG", compress_level=1, pnginfo=ends)


def write_layer(
    file: str | Path | IO[bytes], map: NDArray[np.float32], *, threshold: float | None, side: int = 1024
) -> None:
    """Write a map as a palette PNG to be laid over its picture: the colours of `write_heatmap`, clear where it is low.

    What is below the middle of the scale is (nearly) transparent. At most `side` pixels: every n-th pixel is taken.
    """
    step = -(-max(map.shape) // side)
    small = map[::step, ::step]
    image = _drawn(small, *ends_of(small, threshold=threshold))
    share = np.linspace(0, 1, 255)
    alpha = np.clip((share - 0.35) / 0.3, 0, 1) * 255
    image.save(file, "PNG", compress_level=1, transparency=bytes([*alpha.astype(np.uint8).tolist(), 0]))


def ends_of(map: NDArray[np.float32], *, threshold: float | None) -> tuple[float, float]:
    """The scores at both ends of the scale, the same for all maps of one model.

    The threshold is the middle, and reaches as far to both sides as it lies from 0; a threshold of 0, as far as 1.
    Without a threshold nothing but the map itself is known: from its smallest to its largest score.
    """
    if threshold is not None:
        reach = abs(threshold) or 1.0
        return threshold - reach, threshold + reach
    scores = map[np.isfinite(map)]
    low = float(scores.min()) if scores.size else 0.0
    high = float(scores.max()) if scores.size else 0.0
    return low, high if high > low else low + 1.0


def _drawn(map: NDArray[np.float32], low: float, high: float) -> Image.Image:
    values = np.clip((map - low) / (high - low), 0, 1)
    values *= 254
    np.rint(values, out=values)
    values[~np.isfinite(map)] = UNSEEN
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(_palette())
    return image


@lru_cache(maxsize=1)
def _palette() -> bytes:
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, 255), bytes=True)[:, :3]
    return np.vstack([colours, [[128, 128, 128]]]).astype(np.uint8).tobytes()
