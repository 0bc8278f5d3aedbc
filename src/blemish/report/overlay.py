"""Regions drawn on the picture in which they were found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..images.decode import MAX_PIXELS, as_image, decode
from ..types import AnomalousRegion, Size

FOUND = (255, 64, 160)
"""RGB of the contour of a region: neither the ground truth's colour, nor one of the heat map's."""


def write_overlay(
    file: str | Path | IO[bytes], picture: str | Path, regions: Sequence[AnomalousRegion], *, size: Size
) -> None:
    """Write a picture of this size with the contours of its regions and their p-values as PNG. Raises `ImageError`."""
    limit = max(MAX_PIXELS, size[0] * size[1])  # it was judged, so it may be shown
    photo = photograph(as_image(decode(picture, max_pixels=limit)), max(size))
    drawn = draw_regions(photo, regions, size, words=True)
    drawn.save(file, "PNG", compress_level=1)


def draw_regions(
    photo: Image.Image, regions: Sequence[AnomalousRegion], size: Size, *, words: bool = False
) -> Image.Image:
    """Draw the contours of the regions of an image of original `size` on an RGB image of it at any scale."""
    drawn, line = photo.copy(), max(2, round(max(photo.size) / 250))
    draw, scale = ImageDraw.Draw(drawn), (photo.width / size[1], photo.height / size[0])
    outlines = [[(x * scale[0], y * scale[1]) for x, y in region.contour] for region in regions]
    for ink, width in (((0, 0, 0), line + 2), (FOUND, line)):  # a dark rim makes it show on bright images
        for points in outlines:
            draw.line([*points, points[0]], fill=ink, width=width, joint="curve")
    font = ImageFont.load_default(max(11, 5 * line)) if words else None
    for region, points in zip(regions, outlines, strict=True) if words else ():
        left, top = min(x for x, _ in points), min(y for _, y in points)
        place = max(left, 2 * line), top - 2 * line if top > 9 * line else max(y for _, y in points) + 8 * line
        draw.text(
            place, f"p {region.p_value:.2g}", fill=FOUND, font=font, anchor="ls", stroke_width=line // 2, stroke_fill=0
        )
    return drawn


def photograph(image: Image.Image, side: int) -> Image.Image:
    """Bring an image of mode `RGB` or `F` to RGB with its long side `side`."""
    longest = max(image.size)
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    small = image.resize((width, height), Image.Resampling.BOX if longest > side else Image.Resampling.BICUBIC)
    if small.mode == "RGB":
        return small
    # Deep grey images seldom use their whole range: shown as they are, many would be black.
    values = np.asarray(small)
    low, high = float(values.min()), float(values.max())
    stretched = (values - low) * (255 / max(high - low, 1e-6))
    return Image.fromarray(np.round(stretched).astype(np.uint8)).convert("RGB")
