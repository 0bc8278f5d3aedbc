"""The contract of `blemish.ood.OODDetector` as executable laws.

Each law takes `make`, which builds a fresh unfitted detector with the same parameters, and raises AssertionError where
the detector breaks it. `test_ood_detectors.py` applies every law to every registered detector; `test_ood_laws.py` shows
that each law catches a detector which breaks it.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import sklearn.base
import torch

import toy
from blemish.errors import ArgumentError, NotFittedError
from blemish.metrics.ranking import auroc
from blemish.ood import DETECTORS, OODDetector, load_detector
from blemish.parameters import parameters_of
from toy import MORE, TEST, TRAIN

Make = Callable[[], OODDetector]
FAULTS = {
    "NaN": lambda values: np.where(np.arange(values.size).reshape(values.shape) == 10, np.nan, values),
    "infinity": lambda values: np.where(np.arange(values.size).reshape(values.shape) == 10, np.inf, values),
    "one axis": lambda values: values[:, 0],
    "no image": lambda values: values[:0],
    "whole numbers": lambda values: values.astype(int),
}


def spoiled(outputs, part, fault):
    """The same with a fault in one part."""
    values = getattr(outputs, part)
    if part == "members":
        return replace(outputs, members=(values[0], FAULTS[fault](values[1])))
    return replace(outputs, **{part: FAULTS[fault](values)})


def read_by(detector):
    """The part that the detector reads: what it needs, otherwise the logits."""
    return next((part for part in ("members", "features") if part in detector.needs), "logits")


def law_constructor_only_stores(make: Make) -> None:
    detector = make()
    stored = {field.name: getattr(detector, field.name) for field in fields(detector)}
    assert vars(detector) == stored
    kinds = [parameter.kind for parameter in inspect.signature(type(detector)).parameters.values()]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds)
    assert type(detector)(**stored) == detector


def law_parameters_are_got_and_set_by_name(make: Make) -> None:
    detector, again = make(), type(make())()
    assert detector.get_params() == {name: getattr(detector, name) for name in parameters_of(type(detector))}
    assert again.set_params(**detector.get_params()) is again
    assert again == detector
    with pytest.raises(ArgumentError, match=r"set_params: expected a parameter out of .*, got no_such"):
        again.set_params(no_such=1)


def law_copies_are_alike(make: Make) -> None:
    detector = make().fit(TRAIN)
    cloned = sklearn.base.clone(detector)
    assert cloned == detector
    assert set(vars(cloned)) == {field.name for field in fields(cloned)}, "a clone is not fitted"
    copied = copy.deepcopy(detector)
    scores = detector.score(TEST)
    detector.fit(MORE)
    np.testing.assert_array_equal(copied.score(TEST), scores)


def law_fit_returns_self(make: Make) -> None:
    detector = make()
    assert detector.fit(TRAIN) is detector


def law_scores_have_the_right_form(make: Make) -> None:
    scores = make().fit(TRAIN).score(TEST)
    assert scores.shape == (len(TEST),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


def law_larger_is_more_anomalous(make: Make) -> None:
    assert auroc(make().fit(TRAIN).score(TEST), toy.OUTLIER) > 0.9


def law_batch_mates_do_not_matter(make: Make) -> None:
    detector = make().fit(TRAIN)
    alone = np.concatenate([detector.score(toy.rows(TEST, [i])) for i in range(len(TEST))])
    np.testing.assert_allclose(alone, detector.score(TEST), rtol=1e-11)


def law_order_does_not_matter(make: Make) -> None:
    detector = make().fit(TRAIN)
    backward = detector.score(toy.rows(TEST, slice(None, None, -1)))[::-1]
    np.testing.assert_allclose(backward, detector.score(TEST), rtol=1e-11)


def law_scoring_is_pure(make: Make) -> None:
    detector = make().fit(TRAIN)
    images = toy.rows(TEST, np.arange(len(TEST)))  # a copy
    before = {name: tensor.clone() for name, tensor in detector.state().items()}
    first = detector.score(images)
    np.testing.assert_array_equal(detector.score(images), first)
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state().items())
    for part in ("logits", "features", "members", "pixels"):
        np.testing.assert_array_equal(np.stack(getattr(images, part)), np.stack(getattr(TEST, part)))


def law_same_fit_same_numbers(make: Make) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = make().fit(TRAIN).score(TEST)
    np.random.seed(1)  # a detector may not depend on a global random state
    torch.manual_seed(1)
    np.testing.assert_array_equal(make().fit(TRAIN).score(TEST), first)


def law_float32_comes_close(make: Make) -> None:
    train = toy.outputs(toy.features(toy.LABELS, seed=1), np.float32)
    rounded = make().fit(train).score(toy.outputs(TEST.features, np.float32))
    assert rounded.dtype == np.float64
    np.testing.assert_allclose(rounded, make().fit(TRAIN).score(TEST), rtol=1e-4, atol=1e-5)


def law_learning_is_declared(make: Make) -> None:
    """A detector that says it learns scores by what it learned; any other scores the same without a fit."""
    detector = make().fit(MORE)
    others = detector.score(TEST)
    if detector.learns:
        with pytest.raises(NotFittedError, match=r"score needs a fitted detector"):
            make().score(TEST)
        with pytest.raises(NotFittedError, match=r"state needs a fitted detector"):
            make().state()
        assert not np.allclose(detector.fit(TRAIN).score(TEST), others)
        assert detector.state().keys() == detector.forms.keys()
    else:
        np.testing.assert_array_equal(make().score(TEST), others)
        assert detector.state() == {}


def law_fit_forgets(make: Make) -> None:
    detector = make().fit(MORE).fit(TRAIN)
    np.testing.assert_array_equal(detector.score(TEST), make().fit(TRAIN).score(TEST))


def law_a_failed_fit_leaves_the_detector_unfitted(make: Make) -> None:
    detector = make().fit(TRAIN)
    if detector.learns:
        with pytest.raises(ArgumentError):
            detector.fit(spoiled(TRAIN, read_by(detector), "NaN"))
        with pytest.raises(NotFittedError):
            detector.score(TEST)


def law_detectors_do_not_interact(make: Make) -> None:
    detector = make().fit(TRAIN)
    before = detector.score(TEST)
    make().fit(MORE)
    np.testing.assert_array_equal(detector.score(TEST), before)


def law_restored_state_scores_identically(make: Make) -> None:
    detector, fresh = make().fit(TRAIN), make()
    fresh.restore({name: tensor.clone() for name, tensor in detector.state().items()})
    np.testing.assert_array_equal(fresh.score(TEST), detector.score(TEST))
    for name, tensor in fresh.state().items():
        assert tensor.dtype == detector.state()[name].dtype
        assert torch.equal(tensor, detector.state()[name])


def law_foreign_state_is_refused(make: Make) -> None:
    detector = make().fit(TRAIN)
    wrong = [detector.state() | {"foreign": torch.zeros(3)}]
    for name, tensor in detector.state().items():
        other = tensor.to(torch.float16) if tensor.is_floating_point() else tensor.to(torch.int16)
        for instead in (other, tensor[None]):
            wrong.append(detector.state() | {name: instead})
        if tensor.is_floating_point():
            wrong.append(detector.state() | {name: tensor * torch.nan})
        wrong.append({key: value for key, value in detector.state().items() if key != name})
    for state in wrong:
        with pytest.raises(ArgumentError, match=r"^state"):
            make().restore(state)


def law_saved_detector_scores_identically(make: Make) -> None:
    detector = make().fit(TRAIN)
    kind = type(detector)
    with tempfile.TemporaryDirectory() as folder, patch.dict(DETECTORS, {kind.name: kind}):
        path = Path(folder) / "detector.safetensors"
        detector.save(path)
        loaded = load_detector(path)
    assert type(loaded) is kind
    assert loaded == detector
    np.testing.assert_array_equal(loaded.score(TEST), detector.score(TEST))


def law_missing_parts_are_named(make: Make) -> None:
    detector = make().fit(TRAIN)
    assert detector.missing(TEST) is None
    bare = replace(TEST, features=None, head=None, members=(), pixels=None, classifier=None)
    if detector.needs:
        for use in (detector.score, detector.fit):
            with pytest.raises(ArgumentError, match=rf"outputs: expected .* for {type(detector).__name__}"):
                use(bare)
    else:
        np.testing.assert_array_equal(detector.score(bare), detector.score(TEST))


def law_bad_arrays_are_refused(make: Make) -> None:
    detector = make().fit(TRAIN)
    if "network" in detector.needs:
        return  # it reads pixels, as the network takes them
    part = read_by(detector)
    for fault in FAULTS:
        with pytest.raises(ArgumentError, match=part):
            detector.score(spoiled(TEST, part, fault))
    if part == "features":
        with pytest.raises(ArgumentError, match=r"features: expected 60 rows, as logits"):
            detector.score(replace(TEST, features=TEST.features[:59]))


def law_bad_parameters_are_named(make: Make) -> None:
    """Values of a wrong type, at `fit` and at `score`; the constructor takes them, and `set_params` does."""
    for name in parameters_of(type(make())):
        for wrong in (object(), "no such value", [None], {}, np.ones(2), torch.ones(2)):
            with pytest.raises(ArgumentError, match=rf"^{name}: expected .*, got .*\. (The default is|Write) "):
                type(make())(**{name: wrong}).fit(TRAIN)
            with pytest.raises(ArgumentError, match=rf"^{name}: expected "):
                make().fit(TRAIN).set_params(**{name: wrong}).score(TEST)


def law_parameters_are_documented(make: Make) -> None:
    for parameter in parameters_of(type(make())).values():
        assert parameter.meaning, f"the docstring says nothing about {parameter.name}"


LAWS = [value for name, value in sorted(globals().items()) if name.startswith("law_")]
