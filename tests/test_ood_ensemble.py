from __future__ import annotations

import numpy as np
import pytest

from blemish.errors import ArgumentError
from blemish.ood import Ensemble, Outputs, ensemble
from blemish.ood.ensemble import epkl, mkl, mutual_information
from reference import ood as reference

MEASURES = ["confidence", "entropy_of_expected", "expected_entropy", "mutual_information", "epkl", "mkl"]
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 2, (4, 20, 6))
EXPECTED = [reference.ensemble(LOGITS[:, i]) for i in range(20)]


@pytest.mark.parametrize("measure", MEASURES)
def test_equals_the_definitions(measure):
    scores = getattr(ensemble, measure)(LOGITS)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [row[measure] for row in EXPECTED], rtol=1e-11)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("gap", [20.0, 37.0, 50.0, 120.0, 400.0])
def test_certain_members_are_not_truncated(measure, gap):
    """Members certain of the same class, and of different ones; log(p + 1e-10) stops at a gap of 23."""
    agreeing, opposed = np.zeros((3, 1, 4)), np.zeros((3, 1, 4))
    agreeing[:, 0, 1] = [gap, gap + 2, gap + 5]
    opposed[[0, 1, 2], 0, [0, 1, 1]] = gap
    logits = np.concatenate([agreeing, opposed], axis=1)
    scores = getattr(ensemble, measure)(logits)
    expected = [reference.ensemble(logits[:, i])[measure] for i in range(2)]
    np.testing.assert_allclose(scores, expected, rtol=1e-11)


def test_identities():
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=2, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    information = (p * (log_p - np.log(mean))).sum(axis=2).mean(axis=0)
    reverse = (mean * (np.log(mean) - log_p)).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(mutual_information(LOGITS), information, rtol=1e-11)
    np.testing.assert_allclose(mkl(LOGITS), reverse, rtol=1e-11)
    np.testing.assert_allclose(epkl(LOGITS) - mutual_information(LOGITS), mkl(LOGITS), rtol=1e-11)
    difference = ensemble.entropy_of_expected(LOGITS) - ensemble.expected_entropy(LOGITS)
    np.testing.assert_allclose(mutual_information(LOGITS), difference, rtol=1e-11)


@pytest.mark.parametrize("members", [1, 3, 7])
def test_members_that_agree_know_everything(members):
    same = np.repeat(LOGITS[:1], members, axis=0)
    for measure in MEASURES[3:]:
        np.testing.assert_allclose(getattr(ensemble, measure)(same), 0, atol=1e-15)
        assert (getattr(ensemble, measure)(same) >= 0).all()
    one = reference.ensemble(LOGITS[:1, 0])
    for measure in MEASURES[:3]:
        np.testing.assert_allclose(getattr(ensemble, measure)(same)[0], one[measure], rtol=1e-11)


@pytest.mark.parametrize("measure", MEASURES)
def test_larger_is_more_uncertain(measure):
    sure, unsure = np.zeros((3, 1, 4)), np.zeros((3, 1, 4))
    sure[:, 0, 1] = [9, 10, 11]
    unsure[[0, 1, 2], 0, [0, 1, 2]] = 3
    scores = getattr(ensemble, measure)(np.concatenate([sure, unsure], axis=1))
    assert scores[1] > scores[0]


@pytest.mark.parametrize("measure", MEASURES)
def test_detector_hands_its_measure_on(measure):
    outputs = Outputs(LOGITS[0], members=tuple(LOGITS))
    np.testing.assert_array_equal(Ensemble(measure=measure).score(outputs), getattr(ensemble, measure)(LOGITS))


def test_bad_arguments():
    outputs = Outputs(LOGITS[0], members=tuple(LOGITS))
    with pytest.raises(ArgumentError, match=r"measure: expected confidence, .* or mkl, got best"):
        Ensemble(measure="best").score(outputs)
    with pytest.raises(ArgumentError, match=r"outputs: expected an ensemble of at least 2 networks for Ensemble"):
        Ensemble().score(Outputs(LOGITS[0]))
    with pytest.raises(ArgumentError, match=r"outputs.members: expected shape \(20, 6\), as logits"):
        Ensemble().score(Outputs(LOGITS[0], members=(LOGITS[0], LOGITS[1, :5])))
    with pytest.raises(ArgumentError, match=r"outputs.members: expected finite numbers"):
        Ensemble().score(Outputs(LOGITS[0], members=(LOGITS[0], LOGITS[1] * np.nan)))
    with pytest.raises(ArgumentError, match=r"logits: expected a float array of shape \(members, n, classes\)"):
        epkl(LOGITS[0])
