"""What can be told of a picture by itself, taken while it is read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images.decode import FORMATS
from ..images.digest import pixel_digest
from ..images.source import ImageSource
from ..types import Size

SIGNATURE = 16
"""Side of the grey thumbnail by which nearly identical pictures are found."""

_DEPTHS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}


@dataclass(frozen=True)
class SeenPicture:
    """One picture that could be read."""

    name: str
    """Its path below the data set's folder."""
    size: Size
    mode: str
    """Pillow's name for what the file holds, such as `L`, `RGB`, `I;16`."""
    bits: int
    """Of a channel."""
    digest: int
    signature: NDArray[np.float32]
    """`(256,)`: a grey thumbnail, 0 to 255."""
    black: float
    """Share of the pixels at the lowest level."""
    white: float
    """Share at the highest one."""
    is_constant: bool


def looked_at(source: ImageSource) -> tuple[ImageSource, dict[str, SeenPicture]]:
    """The same source, and its pictures by name, which come to be known as each is decoded."""
    known: dict[str, SeenPicture] = {}

    def load(index: int) -> Any:
        image = source.load(index)
        known[source.names[index]] = _picture(source.names[index], image)
        return image

    return replace(source, _load=load), known


def _picture(name: str, image: Any) -> SeenPicture:
    pixels = np.asarray(image)
    grey = Image.fromarray(pixels).convert("L")
    counts = grey.histogram()
    thumbnail = grey.resize((SIGNATURE, SIGNATURE), Image.Resampling.BOX)
    mode = _mode_of_file(name) or ("RGB" if pixels.ndim == 3 else "F")
    return SeenPicture(
        name=name,
        size=(pixels.shape[0], pixels.shape[1]),
        mode=mode,
        bits=_DEPTHS.get(mode, 8),
        digest=pixel_digest(pixels),
        signature=np.asarray(thumbnail, dtype=np.float32).ravel(),
        black=counts[0] / sum(counts),
        white=counts[255] / sum(counts),
        is_constant=bool((pixels == pixels[:1, :1]).all()),
    )


def _mode_of_file(name: str) -> str:
    """As its header says; empty for what has no file."""
    if not Path(name).is_file():
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size: it was decoded before, within the limit
            with Image.open(name, formats=list(FORMATS)) as header:
                return str(header.mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
