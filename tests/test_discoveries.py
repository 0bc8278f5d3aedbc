"""Alarms of a batch: e-BH by its definition in plain loops, for each kind of p-value; lines and refusals."""

from __future__ import annotations

import json
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish.calibrate import calibrate
from blemish.cli import app
from blemish.detector import Detector
from blemish.discoveries import benjamini_hochberg, choose_alarms
from blemish.errors import ArgumentError, CalibrationError, NotFittedError
from blemish.images.preprocess import Preprocess
from blemish.methods import KNN
from blemish.promises import plus_bound
from blemish.report.lines import BatchLine


def loo(n, **more):
    return calibrate(range(n), false_alarm_rate=0.2, kind="loo", **more)


def by_definition(p_values, level, n, bound):
    """e-BH on e = 1{p <= t} / bound: the largest k for which k e-values are at least m / (k level) raise alarms."""
    m, rank = len(p_values), 1
    while rank < n and m * bound(rank + 1) <= level:
        rank += 1
    e = [(1 / bound(rank) if p * (n + 1) <= rank + 1e-9 else 0.0) for p in p_values]
    found = [False] * m
    for k in range(1, m + 1):
        limit = m / (k * level)
        if sum(value >= limit * (1 - 1e-9) for value in e) >= k:
            found = [value >= limit * (1 - 1e-9) for value in e]
    return found


@pytest.mark.parametrize("n", [19, 200])
@pytest.mark.parametrize("kind", ["loo", "cross", "full", "groups"])
def test_dependent_p_values_get_the_alarms_of_e_values(kind, n):
    folds = np.arange(n) % 5 if kind == "cross" else None
    groups = [*range(n - 1), n - 2, n - 1] if kind == "groups" else None
    made = calibrate(
        range(n + (kind == "groups")), false_alarm_rate=0.2, kind="split" if kind == "groups" else kind, folds=folds,
        groups=groups,
    )  # fmt: skip
    bound = {
        "loo": lambda a: plus_bound(a, n, folds=n),
        "cross": lambda a: plus_bound(a, n, folds=5, equal=n % 5 == 0),
    }.get(kind, lambda a: a / (n + 1))
    random, seen = np.random.default_rng(0), set()
    for m in (1, 4, 30):
        for level in (0.1, 0.5):
            for least in (1, 3):
                p_values = random.integers(least, n + 2, m) / (n + 1)
                p_values[: m // 2] = least / (n + 1)
                found = choose_alarms(p_values, level, made)
                assert list(found.alarms) == by_definition(p_values.tolist(), level, n, bound)
                assert found.rule == "e_values"
                assert sum(found.alarms) == 0 or sum(found.alarms) >= found.needed
                seen.add(any(found.alarms))
    assert seen == ({False} if (kind, n) == ("cross", 19) else {False, True})


def test_held_out_images_get_benjamini_and_hochbergs_rule():
    made, p_values = calibrate(range(99), false_alarm_rate=0.1), np.array([1, 2, 2, 9, 40, 100]) / 100
    found = choose_alarms(p_values, 0.1, made)
    assert (found.rule, list(found.alarms)) == ("benjamini_hochberg", benjamini_hochberg(p_values, 0.1).tolist())
    assert choose_alarms(p_values, 0.1, made, are_its_own=False).rule == "e_values"  # Bonferroni's of parts


def test_how_many_it_takes_is_said_where_few_images_calibrate():
    assert choose_alarms([1 / 20] * 8, 0.2, calibrate(range(19), false_alarm_rate=0.2)).needed == 2
    two, one = (choose_alarms([1 / 20] * k + [1.0] * (8 - k), 0.2, loo(19)) for k in (2, 1))
    assert (sum(two.alarms), sum(one.alarms), one.needed) == (2, 0, 2)
    assert "it takes 2 striking ones or more" in one.said("images")
    assert choose_alarms([], 0.2, loo(19)).alarms == ()


def test_the_share_of_false_alarms_of_left_out_images_stays_below_the_level():
    """Nearest neighbours, each learned one left out; 10 of 40 new ones are far away."""
    random, level, shares, hits = np.random.default_rng(0), 0.2, [], []
    for _ in range(150):
        learned, new = random.normal(size=(60, 2)), random.normal(size=(40, 2))
        new[30:] += 6
        own = np.linalg.norm(learned[:, None] - learned, axis=2) + np.diag(np.full(60, np.inf))
        made = calibrate(own.min(axis=1), false_alarm_rate=0.2, kind="loo")
        p_values = made.p_values(np.linalg.norm(new[:, None] - learned, axis=2).min(axis=1))
        alarms = np.array(choose_alarms(p_values, level, made).alarms)
        shares.append(alarms[:30].sum() / max(1, alarms.sum()))
        hits.append(alarms[30:].mean())
    assert np.mean(shares) <= level
    assert np.mean(hits) > 0.9


def test_what_cannot_be_promised_is_refused():
    with pytest.raises(CalibrationError, match=r"nothing is guaranteed of single ones \(a coreset\)\. Calibrate with"):
        choose_alarms([0.1], 0.1, loo(19, unproven="a coreset"))
    with pytest.raises(ArgumentError, match=r"level: expected a number between 0 and 1, got 0\.0"):
        choose_alarms([0.1], 0.0, loo(19))
    with pytest.raises(ArgumentError, match=r"p_values: expected numbers in \(0, 1\]"):
        choose_alarms([0.0], 0.1, loo(19))
    with pytest.raises(NotFittedError, match=r"Detector\.choose_alarms needs a calibrated detector"):
        Detector().choose_alarms([], 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-four normal pictures, and a batch of four, two of which are bright."""
    root, random = tmp_path_factory.mktemp("batch"), np.random.default_rng(0)
    for i in range(28):
        (place := root / ("train" if i < 24 else "new")).mkdir(exist_ok=True)
        pixels = (random.normal(90 if i < 26 else 220, 12, (48, 48, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    return root


@pytest.mark.parametrize("kind", ["split", "loo"])
def test_the_command_writes_a_line_for_the_batch(folder, tmp_path, kind):
    model, run = tmp_path / "m", CliRunner().invoke
    Detector(
        method=KNN(backbone="filters"), preprocess=Preprocess(48), calibration=kind, false_alarm_rate=0.2
    ).fit(folder / "train").save(model)  # fmt: skip
    asked = ["predict", str(model), str(folder / "new"), "--exit-code", "--fdr"]
    found = run(app, [*asked, "0.4"])
    assert found.exit_code == 3, found.output
    *lines, last = map(json.loads, found.stdout.splitlines())
    assert list(last) == list(get_type_hints(BatchLine))
    bright = [str(folder / "new" / f"{i}.png") for i in (26, 27)]
    assert (last["batch"], last["alarms"], last["false_discovery_rate"]) == (4, bright, 0.4)
    assert last["rule"] == ("benjamini_hochberg" if kind == "split" else "e_values")
    assert [line["image"] for line in lines] == [str(folder / "new" / f"{i}.png") for i in range(24, 28)]
    assert "2 of 4 images raise an alarm; on average over batches at most 40 % of the alarms are false" in found.stderr
    out = tmp_path / "out"
    for _ in range(2):  # of an earlier run the lines stay, and count
        again = run(app, [*asked, "0.01", "--out", str(out)])
        assert again.exit_code == 0, again.output  # images are anomalous, but the batch has no alarm
        batch = json.loads((out / "batch.json").read_text())
        assert (batch["batch"], batch["alarms"]) == (4, [])
    refused = run(app, [*asked, "2"])
    assert refused.exit_code == 1
    assert "--fdr: expected a number between 0 and 1, got 2.0" in refused.output + str(refused.exception)


def test_a_level_near_zero_alarms_at_nothing():
    held_out = calibrate(range(99), false_alarm_rate=0.05)
    found = choose_alarms([0.01, 0.5], 5e-324, held_out)
    assert (found.alarms, found.needed > 2**52) == ((False, False), True)
