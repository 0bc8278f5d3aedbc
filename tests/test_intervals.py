"""The bootstrap: what is drawn, what comes back, and how often it covers the truth."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.errors import ArgumentError
from blemish.metrics import Interval, auroc, bootstrap_interval

ANOMALOUS = np.array([False, True, False, False, True, False])


def test_every_draw_keeps_the_class_counts_and_only_real_positions():
    draws = []

    def statistic(images):
        draws.append(images)
        return 0.0

    bootstrap_interval(statistic, ANOMALOUS, repetitions=200)
    assert len(draws) == 200
    assert all(ANOMALOUS[images].sum() == 2 and images.size == 6 for images in draws)
    assert set(np.concatenate(draws).tolist()) == set(range(6))
    assert any(len(set(images.tolist())) < 6 for images in draws)  # with replacement


def test_the_interval_is_the_percentiles_of_the_repetitions():
    values = iter(np.random.default_rng(3).permutation(1001) / 1000)
    interval = bootstrap_interval(lambda _: next(values), ANOMALOUS, repetitions=1001, confidence=0.9)
    assert interval == Interval(pytest.approx(0.05), pytest.approx(0.95), 0.9, 1001)


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(0).normal(size=40) + np.arange(40) % 2
    anomalous = np.arange(40) % 2 == 1

    def interval(seed):
        return bootstrap_interval(lambda i: auroc(scores[i], anomalous[i]), anomalous, seed=seed, repetitions=100)

    assert (
        interval(0)
        == interval(0)
        == bootstrap_interval(lambda i: auroc(scores[i], anomalous[i]), anomalous, repetitions=100)
    )
    assert interval(0) != interval(1)
    assert interval(0).low < auroc(scores, anomalous) < interval(0).high


def test_more_confidence_means_a_wider_interval():
    scores = np.random.default_rng(1).normal(size=60)

    def interval(confidence):
        labels = np.arange(60) % 3 == 0
        return bootstrap_interval(lambda i: float(scores[i].mean()), labels, confidence=confidence)

    assert interval(0.99).low < interval(0.8).low < interval(0.8).high < interval(0.99).high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    anomalous = np.arange(80) % 2 == 1
    covered = 0
    for seed in range(100):
        scores = np.random.default_rng(seed).normal(size=80)  # true mean 0
        interval = bootstrap_interval(
            lambda i, s=scores: float(s[i].mean()), anomalous, repetitions=200, confidence=0.9
        )
        covered += interval.low <= 0 <= interval.high
    assert 80 <= covered <= 97


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetitions": 0}, r"repetitions: expected at least 1, got 0\. Write 1000\."),
        ({"confidence": 1.0}, r"confidence: expected a share in \(0, 1\), got 1\.0\. Write 0\.95\."),
        ({"confidence": 0.0}, r"confidence: expected a share in \(0, 1\), got 0\.0\."),
        ({"anomalous": np.array([True, True])}, r"anomalous: expected both .*, got 2 images, none normal\."),
        ({"anomalous": np.array([0, 1])}, r"anomalous: expected a bool array of shape \(n,\)"),
        ({"statistic": lambda _: float("nan")}, r"statistic: expected a finite number for every draw, got NaN"),
    ],
)
def test_bad_input_is_named(settings, message):
    with pytest.raises(ArgumentError, match=message):
        bootstrap_interval(**({"statistic": lambda _: 0.5, "anomalous": ANOMALOUS} | settings))
