"""Which rows of what was learned are those of images that come again."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..errors import ArgumentError

_SAME = 1e-4
"""Relative distance up to which a vector is the same: batches of another size change the last digits of float32."""


def matching_rows(kept: Tensor, vectors: Tensor) -> Tensor:
    """For each of `(m, d)` vectors the row of `(n, d)` kept ones that it is, each row once: `(m,)` int64.

    Raises `ArgumentError` where one is not there.
    """
    free, found = kept.clone(), []
    for number, vector in enumerate(vectors):
        distances = torch.linalg.vector_norm(free - vector, dim=1)
        row = int(distances.argmin())
        if not float(distances[row]) <= _SAME * max(1e-30, float(torch.linalg.vector_norm(vector))):
            raise not_learned(number)
        free[row] = torch.inf
        found.append(row)
    return torch.tensor(found, dtype=torch.int64, device=kept.device)


def without_rows(kept: Tensor, vectors: Tensor) -> Tensor:
    """The kept rows that none of the vectors is."""
    left = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    left[matching_rows(kept, vectors)] = False
    return kept[left]


def vector_digest(vectors: Tensor) -> int:
    """64 bits of the exact values, as a signed number."""
    data = vectors.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def not_learned(number: int) -> ArgumentError:
    """What is said of the image at this position, from 0."""
    return ArgumentError.about(
        "images", expected="images whose features were learned", got=f"another one, number {number + 1}",
        instead="Give the files that were learned, on the machine that learned them; or fit again without them.",
    )  # fmt: skip
