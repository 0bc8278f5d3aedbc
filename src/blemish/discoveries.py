"""Alarms of a batch, chosen together: on average at most a given share of them is false.

For p-values of held-out images (`split`), Benjamini and Hochberg's rule has that bound though they share these images.
Those of `cross`, `loo` and `full`, of groups, and Bonferroni's of parts may depend on each other in any way. There the
rule is e-BH (Wang and Ramdas, "False discovery rate control with e-values", JRSS B 2022), which holds for any e-values,
numbers >= 0 whose mean is at most 1 for a normal image. Here e is 1 / b where the p-value is at most t, else 0; b is
what is proven of P(p <= t). So all images with p <= t raise the alarm if they are m b / level or more of m, or none
does. t is fixed by the numbers of images alone; why it beats Benjamini and Yekutieli's rule, which holds as well, is in
docs/experiments/parts.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .calibrate import Calibration, benjamini_hochberg
from .errors import ArgumentError, CalibrationError

_ROUNDING = 1e-12


@dataclass(frozen=True)
class BatchAlarms:
    """Which of a batch raise an alarm."""

    level: float
    """On average over batches, at most this share of the alarms is false."""
    alarms: tuple[bool, ...]
    """One an image, or a part."""
    rule: Literal["benjamini_hochberg", "e_values"]
    needed: int
    """So many must be striking before any raises an alarm; with `benjamini_hochberg` by the smallest p-value there is.

    More than there are: this batch cannot raise any.
    """

    def said(self, units: str) -> str:
        """In a line; `units`: images or parts."""
        line = (
            f"{sum(self.alarms)} of {len(self.alarms)} {units} raise an alarm; on average over batches at most "
            f"{100 * self.level:.3g} % of the alarms are false ({self.rule})."
        )
        if self.needed > 1:
            line += f" With so many {units}, and so few to compare with, it takes {self.needed} striking ones or more."
        return line


def require_proven(calibration: Calibration, level: float) -> None:
    """Refuse, before the work, p-values of which nothing is proven. Raises `ArgumentError`, `CalibrationError`."""
    if not 0 < level < 1:
        raise ArgumentError.about("level", expected="a number between 0 and 1", got=level)
    if calibration.unproven:
        raise CalibrationError(
            f"The share of false alarms in a batch cannot be bounded, as nothing is guaranteed of single ones "
            f"({calibration.unproven}). Calibrate with held-out images: calibration='split' (--calibration split)."
        )


def choose_alarms(
    p_values: ArrayLike, level: float, calibration: Calibration, *, are_its_own: bool = True
) -> BatchAlarms:
    """Choose alarms among m images or parts by their p-values, `(m,)` in (0, 1], of one calibration.

    `are_its_own`: whether each p-value is `calibration.p_value`, and none a Bonferroni bound. Raises `ArgumentError`,
    and `CalibrationError` where the calibration guarantees nothing.

    >>> from blemish.calibrate import calibrate
    >>> held_out = calibrate(range(99), false_alarm_rate=0.05)
    >>> choose_alarms([0.01, 0.5, 0.02, 0.9], 0.1, held_out).alarms
    (True, False, True, False)
    """
    require_proven(calibration, level)
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values > 0) & (values <= 1)).all():
        raise ArgumentError.about("p_values", expected="numbers in (0, 1] of shape (m,)", got=values)
    if calibration.kind == "split" and calibration.groups is None and are_its_own:
        alarms = benjamini_hochberg(values, level)
        return BatchAlarms(level, tuple(alarms.tolist()), "benjamini_hochberg", _least(values.size, calibration, level))
    rank = _rank(values.size, calibration, level)
    striking = values <= rank / (calibration.n_groups + 1) * (1 + _ROUNDING)
    needed = _least(values.size, calibration, level, rank=rank)
    alarms = striking & (striking.sum() >= needed)
    return BatchAlarms(level, tuple(alarms.tolist()), "e_values", needed)


def _rank(m: int, calibration: Calibration, level: float) -> int:
    """t (n + 1): the largest with which one of m can raise an alarm by itself, or 1 where none can."""
    rank = 1
    while rank < calibration.n_groups and _least(m, calibration, level, rank=rank + 1) <= 1:
        rank += 1
    return rank


def _least(m: int, calibration: Calibration, level: float, *, rank: int = 1) -> int:
    """How many of m have to have a p-value of at most rank / (n + 1)."""
    return max(1, math.ceil(m * calibration.proven(rank) / level * (1 - _ROUNDING)))
