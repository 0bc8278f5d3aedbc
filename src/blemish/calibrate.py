"""From the scores of normal images that a model has not learned from to p-values with a guaranteed false-alarm rate.

`split`: if held-out images and a new normal image are exchangeable, then P(p-value <= alpha) <= alpha for every alpha
and every number n of held-out images (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005); `full`
has the same for the learned images, each scored by a model of all the others and the new one. `cross` and `loo` leave
each image out in turn, and have the bounds of CV+ and jackknife+ (`plus_bound`). No anomalous image, label or test
image enters.

That rate is an average over draws of the held-out images. Two more promises follow from the same scores: one for the
draw at hand (`promises.py`), and one for the share of false alarms among the alarms (`discoveries.py`). None of them
survives drift, or several crops of one part taken as several images.

Where images come in groups, such as bursts or parts, the groups are exchangeable and their images are not. Then groups
are counted: P(p-value <= alpha) <= alpha for one image of a new group (Lee, Barber, Willett, "Distribution-free
inference with hierarchical data", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, betaln

from .errors import ArgumentError, CalibrationError
from .promises import (
    ROUNDING,
    allowed_above,
    certified_rank,
    plus_bound,
    require_images,
)
from .types import CalibrationKind, Floats, Promise

MARGIN = 1e-5
"""By so much of the largest held-out score a score must be larger than another one to count as larger.

The same picture gets other last digits in a batch of another size: its convolutions and products are summed in another
order. The largest difference that was measured is in docs/images.md.
"""


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
        on_average = allowed_above(self.false_alarm_rate, self.n_groups)
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
        return self.false_alarm_rate * (1 + ROUNDING)

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
        return total / (self.n_groups + 1)

    def _fold_sizes(self, models: int = 0) -> list[int]:
        """Images of each fold, or groups; of so many models at least."""
        assert self.folds is not None
        if self.groups is None:
            return [int(size) for size in np.bincount(self.folds, minlength=models)]
        count = max(models, int(self.folds.max()) + 1)
        return [len(np.unique(self.groups[self.folds == fold])) for fold in range(count)]


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
