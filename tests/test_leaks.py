"""What is held out never enters a fit, and a threshold comes from nothing else: seen by a method that takes notes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from blemish.detector import Detector
from blemish.errors import ArgumentError, NotFittedError
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_arrays
from blemish.methods import Method
from blemish.types import Scores


def numbered(first, last):
    """Image i is all grey value i, but for one pixel (of one colour, it would be refused), and named by it."""
    numbers = range(first, last)
    images = [np.full((8, 8), i, np.uint8) for i in numbers]
    for image in images:
        image[0, 0] ^= 1
    return from_arrays(images, names=[f"{i}" for i in numbers])


ALL, MORE, FRESH = numbered(0, 40), numbered(100, 110), numbered(200, 220)


class TakesNotes(Method):
    """The brighter, the more anomalous."""

    name: ClassVar[str] = "takes_notes"

    def __init__(self):
        self.learned, self.scored, self.broken = [], [], False

    def fit(self, images):
        self.learned = []
        return self.partial_fit(images)

    def partial_fit(self, images):
        for batch in images:
            self.learned += batch.names
            if self.broken:
                raise ArgumentError.about("images", expected="a whole method", got="a broken one")
        return self

    def merge(self, other):
        return self

    def score(self, batch):
        self.scored += batch.names
        return Scores(batch.pixels.mean(dim=(1, 2, 3)), None)

    def state(self):
        return {}

    def restore(self, state):
        pass


def detector(**settings):
    given = {"preprocess": Preprocess(32), "held_out": 0.25, "false_alarm_rate": 0.2, "seed": 3}
    return Detector(method=TakesNotes(), **{**given, **settings})


def grey(calibration):
    return np.round(calibration.scores * 255).astype(int).tolist()


def test_a_split_keeps_the_order_of_both_parts_and_loses_nothing():
    rest, held_out = ALL.split(0.25, seed=3)
    numbers = [[int(name) for name in part.names] for part in (rest, held_out)]
    assert [sorted(part) for part in numbers] == numbers
    assert sorted([*numbers[0], *numbers[1]]) == list(range(40))
    assert len(numbers[1]) == 10
    assert len(numbered(0, 39).split(0.25, seed=0)[1]) == 10  # 9.75: the nearest number, not the one below
    assert [np.asarray(held_out.load(i)).flat[-1] for i in range(10)] == numbers[1]


def test_what_is_held_out_is_not_learned_and_nothing_else_is_calibrated_on():
    made = detector().fit(ALL)
    rest, held_out = ALL.split(0.25, seed=3)
    assert made.method.learned == list(rest.names)
    assert made.method.scored == list(held_out.names)
    assert grey(made.calibration_) == [int(name) for name in held_out.names]
    assert made.images_ == 30


def test_the_seed_chooses_what_is_held_out():
    held_out = [detector(seed=seed).fit(ALL).method.scored for seed in (3, 4)]
    assert held_out[0] != held_out[1]


def test_without_calibration_everything_is_learned():
    made = detector(calibration="none").fit(ALL)
    assert made.method.learned == list(ALL.names)
    assert made.method.scored == []


def test_an_update_learns_the_new_images_and_calibrates_on_others():
    made = detector().fit(ALL)
    before = len(made.method.learned)
    made.method.scored.clear()
    made.update(MORE, held_out=FRESH)
    assert made.method.learned[before:] == list(MORE.names)
    assert made.method.scored == list(FRESH.names)
    assert grey(made.calibration_) == list(range(200, 220))
    assert made.images_ == 40
    made.update(MORE)
    assert made.calibration_ is None


def test_a_fit_that_fails_leaves_no_threshold_of_the_last_one(tmp_path):
    made = detector().fit(ALL)
    made.method.broken = True
    with pytest.raises(ArgumentError, match="a broken one"):
        made.fit(ALL)
    assert (made.calibration_, made.images_) == (None, 0)
    with pytest.raises(NotFittedError, match="needs a fitted detector"):
        made.save(tmp_path / "m")


def test_a_scored_image_changes_no_threshold():
    made = detector().fit(ALL)
    before = made.calibration_.threshold
    assert [decision.is_anomalous for decision in made.predict(FRESH)] == [True] * 20
    assert made.calibration_.threshold == before


def test_the_file_says_what_was_asked_for():
    made = detector(tile=16, overlap=4, batch_size=5).fit(ALL)
    assert made.recalibrate(0.5).false_alarm_rate == 0.5
    assert made.manifest()["detector"] == {
        "preprocess": {"resize": 32, "crop": None, "white_level": None},
        "tile": 16,
        "overlap": 4,
        "calibration": "split",
        "folds": 10,
        "min_area": 1,
        "part_by": None,
        "held_out": 0.25,
        "false_alarm_rate": 0.5,
        "certain": None,
        "seed": 3,
        "batch_size": 5,
    }
