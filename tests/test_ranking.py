"""Image metrics against plain loops, on scores with many ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.metrics import (
    auroc,
    average_precision,
    average_precision_normal,
    f1_at,
    f1_max_oracle,
    fpr_at_tpr,
    roc_curve,
    tie_share,
)
from reference import metrics as reference

ALL = {
    "auroc": auroc,
    "average_precision": average_precision,
    "average_precision_normal": average_precision_normal,
    "fpr_at_tpr": fpr_at_tpr,
    "fpr_at_tpr_normal": lambda scores, anomalous: fpr_at_tpr(scores, anomalous, positive="normal"),
    "roc_curve": roc_curve,
    "f1_at": lambda scores, anomalous: f1_at(scores, anomalous, 0.5),
    "f1_max_oracle": f1_max_oracle,
}
every_metric = pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
LABELS = np.array([False, True, True])


@st.composite
def samples(draw):
    """Scores of few values, so with ties, in float32 or float64, and labels of both classes."""
    values = draw(st.lists(st.sampled_from([-2.5, -0.0, 0.0, 0.1, 0.3, 1.0, 7.0]), min_size=2, max_size=30))
    labels = [False, True, *draw(st.lists(st.booleans(), min_size=len(values) - 2, max_size=len(values) - 2))]
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return np.array(values, dtype=dtype), np.array(labels)


@given(samples())
def test_auroc_counts_pairs(sample):
    assert auroc(*sample) == pytest.approx(reference.auroc(*sample), rel=1e-14)


@given(samples())
def test_average_precision_sums_over_distinct_scores(sample):
    scores, anomalous = sample
    assert average_precision(*sample) == pytest.approx(reference.average_precision(*sample), rel=1e-12)
    swapped = reference.average_precision(-scores, ~anomalous)
    assert average_precision_normal(*sample) == pytest.approx(swapped, rel=1e-12)


@given(samples(), st.sampled_from([0.01, 0.07, 0.25, 0.5, 0.75, 0.95, 1.0]))
def test_fpr_at_tpr_takes_the_smallest_rate_without_interpolation(sample, tpr):
    assert fpr_at_tpr(*sample, tpr=tpr) == reference.fpr_at_tpr(*sample, tpr)


@given(samples(), st.sampled_from([0.01, 0.07, 0.25, 0.5, 0.75, 0.95, 1.0]))
def test_fpr_at_tpr_of_normal_is_the_share_of_anomalous_images_that_pass(sample, tpr):
    assert fpr_at_tpr(*sample, tpr=tpr, positive="normal") == reference.passed_at_kept(*sample, tpr)


def test_the_two_conventions_of_fpr95_differ_and_know_each_other_by_name():
    scores, anomalous = np.arange(40.0), np.arange(40) >= 20
    scores[anomalous] -= np.where(np.arange(20) < 4, 15.5, 0)  # four of twenty anomalous images look normal
    assert fpr_at_tpr(scores, anomalous) == fpr_at_tpr(scores, anomalous, positive="anomalous") == 0.7
    assert fpr_at_tpr(scores, anomalous, positive="normal") == 0.2


@given(samples())
def test_tie_share_counts_the_scores_with_an_equal(sample):
    assert tie_share(sample[0]) == reference.tie_share(sample[0])


def test_tie_share_sees_zeros_of_both_signs_as_equal_and_needs_finite_scores():
    assert tie_share([0.0, -0.0, 1.0, 2.0]) == 0.5
    assert tie_share([3.0]) == 0.0
    with pytest.raises(ArgumentError, match=r"scores: expected finite numbers, got nan at index 1\."):
        tie_share([0.0, float("nan")])


def test_fpr_at_tpr_defaults_to_95_percent():
    scores = np.arange(40.0)
    anomalous = np.arange(40) % 2 == 0
    assert fpr_at_tpr(scores, anomalous) == fpr_at_tpr(scores, anomalous, tpr=0.95) == 0.95
    assert fpr_at_tpr(scores, anomalous, tpr=0.951) == 1.0


@given(samples())
def test_roc_curve_has_one_point_a_distinct_score(sample):
    curve = roc_curve(*sample)
    assert list(zip(*curve, strict=True)) == reference.roc_points(*sample)
    assert (curve.fpr[-1], curve.tpr[-1]) == (1.0, 1.0)


@given(samples(), st.sampled_from([-np.inf, -2.5, -1.0, 0.0, 0.1, 0.5, 7.0, np.inf]))
def test_f1_at_uses_the_strict_verdict(sample, threshold):
    scores, anomalous = sample
    assert f1_at(scores, anomalous, threshold) == reference.f1(scores.astype(float), anomalous, threshold)


@given(samples())
def test_f1_max_oracle_is_the_best_and_its_threshold_reaches_it(sample):
    scores, anomalous = sample
    best = f1_max_oracle(scores, anomalous)
    assert best.f1 == reference.best_f1(scores, anomalous)
    assert f1_at(scores, anomalous, best.threshold) == best.f1
    assert reference.f1(scores, anomalous, scores.dtype.type(best.threshold)) == best.f1


def test_f1_max_oracle_prefers_fewer_alarms():
    best = f1_max_oracle(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, False, True]))
    assert best == (2 / 3, 3.0)  # raising the alarm for all four is as good: 4 / 6


@given(samples())
def test_no_metric_depends_on_the_scale_or_the_order(sample):
    scores, anomalous = sample
    shuffled = np.random.default_rng(0).permutation(scores.size)
    for metric in (auroc, average_precision, average_precision_normal, fpr_at_tpr):
        value = metric(scores, anomalous)
        assert metric(np.arctan(scores.astype(np.float64)), anomalous) == value
        assert metric(scores[shuffled], anomalous[shuffled]) == value


@given(samples())
def test_larger_means_more_anomalous_and_the_classes_mirror(sample):
    scores, anomalous = sample
    assert auroc(-scores, anomalous) == pytest.approx(1 - auroc(scores, anomalous), abs=1e-12)
    perfect = anomalous.astype(scores.dtype)
    assert auroc(perfect, anomalous) == average_precision(perfect, anomalous) == 1.0
    assert f1_max_oracle(perfect, anomalous).f1 == average_precision_normal(perfect, anomalous) == 1.0
    assert fpr_at_tpr(perfect, anomalous) == 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_tied_scores_are_at_chance_level(dtype):
    scores, anomalous = np.full(8, 0.3, dtype=dtype), np.arange(8) < 2
    assert auroc(scores, anomalous) == 0.5
    assert average_precision(scores, anomalous) == 0.25
    assert average_precision_normal(scores, anomalous) == 0.75
    assert fpr_at_tpr(scores, anomalous) == 1.0


def test_scores_that_differ_in_the_last_bit_are_not_tied():
    for dtype in (np.float32, np.float64):
        low = dtype(1e6)
        assert auroc(np.array([low, np.nextafter(low, dtype(np.inf))]), np.array([False, True])) == 1.0


@every_metric
def test_arguments_are_not_changed(metric):
    scores, anomalous = np.array([0.3, 0.1, 0.2]), LABELS.copy()
    metric(scores, anomalous)
    assert scores.tolist() == [0.3, 0.1, 0.2]
    assert anomalous.tolist() == LABELS.tolist()


@every_metric
@pytest.mark.parametrize(
    ("scores", "anomalous", "message"),
    [
        (np.zeros(2), [True, True], r"anomalous: expected both .*, got 2 images, none normal\."),
        (np.zeros(2), [False, False], r"anomalous: expected both .*, got 2 images, none anomalous\."),
        (np.array([0.0, np.nan, 1.0]), LABELS, r"scores: expected finite numbers, got nan at index 1\."),
        (np.array([0.0, 1.0, np.inf]), LABELS, r"scores: expected finite numbers, got inf at index 2\."),
        (np.array([-np.inf, 1.0, 1.0]), LABELS, r"scores: expected finite numbers, got -inf at index 0\."),
        (np.zeros(4), LABELS, r"anomalous: expected one label a score, 4 in all, got an array of shape \(3,\)"),
        (
            np.zeros((3, 1)),
            LABELS,
            r"scores: expected a float array of shape \(n,\), n >= 1, got an array of shape \(3, 1\)",
        ),
        (np.zeros(0), np.zeros(0, dtype=bool), r"scores: expected a float array of shape \(n,\), n >= 1, got .*\(0,\)"),
        (np.array([1, 2, 3]), LABELS, r"scores: expected a float array .* dtype int64\."),
        (np.zeros(3), np.array([0, 1, 1]), r"anomalous: expected a bool array .*asarray\(labels, dtype=bool\)\."),
        (np.zeros(3), LABELS[:, None], r"anomalous: expected a bool array of shape \(n,\), got .*\(3, 1\)"),
    ],
)
def test_bad_input_is_named(metric, scores, anomalous, message):
    with pytest.raises(ArgumentError, match=message):
        metric(scores, np.asarray(anomalous))


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, float("nan")])
def test_a_tpr_outside_its_range_is_refused(tpr):
    with pytest.raises(ArgumentError, match=r"tpr: expected a share in \(0, 1\], got .* Write 0\.95\."):
        fpr_at_tpr(np.zeros(3), LABELS, tpr=tpr)


def test_an_unknown_positive_class_is_refused():
    with pytest.raises(ArgumentError, match=r"positive: expected \"anomalous\" or \"normal\", got 'ood'"):
        fpr_at_tpr(np.zeros(3), LABELS, positive="ood")


def test_a_nan_threshold_is_refused():
    with pytest.raises(ArgumentError, match=r"threshold: expected a number in score units, got nan\."):
        f1_at(np.zeros(3), LABELS, float("nan"))
