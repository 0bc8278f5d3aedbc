"""Pictures that are the same, or nearly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array, vstack
from scipy.sparse.csgraph import connected_components

from .pictures import SIGNATURE, SeenPicture

NEARLY = 1.0
"""Two pictures of one shape are nearly identical where their 16 x 16 grey thumbnails differ by less than so many of 255
levels (root mean square)."""

_ROWS = 512


def find_identical(pictures: Sequence[SeenPicture]) -> list[tuple[str, ...]]:
    """Names of the pictures that have every pixel in common, in groups."""
    return _groups(pictures, [picture.digest for picture in pictures])


def find_nearly_identical(pictures: Sequence[SeenPicture]) -> list[tuple[str, ...]]:
    """Names of the pictures that are nearly identical, in groups: each is so to another one of its group.

    Groups of which all are identical are left out.
    """
    if not pictures:
        return []
    signatures = np.stack([picture.signature for picture in pictures]).astype(np.float64)
    aspects = np.array([picture.size[1] / picture.size[0] for picture in pictures])
    squares = (signatures**2).sum(axis=1)
    near = []
    for start in range(0, len(pictures), _ROWS):
        some = slice(start, start + _ROWS)
        squared = squares[some, None] + squares - 2 * signatures[some] @ signatures.T
        is_near = (squared < (NEARLY * SIGNATURE) ** 2) & (np.abs(aspects[some, None] / aspects - 1) < 0.01)
        near.append(csr_array(is_near))
    _, linked = connected_components(vstack(near), directed=False)
    digest_of = {picture.name: picture.digest for picture in pictures}
    return [names for names in _groups(pictures, linked.tolist()) if len({digest_of[name] for name in names}) > 1]


def _groups(pictures: Sequence[SeenPicture], keys: Sequence[int]) -> list[tuple[str, ...]]:
    names = defaultdict(list)
    for picture, key in zip(pictures, keys, strict=True):
        names[key].append(picture.name)
    return [tuple(group) for group in names.values() if len(group) > 1]
