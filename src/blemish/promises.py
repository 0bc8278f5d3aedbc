"""What a number of normal images promises about false alarms, how many a promise takes, and how it is said.

`images_needed` is what a rate takes on average over draws of the images, `images_to_certify` what it takes for the one
draw at hand, and `plus_bound` what is proven where images are left out in turn.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from scipy.special import betaincinv

from .errors import ArgumentError, CalibrationError
from .types import Promise

_FEW = 5  # of fewer images a rate that they support says nothing
ROUNDING = 1e-12
"""Relative: more than the rounding of a few operations, less than any rate somebody means."""


def check_share(name: str, value: float) -> None:
    """Refuse what is no share between 0 and 1."""
    if not 0 < value < 1:
        raise ArgumentError.about(name, expected="a number between 0 and 1", got=value)


def allowed_above(alpha: float, n: int) -> int:
    """How many of n + 1 exchangeable scores may lie above the threshold: floor(alpha (n + 1)), rounding-safe."""
    return math.floor(alpha * (n + 1) * (1 + ROUNDING))


def plus_bound(allowed: float, n: int, *, folds: int, equal: bool = True) -> float:
    """What P(p-value <= alpha) is at most where n images, in folds, are left out in turn; `allowed` is alpha (n + 1).

    `folds` = n is jackknife+. The smaller of two bounds, never above 2 alpha + min(2 (1 - 1/K) / (n/K + 1),
    (1 - K/n) / (K + 1)) of Barber, Candès, Ramdas, Tibshirani, "Predictive inference with the jackknife+", Annals of
    Statistics 2021, whose proofs give them. The first one needs folds of `equal` size, m = n/K:

    - (2 (a - 1) + m) / (n + m), a = alpha (n + 1): of n + m images in K + 1 folds, s of which have such a p-value, each
      of the (s^2 - s m) / 2 pairs in two folds has one that does not lie above the other, and each image at most a - 1.
    - 2 (a + K - 1) / (n + K): a weighted mean of K split p-values, doubled, is a p-value (Vovk and Wang, "Combining
      p-values via averaging", Biometrika 2020).

    With G groups they hold for n = G, as groups' shares add up as images do.

    >>> plus_bound(1, 19, folds=19), plus_bound(2, 39, folds=39), round(plus_bound(5, 100, folds=10), 4)
    (0.05, 0.075, 0.1636)
    """
    m = n / folds
    averaged = 2 * (allowed + folds - 1) / (n + folds)
    return min(1.0, averaged, (2 * (allowed - 1) + m) / (n + m) if equal else 1.0)


def images_needed(false_alarm_rate: float, *, certain: float | None = None) -> int:
    """The smallest number of held-out images that can support a false-alarm rate, on average and with a certainty."""
    if certain is not None:
        return max(images_needed(false_alarm_rate), images_to_certify(false_alarm_rate, confidence=certain))
    check_share("false_alarm_rate", false_alarm_rate)
    n = max(1, math.ceil(1 / false_alarm_rate) - 2)
    while allowed_above(false_alarm_rate, n) < 1:
        n += 1
    return n


def share_to_hold_out(images: int, needed: int, *, least: float = 0.2) -> float:
    """`least`, or as many as are needed where that is too few and as many remain to learn from.

    >>> [share_to_hold_out(images, 19) for images in (200, 38, 30)]
    [0.2, 0.5, 0.2]
    """
    share = needed / images
    return share if least < share <= 0.5 else least


def require_images(
    held_out: int,
    false_alarm_rate: float,
    *,
    certain: float | None = None,
    of: str = "normal images",
    total: int | None = None,
    fewest: int | None = None,
    may_be_off: bool = True,
) -> None:
    """Raise `CalibrationError` where `held_out` images, or groups `of` images, cannot support the rate.

    `total` is how many there are to be learned from and held out; then the error names a share that would do. `fewest`
    is how many would do without holding any out, where nobody named a calibration. `may_be_off` is false where
    somebody asks for nothing but a threshold.

    >>> require_images(16, 0.05, total=80)
    Traceback (most recent call last):
    blemish.errors.CalibrationError: ... Hold out a larger share, 0.24 (held_out=, --held-out), ...
    """
    needed = images_needed(false_alarm_rate, certain=certain)
    if held_out >= needed:
        return
    there = f"{held_out}" if total is None else f"{held_out} of {total}"
    wanted = f"false_alarm_rate {false_alarm_rate:g}" + ("" if certain is None else f" at confidence {certain:g}")
    counted, ways = held_out, [f"give more {of}"]
    if total is not None and 2 * needed <= total:
        ways.insert(0, f"hold out a larger share, {math.ceil(100 * needed / total) / 100:.2g} (held_out=, --held-out)")
    elif total is not None and fewest is not None:
        counted = total if total >= _FEW else 0
        ways = [f"give at least {fewest} {of}, which are then left out in turn"]
    elif total is not None:
        ways = [f"give at least {2 * needed} {of}, and hold out half of them (held_out=, --held-out)"]
    if counted:
        lowest = _lowest_rate(counted, certain)
        ways.append(f"accept a higher rate, {lowest:.3g} at least (false_alarm_rate=, --false-alarm-rate)")
    if certain is not None:
        ways.append("do without the certainty (certain=None, no --certain)")
    few = "" if fewest is None else "; --preset few does, and is made for it"
    if may_be_off:
        ways.append(f"switch the calibration off (calibration='none', --calibration none{few})")
    listed = ", ".join(ways[:-1]) + f", or {ways[-1]}."
    raise CalibrationError(
        f"{wanted} needs at least {needed} held-out {of}, there are {there}. {listed[0].upper()}{listed[1:]}"
    )


def _lowest_rate(images: int, certain: float | None) -> float:
    """The lowest rate that so many images support, rounded up: whoever takes it must not be refused again."""
    lowest = 1 / (images + 1)
    if certain is not None:
        lowest = max(lowest, certified_false_alarm_rate(images, 1, confidence=certain))
    digits = 2 - math.floor(math.log10(lowest))
    rounded: float = math.ceil(lowest * 10**digits - 1e-9) / 10**digits
    return rounded


def certified_false_alarm_rate(held_out: int, rank: int, *, confidence: float = 0.95) -> float:
    """Upper bound on the false-alarm rate of the threshold "above the `rank`-th largest of `held_out` scores".

    With probability `confidence` over the draw of the held-out images, the rate on new normal images stays below the
    bound: it is Beta(k, n + 1 - k) for continuous scores, and smaller with ties. The threshold of a `Calibration`
    only holds its rate on average over such draws; it has k = floor(alpha (n + 1)). Vovk, "Conditional validity of
    inductive conformal predictors", ACML 2012.

    >>> round(certified_false_alarm_rate(59, 1), 4)
    0.0495
    """
    check_share("confidence", confidence)
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
    allowed = false_alarm_rate * (1 + ROUNDING)
    ranks = range(1, held_out + 1)
    return bisect_right(ranks, allowed, key=lambda k: certified_false_alarm_rate(held_out, k, confidence=confidence))


def images_to_certify(false_alarm_rate: float, *, confidence: float = 0.95) -> int:
    """The smallest number of held-out images that can certify a rate: (1 - alpha)^n <= 1 - confidence.

    >>> [images_to_certify(rate) for rate in (0.05, 0.01, 0.001)]
    [59, 299, 2995]
    """
    check_share("false_alarm_rate", false_alarm_rate)
    check_share("confidence", confidence)
    return max(1, math.ceil(math.log(1 - confidence) / math.log1p(-false_alarm_rate) * (1 - ROUNDING)))


def spell_promise(promise: Promise) -> str:
    """A promise in one line: nominal rate, guaranteed rate, plausible range, and what a better promise takes.

    >>> from blemish.calibrate import calibrate
    >>> print(spell_promise(calibrate(range(19), false_alarm_rate=0.05).promise))
    False alarms among normal images: 5 % asked for; guaranteed 5 % on average over draws of the 19 held-out images; \
this threshold's own rate is plausibly 0.27 to 14.6 % (90 % of draws). Half that rate takes 39 held-out images, 5 % \
with certainty 0.95 takes 59.
    """
    images = "groups" if promise.in_groups else "images"
    rate, n = promise.false_alarm_rate, promise.held_out
    line = f"False alarms among normal images: {_percent(rate)} % asked for"
    if promise.certain is not None:
        line += f", and guaranteed with certainty {promise.certain:g}"
    if promise.calibration != "split":
        return line + _spell_left_out(promise, images)
    of = f"held-out {images}"
    line += f"; guaranteed {_percent(promise.guaranteed_rate or 0)} % on average over draws of the {n} {of}; "
    if promise.plausible is None:
        line += "groups leave open how far this threshold's own rate may lie from it"
    else:
        low, high = map(_percent, promise.plausible)
        line += f"this threshold's own rate is plausibly {low} to {high} % (90 % of draws)"
    line += f". Half that rate takes {images_needed(rate / 2, certain=promise.certain)} {of}"
    if promise.certain is None:
        line += f", {_percent(rate)} % with certainty 0.95 takes {images_to_certify(rate)}"
    return f"{line}."


def _spell_left_out(promise: Promise, images: str) -> str:
    """The rest of the line where no image was held out."""
    rate, n = promise.false_alarm_rate, promise.held_out
    if promise.guaranteed_rate is None:
        return f"; NO GUARANTEE ({promise.unproven}). {n} {images} were left out in turn ({promise.calibration})."
    line = (
        f"; guaranteed {_percent(promise.guaranteed_rate)} % on average over draws of the {n} {images}, all of which "
        f"were learned and left out in turn ({promise.calibration}); no theory bounds the rate of this one draw."
    )
    lower = math.floor((rate * (n + 1) * (1 + ROUNDING) + 1) / 2) / (n + 1)
    if promise.calibration == "loo" and promise.guaranteed_rate > rate and not promise.in_groups:
        line += f" Ask for {_percent(lower)} % to have {_percent(rate)} % guaranteed."
    return line


def _percent(share: float) -> str:
    return f"{100 * share:.3g}" if share >= 0.01 else f"{100 * share:.2g}"
