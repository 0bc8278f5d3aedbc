"""How well scores tell two groups apart."""

from __future__ import annotations

import torch
from torch import Tensor


def separation(normal: Tensor, other: Tensor) -> float:
    """Share of pairs in which `other` scores higher, ties counted half: Mann-Whitney's U / (n m), the AUROC.

    Both `(n,)`; 0.5 says that the groups cannot be told apart.
    """
    ordered = normal.sort().values
    below = torch.searchsorted(ordered, other) + torch.searchsorted(ordered, other, right=True)
    return float(below.double().mean()) / (2 * len(normal))
