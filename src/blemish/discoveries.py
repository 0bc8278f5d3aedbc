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
from numpy.typing import ArrayLike, NDArray

from .calibrate import Calibration
from .errors import ArgumentError, CalibrationError
from .promises import ROUNDING, check_share

_COUNTABLE = 2.0**53
"""More images than there are: no level, however small, makes it infinite."""


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
    striking = values <= rank / (calibration.n_groups + 1) * (1 + ROUNDING)
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
    return max(1, math.ceil(min(m * calibration.proven(rank) / level, _COUNTABLE) * (1 - ROUNDING)))


def benjamini_hochberg(p_values: ArrayLike, level: float) -> NDArray[np.bool_]:
    """Choose alarms among m images so that on average at most the share `level` of the alarms is false.

    `p_values` is `(m,)` in [0, 1]; the result is `(m,)` bool, True = alarm. With k the largest number for which k of
    the p-values are at most k level / m, those k raise the alarm. Benjamini and Hochberg, "Controlling the false
    discovery rate", JRSS B 1995. It holds for the p-values of one `Calibration` although they share its held-out
    images: Bates, Candès, Lei, Romano, Sesia, "Testing for outliers with conformal p-values", Annals of Statistics
    2023.

    A conformal p-value is at least 1 / (n + 1), so an anomalous image that is alone among m can only be found if
    n + 1 >= m / level: `require_images(n, level / m)` raises where it cannot.

    >>> benjamini_hochberg([0.01, 0.8, 0.04, 0.03], 0.06)
    array([ True, False,  True,  True])
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ArgumentError.about("p_values", expected="numbers in [0, 1] of shape (m,)", got=values)
    check_share("level", level)
    limits = np.arange(1, values.size + 1) * level / max(1, values.size) * (1 + ROUNDING)
    passed = np.flatnonzero(np.sort(values) <= limits)
    return values <= limits[passed[-1]] if passed.size else np.zeros(values.shape, dtype=np.bool_)


def benjamini_yekutieli(p_values: ArrayLike, level: float) -> NDArray[np.bool_]:
    """The same for p-values that depend on each other in any way, as those of `cross`, `loo` and `full` may do.

    It is `benjamini_hochberg` at the level divided by 1 + 1/2 + ... + 1/m, so it finds less (`discoveries` finds more).
    Each p-value must be valid by itself: those of `loo` and `cross` are so only as `Calibration.proven` of p (n + 1).
    Benjamini and Yekutieli, "The control of the false discovery rate in multiple testing under dependency",
    Annals of Statistics 2001.

    >>> benjamini_yekutieli([0.01, 0.8, 0.04, 0.03], 0.1)
    array([ True, False, False, False])
    """
    check_share("level", level)
    count = np.size(np.asarray(p_values))
    return benjamini_hochberg(p_values, level / float((1 / np.arange(1, count + 1)).sum() or 1))
