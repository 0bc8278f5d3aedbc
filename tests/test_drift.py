"""Stream p-values and the test martingale, against their definitions."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch

from blemish.calibrate import calibrate
from blemish.drift import LATE, LOOKS, POWERS, SIGNS, DriftMonitor, StreamMonitor, bet, capital, no_bets
from blemish.errors import ArgumentError
from blemish.images.look import looks_of
from blemish.types import Look
from reference import drift as reference
from reference import look as of_look


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


def test_a_monitor_holds_eight_bytes_a_number():
    monitor, images = StreamMonitor([]), list(zip(stream(4000), looks(4000, 1), strict=True))
    monitor.extend(images[:2000])
    tracemalloc.start()
    monitor.extend((score + 0.0, Look(*(value + 0.0 for value in look))) for score, look in images[2000:])  # as if read
    # Of this file and of drift.py alone: a thread of an earlier test may be at work in this process.
    found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*drift.py")])
    tracemalloc.stop()
    held = sum(trace.size for trace in found.traces)
    assert held > 8 * 2000
    assert held < 60 * 4000  # arrays were moved as they grew; lists of numbers would take 200 an image


def test_images_without_a_look_leave_the_looks_as_they_are():
    monitor, known = (
        StreamMonitor(stream(20), looks(20), seed=2),
        [looks(30, 1)[n] if n % 3 else None for n in range(30)],
    )
    monitor.extend(zip(stream(30, 1), known, strict=True))
    alone = DriftMonitor(np.array(looks(20)).T[0], seed=2).extend(look.level for look in known if look is not None)
    assert monitor.monitors["level"].drift == alone


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


def looks(count, seed=0, **shifts):
    """Of which each number is normal, moved by so many deviations."""
    drawn = np.random.default_rng(seed + 50).standard_normal((count, 5))
    return [Look(*row)._replace(**{name: row[Look._fields.index(name)] + by for name, by in shifts.items()})
            for row in drawn]  # fmt: skip


def test_a_look_is_that_of_plain_loops():
    pixels = torch.rand(3, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    pixels[1] = 0.25
    for found, picture in zip(looks_of(pixels), pixels, strict=True):
        assert found == pytest.approx(of_look.look(picture.numpy()), rel=1e-12)
    assert looks_of(pixels * torch.nan) == [None] * 3
    assert list(LOOKS) == list(Look._fields)


def test_a_stream_is_watched_by_the_mean_capital_of_its_numbers():
    known, scores = looks(20), stream(30, 1)
    monitor = StreamMonitor(stream(20), known, delta=0.05, seed=2)
    alone = [DriftMonitor(column, seed=2) for column in (stream(20), *np.array(known).T)]
    capitals, alarms = [], []
    for score, look in zip(scores, looks(30, 1, level=2.0), strict=True):
        drift = monitor.update(score, look)
        found = [one.update(value) for one, value in zip(alone, (score, *look), strict=True)]
        capitals.append(np.mean([math.exp(one.evidence) for one in found]))
        assert drift.evidence == pytest.approx(math.log(capitals[-1]))
        assert drift.p_value == found[0].p_value
        alarms += [drift.images] if capitals[-1] >= 20 else []
    assert (drift.images, drift.alarm_at) == (30, alarms[0])
    assert drift.highest == pytest.approx(math.log(max(capitals)))
    assert list(monitor.evidence_of) == ["score", *Look._fields]


@pytest.mark.parametrize(
    ("shift", "sign"),
    [
        ({"level": -3.0}, "pictures are darker"), ({"contrast": 3.0}, "pictures are richer in contrast"),
        ({"sharpness": -3.0}, "pictures are more blurred"), ({"x": 3.0}, "pictures are further to the right"),
        ({"y": -3.0}, "pictures are further up"), ({"level": 60.0}, "some pictures are much brighter"),
    ],
)  # fmt: skip
def test_a_look_that_changes_alarms_where_scores_do_not(shift, sign):
    fresh = looks(120, 1, **shift)
    if "much" in sign:  # every fourth picture alone
        fresh = [one if i % 4 == 0 else plain for i, (one, plain) in enumerate(zip(fresh, looks(120, 1), strict=True))]
    monitor = StreamMonitor(stream(50), looks(50))
    drift = monitor.extend(zip(stream(120, 1), fresh, strict=True))
    assert (drift.is_alarm, drift.sign) == (True, sign)
    assert not StreamMonitor(stream(50), looks(50)).extend(zip(stream(120, 1), looks(120, 1), strict=True)).is_alarm
    only = StreamMonitor(stream(50), looks(50), scores_only=True)
    assert only.extend(zip(stream(120, 1), fresh, strict=True)) == DriftMonitor(stream(50)).extend(stream(120, 1))


def test_exchangeable_streams_of_looks_seldom_alarm():
    alarms = sum(
        StreamMonitor(stream(20, seed), looks(20, seed), delta=0.2)
        .extend(zip(stream(100, 1000 + seed), looks(100, 1000 + seed), strict=True)).is_alarm
        for seed in range(40)
    )  # fmt: skip
    assert alarms <= 14  # 8 on average at most


def test_a_stream_is_restored_also_from_one_of_scores_alone():
    fresh = list(zip(stream(40, 1), looks(40, 1, x=1.0), strict=True))
    whole = StreamMonitor(stream(30), looks(30), delta=0.05, seed=4)
    first = StreamMonitor.restore(json.loads(json.dumps(whole.state())))
    first.extend(fresh[:20])
    again = StreamMonitor.restore(json.loads(json.dumps(first.state())))
    assert again.extend(fresh[20:]) == whole.extend(fresh)
    of_scores = DriftMonitor(stream(30))
    of_scores.extend(stream(60, 1, 3.0))
    old = StreamMonitor.restore(of_scores.state())
    assert old.drift == of_scores.drift
    assert old.update(0.5, looks(1)[0]) == of_scores.update(0.5)
    state = whole.state()
    for wrong in ({"highest": -1.0}, {"monitors": {"score": {}}}, {"monitors": {"level": of_scores.state()}}):
        with pytest.raises(ArgumentError, match="state"):
            StreamMonitor.restore(state | wrong)
    with pytest.raises(ArgumentError, match="level: expected a finite number, got nan"):
        whole.update(0.5, looks(1)[0]._replace(level=math.nan))


def test_the_looks_of_a_calibration_stay_with_their_scores():
    scores, known, groups = stream(40), looks(40), np.repeat(range(20), 2)
    calibration = calibrate(scores, false_alarm_rate=0.1, groups=groups, looks=known).at(0.2)
    pairs = {(score, *look) for score, look in zip(scores, known, strict=True)}
    assert {(score, *look) for score, look in zip(calibration.scores, calibration.looks, strict=True)} == pairs
    monitor = StreamMonitor.of(calibration, seed=1)
    levels = sorted(calibration.looks[:, 0])
    kept = monitor.monitors["level"].state()["scores"]
    assert (len(kept), set(kept) <= set(levels)) == (20, True)
    assert StreamMonitor.of(calibrate(scores, false_alarm_rate=0.1, kind="loo")).calibration_images == 0
