"""Thresholds, p-values and certificates: against plain arithmetic, and by simulation of what they promise."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from blemish.calibrate import calibrate, conformal_p_values
from blemish.discoveries import benjamini_hochberg
from blemish.errors import ArgumentError, CalibrationError
from blemish.promises import (
    certified_false_alarm_rate,
    certified_rank,
    images_needed,
    images_to_certify,
    plus_bound,
    require_images,
    spell_promise,
)
from reference import metrics as reference

scores = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.0]), min_size=20, max_size=60)
rates = st.sampled_from([0.05, 0.1, 0.2, 1 / 3, 0.5])


def naive_p_value(held_out, score):
    return (1 + sum(s >= score for s in held_out)) / (len(held_out) + 1)


@given(scores, rates)
def test_threshold_and_p_value_agree_everywhere(held_out, rate):
    calibration = calibrate(held_out, false_alarm_rate=rate)
    for score in np.arange(-0.25, 8, 0.25):
        assert calibration.p_value(score) == naive_p_value(held_out, score)
        assert (score > calibration.threshold) == (calibration.p_value(score) <= rate + 1e-12)


def test_false_alarm_rate_is_kept_over_a_thousand_repetitions():
    """P(false alarm) averaged over calibrations is at most alpha, and close to it: floor(alpha (n + 1)) / (n + 1)."""
    random = np.random.default_rng(0)
    n, alpha, repetitions, fresh = 39, 0.1, 1000, 50
    alarms = 0
    for _ in range(repetitions):
        calibration = calibrate(random.gamma(2.0, size=n), false_alarm_rate=alpha)
        alarms += int((random.gamma(2.0, size=fresh) > calibration.threshold).sum())
    # Beta(4, 36) variance of the conditional rate, and the binomial variance on top: four standard errors.
    error = 4 * np.sqrt(0.1 * 0.9 / 41 / repetitions + 0.1 * 0.9 / (repetitions * fresh))
    assert abs(alarms / (repetitions * fresh) - 0.1) < error


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.5, 1), (0.1, 9), (0.001, 999), (0.3, 3)])
def test_images_needed(rate, needed):
    assert images_needed(rate) == needed
    calibrate(range(needed), false_alarm_rate=rate)
    with pytest.raises(
        CalibrationError, match=f"needs at least {needed} held-out normal images, there are {needed - 1}"
    ):
        calibrate(range(needed - 1), false_alarm_rate=rate)


@pytest.mark.parametrize("images", [100, 1000])
@pytest.mark.parametrize("percent", range(1, 100))
def test_a_rate_in_percent_is_met_in_spite_of_rounding(percent, images):
    """0.29 * 100 is less than 29 in floats, and yet 29 of 100 may lie above the threshold, and no more."""
    allowed = percent * images // 100
    held_out = np.arange(1.0, images)
    calibration = calibrate(held_out, false_alarm_rate=percent / 100)
    assert calibration.threshold == held_out[-allowed]
    assert calibration.p_value(held_out[-allowed]) > percent / 100
    assert calibration.p_value(held_out[-allowed] + 0.5) <= percent / 100
    if allowed > 1:
        less = calibrate(held_out, false_alarm_rate=percent / 100 - 1e-9)
        assert less.threshold == held_out[-allowed + 1]


def test_impossible_input_is_refused():
    with pytest.raises(ArgumentError, match=r"false_alarm_rate: expected a number between 0 and 1, got 1.5"):
        calibrate([1.0, 2.0], false_alarm_rate=1.5)
    with pytest.raises(ArgumentError, match=r"scores: expected a list of finite numbers"):
        calibrate([1.0, float("nan")], false_alarm_rate=0.5)
    with pytest.raises(ArgumentError, match=r"scores: expected a list of finite numbers"):
        calibrate([1.0, float("inf")], false_alarm_rate=0.5)
    with pytest.raises(ArgumentError, match=r"scores: expected a list of finite numbers"):
        calibrate([[1.0], [2.0]], false_alarm_rate=0.5)


@given(scores, rates)
def test_p_values_are_the_p_value_of_each(held_out, rate):
    calibration = calibrate(held_out, false_alarm_rate=rate)
    asked = np.append(np.arange(-0.25, 8, 0.25), np.inf)
    assert calibration.p_values(asked).tolist() == [naive_p_value(held_out, score) for score in asked]
    assert calibration.p_values(asked.astype(np.float32)).tolist() == [calibration.p_value(score) for score in asked]
    assert calibration.p_values([]).shape == (0,)


def test_the_order_of_the_held_out_scores_does_not_matter():
    held_out = [3.0, 2.0, 1.5, 1.0, 0.5]
    expected = [naive_p_value(held_out, score) for score in (0.0, 1.0, 1.7, 9.0)]
    assert conformal_p_values(held_out, [0.0, 1.0, 1.7, 9.0]).tolist() == expected
    assert calibrate(held_out, false_alarm_rate=0.4).p_values([0.0, 1.0, 1.7, 9.0]).tolist() == expected
    assert calibrate(np.array(held_out, dtype=np.float32), false_alarm_rate=0.4).scores.dtype == np.float64


@pytest.mark.parametrize(("n", "alpha", "rounded"), [(39, 0.1, False), (99, 0.05, False), (39, 0.1, True)])
def test_a_new_image_is_a_false_alarm_as_often_as_promised(n, alpha, rounded):
    """With a fresh calibration for each image, the alarms of 1000 repetitions are Binomial(1000, alpha) exactly."""
    random = np.random.default_rng(n)
    alarms = 0
    for _ in range(1000):
        drawn = random.gamma(2.0, size=n + 1)
        drawn = np.round(drawn) if rounded else drawn  # ties only make it more careful
        calibration = calibrate(drawn[:n], false_alarm_rate=alpha)
        alarm = drawn[n] > calibration.threshold
        assert alarm == (calibration.p_values(drawn[n:])[0] <= alpha)
        alarms += alarm
    low, high = binom.ppf([0.0005, 0.9995], 1000, alpha)
    assert alarms <= high
    assert rounded or alarms >= low


@pytest.mark.parametrize(
    ("alpha", "ranks"),
    [
        (0.05, {59: 1, 500: 17, 1000: 39, 5000: 225, 10_000: 464}),
        (0.01, {299: 1, 500: 2, 1000: 5, 5000: 39, 10_000: 84}),
        (0.001, {2995: 1, 5000: 2, 10_000: 5}),
    ],
)
def test_certified_ranks_are_those_of_the_table(alpha, ranks):
    assert {n: certified_rank(n, alpha) for n in ranks} == ranks
    needed = min(ranks)
    assert images_to_certify(alpha) == needed
    message = rf"false_alarm_rate {alpha} at confidence 0\.95 needs at least {needed} .*, there are {needed - 1}\."
    with pytest.raises(CalibrationError, match=message):
        certified_rank(needed - 1, alpha)


@given(st.integers(1, 60), st.sampled_from([0.02, 0.05, 0.25, 0.5, 0.9]), st.sampled_from([0.5, 0.75, 0.9, 0.95]))
def test_certificates_follow_from_the_binomial_distribution(n, alpha, confidence):
    """The rate above the k-th largest is at most alpha with the chance that k of n new scores or more exceed alpha."""
    slack = 1e-9
    certified = [k for k in range(1, n + 1) if reference.binomial_tail(n, alpha, k) >= confidence - slack]
    assert (n >= images_to_certify(alpha, confidence=confidence)) == bool(certified)
    if certified:
        assert certified_rank(n, alpha, confidence=confidence) == max(certified)
    for k in {1, (n + 1) // 2, n}:
        bound = certified_false_alarm_rate(n, k, confidence=confidence)
        assert reference.binomial_tail(n, bound, k) == pytest.approx(confidence, abs=1e-9)


def test_rates_on_the_edge_are_certified_in_spite_of_rounding():
    assert images_to_certify(0.5, confidence=0.75) == 2
    assert certified_rank(2, 0.5, confidence=0.75) == 1  # 1 - 0.25 ** (1 / 2), exactly
    assert images_to_certify(0.2, confidence=1 - 0.8**7) == 7
    assert certified_rank(7, 0.2, confidence=1 - 0.8**7) == 1


@pytest.mark.parametrize(
    ("rate", "n", "confidence"),
    [(0.3, 2, 0.51), (0.3, 3, 0.657), (0.7, 2, 0.91), (0.1, 3, 0.271), (0.05, 2, 0.0975)],
)
def test_rates_whose_floats_fall_beside_the_edge_are_certified_all_the_same(rate, n, confidence):
    """1 - (1 - rate) ^ n is the confidence exactly, in numbers if not in floats."""
    assert images_to_certify(rate, confidence=confidence) == n
    assert certified_rank(n, rate, confidence=confidence) == 1
    with pytest.raises(CalibrationError, match=f"needs at least {n} held-out"):
        certified_rank(n - 1, rate, confidence=confidence)
    assert images_to_certify(rate - 1e-9, confidence=confidence) == n + 1
    assert images_to_certify(rate, confidence=confidence + 1e-9) == n + 1


def test_the_certificate_holds_as_often_as_it_says():
    """For uniform scores the rate above a threshold t is 1 - t, so 1000 calibrations are Binomial(1000, 0.95)."""
    random = np.random.default_rng(0)
    n, rank = 200, 8
    bound = certified_false_alarm_rate(n, rank)
    kept = sum(1 - np.sort(random.random(n))[-rank] <= bound for _ in range(1000))
    low, high = binom.ppf([0.0005, 0.9995], 1000, 0.95)
    assert low <= kept <= high


@given(st.integers(20, 80), st.sampled_from([0.05, 0.11, 0.3]), st.sampled_from([None, 0.5, 0.75]))
def test_a_promise_is_what_the_binomial_distribution_says_of_its_threshold(n, rate, certain):
    n = max(n, images_needed(rate, certain=certain))
    calibration = calibrate(np.arange(n), false_alarm_rate=rate, certain=certain)
    promise = calibration.promise
    rank = n - int(calibration.threshold)  # it is the rank-th largest
    assert (promise.false_alarm_rate, promise.certain) == (rate, certain)
    assert promise.guaranteed_rate == pytest.approx(rank / (n + 1))
    assert promise.guaranteed_rate <= rate + 1e-12
    for share, end in zip((0.05, 0.95), promise.plausible, strict=True):
        assert reference.binomial_tail(n, end, rank) == pytest.approx(share, abs=1e-9)
    kept, next_one = (reference.binomial_tail(n, rate, k) for k in (rank, rank + 1))  # P(the rate is at most that)
    is_largest = (rank + 1) / (n + 1) > rate + 1e-12 or (certain is not None and next_one < certain)
    assert is_largest
    assert certain is None or kept >= certain - 1e-9
    for score in np.arange(-0.5, n + 1, 0.5):
        assert (score > calibration.threshold) == (calibration.p_value(score) <= promise.guaranteed_rate + 1e-12)


def test_a_certain_threshold_is_kept_as_often_as_it_says_also_with_groups():
    """The rate above a threshold t of uniform scores is 1 - t; of a pair's larger one it is 1 - t^2."""
    random = np.random.default_rng(0)
    n, alpha, repetitions = 80, 0.05, 1000
    groups = np.arange(2 * n) // 2
    alone = kept = 0
    for _ in range(repetitions):
        alone += 1 - calibrate(random.random(n), false_alarm_rate=alpha, certain=0.9).threshold <= alpha
        pairs = calibrate(random.random(2 * n), false_alarm_rate=alpha, groups=groups, certain=0.9)
        kept += 1 - pairs.threshold**2 <= alpha
    exact = reference.binomial_tail(n, alpha, certified_rank(n, alpha, confidence=0.9))
    low, high = binom.ppf([0.0005, 0.9995], repetitions, exact)
    assert exact >= 0.9
    assert low <= alone <= high
    assert low <= kept <= high


def test_the_chance_of_so_many_alarms_is_that_of_exchangeable_scores():
    """Of all orders of 3 held-out and 4 new scores, those in which so many new ones are above the largest held-out."""
    calibration = calibrate([1.0, 2.0, 3.0], false_alarm_rate=0.25)
    above = Counter(4 - max(order.index(held_out) for held_out in "abc") + 2 for order in permutations("abcwxyz"))
    total = sum(above.values())
    for alarms in range(5):
        expected = sum(count for number, count in above.items() if number >= alarms) / total
        assert calibration.chance(alarms, 4) == pytest.approx(expected)
    assert calibrate([1.0, 2.0, 3.0], false_alarm_rate=0.4, groups=[0, 0, 1]).chance(1, 4) is None


def test_a_promise_of_groups_says_what_is_proven_and_no_more():
    scores, groups = np.arange(40.0), np.arange(40) // 2
    promise = calibrate(scores, false_alarm_rate=0.06, groups=groups).promise
    assert (promise.guaranteed_rate, promise.plausible, promise.held_out) == (0.06, None, 20)
    assert "20 held-out groups; groups leave open" in spell_promise(promise)
    rank = 20 - calibrate(np.arange(20), false_alarm_rate=0.3, certain=0.8).threshold
    assert rank > 1
    largest = calibrate(scores, false_alarm_rate=0.3, groups=groups, certain=0.8).threshold
    assert largest == 39 - 2 * (rank - 1)  # of the groups' largest scores 1, 3 ... 39
    certain = calibrate(scores, false_alarm_rate=0.2, groups=groups, certain=0.8).promise
    assert certain.guaranteed_rate < 0.2
    assert "20 % asked for, and guaranteed with certainty 0.8; guaranteed" in spell_promise(certain)


def test_too_few_images_for_a_certainty_are_refused_with_how_many_it_takes():
    with pytest.raises(
        CalibrationError, match=r"0\.05 at confidence 0\.95 needs at least 59 .* there are 58.*higher rate, 0\.0504"
    ):
        calibrate(np.arange(58), false_alarm_rate=0.05, certain=0.95)
    calibrate(np.arange(59), false_alarm_rate=0.05, certain=0.95)
    with pytest.raises(CalibrationError, match=r"59 held-out groups of normal images, there are 30"):
        calibrate(np.arange(60), false_alarm_rate=0.05, certain=0.95, groups=np.arange(60) // 2)


@pytest.mark.parametrize("certain", [None, 0.5, 0.95])
@pytest.mark.parametrize("held_out", [1, 2, 7, 19, 58, 150])
def test_the_rate_that_a_refusal_names_is_not_refused(held_out, certain):
    with pytest.raises(CalibrationError) as refused:
        require_images(held_out, 0.001, certain=certain)
    lowest = float(re.search(r"accept a higher rate, (\S+) at least", str(refused.value))[1])
    calibrate(range(held_out), false_alarm_rate=lowest, certain=certain)


@given(st.integers(1, 60), st.data(), st.sampled_from([(1, 20), (1, 10), (3, 20), (1, 3), (1, 2), (9, 10)]))
def test_benjamini_hochberg_decides_as_exact_fractions_do(n, data, level):
    ranks = data.draw(st.lists(st.integers(1, n + 1), max_size=25))
    exact = reference.benjamini_hochberg([Fraction(rank, n + 1) for rank in ranks], Fraction(*level))
    found = benjamini_hochberg(np.array(ranks) / (n + 1), level[0] / level[1])
    assert found.dtype == np.bool_
    assert found.tolist() == exact


def test_a_p_value_on_the_line_is_rejected_in_spite_of_rounding():
    assert 0.15 / 3 < 1 / 20  # in floats
    assert benjamini_hochberg([1 / 20, 1.0, 1.0], 0.15).tolist() == [True, False, False]


def test_benjamini_hochberg_is_not_bonferroni_and_keeps_the_order():
    p_values = [0.9, 0.03, 0.001, 0.045, 0.02]  # the third smallest exceeds 0.05 / 5 and counts with the others
    assert benjamini_hochberg(p_values, 0.05).tolist() == [False, True, True, False, True]


def test_benjamini_hochberg_keeps_its_false_discovery_rate_on_one_shared_calibration():
    """The rate is exactly (normal share) x level where level (n + 1) / m is whole: mean over 1000 calibrations."""
    random = np.random.default_rng(0)
    n, normal, anomalous, level = 499, 40, 10, 0.1
    shares, found = [], 0
    for _ in range(1000):
        calibration = calibrate(random.normal(size=n), false_alarm_rate=level)
        new = np.concatenate([random.normal(size=normal), random.normal(3.0, size=anomalous)])
        alarms = benjamini_hochberg(calibration.p_values(new), level)
        shares.append(alarms[:normal].sum() / max(1, alarms.sum()))
        found += alarms[normal:].sum()
    expected = level * normal / (normal + anomalous)
    assert abs(np.mean(shares) - expected) < 4 * np.std(shares) / np.sqrt(1000)
    assert found > 0.5 * 1000 * anomalous


def test_a_lone_anomaly_among_many_needs_enough_held_out_images():
    n, level = 99, 0.1
    calibration = calibrate(np.arange(float(n)), false_alarm_rate=level)
    for m in (10, 11):
        p_values = calibration.p_values(np.append(np.full(m - 1, -1.0), 1e9))
        assert benjamini_hochberg(p_values, level).tolist() == [False] * (m - 1) + [m == 10]
    require_images(n, level / 10)
    with pytest.raises(CalibrationError, match=r"needs at least 109 held-out normal images, there are 99"):
        require_images(n, level / 11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: benjamini_hochberg([0.1, 1.1], 0.1), r"p_values: expected numbers in \[0, 1\] of shape \(m,\)"),
        (lambda: benjamini_hochberg([0.1, float("nan")], 0.1), r"p_values: expected numbers in \[0, 1\]"),
        (lambda: benjamini_hochberg([[0.1]], 0.1), r"p_values: expected .* got an array of shape \(1, 1\)"),
        (lambda: benjamini_hochberg([0.1], 1.0), r"level: expected a number between 0 and 1, got 1\.0"),
        (lambda: certified_false_alarm_rate(10, 0), r"rank: expected 1 to 10, the number of held-out images, got 0"),
        (lambda: certified_false_alarm_rate(10, 11), r"rank: expected 1 to 10, .* got 11"),
        (lambda: certified_rank(10, 0.0), r"false_alarm_rate: expected a number between 0 and 1, got 0\.0"),
        (lambda: images_to_certify(0.1, confidence=1.0), r"confidence: expected a number between 0 and 1, got 1\.0"),
        (
            lambda: calibrate([1.0, 2.0], false_alarm_rate=0.5).p_value(float("nan")),
            "score: expected a number, got NaN",
        ),
        (
            lambda: calibrate([1.0, 2.0], false_alarm_rate=0.5).p_values([1.0, float("nan")]),
            r"scores: expected numbers of shape \(n,\), no NaN, got an array",
        ),
    ],
)
def test_bad_input_of_certificates_and_tests_is_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    ("total", "says"),
    [
        (80, r"Hold out a larger share, 0\.24 \(held_out=, --held-out\), give more"),
        (10, r"Give at least 38 .* half of"),
    ],
)
def test_too_few_images_say_which_share_would_do(total, says):
    with pytest.raises(CalibrationError, match=rf"there are 2 of {total}\. {says}"):
        require_images(2, 0.05, total=total)
    require_images(round(0.24 * 80), 0.05, total=80)
    require_images(38 // 2, 0.05, total=38)


@pytest.mark.parametrize("folds", [2, 4, 5, 10, 20, 60])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_the_bound_of_left_out_images_is_never_above_the_published_one(folds, rate):
    """Barber, Candes, Ramdas, Tibshirani 2021, theorems 1 and 4."""
    n = 60
    excess = min(2 * (1 - 1 / folds) / (n / folds + 1), (1 - folds / n) / (folds + 1))
    assert plus_bound(rate * (n + 1), n, folds=folds) <= 2 * rate + excess
    assert plus_bound(3, n, folds=folds, equal=False) >= plus_bound(3, n, folds=folds)


@pytest.mark.parametrize("n", [3, 4])
def test_no_tournament_has_more_strange_images_than_the_bound_allows(n):
    """All ways in which n + 1 images can beat each other: those that at most a - 1 others are not beaten by are few."""
    pairs = list(combinations(range(n + 1), 2))
    for allowed in range(1, n + 1):
        most = 0
        for beats in product([0, 1], repeat=len(pairs)):
            lost = Counter(pair[1 - first] for pair, first in zip(pairs, beats, strict=True))
            most = max(most, sum(lost[i] <= allowed - 1 for i in range(n + 1)))
        assert most <= plus_bound(allowed, n, folds=n) * (n + 1) + 1e-9
        if 2 * allowed - 1 <= n + 1:
            assert most == 2 * allowed - 1  # so that no smaller bound holds for every way of leaving out


def naive_cross_p_value(scores, folds, new):
    return (1 + sum(s >= new[fold] for s, fold in zip(scores, folds, strict=True))) / (len(scores) + 1)


def test_p_values_of_folds_compare_images_with_the_new_one_by_the_same_model():
    random = np.random.default_rng(0)
    scores, folds, new = random.normal(size=12), np.arange(12) % 3, random.normal(size=(5, 3))
    calibration = calibrate(scores, false_alarm_rate=0.2, kind="cross", folds=folds)
    expected = [naive_cross_p_value(scores, folds, row) for row in new]
    np.testing.assert_allclose(calibration.p_values(new.mean(axis=1), plus=new), expected)
    assert calibration.threshold is None
    assert calibration.promise.guaranteed_rate == plus_bound(2, 12, folds=3)
    with pytest.raises(ArgumentError, match="plus: expected what calibration cross compares, got none"):
        calibration.p_values([1.0])


def test_groups_count_once_in_the_p_values_of_folds():
    scores, groups, folds = [1.0, 3.0, 2.0, 4.0, 5.0], [0, 0, 1, 2, 3], [0, 0, 0, 1, 1]
    calibration = calibrate(scores, false_alarm_rate=0.3, kind="cross", folds=folds, groups=groups)
    assert calibration.p_values([0.0], plus=[[2.5, 4.5]])[0] == pytest.approx((1 + (0.5 + 0) + (0 + 1)) / 5)
    assert calibration.promise.guaranteed_rate == pytest.approx(plus_bound(0.3 * 5, 4, folds=2))


def test_full_p_values_compare_a_new_image_with_the_learned_ones_beside_it():
    calibration = calibrate([1.0, 2.0, 3.0, 4.0], false_alarm_rate=0.2, kind="full")
    found = calibration.p_values([2.5, 9.0], plus=[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    assert found.tolist() == [3 / 5, 1 / 5]
    assert (calibration.threshold, calibration.promise.guaranteed_rate) == (None, 0.2)


def test_what_images_left_out_in_turn_promise():
    promise = calibrate(range(39), false_alarm_rate=0.05, kind="loo").promise
    assert (promise.guaranteed_rate, promise.plausible, promise.calibration) == (0.075, None, "loo")
    assert "guaranteed 7.5 % on average" in spell_promise(promise)
    assert spell_promise(promise).endswith("Ask for 2.5 % to have 5 % guaranteed.")
    assert calibrate(range(39), false_alarm_rate=0.025, kind="loo").promise.guaranteed_rate == 0.025
    alone = calibrate(range(20), false_alarm_rate=0.05, kind="loo", unproven="a coreset").promise
    assert alone.guaranteed_rate is None
    assert "5 % asked for; NO GUARANTEE (a coreset). 20 images were left out in turn" in spell_promise(alone)
    with pytest.raises(ArgumentError, match=r"certain: expected None with calibration loo, got 0\.95"):
        calibrate(range(100), false_alarm_rate=0.05, kind="loo", certain=0.95)
