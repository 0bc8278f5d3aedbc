"""The contract of `blemish.ood.OODDetector` as laws for every registered detector that needs no network."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import numpy as np
import pytest

import toy
from blemish.errors import ArgumentError, NotFittedError
from blemish.metrics.ranking import auroc
from blemish.ood import DETECTORS
from toy import MORE, TEST, TRAIN

# Further parameters under which a detector takes another way through its code.
VARIANTS = {
    "msp": [{"temperature": 4.0}],
    "gen": [{"gamma": 0.5, "top": 2}],
    "last_layer": [{"temperature": 3.0, "bias": False}],
    "ex_grad": [{"norm": "l2"}],
    "ensemble": [
        {"measure": name} for name in ("confidence", "entropy_of_expected", "expected_entropy", "epkl", "mkl")
    ],
    "knn": [{"k": 1}],
    "vim": [{"dimensions": 4}],
    "ash": [{"variant": "b"}, {"variant": "p"}],
}
NAMES = [name for name, detector in DETECTORS.items() if "network" not in detector.needs]
CASES = [(name, parameters) for name in NAMES for parameters in [{}, *VARIANTS.get(name, [])]]
LEARNING = [(name, parameters) for name, parameters in CASES if DETECTORS[name].learns]


def make(name, parameters):
    return DETECTORS[name](**parameters)


def fitted(name, parameters):
    return make(name, parameters).fit(TRAIN)


def everywhere(cases):
    return pytest.mark.parametrize(("name", "parameters"), cases, ids=str)


@everywhere(CASES)
def test_larger_is_more_anomalous(name, parameters):
    assert auroc(fitted(name, parameters).score(TEST), toy.OUTLIER) > 0.9


@everywhere(CASES)
def test_scores_have_the_right_form(name, parameters):
    scores = fitted(name, parameters).score(TEST)
    assert scores.shape == (len(TEST),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


@everywhere(CASES)
def test_parameters_are_keywords_and_stored_unchanged(name, parameters):
    detector = fitted(name, parameters)
    kinds = [parameter.kind for parameter in inspect.signature(type(detector)).parameters.values()]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds)
    stored = {field.name: getattr(detector, field.name) for field in fields(detector)}
    defaults = {field.name: field.default for field in fields(detector)}
    assert stored == defaults | parameters
    learned = set(vars(detector)) - set(stored)
    assert all(name.endswith("_") for name in learned)
    assert bool(learned) == detector.learns


@everywhere(CASES)
def test_batch_mates_and_order_do_not_matter(name, parameters):
    detector = fitted(name, parameters)
    together = detector.score(TEST)
    alone = np.concatenate([detector.score(toy.rows(TEST, [i])) for i in range(len(TEST))])
    backward = detector.score(toy.rows(TEST, slice(None, None, -1)))[::-1]
    np.testing.assert_allclose(alone, together, rtol=1e-11)
    np.testing.assert_allclose(backward, together, rtol=1e-11)


@everywhere(CASES)
def test_scoring_changes_nothing(name, parameters):
    detector = fitted(name, parameters)
    images = toy.rows(TEST, np.arange(len(TEST)))  # a copy
    first = detector.score(images)
    np.testing.assert_array_equal(detector.score(images), first)
    np.testing.assert_array_equal(images.logits, TEST.logits)
    np.testing.assert_array_equal(images.features, TEST.features)
    np.testing.assert_array_equal(np.stack(images.members), np.stack(TEST.members))


@everywhere(CASES)
def test_float32_comes_close(name, parameters):
    exact = fitted(name, parameters).score(TEST)
    train = toy.outputs(toy.features(toy.LABELS, seed=1), np.float32)
    rounded = make(name, parameters).fit(train).score(toy.outputs(TEST.features, np.float32))
    assert rounded.dtype == np.float64
    np.testing.assert_allclose(rounded, exact, rtol=1e-4, atol=1e-5)


@everywhere(CASES)
def test_fit_returns_self(name, parameters):
    detector = make(name, parameters)
    assert detector.fit(TRAIN) is detector


@everywhere(LEARNING)
def test_fit_forgets(name, parameters):
    detector = make(name, parameters).fit(MORE)
    before = detector.score(TEST)
    np.testing.assert_array_equal(detector.fit(TRAIN).score(TEST), fitted(name, parameters).score(TEST))
    assert not np.allclose(detector.score(TEST), before)


@everywhere(LEARNING)
def test_a_detector_that_is_not_fitted_says_so(name, parameters):
    detector = make(name, parameters)
    with pytest.raises(NotFittedError, match=r"`score` before `fit`"):
        detector.score(TEST)
    detector.fit(TRAIN)
    with pytest.raises(ArgumentError):
        detector.fit(replace(TRAIN, features=TRAIN.features * np.nan))
    with pytest.raises(NotFittedError):  # a fit that failed leaves no old one behind
        detector.score(TEST)


@everywhere(LEARNING)
def test_detectors_do_not_interact(name, parameters):
    detector = fitted(name, parameters)
    before = detector.score(TEST)
    make(name, parameters).fit(MORE)
    np.testing.assert_array_equal(detector.score(TEST), before)


def spoiled(part):
    """The test images, and each way to spoil one part of them."""
    values = getattr(TEST, part)
    holes = values.copy()
    holes[3, 1] = np.nan
    endless = values.copy()
    endless[3, 1] = np.inf
    return {
        "NaN": holes,
        "infinity": endless,
        "one axis": values[:, 0],
        "no image": values[:0],
        "whole": values.astype(int),
    }


@everywhere([(name, parameters) for name, parameters in CASES if name != "ensemble"])
@pytest.mark.parametrize("fault", ["NaN", "infinity", "one axis", "no image", "whole"])
def test_bad_arrays_are_refused(name, parameters, fault):
    """What the detector reads: the features where it needs them, otherwise the logits."""
    part = "features" if "features" in DETECTORS[name].needs else "logits"
    with pytest.raises(ArgumentError, match=part):
        fitted(name, parameters).score(replace(TEST, **{part: spoiled(part)[fault]}))


@pytest.mark.parametrize("fault", ["NaN", "infinity", "one axis", "no image", "whole"])
def test_bad_members_are_refused(fault):
    members = (TEST.members[0], spoiled("logits")[fault])
    with pytest.raises(ArgumentError, match=r"outputs.members"):
        make("ensemble", {}).score(replace(TEST, members=members))


@everywhere([(name, parameters) for name, parameters in CASES if "features" in DETECTORS[name].needs])
def test_features_of_other_images_are_refused(name, parameters):
    with pytest.raises(ArgumentError, match=r"features: expected 60 rows, as logits"):
        fitted(name, parameters).score(replace(TEST, features=TEST.features[:59]))


@everywhere(CASES)
def test_missing_parts_are_named(name, parameters):
    detector = make(name, parameters)
    assert detector.missing(TEST) is None
    bare = replace(TEST, features=None, head=None, members=())
    if detector.needs:
        with pytest.raises(ArgumentError, match=rf"outputs: expected .* for {type(detector).__name__}"):
            detector.fit(bare)
    else:
        np.testing.assert_array_equal(detector.score(bare), detector.score(TEST))
