"""Metrics of one score an image: exact, and fair to ties.

Each function takes `scores`, `(n,)` of any float dtype, larger = more anomalous, and `anomalous`, `(n,)` bool.
Scores are compared as they are: nothing is rescaled and every distinct score is a threshold. Both classes must be
present and all scores finite; otherwise `ArgumentError`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError

Positive = Literal["anomalous", "normal"]
"""Which class a rate calls positive: the one to be found (anomalous), or the one to be kept (normal)."""


class RocCurve(NamedTuple):
    """False-positive rate against true-positive rate, one point a distinct score, from (0, 0) to (1, 1)."""

    fpr: NDArray[np.float64]
    """`(points,)` ascending."""
    tpr: NDArray[np.float64]
    """`(points,)` ascending."""


class OracleF1(NamedTuple):
    """The best F1 that any threshold reaches, and the threshold that reaches it."""

    f1: float
    threshold: float
    """In score units, for the verdict `score > threshold`."""


class Steps(NamedTuple):
    """How many scores of each class are at or above each distinct score; every ranking metric follows from these."""

    thresholds: NDArray[np.float64]
    """`(points,)` the distinct scores, descending."""
    anomalous: NDArray[np.int64]
    """`(points,)` ascending; the last one counts all."""
    normal: NDArray[np.int64]
    """`(points,)` ascending; the last one counts all."""

    @classmethod
    def of_counts(
        cls, thresholds: NDArray[np.float64], anomalous: NDArray[np.int64], normal: NDArray[np.int64]
    ) -> Steps:
        """Sum up how many of each class have exactly each score; a score that nobody has is no step."""
        there = anomalous + normal > 0
        return cls(thresholds[there], np.cumsum(anomalous[there]), np.cumsum(normal[there]))

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many anomalous and how many normal images have exactly each score, each `(points,)`."""
        return np.diff(self.anomalous, prepend=0), np.diff(self.normal, prepend=0)

    def mirrored(self) -> Steps:
        """Turn round the scale and the classes: the steps of `-scores` with normal as the positive class."""
        anomalous, normal = self.counts()
        return self.of_counts(-self.thresholds[::-1], normal[::-1], anomalous[::-1])

    def auroc(self) -> float:
        # Twice the area, in whole pairs: a step right adds its height, a tie of both classes half of the rise as well.
        passed = np.concatenate(([0], self.anomalous[:-1])) + self.anomalous
        pairs = int(self.anomalous[-1]) * int(self.normal[-1])
        return int(np.diff(self.normal, prepend=0) @ passed) / (2 * pairs)

    def average_precision(self) -> float:
        precision = self.anomalous / (self.anomalous + self.normal)
        return float(np.diff(self.anomalous, prepend=0) @ precision / self.anomalous[-1])

    def fpr_at_tpr(self, tpr: float) -> float:
        first = np.searchsorted(self.anomalous / self.anomalous[-1], tpr, side="left")
        return float(self.normal[first] / self.normal[-1])


def auroc(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an anomalous image outscores a normal one, ties counting one half.

    Equal to the Mann-Whitney U statistic over the number of pairs; chance level 0.5. Hanley and McNeil, "The meaning
    and use of the area under a receiver operating characteristic (ROC) curve", Radiology 1982.

    >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    return steps_of(scores, anomalous).auroc()


def average_precision(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Average precision with anomalous as the positive class: the sum of (R_k - R_{k-1}) P_k over distinct scores.

    R_k and P_k are recall and precision of the verdict "score >= k-th largest distinct score", so there is no
    interpolation. Chance level: the share of anomalous images.

    >>> average_precision([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.8333333333333333
    """
    return steps_of(scores, anomalous).average_precision()


def average_precision_normal(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Average precision with normal as the positive class: images are ranked by `-scores`.

    Chance level: the share of normal images.

    >>> average_precision_normal([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.8333333333333333
    """
    return steps_of(scores, anomalous).mirrored().average_precision()


def fpr_at_tpr(
    scores: ArrayLike, anomalous: ArrayLike, *, tpr: float = 0.95, positive: Positive = "anomalous"
) -> float:
    """Smallest false-positive rate of a threshold that finds at least the share `tpr` of the positive images.

    With `positive="anomalous"`: the share of normal images with a false alarm, where the threshold finds at least
    `tpr` of the anomalous ones. With `positive="normal"`: the share of anomalous images that pass, where the
    threshold keeps at least `tpr` of the normal ones. Both are published as "FPR95", and they differ: the second is
    that of Liang et al., "Enhancing the reliability of out-of-distribution image detection", ICLR 2018, the first
    that of OpenOOD 1.5 (Zhang et al., 2023).

    The verdict is `score >= t` for a score t of the data (for normal: `score <= t`), so tied images stand or fall
    together and nothing is interpolated. Chance level: about `tpr`. With fewer than 20 positive images, 95 % of them
    means all of them.

    >>> fpr_at_tpr([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.5
    >>> fpr_at_tpr([0.1, 0.2, 0.2, 0.9, 0.9], [False, False, True, True, True], positive="normal")
    0.3333333333333333
    """
    if not 0 < tpr <= 1:
        raise ArgumentError.about("tpr", expected="a share in (0, 1]", got=tpr, instead="Write 0.95.")
    if positive not in get_args(Positive):
        raise ArgumentError.about("positive", expected='"anomalous" or "normal"', got=repr(positive))
    steps = steps_of(scores, anomalous)
    return (steps if positive == "anomalous" else steps.mirrored()).fpr_at_tpr(tpr)


def tie_share(scores: ArrayLike) -> float:
    """Share of the scores that equal at least one other: how much of the ranking the detector leaves open.

    `scores` is `(n,)`, any float dtype. 0 for distinct scores; a high share tells of saturation (a softmax of 1.0 in
    float32) or underflow, and then of a metric that depends on how ties are counted.

    >>> tie_share([0.1, 0.4, 0.4, 0.9])
    0.5
    """
    ranked = np.sort(checked_scores(scores))
    tied = np.concatenate(([False], ranked[1:] == ranked[:-1], [False]))
    return float(np.mean(tied[1:] | tied[:-1]))


def roc_curve(scores: ArrayLike, anomalous: ArrayLike) -> RocCurve:
    """Rates of the verdict `score >= t`, with t from above all scores down through every distinct score.

    >>> roc_curve([0.1, 0.4, 0.4, 0.9], [False, False, True, True]).tpr
    array([0. , 0.5, 1. , 1. ])
    """
    steps = steps_of(scores, anomalous)
    return RocCurve(*(np.concatenate(([0.0], found / found[-1])) for found in (steps.normal, steps.anomalous)))


def f1_at(scores: ArrayLike, anomalous: ArrayLike, threshold: float) -> float:
    """F1 of the verdict `score > threshold`, the verdict of `Decision.is_anomalous`, with anomalous as positive.

    Choose `threshold` (in score units) without the labels that are passed here.

    >>> f1_at([0.1, 0.4, 0.4, 0.9], [False, False, True, True], 0.4)
    0.6666666666666666
    """
    values, labels = checked_sample(scores, anomalous)
    if np.isnan(threshold):
        raise ArgumentError.about("threshold", expected="a number in score units", got=threshold)
    alarms = values > threshold
    return float(2 * np.sum(alarms & labels) / (np.sum(alarms) + np.sum(labels)))


def f1_max_oracle(scores: ArrayLike, anomalous: ArrayLike) -> OracleF1:
    """Give the largest F1 of any threshold: AN ORACLE, it chooses the threshold by the labels it is judged on.

    Report it as an upper bound only; no deployed detector can know this threshold. Of equally good thresholds it
    takes the one with the fewest alarms. `f1_at` at the returned threshold gives the returned F1.

    >>> f1_max_oracle([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    OracleF1(f1=0.8, threshold=0.1)
    """
    steps = steps_of(scores, anomalous)
    f1 = 2 * steps.anomalous / (steps.anomalous + steps.normal + steps.anomalous[-1])
    best = int(np.argmax(f1))
    return OracleF1(float(f1[best]), _just_below(steps.thresholds, best, np.asarray(scores).dtype))


def steps_of(scores: ArrayLike, anomalous: ArrayLike) -> Steps:
    """Check the sample and sort it once."""
    values, labels = checked_sample(scores, anomalous)
    order = np.argsort(values)[::-1]
    ranked = values[order]
    last_of_tie = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)
    found = np.cumsum(labels[order], dtype=np.int64)[last_of_tie]
    return Steps(ranked[last_of_tie], found, last_of_tie + 1 - found)


def checked_sample(
    scores: ArrayLike, anomalous: ArrayLike, name: str = "scores"
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Check both arrays and that they are of one length."""
    values, labels = checked_scores(scores, name), checked_labels(anomalous)
    if labels.shape != values.shape:
        raise ArgumentError.about("anomalous", expected=f"one label a score, {values.size} in all", got=labels)
    return values, labels


def checked_scores(scores: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    """Check that `scores` is an `(n,)` array of finite floats, n >= 1."""
    values = np.asarray(scores)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind != "f":
        raise ArgumentError.about(name, expected="a float array of shape (n,), n >= 1", got=values)
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ArgumentError.about(name, expected="finite numbers", got=f"{values[first]} at index {first}")
    return values.astype(np.float64, copy=False)


def checked_labels(anomalous: ArrayLike) -> NDArray[np.bool_]:
    """Check that `anomalous` is an `(n,)` bool array with both classes present."""
    labels = checked_flags(anomalous, "anomalous")
    for missing, there in (("normal", (~labels).any()), ("anomalous", labels.any())):
        if not there:
            expected = "both normal (False) and anomalous (True) images"
            raise ArgumentError.about("anomalous", expected=expected, got=f"{labels.size} images, none {missing}")
    return labels


def checked_flags(flags: ArrayLike, name: str) -> NDArray[np.bool_]:
    """Check that `flags` is an `(n,)` bool array."""
    labels = np.asarray(flags)
    if labels.ndim != 1 or labels.dtype != np.bool_:
        hint = "Write numpy.asarray(labels, dtype=bool)."
        raise ArgumentError.about(name, expected="a bool array of shape (n,)", got=labels, instead=hint)
    return labels


def _just_below(thresholds: NDArray[np.float64], index: int, dtype: np.dtype[Any]) -> float:
    """Turn "score >= thresholds[index]" into "score > t": t is the next lower score, or float of the data."""
    if index + 1 < thresholds.size:
        return float(thresholds[index + 1])
    lowest: np.floating[Any] = dtype.type(thresholds[index])
    return float(np.nextafter(lowest, dtype.type(-np.inf)))
