"""From the scores of held-out normal images to thresholds with a guaranteed false-alarm rate (split conformal).

If the held-out images and a new normal image are exchangeable, then P(p-value <= alpha) <= alpha for every alpha and
every number n of held-out images (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005). No
anomalous image, label or test image enters.

That rate is an average over draws of the held-out images. Two more promises follow from the same scores:
`certified_false_alarm_rate` bounds the rate of the one draw at hand, and `benjamini_hochberg` bounds the share of false
alarms among the alarms. None of them survives drift, or several crops of one part taken as several images.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from .errors import ArgumentError, CalibrationError

MARGIN = 1e-5
"""By so much of the largest held-out score a score must be larger than another one to count as larger.

The same picture gets other last digits in a batch of another size: its convolutions and products are summed in another
order. The largest difference that was measured is in docs/images.md.
"""

_ROUNDING = 1e-12  # relative: more than the rounding of a few operations, less than any rate somebody means


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

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """`p_value` of each of many raw scores, `(m,)` to `(m,)`; they share the held-out images, so they correlate."""
        return conformal_p_values(self.scores, scores)


def conformal_p_values(held_out: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """(1 + number of held-out scores >= score) / (n + 1) for each of many raw scores, `(n,)` and `(m,)` to `(m,)`.

    >>> conformal_p_values([0.1, 0.4, 0.2, 0.3], [0.25, 9.0])
    array([0.6, 0.2])
    """
    known, values = np.asarray(held_out, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    for name, array in (("held_out", known), ("scores", values)):
        if array.ndim != 1 or np.isnan(array).any():
            raise ArgumentError.about(name, expected="numbers of shape (n,), no NaN", got=array)
    return (1 + known.size - np.searchsorted(np.sort(known), values, side="left")) / (known.size + 1)


def with_margin(scores: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Held-out scores, raised by `MARGIN`, so that a held-out picture judged again keeps the verdict that it had.

    Threshold and p-values of these agree as ever, and err on the side of fewer alarms.
    """
    values = np.asarray(scores, dtype=np.float64)
    raised: NDArray[np.float64] = values + MARGIN * np.abs(values).max(initial=0)
    return raised


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
    _check_share("false_alarm_rate", false_alarm_rate)
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


def certified_false_alarm_rate(held_out: int, rank: int, *, confidence: float = 0.95) -> float:
    """Upper bound on the false-alarm rate of the threshold "above the `rank`-th largest of `held_out` scores".

    With probability `confidence` over the draw of the held-out images, the rate on new normal images stays below the
    bound: it is Beta(k, n + 1 - k) for continuous scores, and smaller with ties. The threshold of a `Calibration`
    only holds its rate on average over such draws; it has k = floor(alpha (n + 1)). Vovk, "Conditional validity of
    inductive conformal predictors", ACML 2012.

    >>> round(certified_false_alarm_rate(59, 1), 4)
    0.0495
    """
    _check_share("confidence", confidence)
    if not 1 <= rank <= held_out:
        raise ArgumentError.about("rank", expected=f"1 to {held_out}, the number of held-out images", got=rank)
    return float(betaincinv(rank, held_out + 1 - rank, confidence))


def certified_rank(held_out: int, false_alarm_rate: float, *, confidence: float = 0.95) -> int:
    """Largest rank k whose certified rate is at most `false_alarm_rate`: the threshold is `calibration.scores[-k]`.

    Where even the largest score cannot certify the rate, `CalibrationError` says how many images it takes.

    >>> certified_rank(500, 0.05), certified_rank(500, 0.01)
    (17, 2)
    >>> certified_rank(500, 0.001)
    Traceback (most recent call last):
    blemish.errors.CalibrationError: false_alarm_rate 0.001 at confidence 0.95 needs at least 2995 held-out ...
    """
    needed = images_to_certify(false_alarm_rate, confidence=confidence)
    if held_out < needed:
        raise CalibrationError(
            f"false_alarm_rate {false_alarm_rate:g} at confidence {confidence:g} needs at least {needed} held-out "
            f"normal images, there are {held_out}. Give more normal images, or accept a higher rate or less confidence."
        )
    allowed = false_alarm_rate * (1 + _ROUNDING)
    ranks = range(1, held_out + 1)
    return bisect_right(ranks, allowed, key=lambda k: certified_false_alarm_rate(held_out, k, confidence=confidence))


def images_to_certify(false_alarm_rate: float, *, confidence: float = 0.95) -> int:
    """The smallest number of held-out images that can certify a rate: (1 - alpha)^n <= 1 - confidence.

    >>> [images_to_certify(rate) for rate in (0.05, 0.01, 0.001)]
    [59, 299, 2995]
    """
    _check_share("false_alarm_rate", false_alarm_rate)
    _check_share("confidence", confidence)
    return max(1, math.ceil(math.log(1 - confidence) / math.log1p(-false_alarm_rate) * (1 - _ROUNDING)))


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
    _check_share("level", level)
    limits = np.arange(1, values.size + 1) * level / max(1, values.size) * (1 + _ROUNDING)
    passed = np.flatnonzero(np.sort(values) <= limits)
    return values <= limits[passed[-1]] if passed.size else np.zeros(values.shape, dtype=np.bool_)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ArgumentError.about(name, expected="a number between 0 and 1", got=value)


def _allowed_above(alpha: float, n: int) -> int:
    """How many of n + 1 exchangeable scores may lie above the threshold: floor(alpha (n + 1)), rounding-safe."""
    return math.floor(alpha * (n + 1) * (1 + _ROUNDING))
