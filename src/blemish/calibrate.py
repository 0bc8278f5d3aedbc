"""From the scores of held-out normal images to a threshold with a guaranteed false-alarm rate (split conformal).

If the held-out images and a new normal image are exchangeable, then P(p-value <= alpha) <= alpha for every alpha and
every number n of held-out images (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005). No
anomalous image, label or test image enters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, CalibrationError


@dataclass(frozen=True)
class Calibration:
    """Sorted raw image scores of held-out normal images, and the wanted false-alarm rate."""

    scores: NDArray[np.float64]
    """`(n,)` ascending."""
    false_alarm_rate: float

    @property
    def threshold(self) -> float:
        """The k-th smallest held-out score, k = ceil((n + 1)(1 - alpha)); a larger score is anomalous.

        `score > threshold` holds exactly where `p_value(score) <= alpha`.
        """
        n = len(self.scores)
        return float(self.scores[n - _allowed_above(self.false_alarm_rate, n)])

    def p_value(self, score: float) -> float:
        """(1 + number of held-out scores >= score) / (n + 1), in (0, 1]."""
        n = len(self.scores)
        at_least = n - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + at_least) / (n + 1)


def calibrate(scores: Sequence[float] | NDArray[np.floating], *, false_alarm_rate: float) -> Calibration:
    """Make thresholds and p-values from the raw scores of held-out normal images.

    >>> calibration = calibrate([0.1, 0.4, 0.2, 0.3], false_alarm_rate=0.2)
    >>> calibration.threshold, calibration.p_value(0.25), calibration.p_value(9.0)
    (0.4, 0.6, 0.2)
    >>> calibrate([0.1, 0.4, 0.2, 0.3], false_alarm_rate=0.01)
    Traceback (most recent call last):
    blemish.errors.CalibrationError: false_alarm_rate 0.01 needs at least 99 held-out normal images, there are 4. ...
    """
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ArgumentError.about("scores", expected="a list of finite numbers", got=values)
    require_images(len(values), false_alarm_rate)
    return Calibration(values, false_alarm_rate)


def images_needed(false_alarm_rate: float) -> int:
    """The smallest number of held-out images that can support a false-alarm rate."""
    if not 0 < false_alarm_rate < 1:
        raise ArgumentError.about("false_alarm_rate", expected="a number between 0 and 1", got=false_alarm_rate)
    n = max(1, math.ceil(1 / false_alarm_rate) - 2)
    while _allowed_above(false_alarm_rate, n) < 1:
        n += 1
    return n


def require_images(held_out: int, false_alarm_rate: float) -> None:
    """Raise `CalibrationError` where `held_out` images cannot support the rate."""
    needed = images_needed(false_alarm_rate)
    if held_out < needed:
        lowest = f"{1 / (held_out + 1):.3g}" if held_out else "none"
        raise CalibrationError(
            f"false_alarm_rate {false_alarm_rate:g} needs at least {needed} held-out normal images, there are "
            f"{held_out}. Give more normal images, hold out a larger share, accept a higher rate (lowest possible "
            f"here: {lowest}), or switch the calibration off."
        )


def _allowed_above(alpha: float, n: int) -> int:
    """How many of n + 1 exchangeable scores may lie above the threshold: floor(alpha (n + 1)), rounding-safe."""
    return math.floor(alpha * (n + 1) * (1 + 1e-12))
