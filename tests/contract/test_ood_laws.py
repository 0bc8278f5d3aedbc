"""The laws themselves can fail: sound doubles pass all of them, each broken double is caught by its law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest

from blemish.errors import ArgumentError, NotFittedError
from blemish.ood import OODDetector
from blemish.ood._base import read_features, read_logits
from blemish.parameters import parameter
from contract import ood_laws as laws
from contract.ood_laws import LAWS


@dataclass(kw_only=True)
class Sound(OODDetector):
    """How far the largest logit lies below its mean in the fit: learns from logits alone.

    Parameters
    ----------
    scale: divides the logits.
    """

    name: ClassVar[str] = "sound"
    forms: ClassVar[Mapping[str, str]] = {"mean": "float64"}

    scale: float = parameter(1.0, above=0)

    def _learn(self, outputs, labels):
        return {"mean": read_logits(outputs.logits).max(axis=1).mean(dtype=np.float64)}

    def _score(self, outputs):
        return (self.learned_["mean"] - read_logits(outputs.logits).astype(np.float64).max(axis=1)) / self.scale


@dataclass(kw_only=True)
class SoundWithFeatures(OODDetector):
    """Minus the largest feature; learns nothing."""

    name: ClassVar[str] = "sound_with_features"
    needs: ClassVar[frozenset] = frozenset({"features"})

    def _score(self, outputs):
        return -read_features(outputs)[:, :18].astype(np.float64).max(axis=1)


@dataclass(kw_only=True)
class WorksInConstructor(Sound):
    def __post_init__(self):
        self.divisor = float(self.scale)


class RefusesNoName(Sound):
    def set_params(self, **parameters):
        vars(self).update(parameters)
        return self


class CopiesAreTied(Sound):
    def __deepcopy__(self, memo):
        return self


class ReturnsNothing(Sound):
    def fit(self, outputs, labels=None):
        super().fit(outputs, labels)


class ColumnOfScores(Sound):
    def score(self, outputs):
        return super().score(outputs)[:, None]


class LargerIsNormal(Sound):
    def score(self, outputs):
        return -super().score(outputs)


class NormalisesByBatch(Sound):
    def score(self, outputs):
        scores = super().score(outputs)
        return scores / np.abs(scores).max()


class CountsPosition(Sound):
    def score(self, outputs):
        scores = super().score(outputs)
        return scores + 0.01 * np.arange(len(scores))


class LearnsWhileScoring(Sound):
    def score(self, outputs):
        scores = super().score(outputs)
        self.learned_["mean"] = self.learned_["mean"] * 0.9 + 1
        return scores


class ChangesItsInput(Sound):
    def score(self, outputs):
        scores = super().score(outputs)
        outputs.logits[:] = 0
        return scores


class UsesGlobalRandomness(Sound):
    def _learn(self, outputs, labels):
        return {"mean": super()._learn(outputs, labels)["mean"] + np.random.normal()}


class RoundsItsScores(Sound):
    def score(self, outputs):
        return super().score(outputs).astype(np.float32)


class LosesDigits(Sound):
    def _score(self, outputs):
        is_exact = outputs.logits.dtype == np.float64
        return super()._score(outputs if is_exact else replace(outputs, logits=outputs.logits.astype(np.float16)))


class ScoresWithoutAFit(Sound):
    def score(self, outputs):
        return super().score(outputs) if hasattr(self, "learned_") else np.zeros(len(outputs))


@dataclass(kw_only=True)
class LearnsInSecret(SoundWithFeatures):
    last: list = field(default_factory=list, init=False, repr=False, compare=False)

    def fit(self, outputs, labels=None):
        self.last.append(float(outputs.features.mean()))
        return super().fit(outputs, labels)

    def score(self, outputs):
        return super().score(outputs) + sum(self.last)


class RemembersEarlierFits(Sound):
    def fit(self, outputs, labels=None):
        old = vars(self).get("learned_", {"mean": 0.0})
        super().fit(outputs, labels)
        self.learned_["mean"] = self.learned_["mean"] + old["mean"]
        return self


class KeepsTheOldModelAfterAFailure(Sound):
    def fit(self, outputs, labels=None):
        old = dict(vars(self))
        try:
            return super().fit(outputs, labels)
        except ArgumentError:
            vars(self).update(old)
            raise


class SharesState(Sound):
    shared: ClassVar[dict] = {}

    def fit(self, outputs, labels=None):
        super().fit(outputs, labels)
        SharesState.shared["learned"] = self.learned_
        return self

    def score(self, outputs):
        if hasattr(self, "learned_"):
            self.learned_ = SharesState.shared["learned"]
        return super().score(outputs)


class HandsOutRoughly(Sound):
    def state(self):
        return {name: tensor.float() for name, tensor in super().state().items()}

    def restore(self, state):
        super().restore({name: tensor.double() for name, tensor in state.items()})


class TakesAnyState(Sound):
    def restore(self, state):
        self._keep({name: tensor.numpy() for name, tensor in state.items()} | {"mean": 0.0})


class SavesOtherParameters(Sound):
    def save(self, path):
        other = Sound(scale=3.0)
        other.restore(self.state())
        other.save(path)


class SaysNotWhatIsMissing(SoundWithFeatures):
    def missing(self, outputs):
        return None


class TakesAnyArray(Sound):
    def score(self, outputs):
        if not hasattr(self, "learned_"):
            raise NotFittedError("score needs a fitted detector")
        return np.zeros(len(outputs))


class TakesAnyParameter(Sound):
    def _check(self, outputs):
        pass


@dataclass(kw_only=True)
class SaysNothing(Sound):
    more: float = 1.0


BROKEN = {
    WorksInConstructor: laws.law_constructor_only_stores,
    RefusesNoName: laws.law_parameters_are_got_and_set_by_name,
    CopiesAreTied: laws.law_copies_are_alike,
    ReturnsNothing: laws.law_fit_returns_self,
    ColumnOfScores: laws.law_scores_have_the_right_form,
    RoundsItsScores: laws.law_scores_have_the_right_form,
    LargerIsNormal: laws.law_larger_is_more_anomalous,
    NormalisesByBatch: laws.law_batch_mates_do_not_matter,
    CountsPosition: laws.law_order_does_not_matter,
    LearnsWhileScoring: laws.law_scoring_is_pure,
    ChangesItsInput: laws.law_scoring_is_pure,
    UsesGlobalRandomness: laws.law_same_fit_same_numbers,
    LosesDigits: laws.law_float32_comes_close,
    ScoresWithoutAFit: laws.law_learning_is_declared,
    LearnsInSecret: laws.law_learning_is_declared,
    RemembersEarlierFits: laws.law_fit_forgets,
    KeepsTheOldModelAfterAFailure: laws.law_a_failed_fit_leaves_the_detector_unfitted,
    SharesState: laws.law_detectors_do_not_interact,
    HandsOutRoughly: laws.law_restored_state_scores_identically,
    TakesAnyState: laws.law_foreign_state_is_refused,
    SavesOtherParameters: laws.law_saved_detector_scores_identically,
    SaysNotWhatIsMissing: laws.law_missing_parts_are_named,
    TakesAnyArray: laws.law_bad_arrays_are_refused,
    TakesAnyParameter: laws.law_bad_parameters_are_named,
    SaysNothing: laws.law_parameters_are_documented,
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("double", [Sound, SoundWithFeatures], ids=lambda double: double.__name__)
def test_sound_double_keeps(double, law):
    law(double)


@pytest.mark.parametrize("double", BROKEN, ids=lambda double: double.__name__)
def test_law_catches(double):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        BROKEN[double](double)


def test_every_law_has_a_double_that_it_catches():
    assert set(BROKEN.values()) == set(LAWS)
