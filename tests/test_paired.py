"""Differences of two detectors, paired by image: against enumeration, plain loops and DeLong."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import t as student

from blemish.errors import ArgumentError
from blemish.metrics import auroc, delong_difference
from blemish.metrics.paired import _Draw, _expanded, paired_differences, ranks
from reference import metrics as reference


def auroc_of(a, b, anomalous):
    """The statistic of two score vectors, by ranks."""
    both = np.stack([ranks(a), ranks(b)])

    def statistic(images, swapped):
        left, right = np.where(swapped, both[::-1, images], both[:, images])
        return np.array([[auroc(left, anomalous[images])], [auroc(right, anomalous[images])]])

    return statistic


def sample(n, seed, *, gain=0.0):
    random = np.random.default_rng(seed)
    anomalous = np.arange(n) % 2 == 0
    common = random.standard_normal(n) + anomalous
    return common + 0.7 * random.standard_normal(n) + gain * anomalous, common + random.standard_normal(n), anomalous


def all_swaps(a, b, anomalous, groups):
    """Two-sided p-value over every way to swap the ranks of groups, in plain loops."""
    order_a = [1 + sum(x < y for x in a) + (sum(x == y for x in a) - 1) / 2 for y in a]
    order_b = [1 + sum(x < y for x in b) + (sum(x == y for x in b) - 1) / 2 for y in b]
    here = reference.auroc(order_a, anomalous) - reference.auroc(order_b, anomalous)
    names = sorted(set(groups))
    extreme = 0
    for coins in product([False, True], repeat=len(names)):
        swap = dict(zip(names, coins, strict=True))
        pairs = [(y, x) if swap[g] else (x, y) for x, y, g in zip(order_a, order_b, groups, strict=True)]
        left, right = zip(*pairs, strict=True)
        extreme += abs(reference.auroc(left, anomalous) - reference.auroc(right, anomalous)) >= abs(here) - 1e-12
    return extreme / 2 ** len(names)


@pytest.mark.parametrize("groups", [range(8), [0, 0, 1, 1, 2, 3, 4, 4]])
def test_the_p_value_is_that_of_all_swaps_of_ranks(groups):
    a, b, anomalous = sample(8, 5, gain=0.5)
    a = a.round()  # with ties
    (found,) = paired_differences(auroc_of(a, b, anomalous), anomalous, groups=list(groups), repetitions=1000)
    expected = all_swaps(a.tolist(), b.tolist(), anomalous.tolist(), list(groups))
    assert found.p_value == pytest.approx(expected, abs=0.063)  # four standard errors of 1000 draws


def test_the_difference_at_hand_is_one_of_those_that_a_p_value_counts():
    """So no p-value is 0, however few swaps are drawn."""
    anomalous = np.arange(40) % 2 == 0
    better, worse = anomalous + 0.0, np.random.default_rng(0).random(40)
    (found,) = paired_differences(auroc_of(better, worse, anomalous), anomalous, repetitions=19)
    assert found.p_value == 1 / 20


def test_images_of_a_group_are_swapped_together_or_not_at_all():
    """Of 16 ways to swap 4 groups, two leave the largest difference; of 2^40 ways to swap images, next to none do."""
    anomalous, groups = np.arange(40) % 2 == 0, np.arange(40) // 10
    better, worse = anomalous + 0.0, np.where(anomalous, 0.0, 1.0)
    (found,) = paired_differences(auroc_of(better, worse, anomalous), anomalous, groups=groups, repetitions=400)
    assert found.p_value == pytest.approx(2 / 16, abs=0.07)


def test_percentiles_of_few_draws_are_expanded():
    """t of 4 degrees of freedom has -2.776 at 2.5 %; times the root of 5/4 a normal variable is below with 0.00096."""
    assert _expanded(0.025, 5) == pytest.approx(0.000955, rel=0.01)
    assert _expanded(0.025, 10**6) == pytest.approx(0.025, rel=1e-4)


def test_a_p_value_of_the_bootstrap_has_two_sides():
    anomalous = np.arange(40) % 2 == 0
    statistic = auroc_of(anomalous + 0.0, np.where(anomalous, 0.0, 1.0), anomalous)
    (found,) = paired_differences(statistic, anomalous, swaps=False, repetitions=39)
    assert found.p_value == 2 / 40


def test_difference_and_interval_agree_with_delong():
    a, b, anomalous = sample(300, 1, gain=0.8)
    (found,) = paired_differences(auroc_of(a, b, anomalous), anomalous, repetitions=400)
    delong = delong_difference(a, b, anomalous)
    assert found.difference == pytest.approx(delong.difference, abs=1e-12)
    width = 2 * 1.96 * delong.standard_error
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.2)
    assert found.p_value == pytest.approx(delong.p_value, abs=0.01)


def test_copies_in_groups_add_no_certainty():
    """Each image four times, in a group: as wide as without the copies; taken for images, half as wide."""
    a, b, anomalous = sample(80, 2)
    many = [np.repeat(x, 4) for x in (a, b, anomalous)]

    def width(found):
        return found[0].interval.high - found[0].interval.low

    once = width(paired_differences(auroc_of(a, b, anomalous), anomalous, repetitions=400))
    grouped = paired_differences(auroc_of(*many), many[2], groups=np.repeat(np.arange(80), 4), repetitions=400)
    apart = paired_differences(auroc_of(*many), many[2], repetitions=400)
    assert width(grouped) == pytest.approx(once, rel=0.15)
    assert width(apart) == pytest.approx(once / 2, rel=0.2)


def test_few_images_give_the_interval_of_student():
    """The difference is a mean of 10 values, whose interval is known; plain percentiles have four fifths of it."""
    x, anomalous = np.random.default_rng(0).standard_normal(20), np.arange(20) < 10

    def statistic(images, _swapped):
        return np.array([[x[images[anomalous[images]]].mean()], [0.0]])

    (found,) = paired_differences(statistic, anomalous, repetitions=4000)
    width = 2 * student.ppf(0.975, 9) * x[:10].std(ddof=1) / 10**0.5
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.1)


def test_equal_detectors_have_no_difference():
    a, _, anomalous = sample(20, 3)
    for swaps in (True, False):
        (found,) = paired_differences(auroc_of(a, 2 * a, anomalous), anomalous, swaps=swaps, repetitions=50)
        assert (found.difference, found.interval.low, found.interval.high, found.p_value) == (0, 0, 0, 1)


def test_without_swaps_the_bootstrap_gives_the_p_value():
    a, b, anomalous = sample(300, 1, gain=0.8)
    (found,) = paired_differences(auroc_of(a, b, anomalous), anomalous, swaps=False, repetitions=400)
    assert found.p_value == pytest.approx(delong_difference(a, b, anomalous).p_value, abs=0.02)


def test_a_mixed_group_keeps_both_classes_in_every_draw():
    a, b, anomalous = sample(4, 0)
    (found,) = paired_differences(auroc_of(a, b, anomalous), anomalous, groups=[0, 0, 1, 1], repetitions=20)
    assert np.isfinite(found.interval.low)


def test_wrong_arguments_are_refused():
    a, b, anomalous = sample(6, 0)
    statistic = auroc_of(a, b, anomalous)
    with pytest.raises(ArgumentError, match="repetitions: expected at least 1"):
        paired_differences(statistic, anomalous, repetitions=0)
    with pytest.raises(ArgumentError, match="confidence"):
        paired_differences(statistic, anomalous, confidence=1)
    with pytest.raises(ArgumentError, match="groups: expected 6 whole numbers"):
        paired_differences(statistic, anomalous, groups=[0])
    with pytest.raises(ArgumentError, match="statistic: expected finite numbers"):
        paired_differences(lambda images, swapped: np.full((2, 1), np.nan), anomalous)


def test_groups_are_drawn_from_those_of_their_kind():
    """Normal images are in the mixed group alone: no draw may be without it."""
    anomalous, groups = np.array([False, True, True, True, True]), np.array([0, 0, 1, 2, 3])

    def both_classes(images, _swapped):
        assert {False, True} == set(anomalous[images].tolist())
        return np.zeros((2, 1))

    paired_differences(both_classes, anomalous, groups=groups, repetitions=40)


def test_confidence_seed_and_the_smallest_stratum_count():
    a, b, anomalous = sample(30, 3, gain=0.5)

    def interval(**settings):
        (found,) = paired_differences(auroc_of(a, b, anomalous), anomalous, repetitions=60, **settings)
        return found.interval

    wide, narrow = interval(), interval(confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert interval(seed=1) != wide
    labels = np.arange(7) < 2
    assert _Draw(np.arange(7), labels, np.random.default_rng(0)).fewest == 2
