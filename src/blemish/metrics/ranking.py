"""Metrics of one score an image: exact, and fair to ties.

Each function takes `scores`, `(n,)` of any float dtype, larger = more anomalous, and `anomalous`, `(n,)` bool.
Scores are compared as they are: nothing is rescaled and every distinct score is a threshold. Both classes must be
present and all scores finite; otherwise `ArgumentError`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError


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


class _Steps(NamedTuple):
    """How many scores of each class are at or above each distinct score."""

    thresholds: NDArray[np.float64]
    """`(points,)` the distinct scores, descending."""
    anomalous: NDArray[np.int64]
    normal: NDArray[np.int64]


def auroc(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an anomalous image outscores a normal one, ties counting one half.

    Equal to the Mann-Whitney U statistic over the number of pairs; chance level 0.5. Hanley and McNeil, "The meaning
    and use of the area under a receiver operating characteristic (ROC) curve", Radiology 1982.

    >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    steps = _steps(scores, anomalous)
    # Twice the area, in whole pairs: a step right adds its height, a tie of both classes half of the rise as well.
    passed = np.concatenate(([0], steps.anomalous[:-1])) + steps.anomalous
    pairs = int(steps.anomalous[-1]) * int(steps.normal[-1])
    return int(np.diff(steps.normal, prepend=0) @ passed) / (2 * pairs)


def average_precision(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Average precision with anomalous as the positive class: the sum of (R_k - R_{k-1}) P_k over distinct scores.

    R_k and P_k are recall and precision of the verdict "score >= k-th largest distinct score", so there is no
    interpolation. Chance level: the share of anomalous images.

    >>> average_precision([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.8333333333333333
    """
    return _average_precision(_steps(scores, anomalous))


def average_precision_normal(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Average precision with normal as the positive class: images are ranked by `-scores`.

    Chance level: the share of normal images.

    >>> average_precision_normal([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.8333333333333333
    """
    values, labels = _checked(scores, anomalous)
    return _average_precision(_steps_of(-values, ~labels))


def fpr_at_tpr(scores: ArrayLike, anomalous: ArrayLike, *, tpr: float = 0.95) -> float:
    """Smallest false-positive rate of a threshold that finds at least the share `tpr` of the anomalous images.

    The verdict is `score >= t` for a score t of the data, so tied images stand or fall together and nothing is
    interpolated. Chance level: about `tpr`. With `tpr=0.95` this is the FPR95 of Liang et al., "Enhancing the
    reliability of out-of-distribution image detection", ICLR 2018.

    >>> fpr_at_tpr([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.5
    """
    if not 0 < tpr <= 1:
        raise ArgumentError.about("tpr", expected="a share in (0, 1]", got=tpr, instead="Write 0.95.")
    curve = roc_curve(scores, anomalous)
    return float(curve.fpr[np.searchsorted(curve.tpr, tpr, side="left")])


def roc_curve(scores: ArrayLike, anomalous: ArrayLike) -> RocCurve:
    """Rates of the verdict `score >= t`, with t from above all scores down through every distinct score.

    >>> roc_curve([0.1, 0.4, 0.4, 0.9], [False, False, True, True]).tpr
    array([0. , 0.5, 1. , 1. ])
    """
    steps = _steps(scores, anomalous)
    return RocCurve(*(np.concatenate(([0.0], found / found[-1])) for found in (steps.normal, steps.anomalous)))


def f1_at(scores: ArrayLike, anomalous: ArrayLike, threshold: float) -> float:
    """F1 of the verdict `score > threshold`, the verdict of `Decision.is_anomalous`, with anomalous as positive.

    Choose `threshold` (in score units) without the labels that are passed here.

    >>> f1_at([0.1, 0.4, 0.4, 0.9], [False, False, True, True], 0.4)
    0.6666666666666666
    """
    values, labels = _checked(scores, anomalous)
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
    steps = _steps(scores, anomalous)
    f1 = 2 * steps.anomalous / (steps.anomalous + steps.normal + steps.anomalous[-1])
    best = int(np.argmax(f1))
    return OracleF1(float(f1[best]), _just_below(steps.thresholds, best, np.asarray(scores).dtype))


def checked_labels(anomalous: ArrayLike) -> NDArray[np.bool_]:
    """Check that `anomalous` is an `(n,)` bool array with both classes present."""
    labels = np.asarray(anomalous)
    if labels.ndim != 1 or labels.dtype != np.bool_:
        hint = "Write numpy.asarray(labels, dtype=bool)."
        raise ArgumentError.about("anomalous", expected="a bool array of shape (n,)", got=labels, instead=hint)
    for missing, there in (("normal", (~labels).any()), ("anomalous", labels.any())):
        if not there:
            expected = "both normal (False) and anomalous (True) images"
            raise ArgumentError.about("anomalous", expected=expected, got=f"{labels.size} images, none {missing}")
    return labels


def _checked(scores: ArrayLike, anomalous: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind != "f":
        raise ArgumentError.about("scores", expected="a float array of shape (n,), n >= 1", got=values)
    labels = checked_labels(anomalous)
    if labels.shape != values.shape:
        raise ArgumentError.about("anomalous", expected=f"one label a score, {values.size} in all", got=labels)
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ArgumentError.about("scores", expected="finite numbers", got=f"{values[first]} at index {first}")
    return values.astype(np.float64, copy=False), labels


def _steps(scores: ArrayLike, anomalous: ArrayLike) -> _Steps:
    return _steps_of(*_checked(scores, anomalous))


def _steps_of(values: NDArray[np.float64], labels: NDArray[np.bool_]) -> _Steps:
    order = np.argsort(values)[::-1]
    ranked = values[order]
    last_of_tie = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)
    found = np.cumsum(labels[order], dtype=np.int64)[last_of_tie]
    return _Steps(ranked[last_of_tie], found, last_of_tie + 1 - found)


def _average_precision(steps: _Steps) -> float:
    precision = steps.anomalous / (steps.anomalous + steps.normal)
    return float(np.diff(steps.anomalous, prepend=0) @ precision / steps.anomalous[-1])


def _just_below(thresholds: NDArray[np.float64], index: int, dtype: np.dtype[Any]) -> float:
    """Turn "score >= thresholds[index]" into "score > t": t is the next lower score, or float of the data."""
    if index + 1 < thresholds.size:
        return float(thresholds[index + 1])
    lowest: np.floating[Any] = dtype.type(thresholds[index])
    return float(np.nextafter(lowest, dtype.type(-np.inf)))
