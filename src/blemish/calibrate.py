"""From the scores of normal images that a model has not learned from to p-values with a guaranteed false-alarm rate.

`split`: if held-out images and a new normal image are exchangeable, then P(p-value <= alpha) <= alpha for every alpha
and every number n of held-out images (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005); `full`
has the same for the learned images, each scored by a model of all the others and the new one. `cross` and `loo` leave
each image out in turn, and have the bounds of CV+ and jackknife+ (`plus_bound`). No anomalous image, label or test
image enters.

That rate is an average over draws of the held-out images. Two more promises follow from the same scores:
`certified_false_alarm_rate` bounds the rate of the one draw at hand, and `benjamini_hochberg` bounds the share of false
alarms among the alarms. None of them survives drift, or several crops of one part taken as several images.

Where images come in groups, such as bursts or parts, the groups are exchangeable and their images are not. Then groups
are counted: P(p-value <= alpha) <= alpha for one image of a new group (Lee, Barber, Willett, "Distribution-free
inference with hierarchical data", 2023).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, betaln

from .errors import ArgumentError, CalibrationError
from .types import CalibrationKind, Promise

if TYPE_CHECKING:
    from .types import Floats

MARGIN = 1e-5
"""By so much of the largest held-out score a score must be larger than another one to count as larger.

The same picture gets other last digits in a batch of another size: its convolutions and products are summed in another
order. The largest difference that was measured is in docs/images.md.
"""

_FEW = 5  # of fewer images a rate that they support says nothing
_ROUNDING = 1e-12  # relative: more than the rounding of a few operations, less than any rate somebody means


@dataclass(frozen=True)
class Calibration:
    """Sorted raw scores of normal images by models that had not learned from them, and the wanted false-alarm rate."""

    scores: Floats
    """`(n,)` ascending."""
    false_alarm_rate: float
    groups: NDArray[np.int64] | None = None
    """`(n,)`, the group of each score, from 0 to the number of groups - 1; None where every image is a group."""
    certain: float | None = None
    """Probability over draws of the held-out images with which the rate holds; None: it holds on average over them."""
    kind: CalibrationKind = "split"
    folds: NDArray[np.int64] | None = None
    """`(n,)`, for `cross` alone: which of the models had not learned from the image of each score, from 0.

    A model whose images could not be read has none.
    """
    unproven: str = ""
    """Why no rate is guaranteed; empty where one is."""
    looks: Floats | None = None
    """`(n, 5)`, the `types.Look` of the picture of each score, with `split`; None where they are not known."""

    @property
    def n_groups(self) -> int:
        """What the promise counts: groups, or images where there are none."""
        return len(self.scores) if self.groups is None else int(self.groups.max()) + 1

    @property
    def threshold(self) -> float | None:
        """The lowest held-out score above which every score has a p-value of at most the rate; above it is anomalous.

        `score > threshold` holds exactly where `p_value(score) <= alpha`. Without groups it is the k-th largest
        score, k = floor(alpha (n + 1)). With `certain`, k is at most `certified_rank`, of the groups' largest scores.
        None for `cross` and `full`, whose p-values take more than the score.
        """
        if self.kind in ("cross", "full"):
            return None
        if self.groups is None:
            return float(self.scores[-self._rank])
        if self.certain is None:
            return float(self.scores[self.p_values(np.nextafter(self.scores, np.inf)) <= self._limit][0])
        largest = np.empty(self.n_groups)
        largest[self.groups] = self.scores  # ascending: the last one of a group stays
        return float(np.sort(largest)[-self._rank])

    @property
    def _rank(self) -> int:
        on_average = _allowed_above(self.false_alarm_rate, self.n_groups)
        if self.certain is None:
            return on_average
        return min(on_average, certified_rank(self.n_groups, self.false_alarm_rate, confidence=self.certain))

    @cached_property
    def promise(self) -> Promise:
        """The nominal rate, the guaranteed one, and where the rate of this one draw of held-out images lies.

        The rate above the k-th largest of n held-out scores is Beta(k, n + 1 - k) over their draws, so k / (n + 1) on
        average, for continuous scores; ties make it smaller. For groups nothing but the nominal rate is proven, unless
        their largest scores set the threshold (`certain`).
        """
        n, k, in_groups = self.n_groups, self._rank, self.groups is not None
        ranked = self.kind == "split" and (not in_groups or self.certain is not None)
        return Promise(
            false_alarm_rate=self.false_alarm_rate,
            guaranteed_rate=None if self.unproven else self._guaranteed_rate(),
            certain=self.certain,
            plausible=(float(betaincinv(k, n + 1 - k, 0.05)), float(betaincinv(k, n + 1 - k, 0.95)))
            if ranked
            else None,
            held_out=n,
            in_groups=in_groups,
            calibration=self.kind,
            unproven=self.unproven,
        )

    def _guaranteed_rate(self) -> float:
        n, whole = self.n_groups, self.groups is None or self.certain is not None
        # Shares of groups add up to any number.
        return self.proven(self._rank) if whole else self.proven(self.false_alarm_rate * (n + 1))

    def proven(self, allowed: float) -> float:
        """What P(p-value <= `allowed` / (n + 1)) is at most for a normal image, unless nothing is proven."""
        n = self.n_groups
        if self.kind in ("cross", "loo"):
            sizes = [1] * n if self.folds is None else [size for size in self._fold_sizes() if size]
            return plus_bound(allowed, n, folds=len(sizes), equal=len(set(sizes)) == 1)
        return allowed / (n + 1)

    def at(self, false_alarm_rate: float, *, certain: float | None = None) -> Calibration:
        """The same scores for another rate. Raises `CalibrationError` where they cannot support it."""
        return calibrate(
            self.scores, false_alarm_rate=false_alarm_rate, groups=self.groups, certain=certain,
            kind=self.kind, folds=self.folds, unproven=self.unproven, looks=self.looks,
        )  # fmt: skip

    def chance(self, alarms: int, images: int) -> float | None:
        """P(at least so many of so many new normal images are flagged) if the promise's premise holds.

        Beta-binomial: over draws of the held-out images and of the new ones. None with groups. Images that were left
        out in turn are taken for as many held-out ones, which is close but not exact.
        """
        if self.groups is not None:
            return None
        n, k, counts = len(self.scores), self._rank, np.arange(alarms, images + 1)
        choices = -betaln(counts + 1, images - counts + 1) - np.log(images + 1)
        return min(
            1.0, float(np.exp(choices + betaln(k + counts, n + 1 - k + images - counts) - betaln(k, n + 1 - k)).sum())
        )

    @property
    def _limit(self) -> float:
        return self.false_alarm_rate * (1 + _ROUNDING)

    def p_value(self, score: float) -> float:
        """(1 + number of held-out scores >= score) / (n + 1), in (0, 1]. Raises `ArgumentError` for NaN.

        With G groups: (1 + sum over groups of the share of the group's scores >= score) / (G + 1).
        """
        if math.isnan(score):  # it sorts behind all numbers, and would get the smallest p-value
            raise ArgumentError.about("score", expected="a number", got="NaN")
        return float(self.p_values([score])[0])

    def p_values(self, scores: ArrayLike, *, plus: ArrayLike | None = None) -> Floats:
        """`p_value` of each of many raw scores, `(m,)` to `(m,)`; they share the held-out images, so they correlate.

        `cross` and `full` need `plus`, which `types.Scores` describes. `cross` compares the score of each image that
        was left out with the new image's by the same model; `full`, the scores that the learned images have beside a
        new image with that image's own.
        """
        if self.kind not in ("cross", "full"):
            return conformal_p_values(self.scores, scores, groups=self.groups)
        if plus is None:
            raise ArgumentError.about("plus", expected=f"what calibration {self.kind} compares", got="none")
        others = np.asarray(plus, dtype=np.float64)
        if self.kind == "full":
            beside = zip(np.asarray(scores, dtype=np.float64), others, strict=True)
            return np.array([conformal_p_values(with_margin(row), [score])[0] for score, row in beside])
        assert self.folds is not None
        total = np.ones(len(others))
        for fold, (column, size) in enumerate(zip(others.T, self._fold_sizes(others.shape[1]), strict=True)):
            own = self.folds == fold
            groups = None if self.groups is None else self.groups[own]
            total += (size + 1) * conformal_p_values(self.scores[own], column, groups=groups) - 1
        p_values: Floats = total / (self.n_groups + 1)
        return p_values

    def _fold_sizes(self, models: int = 0) -> list[int]:
        """Images of each fold, or groups; of so many models at least."""
        assert self.folds is not None
        if self.groups is None:
            return [int(size) for size in np.bincount(self.folds, minlength=models)]
        count = max(models, int(self.folds.max()) + 1)
        return [len(np.unique(self.groups[self.folds == fold])) for fold in range(count)]


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


def conformal_p_values(held_out: ArrayLike, scores: ArrayLike, *, groups: ArrayLike | None = None) -> Floats:
    """(1 + number of held-out scores >= score) / (n + 1) for each of many raw scores, `(n,)` and `(m,)` to `(m,)`.

    `groups` says for each held-out score which group it is of, by any whole numbers; then G groups count instead, each
    by the share of its scores that are >= score.

    >>> conformal_p_values([0.1, 0.4, 0.2, 0.3], [0.25, 9.0])
    array([0.6, 0.2])
    >>> conformal_p_values([0.1, 0.4, 0.2, 0.3], [0.25, 9.0], groups=[0, 0, 1, 2])
    array([0.625, 0.25 ])
    """
    known, values = np.asarray(held_out, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    for name, array in (("held_out", known), ("scores", values)):
        if array.ndim != 1 or np.isnan(array).any():
            raise ArgumentError.about(name, expected="numbers of shape (n,), no NaN", got=array)
    order = np.argsort(known)
    below = np.searchsorted(known[order], values, side="left")
    if groups is None:
        return (1 + known.size - below) / (known.size + 1)
    numbers, sizes = _numbered(groups, known.size)
    weights = (1 / sizes[numbers])[order]
    at_least = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
    p_values: Floats = (1 + at_least[below]) / (len(sizes) + 1)
    return np.minimum(1.0, p_values)


def with_margin(scores: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Held-out scores, raised by `MARGIN`, so that a held-out picture judged again keeps the verdict that it had.

    Threshold and p-values of these agree as ever, and err on the side of fewer alarms.
    """
    values = np.asarray(scores, dtype=np.float64)
    raised: NDArray[np.float64] = values + MARGIN * np.abs(values).max(initial=0)
    return raised


def require_differences(scores: Sequence[float]) -> None:
    """Refuse held-out scores that are all the same. Raises `CalibrationError`."""
    if len(scores) > 1 and len(set(scores)) == 1:
        raise CalibrationError(
            f"all {len(scores)} held-out normal images have the score {scores[0]:g}: no threshold can be told from it. "
            "Either they show the same, or the method sees no difference. `blemish inspect DATA` names identical and "
            "constant pictures."
        )


def calibrate(
    scores: Sequence[float] | NDArray[np.floating],
    *,
    false_alarm_rate: float,
    groups: ArrayLike | None = None,
    certain: float | None = None,
    kind: CalibrationKind = "split",
    folds: ArrayLike | None = None,
    unproven: str = "",
    looks: ArrayLike | None = None,
) -> Calibration:
    """Make thresholds and p-values from the raw scores of held-out normal images; the rest as in `Calibration`.

    >>> calibration = calibrate([0.1, 0.4, 0.2, 0.3], false_alarm_rate=0.2)
    >>> calibration.threshold, calibration.p_value(0.25), calibration.p_value(9.0)
    (0.4, 0.6, 0.2)
    >>> calibrate([0.1, 0.4, 0.2, 0.3], false_alarm_rate=0.01)
    Traceback (most recent call last):
    blemish.errors.CalibrationError: false_alarm_rate 0.01 needs at least 99 held-out normal images, there are 4. ...
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ArgumentError.about("scores", expected="a list of finite numbers", got=values)
    if certain is not None and kind != "split":
        raise ArgumentError.about("certain", expected=f"None with calibration {kind}", got=certain)
    order = np.argsort(values, kind="stable")
    models = None if folds is None else _whole_numbers(folds, len(values), of="folds", least=0)[order]
    numbers, count, of = None, len(values), "normal images"
    if groups is not None:
        found, sizes = _numbered(groups, len(values))
        numbers, count, of = found[order] if sizes.max() > 1 else None, len(sizes), "groups of normal images"
    require_images(count, false_alarm_rate, certain=certain, of=of)
    known = None if looks is None else np.asarray(looks, dtype=np.float64)[order]
    return Calibration(values[order], false_alarm_rate, numbers, certain, kind, models, unproven, known)


def _numbered(groups: ArrayLike, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The groups numbered from 0, for each score; and how many scores each has."""
    given = _whole_numbers(groups, count, of="groups")
    _, numbers, sizes = np.unique(given, return_inverse=True, return_counts=True)
    return numbers.astype(np.int64), sizes.astype(np.int64)


def _whole_numbers(numbers: ArrayLike, count: int, *, of: str, least: int | None = None) -> NDArray[np.int64]:
    given = np.asarray(numbers)
    is_fit = given.shape == (count,) and given.dtype.kind in "iu"
    if not is_fit or (least is not None and bool((given < least).any())):
        lowest = "" if least is None else f" from {least}"
        raise ArgumentError.about(of, expected=f"{count} whole numbers{lowest}, one a score", got=given)
    return given.astype(np.int64)


def images_needed(false_alarm_rate: float, *, certain: float | None = None) -> int:
    """The smallest number of held-out images that can support a false-alarm rate, on average and with a certainty."""
    if certain is not None:
        return max(images_needed(false_alarm_rate), images_to_certify(false_alarm_rate, confidence=certain))
    _check_share("false_alarm_rate", false_alarm_rate)
    n = max(1, math.ceil(1 / false_alarm_rate) - 2)
    while _allowed_above(false_alarm_rate, n) < 1:
        n += 1
    return n


def require_images(
    held_out: int,
    false_alarm_rate: float,
    *,
    certain: float | None = None,
    of: str = "normal images",
    total: int | None = None,
    fewest: int | None = None,
) -> None:
    """Raise `CalibrationError` where `held_out` images, or groups `of` images, cannot support the rate.

    `total` is how many there are to be learned from and held out; then the error names a share that would do. `fewest`
    is how many would do without holding any out, where nobody named a calibration.

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


def spell_promise(promise: Promise) -> str:
    """A promise in one line: nominal rate, guaranteed rate, plausible range, and what a better promise takes.

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
    lower = math.floor((rate * (n + 1) * (1 + _ROUNDING) + 1) / 2) / (n + 1)
    if promise.calibration == "loo" and promise.guaranteed_rate > rate and not promise.in_groups:
        line += f" Ask for {_percent(lower)} % to have {_percent(rate)} % guaranteed."
    return line


def _percent(share: float) -> str:
    return f"{100 * share:.3g}" if share >= 0.01 else f"{100 * share:.2g}"


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


def benjamini_yekutieli(p_values: ArrayLike, level: float) -> NDArray[np.bool_]:
    """The same for p-values that depend on each other in any way, as those of `cross`, `loo` and `full` may do.

    It is `benjamini_hochberg` at the level divided by 1 + 1/2 + ... + 1/m, so it finds less (`discoveries` finds more).
    Each p-value must be valid by itself: those of `loo` and `cross` are so only as `Calibration.proven` of p (n + 1).
    Benjamini and Yekutieli, "The control of the false discovery rate in multiple testing under dependency",
    Annals of Statistics 2001.

    >>> benjamini_yekutieli([0.01, 0.8, 0.04, 0.03], 0.1)
    array([ True, False, False, False])
    """
    _check_share("level", level)
    count = np.size(np.asarray(p_values))
    return benjamini_hochberg(p_values, level / float((1 / np.arange(1, count + 1)).sum() or 1))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ArgumentError.about(name, expected="a number between 0 and 1", got=value)


def _allowed_above(alpha: float, n: int) -> int:
    """How many of n + 1 exchangeable scores may lie above the threshold: floor(alpha (n + 1)), rounding-safe."""
    return math.floor(alpha * (n + 1) * (1 + _ROUNDING))
