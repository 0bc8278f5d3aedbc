"""Bootstrap and DeLong: what is drawn, what comes back, and how often it covers the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.metrics import (
    Interval,
    auroc,
    average_precision,
    average_precision_normal,
    bootstrap_interval,
    bootstrap_ranking,
    delong_difference,
    delong_interval,
    fpr_at_tpr,
)
from blemish.metrics.intervals import resamples
from blemish.metrics.ranking import steps_of
from reference import metrics as reference

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


METRICS = {
    "auroc": auroc,
    "average_precision": average_precision,
    "average_precision_normal": average_precision_normal,
    "fpr_at_95_tpr": fpr_at_tpr,
    "fpr_at_95_tpr_normal": lambda scores, anomalous: fpr_at_tpr(scores, anomalous, positive="normal"),
}


@st.composite
def samples(draw, detectors=1):
    """Scores with many ties, one row a detector, and labels with two or more images of each class."""
    labels = [False, False, True, True, *draw(st.lists(st.booleans(), max_size=40))]
    row = st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.3, 5.0]), min_size=len(labels), max_size=len(labels))
    return np.array([draw(row) for _ in range(detectors)]), np.array(labels)


def shifted(seed, n, shift):
    """Normal scores, every second image anomalous and higher by `shift`."""
    anomalous = np.arange(n) % 2 == 1
    return np.random.default_rng(seed).normal(size=n) + shift * anomalous, anomalous


def check_every_repetition(scores, anomalous, seed):
    draws = bootstrap_ranking(scores, anomalous, repetitions=3, seed=seed)
    for i, steps in enumerate(resamples(steps_of(scores, anomalous), 3, seed)):
        expanded = [np.repeat(steps.thresholds, counts) for counts in steps.counts()]
        drawn, labels = np.concatenate(expanded), np.repeat([True, False], [values.size for values in expanded])
        assert (labels.sum(), labels.size) == (anomalous.sum(), anomalous.size)
        assert set(drawn[labels]) <= set(scores[anomalous])
        assert set(drawn[~labels]) <= set(scores[~anomalous])
        for name, metric in METRICS.items():
            assert getattr(draws, name)[i] == metric(drawn, labels), name


@given(samples(), st.integers(0, 1000))
def test_a_bootstrap_repetition_equals_the_metrics_of_the_drawn_images(sample, seed):
    check_every_repetition(sample[0][0], sample[1], seed)


def test_a_bootstrap_repetition_equals_the_metrics_without_ties_as_well():
    check_every_repetition(*shifted(0, 500, 1.0), seed=0)


def test_a_bootstrap_draws_each_score_as_often_as_the_data_hold_it():
    scores, anomalous = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0]), np.array([False] * 4 + [True] * 2)
    normal = sum(steps.counts()[1][-1] for steps in resamples(steps_of(scores, anomalous), 4000, 0))
    # The lowest step can only be 0.0 or, where that was never drawn, 1.0: 4 of 4 from 1.0 has the chance 4 ** -4.
    expected, error = 4000 * (3 + 4 * 4.0**-4), 4 * math.sqrt(4000 * 0.75)
    assert abs(normal - expected) < error


def test_ranking_bootstrap_agrees_with_the_general_one():
    scores, anomalous = shifted(0, 120, 1.0)
    draws = bootstrap_ranking(scores, anomalous, repetitions=2000)
    assert draws.auroc.shape == (2000,)
    for name in ("auroc", "average_precision"):
        general = bootstrap_interval(
            lambda i, metric=METRICS[name]: metric(scores[i], anomalous[i]), anomalous, repetitions=1000, seed=1
        )
        interval = draws.intervals()[name]
        assert (interval.confidence, interval.repetitions) == (0.95, 2000)
        assert interval.low == pytest.approx(general.low, abs=0.012)
        assert interval.high == pytest.approx(general.high, abs=0.012)
    assert draws.intervals(0.5)["auroc"].low > draws.intervals()["auroc"].low
    assert draws.means()["auroc"] == pytest.approx(auroc(scores, anomalous), abs=0.005)
    assert draws.standard_errors()["auroc"] == np.std(draws.auroc, ddof=1)
    assert draws.standard_errors().keys() == draws.means().keys() == draws.intervals().keys() == METRICS.keys()


def test_the_same_seed_gives_the_same_ranking_bootstrap():
    scores, anomalous = shifted(0, 40, 1.0)
    first, again, other = (bootstrap_ranking(scores, anomalous, seed=seed).auroc for seed in (0, 0, 1))
    assert first.size == 100
    assert first.tolist() == again.tolist() != other.tolist()


@given(samples(), st.sampled_from([0.5, 0.9, 0.95]))
def test_delong_interval_has_the_variance_of_the_definition(sample, confidence):
    (scores,), anomalous = sample
    interval = delong_interval(scores, anomalous, confidence=confidence)
    variance = reference.delong_covariance([scores], anomalous)[0][0]
    margin = {0.5: 0.674489750196, 0.9: 1.644853626951, 0.95: 1.959963984540}[confidence] * math.sqrt(variance)
    area = reference.auroc(scores, anomalous)
    assert interval.low == pytest.approx(max(0, area - margin), abs=1e-9)
    assert interval.high == pytest.approx(min(1, area + margin), abs=1e-9)
    assert (interval.confidence, interval.repetitions) == (confidence, 0)


@given(samples(detectors=2))
def test_delong_difference_has_the_covariance_of_the_definition(sample):
    (a, b), anomalous = sample
    found = delong_difference(a, b, anomalous)
    ((aa, ab), (_, bb)) = reference.delong_covariance([a, b], anomalous)
    assert found.difference == pytest.approx(reference.auroc(a, anomalous) - reference.auroc(b, anomalous), abs=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(max(0.0, aa + bb - 2 * ab)), abs=1e-7)
    other = delong_difference(b, a, anomalous)
    assert (other.difference, other.standard_error) == (-found.difference, found.standard_error)
    assert other.p_value == found.p_value
    if found.standard_error > 0:
        z = abs(found.difference) / found.standard_error
        assert found.p_value == pytest.approx(2 * (1 - (1 + math.erf(z / math.sqrt(2))) / 2), abs=1e-12)


def test_where_delong_has_no_variance_it_says_only_what_it_saw():
    apart = np.array([0.0, 0.1, 0.2, 0.7, 0.8, 0.9])
    anomalous = np.arange(6) >= 3
    assert delong_interval(apart, anomalous) == Interval(1.0, 1.0, 0.95, 0)
    assert delong_interval(-apart, anomalous) == Interval(0.0, 0.0, 0.95, 0)
    same, opposite = delong_difference(apart, 7 * apart, anomalous), delong_difference(apart, -apart, anomalous)
    assert (same.difference, same.standard_error, same.p_value) == (0.0, 0.0, 1.0)
    assert (opposite.difference, opposite.standard_error, opposite.p_value) == (1.0, 0.0, 0.0)


def test_delong_covers_the_true_auroc_about_as_often_as_it_says():
    truth = 0.5 * (1 + math.erf(1 / 2))  # of two normal distributions one standard deviation apart
    intervals = [delong_interval(*shifted(seed, 120, 1.0), confidence=0.9) for seed in range(500)]
    assert 430 <= sum(interval.low <= truth <= interval.high for interval in intervals) <= 470


def test_delong_difference_rejects_equal_detectors_at_its_level_and_finds_better_ones():
    """Two noisy views of one signal: equally good, and strongly correlated, which unpaired tests would not see."""
    rejected = {0.3: 0, 1.0: 0}  # the noise of the second view; the first has 0.3
    for noise in rejected:
        for seed in range(400):
            signal, anomalous = shifted(seed, 100, 1.0)
            views = np.random.default_rng(1000 + seed).normal(size=(2, 100)) * [[0.3], [noise]]
            rejected[noise] += delong_difference(signal + views[0], signal + views[1], anomalous).p_value <= 0.1
    assert 22 <= rejected[0.3] <= 60  # 40 expected; three binomial standard deviations
    assert rejected[1.0] > 120


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bootstrap_ranking(np.zeros(6), ANOMALOUS, repetitions=1),
            r"repetitions: expected at least 2, .* got 1\. Write 100\.",
        ),
        (lambda: bootstrap_ranking(np.zeros(2), np.ones(2, dtype=bool)), r"anomalous: expected both normal"),
        (lambda: bootstrap_ranking(np.zeros(6), ANOMALOUS).intervals(0.0), r"confidence: expected a share in \(0, 1\)"),
        (lambda: delong_interval(np.zeros(6), ANOMALOUS, confidence=1.0), r"confidence: expected a share in \(0, 1\)"),
        (
            lambda: delong_interval(np.zeros(3), np.array([False, False, True])),
            r"anomalous: expected at least two images of each class, got 2 normal and 1 anomalous\.",
        ),
        (
            lambda: delong_difference(np.zeros(6), np.full(6, np.inf), ANOMALOUS),
            r"scores_b: expected finite numbers, got inf at index 0\.",
        ),
    ],
)
def test_bad_input_of_the_ranking_intervals_is_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
