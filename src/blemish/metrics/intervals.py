"""Confidence intervals over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .ranking import checked_labels


@dataclass(frozen=True, slots=True)
class Interval:
    """The range that holds the share `confidence` of the bootstrap repetitions of a statistic."""

    low: float
    high: float
    confidence: float
    repetitions: int


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float],
    anomalous: ArrayLike,
    *,
    repetitions: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over images, drawn with replacement within the normal and within the anomalous ones.

    `statistic` takes the positions of the drawn images, `(n,)` integers with repeats, and returns a finite number.
    `anomalous` is `(n,)` bool with both classes present; each repetition holds as many of each class as the data,
    so the interval speaks of other images at the same class balance. The same seed gives the same interval.
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    >>> from blemish.metrics import auroc
    >>> scores, anomalous = np.array([0.1, 0.4, 0.2, 0.3, 0.9, 0.6]), np.array([False] * 3 + [True] * 3)
    >>> interval = bootstrap_interval(lambda images: auroc(scores[images], anomalous[images]), anomalous)
    >>> interval.high
    1.0
    """
    labels = checked_labels(anomalous)
    _check(repetitions, confidence)
    classes = np.flatnonzero(~labels), np.flatnonzero(labels)
    random = np.random.default_rng(seed)
    values = np.empty(repetitions)
    for i in range(repetitions):
        values[i] = statistic(np.concatenate([random.choice(images, images.size) for images in classes]))
    if not np.isfinite(values).all():
        raise ArgumentError.about("statistic", expected="a finite number for every draw", got="NaN or infinity")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high), confidence, repetitions)


def _check(repetitions: int, confidence: float) -> None:
    if repetitions < 1:
        raise ArgumentError.about("repetitions", expected="at least 1", got=repetitions, instead="Write 1000.")
    if not 0 < confidence < 1:
        raise ArgumentError.about("confidence", expected="a share in (0, 1)", got=confidence, instead="Write 0.95.")
