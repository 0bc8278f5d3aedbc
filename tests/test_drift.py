"""Stream p-values and the test martingale, against their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from blemish.drift import LATE, POWERS, SIGNS, DriftMonitor, bet, capital, no_bets
from blemish.errors import ArgumentError
from reference import drift as reference


def stream(count, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal(count).round(1) + shift  # rounded: with ties


def test_p_values_are_ranks_among_all_that_came_before():
    known, scores = stream(5).tolist(), stream(40, 1).tolist()
    monitor = DriftMonitor(known, seed=3)
    for number, score in enumerate(scores):
        drawn = 1 - np.random.default_rng((3, number)).random()
        assert monitor.update(score).p_value == reference.p_value(score, known, drawn)
        known.append(score)


@pytest.mark.parametrize("shift", [0.0, 2.0, -2.0])
def test_the_capital_is_the_mixture_written_out(shift):
    monitor, found = DriftMonitor(stream(20)), []
    for score in stream(30, 1, shift):
        found.append(monitor.update(score).p_value)
        expected = math.log(reference.capital(found, POWERS, LATE))
        assert monitor.drift.evidence == pytest.approx(expected, abs=1e-9)


def test_no_bet_gains_on_average():
    """A martingale: over uniform p, the capital after an image is on average what it was before."""
    # Close to 0 and 1 the densities have poles; with p = u^8 these are flat.
    step = 0.5**0.125 / 5000
    u = (np.arange(5000) + 0.5) * step
    p, weights = np.concatenate([u**8, 1 - u**8]), np.tile(8 * u**7 * step, 2)
    bets = bet(bet(no_bets(), 0.1, 0), 0.7, 1)
    after = np.exp(capital(bet(np.broadcast_to(bets, (p.size, bets.size)), p, 2), 3)) @ weights
    assert after == pytest.approx(math.exp(capital(bets, 2)), rel=1e-5)


def test_exchangeable_streams_seldom_alarm():
    alarms = [DriftMonitor(stream(20, seed), delta=0.2).extend(stream(150, 1000 + seed)).is_alarm for seed in range(60)]
    assert sum(alarms) <= 20  # 12 on average at most; more than 20 once in 100 runs, and the seeds are fixed


@pytest.mark.parametrize(("shift", "sign"), [(2.0, SIGNS[3]), (-2.0, SIGNS[1])])
def test_a_shift_alarms_and_is_named(shift, sign):
    drift = DriftMonitor(stream(50)).extend(stream(40, 1, shift))
    assert drift.is_alarm
    assert drift.sign == sign


def test_a_larger_share_of_defects_alarms():
    monitor = DriftMonitor(stream(50))
    assert not monitor.extend(stream(300, 1)).is_alarm
    drift = monitor.extend(np.where(np.arange(200) % 5, stream(200, 2), 9 + stream(200, 3)))
    assert drift.is_alarm
    assert drift.sign == SIGNS[0]


def test_an_alarm_stays_and_names_its_image():
    monitor = DriftMonitor(stream(50))
    first = monitor.extend(stream(60, 1, 3.0)).alarm_at
    again = DriftMonitor(stream(50))
    assert not again.extend(stream(60, 1, 3.0)[: first - 1]).is_alarm
    assert monitor.extend(stream(500, 2, 3.0)).alarm_at == first
    assert monitor.drift.highest >= -math.log(0.01)


def test_without_calibration_the_stream_is_its_own_reference():
    assert not DriftMonitor([]).extend(stream(200, 1, 3.0)).is_alarm
    assert DriftMonitor([]).extend([*stream(100, 1), *stream(60, 2, 3.0)]).is_alarm


def test_a_restored_monitor_goes_on_as_if_nothing_had_been():
    scores = stream(60, 1, 0.5)
    whole = DriftMonitor(stream(30), delta=0.05, seed=4).extend(scores)
    first = DriftMonitor(stream(30), delta=0.05, seed=4)
    assert DriftMonitor.restore(json.loads(json.dumps(first.state()))).drift == first.drift
    first.extend(scores[:25])
    assert DriftMonitor.restore(json.loads(json.dumps(first.state()))).extend(scores[25:]) == whole


def test_wrong_arguments_are_refused():
    for scores in ([math.nan], [[1.0]]):
        with pytest.raises(ArgumentError, match="calibration_scores: expected a list of finite numbers"):
            DriftMonitor(scores)
    for delta in (0, 1):
        with pytest.raises(ArgumentError, match="delta: expected a number between 0 and 1"):
            DriftMonitor([], delta=delta)
    with pytest.raises(ArgumentError, match="seed: expected a whole number from 0"):
        DriftMonitor([], seed=-1)
    with pytest.raises(ArgumentError, match="score: expected a finite number, got nan"):
        DriftMonitor([]).update(math.nan)
    state = DriftMonitor([1.0]).state()
    for wrong in ({"images": 3}, {"bets": []}, {"delta": 2.0}, {"scores": [math.inf]}):
        with pytest.raises(ArgumentError, match="state"):
            DriftMonitor.restore(state | wrong)
