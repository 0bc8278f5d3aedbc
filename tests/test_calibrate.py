from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blemish.calibrate import calibrate, images_needed
from blemish.errors import ArgumentError, CalibrationError

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


def test_impossible_input_is_refused():
    with pytest.raises(ArgumentError, match=r"false_alarm_rate: expected a number between 0 and 1, got 1.5"):
        calibrate([1.0, 2.0], false_alarm_rate=1.5)
    with pytest.raises(ArgumentError, match=r"scores: expected a list of finite numbers"):
        calibrate([1.0, float("nan")], false_alarm_rate=0.5)
