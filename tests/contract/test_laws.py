"""The laws themselves can fail: a sound double passes all of them, each broken double is caught by its law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from blemish.errors import ArgumentError, NotFittedError
from blemish.methods import Method
from blemish.methods._base import check_batch
from blemish.types import Scores
from contract import laws
from contract.laws import LAWS


@dataclass(kw_only=True)
class Sound(Method):
    """The distance to the mean image, the simplest method that keeps the contract."""

    name: ClassVar[str] = "sound"
    blur: int = 5

    def fit(self, images):
        self.__dict__.pop("mean_", None)
        total, count = 0, 0
        for batch in images:
            check_batch(batch)
            total, count = total + batch.pixels.double().sum(dim=0), count + len(batch)
        if not count:
            raise ArgumentError.about("images", expected="at least 1 normal image", got="none")
        self.mean_ = (total / count).float()
        return self

    def score(self, batch):
        if not hasattr(self, "mean_"):
            raise NotFittedError("Call fit first.")
        check_batch(batch)
        difference = (batch.pixels - self.mean_).abs().mean(dim=1, keepdim=True)
        maps = torch.nn.functional.avg_pool2d(difference, self.blur, 1, self.blur // 2)[:, 0]
        return Scores(maps.amax(dim=(1, 2)), maps)

    def state(self):
        return {"mean": self.mean_}

    def restore(self, state):
        self.mean_ = state["mean"]

    def partial_fit(self, images):
        old = self.mean_
        try:
            Sound.fit(self, images)
        except ArgumentError:
            self.mean_ = old
            raise
        n, m = len(laws.TRAIN), len(images)
        self.mean_ = (old * n + self.mean_ * m) / (n + m)
        return self

    def merge(self, other):
        n, m = len(laws.TRAIN), len(laws.MORE)
        self.mean_ = (self.mean_ * n + other.mean_ * m) / (n + m)
        return self


@dataclass(kw_only=True)
class WorksInConstructor(Sound):
    def __post_init__(self):
        self.kernel_ = torch.ones(self.blur)


class ReturnsNothing(Sound):
    def fit(self, images):
        super().fit(images)


class ColumnOfScores(Sound):
    def score(self, batch):
        scores = super().score(batch)
        return Scores(scores.images[:, None], scores.maps)


class LargerIsNormal(Sound):
    def score(self, batch):
        scores = super().score(batch)
        return Scores(-scores.images, -scores.maps)


class NormalisesByBatch(Sound):
    def score(self, batch):
        scores = super().score(batch)
        return Scores(scores.images / scores.images.max(), scores.maps)


class CountsPosition(Sound):
    def score(self, batch):
        scores = super().score(batch)
        return Scores(scores.images + torch.arange(len(scores.images)) * 0.01, scores.maps)


class LearnsWhileScoring(Sound):
    def score(self, batch):
        scores = super().score(batch)
        self.mean_ = self.mean_ * 0.9 + batch.pixels.mean(dim=0) * 0.1
        return scores


class ChangesItsInput(Sound):
    def score(self, batch):
        scores = super().score(batch)
        batch.pixels.mul_(0.5)
        return scores


class UsesGlobalRandomness(Sound):
    def fit(self, images):
        super().fit(images)
        self.mean_ = self.mean_ + 0.01 * torch.rand(())
        return self


class RemembersEarlierFits(Sound):
    def fit(self, images):
        old = getattr(self, "mean_", None)
        self.mean_ = None
        super().fit(images)
        self.mean_ = self.mean_ if old is None else (old + self.mean_) / 2
        return self


class KeepsTheOldModelAfterAFailure(Sound):
    def fit(self, images):
        old = dict(self.__dict__)
        try:
            return super().fit(images)
        except ArgumentError:
            self.__dict__.update(old)
            raise


class SharesState(Sound):
    shared: ClassVar[dict] = {}

    def fit(self, images):
        super().fit(images)
        SharesState.shared["mean"] = self.mean_
        return self

    def score(self, batch):
        if hasattr(self, "mean_"):
            self.mean_ = SharesState.shared["mean"]
        return super().score(batch)


class SavesRoughly(Sound):
    def state(self):
        return {"mean": self.mean_.half().float()}


class DropsTheRemainder(Sound):
    def fit(self, images):
        kept = [batch for batch in images if len(batch) == images.batch_size]
        super().fit(kept or images)
        return self


class AcceptsAnything(Sound):
    def score(self, batch):
        return Scores(torch.zeros(len(batch)), None)


class ForgetsAtUpdate(Sound):
    def partial_fit(self, images):
        return self.fit(images)


class DropsMerges(Sound):
    def merge(self, other):
        self.mean_ = other.mean_ * 0.5
        return self


class LosesTheModelAtABadUpdate(Sound):
    def partial_fit(self, images):
        old = self.mean_
        n, m = len(laws.TRAIN), len(images)
        self.mean_ = old * n / (n + m)
        for batch in images:
            check_batch(batch)
            self.mean_ = self.mean_ + batch.pixels.sum(dim=0) / (n + m)
        return self


@dataclass(kw_only=True)
class Trains(Sound):
    """What it learned moves a little at each step."""

    steps: int = 3
    rate: float = 0.1
    time_limit: float | None = None

    def fit(self, images):
        super().fit(images)
        if self.time_limit != 0:
            self.mean_ = self.mean_ + self.rate * self.steps
        return self


class TrainsAnyway(Trains):
    def fit(self, images):
        super().fit(images)
        self.mean_ = self.mean_ + 0.1 * self.rate
        return self


UPDATES = [laws.law_update_equals_refit, laws.law_update_comes_close, laws.law_failed_update_changes_nothing]

BROKEN = {
    WorksInConstructor: laws.law_constructor_only_stores,
    ReturnsNothing: laws.law_fit_returns_self,
    ColumnOfScores: laws.law_scores_have_the_right_form,
    LargerIsNormal: laws.law_larger_is_more_anomalous,
    NormalisesByBatch: laws.law_batch_mates_do_not_matter,
    CountsPosition: laws.law_order_does_not_matter,
    LearnsWhileScoring: laws.law_scoring_is_pure,
    ChangesItsInput: laws.law_scoring_is_pure,
    UsesGlobalRandomness: laws.law_a_fit_depends_on_its_images_and_the_seed_alone,
    RemembersEarlierFits: laws.law_a_fit_depends_on_its_images_and_the_seed_alone,
    KeepsTheOldModelAfterAFailure: laws.law_a_failed_fit_leaves_the_method_unfitted,
    SharesState: laws.law_models_do_not_interact,
    SavesRoughly: laws.law_restored_state_scores_identically,
    DropsTheRemainder: laws.law_training_batches_do_not_matter,
    AcceptsAnything: laws.law_errors_name_the_argument,
    ForgetsAtUpdate: laws.law_update_equals_refit,
    DropsMerges: laws.law_update_comes_close,
    LosesTheModelAtABadUpdate: laws.law_failed_update_changes_nothing,
    TrainsAnyway: laws.law_untrained_is_where_it_begins,
}


@pytest.mark.parametrize("law", [*LAWS, *UPDATES], ids=lambda law: law.__name__)
def test_sound_double_keeps(law):
    law(Sound)


def test_sound_double_that_trains_keeps_the_law_of_those():
    laws.law_untrained_is_where_it_begins(Trains)


@pytest.mark.parametrize("double", BROKEN, ids=lambda double: double.__name__)
def test_law_catches(double):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        BROKEN[double](double)


def test_every_law_has_a_double_that_it_catches():
    assert set(BROKEN.values()) == {*LAWS, *UPDATES, laws.law_untrained_is_where_it_begins}
