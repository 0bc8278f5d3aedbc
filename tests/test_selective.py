"""Selective prediction against plain loops over all orders of tied samples, and exact binomial arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.metrics import (
    augrc,
    aurc,
    auroc,
    coverage_at_risk,
    e_aurc,
    reliability,
    risk_at_coverage,
    risk_coverage,
)
from reference import metrics as reference

ALL = {
    "risk_coverage": risk_coverage,
    "aurc": aurc,
    "e_aurc": e_aurc,
    "augrc": augrc,
    "risk_at_coverage": lambda uncertainty, wrong: risk_at_coverage(uncertainty, wrong, 0.5),
    "coverage_at_risk": lambda uncertainty, wrong: coverage_at_risk(uncertainty, wrong, 0.5),
    "reliability": reliability,
}
every_function = pytest.mark.parametrize("function", ALL.values(), ids=ALL)
few, many = st.integers(1, 6), st.integers(1, 40)
shares = st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.95, 1.0])


@st.composite
def samples(draw, sizes=many):
    """Uncertainties of few values, so with ties, and any pattern of right and wrong."""
    n = draw(sizes)
    values = draw(st.lists(st.sampled_from([-2.5, -0.0, 0.0, 0.1, 7.0]), min_size=n, max_size=n))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return np.array(values, dtype=dtype), np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


@given(samples())
def test_risk_coverage_has_one_point_a_distinct_uncertainty(sample):
    curve = risk_coverage(*sample)
    assert list(zip(*curve, strict=True)) == reference.risk_coverage(*sample)
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == sample[1].mean()


@given(samples(few))
def test_aurc_is_the_mean_over_all_orders_of_ties(sample):
    assert aurc(*sample) == pytest.approx(reference.mean_over_orders(*sample, reference.aurc), rel=1e-14)


@given(samples(few))
def test_augrc_is_the_mean_over_all_orders_of_ties_to_the_last_bit(sample):
    assert augrc(*sample) == reference.mean_over_orders(*sample, reference.augrc)


@given(samples(few))
def test_e_aurc_is_the_excess_over_the_best_order(sample):
    best = float(reference.aurc(sorted(sample[1].tolist())))
    excess = reference.mean_over_orders(*sample, reference.aurc) - best
    assert e_aurc(*sample) == pytest.approx(excess, abs=1e-15)
    assert e_aurc(*sample) >= 0


@given(samples())
def test_e_aurc_of_a_perfect_uncertainty_is_exactly_zero(sample):
    _, wrong = sample
    assert e_aurc(wrong.astype(np.float32), wrong) == 0.0
    assert e_aurc(np.arange(float(wrong.size)), np.sort(wrong)) == 0.0


@given(samples())
def test_augrc_is_the_paper_s_function_of_auroc_and_accuracy(sample):
    """Traub 2024: (1 - AUROC) a (1 - a) + (1 - a)^2 / 2 for trapezoids; the sum adds half a step at each error."""
    uncertainty, wrong = sample
    assume(0 < wrong.sum() < wrong.size)
    error = wrong.mean()
    trapezoids = (1 - auroc(uncertainty, wrong)) * error * (1 - error) + error**2 / 2
    assert augrc(uncertainty, wrong) == pytest.approx(trapezoids + error / (2 * wrong.size), rel=1e-12)


def test_an_uncertainty_that_says_nothing_has_the_error_rate_as_aurc():
    wrong = np.arange(40) % 4 == 0
    assert aurc(np.zeros(40), wrong) == pytest.approx(0.25, rel=1e-14)
    assert augrc(np.zeros(40), wrong) == 0.25 * 41 / 80


@given(samples(), shares)
def test_risk_at_coverage_takes_ties_as_a_whole(sample, coverage):
    risks = [risk for _, covered, risk in reference.risk_coverage(*sample) if covered >= coverage]
    assert risk_at_coverage(*sample, coverage) == risks[0]


@given(samples(), st.one_of(shares, st.just(0.0)))
def test_coverage_at_risk_is_the_largest_that_keeps_the_risk(sample, risk):
    kept = [covered for _, covered, reached in reference.risk_coverage(*sample) if reached <= risk]
    assert coverage_at_risk(*sample, risk) == max(kept, default=0.0)


@given(samples(), st.integers(1, 50))
def test_reliability_cuts_tails_at_every_bin_and_never_inside_a_tie(sample, bin_size):
    found = reliability(*sample, bin_size=bin_size)
    expected = reference.tails(*sample, bin_size)
    assert list(zip(found.thresholds, found.sizes, strict=True)) == [(start, size) for start, size, _ in expected]
    assert found.accuracy.tolist() == [right / size for _, size, right in expected]


def test_reliability_bins_of_the_default_size_leave_the_rest_to_the_last_one():
    uncertainty = np.random.default_rng(0).permutation(1700) / 1700
    found = reliability(uncertainty, uncertainty > 0.9)
    assert found.sizes.tolist() == [1700, 1200, 700]
    assert found.thresholds.tolist() == [0.0, 500 / 1700, 1000 / 1700]
    assert found.accuracy.tolist() == [1531 / 1700, 1031 / 1200, 531 / 700]
    assert found.confidence == 0.98


@given(samples(), st.sampled_from([0.5, 0.9, 0.98]))
def test_clopper_pearson_bounds_leave_their_share_on_each_side(sample, confidence):
    found = reliability(*sample, bin_size=7, confidence=confidence)
    for size, accuracy, low, high in zip(found.sizes, found.accuracy, found.low, found.high, strict=True):
        right = round(accuracy * size)
        assert low <= accuracy <= high
        if right:
            assert reference.binomial_tail(size, low, right) == pytest.approx((1 - confidence) / 2, rel=1e-9)
        else:
            assert low == 0.0
        if right < size:
            not_above = 1 - reference.binomial_tail(size, high, right + 1)
            assert not_above == pytest.approx((1 - confidence) / 2, rel=1e-9)
        else:
            assert high == 1.0


@given(samples())
def test_the_bootstrap_view_is_binomial_quantiles(sample):
    found = reliability(*sample, bin_size=9)
    for i, size in enumerate(found.sizes.tolist()):
        accuracy = Fraction(round(found.accuracy[i] * size), size)
        for quantile, values in ((1, found.bootstrap_first_percentile), (50, found.bootstrap_median)):
            assert values[i] == reference.binomial_quantile(size, accuracy, Fraction(quantile, 100)) / size


def test_the_bootstrap_view_is_what_resampling_gives():
    wrong = np.arange(300) % 5 == 0
    found = reliability(np.zeros(300), wrong)
    drawn = 1 - np.random.default_rng(0).choice(wrong, size=(20_000, 300)).mean(axis=1)
    assert found.bootstrap_median == pytest.approx([np.median(drawn)], abs=1 / 300)
    assert found.bootstrap_first_percentile == pytest.approx([np.quantile(drawn, 0.01)], abs=1.01 / 300)
    assert found.low < found.bootstrap_first_percentile  # the bootstrap is too sure


@given(samples())
def test_nothing_depends_on_the_scale_or_the_order_of_the_samples(sample):
    uncertainty, wrong = sample
    shuffled = np.random.default_rng(0).permutation(wrong.size)
    for function in (aurc, e_aurc, augrc):
        value = function(uncertainty, wrong)
        assert function(np.arctan(uncertainty.astype(np.float64)), wrong) == value
        assert function(uncertainty[shuffled], wrong[shuffled]) == value
    assert reliability(uncertainty, wrong, bin_size=5).low.tolist() == (
        reliability(uncertainty[shuffled], wrong[shuffled], bin_size=5).low.tolist()
    )


@every_function
def test_arguments_are_not_changed(function):
    uncertainty, wrong = np.array([0.3, 0.1, 0.2]), np.array([True, False, True])
    function(uncertainty, wrong)
    assert uncertainty.tolist() == [0.3, 0.1, 0.2]
    assert wrong.tolist() == [True, False, True]


@every_function
@pytest.mark.parametrize(
    ("uncertainty", "wrong", "message"),
    [
        (np.zeros(0), np.zeros(0, bool), r"uncertainty: expected a float array of shape \(n,\), n >= 1"),
        (np.array([1, 2]), np.zeros(2, bool), r"uncertainty: expected a float array .* dtype int64\."),
        (np.array([0.0, np.nan]), np.zeros(2, bool), r"uncertainty: expected finite numbers, got nan at index 1\."),
        (np.zeros(3), np.zeros(2, bool), r"wrong: expected one flag an uncertainty, 3 in all, got .* \(2,\)"),
        (np.zeros(2), np.zeros(2, int), r"wrong: expected a bool array of shape \(n,\)"),
    ],
)
def test_bad_input_is_named(function, uncertainty, wrong, message):
    with pytest.raises(ArgumentError, match=message):
        function(uncertainty, wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *sample: risk_at_coverage(*sample, 0.0), r"coverage: expected a share in \(0, 1\], got 0\.0"),
        (lambda *sample: risk_at_coverage(*sample, 1.1), r"coverage: expected a share in \(0, 1\], got 1\.1"),
        (lambda *sample: coverage_at_risk(*sample, -0.1), r"risk: expected a share in \[0, 1\], got -0\.1"),
        (lambda *sample: reliability(*sample, bin_size=0), r"bin_size: expected at least 1, got 0\. Write 500\."),
        (lambda *sample: reliability(*sample, confidence=1.0), r"confidence: expected a share in \(0, 1\), got 1\.0"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(np.zeros(3), np.zeros(3, dtype=bool))
