"""Cross-fitting: the normal images in folds of equal size, each left out by one of several models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .methods import Method

ALWAYS_LEARNED = -1


def fold_of(groups: Sequence[int], folds: int, *, seed: int) -> list[int]:
    """The fold of each image, from 0, by a seeded draw; groups stay whole, and each fold has as many groups.

    What remains of the groups is of no fold: every model learns it. Unequal folds would have a weaker bound.

    >>> fold_of([0, 1, 2, 2, 3, 4], 2, seed=0)
    [1, 1, 0, 0, 0, -1]
    """
    count = max(groups) + 1
    drawn = random.Random(seed).sample(range(count), count)
    size = count // folds
    numbers = {group: place // size if place < size * folds else ALWAYS_LEARNED for place, group in enumerate(drawn)}
    return [numbers[group] for group in groups]


def same_again(method: Method) -> Method:
    """A method with the same parameters, not fitted."""
    return type(method)(**method.get_params(deep=False))
