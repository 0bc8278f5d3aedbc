from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import toy
from blemish.errors import ArgumentError
from blemish.ood import ASH, SCALE, Energy, Head, ReAct
from reference import ood as reference
from toy import TEST, TRAIN

WEIGHT, BIAS = TEST.head.weight, TEST.head.bias


def energies(changed):
    return [reference.head_energy(x, WEIGHT, BIAS) for x in changed]


@pytest.mark.parametrize("percentile", [90.0, 37.0, 100.0])
def test_react_equals_the_paper(percentile):
    threshold = reference.percentile(TRAIN.features, percentile)
    fitted = ReAct(percentile=percentile).fit(TRAIN)
    assert fitted.learned_["threshold"] == pytest.approx(threshold, rel=1e-12)
    paper = energies(reference.react(x, threshold) for x in TEST.features)
    np.testing.assert_allclose(fitted.score(TEST), paper, rtol=1e-12)


def test_react_takes_negative_features():
    shifted = replace(TRAIN, features=TRAIN.features - 3)
    threshold = reference.percentile(shifted.features, 90)
    paper = energies(reference.react(x, threshold) for x in shifted.features)
    np.testing.assert_allclose(ReAct().fit(shifted).score(shifted), paper, rtol=1e-12)


@pytest.mark.parametrize("variant", ["s", "b", "p"])
@pytest.mark.parametrize("percentile", [0.0, 50.0, 65.0, 90.0, 99.0])
def test_ash_equals_the_paper(variant, percentile):
    used = min(percentile, 95.0)  # of 24 channels the largest stays in any case
    paper = energies(reference.ash(x, variant, used) for x in TEST.features)
    np.testing.assert_allclose(ASH(variant=variant, percentile=percentile).score(TEST), paper, rtol=1e-12)


@pytest.mark.parametrize(("variant", "percentile"), [("s", 90.0), ("b", 65.0), ("p", 60.0)])
def test_ash_has_the_papers_percentiles(variant, percentile):
    default = ASH(variant=variant)
    np.testing.assert_array_equal(default.score(TEST), ASH(variant=variant, percentile=percentile).score(TEST))
    assert default.percentile is None


@pytest.mark.parametrize("percentile", [0.0, 50.0, 85.0])
def test_scale_equals_the_paper(percentile):
    paper = energies(reference.scale(x, percentile) for x in TEST.features)
    np.testing.assert_allclose(SCALE(percentile=percentile).score(TEST), paper, rtol=1e-12)


def test_what_removes_nothing_is_the_energy():
    plain = Energy().score(TEST)
    np.testing.assert_allclose(ASH(variant="p", percentile=0).score(TEST), plain, rtol=1e-12)
    np.testing.assert_allclose(ReAct(percentile=100).fit(TEST).score(TEST), plain, rtol=1e-12)


def test_ties_are_kept_together_and_zeros_do_not_count():
    features = np.zeros((1, 24))
    features[0, :5] = [2, 1, 1, 1, 0.5]
    one = replace(toy.rows(TEST, [0]), features=features)
    # 24 - round(24 * 0.9) = 2 are kept, and two more that equal the second.
    scale = np.exp(5.5 / 5)
    expected = reference.head_energy(np.array([2, 1, 1, 1] + [0] * 20) * scale, WEIGHT, BIAS)
    np.testing.assert_allclose(ASH().score(one), [expected], rtol=1e-12)
    # All 24 are kept, of which 5 are not 0.
    expected = reference.head_energy(np.array([1.1] * 5 + [0] * 19), WEIGHT, BIAS)
    np.testing.assert_allclose(ASH(variant="b", percentile=0).score(one), [expected], rtol=1e-12)


@pytest.mark.parametrize("detector", [ASH(), ASH(variant="b"), ASH(variant="p"), SCALE()], ids=str)
def test_features_of_0_give_the_bias(detector):
    dead = replace(toy.rows(TEST, [0, 1]), features=np.zeros((2, 24)))
    np.testing.assert_allclose(detector.score(dead), reference.energy(BIAS), rtol=1e-12)


@pytest.mark.parametrize("detector", [ASH(), ASH(variant="b"), ASH(variant="p"), SCALE()], ids=str)
def test_negative_features_are_refused(detector):
    with pytest.raises(ArgumentError, match=r"outputs.features: expected numbers of at least 0, as a ReLU gives"):
        detector.score(replace(TEST, features=TEST.features - 0.5))


def test_bad_parameters():
    for percentile in (-1, 99.5, float("nan")):
        for detector in (ASH(percentile=percentile), SCALE(percentile=percentile)):
            with pytest.raises(ArgumentError, match=r"percentile: expected a number in \[0, 99\]"):
                detector.score(TEST)
    for percentile in (0, 101):
        with pytest.raises(ArgumentError, match=r"percentile: expected a number in \(0, 100\]"):
            ReAct(percentile=percentile).fit(TRAIN)
    with pytest.raises(ArgumentError, match=r"variant: expected s, b or p, got x"):
        ASH(variant="x").score(TEST)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Head(WEIGHT[:, :20], BIAS), r"outputs.head.weight: expected shape \(3, 24\)"),
        (Head(WEIGHT[:2], BIAS), r"outputs.head.weight: expected shape \(3, 24\)"),
        (Head(WEIGHT, BIAS[:2]), r"outputs.head.bias: expected shape \(3,\)"),
        (Head(WEIGHT * np.nan, BIAS), r"outputs.head.weight: expected finite numbers"),
    ],
)
def test_heads_that_do_not_fit(head, message):
    with pytest.raises(ArgumentError, match=message):
        SCALE().score(replace(TEST, head=head))
