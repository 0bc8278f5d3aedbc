"""Which calibration a number of normal images is given, and the folds of equal size that cross-fitting leaves out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .methods import FeatureMethod, FrozenMethod, LeavesOut, Method
from .promises import images_needed

ALWAYS_LEARNED = -1


def pick_calibration(method: Method, groups: Sequence[int], false_alarm_rate: float) -> tuple[str, str]:
    """The calibration, and why in one line: what is proven, and of that what learns more images.

    `split`, of which nothing is said, holds out a fifth, or up to half. `full` has no threshold, and has to be named;
    so has `loo` without a guarantee.
    """
    count, needed = len(set(groups)), images_needed(false_alarm_rate)
    if count >= 5 * needed or count < needed:  # fewer than needed are refused, whatever leaves them out
        return "split", ""
    few = f"a fifth of {count} images is fewer than the {needed} that {100 * false_alarm_rate:g} % takes"
    if isinstance(method, LeavesOut) and not (method.cannot_leave_out(groups) or method.unproven(groups)):
        return "loo", f"{few}, and {method.name} can leave each of them out, with a guarantee."
    if count < 2 * needed and isinstance(method, FrozenMethod):
        return "cross", f"{few}, and to hold out so many would leave too few; so a model for each of several folds."
    return "split", ""


def folds_for(groups: Sequence[int], folds: int, needed: int) -> int:
    """How many folds to make: as many as are asked for, or more where else fewer groups than needed are left out.

    >>> folds_for(range(19), 10, 19), folds_for(range(29), 10, 19), folds_for(range(15), 10, 19)
    (19, 10, 10)
    """
    count = len(set(groups))
    enough = (number for number in range(folds, count + 1) if count // number * number >= needed)
    return next(enough, min(folds, count))


def fold_of(groups: Sequence[int], folds: int, *, seed: int) -> list[int]:
    """The fold of each image, from 0, by a seeded draw; groups stay whole, and each fold has as many groups.

    What remains of the groups is of no fold: every model learns it. Unequal folds would have a weaker bound.

    >>> fold_of([0, 1, 2, 2, 3, 4], 2, seed=0)
    [1, 1, -1, -1, 0, 0]
    """
    count = max(groups) + 1
    drawn = random.Random(seed).sample(range(count), count)
    size = count // folds
    numbers = {group: place // size if place < size * folds else ALWAYS_LEARNED for place, group in enumerate(drawn)}
    return [numbers[group] for group in groups]


def sides_of(numbers: Sequence[int], fold: int) -> tuple[list[int], list[int]]:
    """Of the folds of all images: those that the model of this fold learns, and those that it leaves out.

    >>> sides_of([1, 1, -1, -1, 0, 0], 1)
    ([2, 3, 4, 5], [0, 1])
    """
    learned = [i for i, number in enumerate(numbers) if number != fold]
    return learned, [i for i, number in enumerate(numbers) if number == fold]


def same_again(method: Method) -> Method:
    """A method with the same parameters, not fitted, that says nothing a second time."""
    again = type(method)(**method.get_params(deep=False))
    if isinstance(again, FeatureMethod):
        again.announces = False
    return again


def scales_of(methods: Sequence[Method], left_out: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What the scores of each fold's model are divided by: the mean of those of its own left-out images.

    Nothing where all models are of one method, whose scores have one unit. P-values compare scores of one fold alone,
    which a factor above 0 leaves in order.
    """
    if all(method == methods[0] for method in methods):
        return ()
    means = [sum(scores) / len(scores) if scores else 0.0 for scores in left_out]
    return tuple(mean if mean > 0 else 1.0 for mean in means)
