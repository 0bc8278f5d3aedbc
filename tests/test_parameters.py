"""One description of parameters: what it reads, what it refuses, and in which words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from blemish.errors import ArgumentError
from blemish.methods import KNN, SPADE, SVDD, PaDiM, PatchCore
from blemish.methods.registry import METHODS
from blemish.ood import ODIN, Gradient
from blemish.parameters import (
    Parameterised,
    as_plain,
    check_parameters,
    parameter,
    parameters_of,
    plain_parameters,
    read_plain,
    read_texts,
    split_settings,
    split_spec,
)  # fmt: skip
from contract.laws import Images
from small import BACKBONE, small_pixels


class Engine:
    """Has a name, as backbones do."""

    name = "diesel"


@dataclass(kw_only=True)
class Car(Parameterised):
    """A car.

    Parameters
    ----------
    wheels: how many,
        on the ground.
    speed, limit: in m/s; `limit` is the most.
    colour: of the paint.
    parts: that are spare.
    size: in pixels, or height and width.
    engine: or its name.
    garage: where it stands.
    """

    wheels: int = parameter(4, at_least=3, at_most=6)
    speed: float = parameter(1.5, above=0)
    limit: float | None = parameter(None, at_least=0, below=100)
    colour: Literal["red", "blue", "none"] = "red"
    parts: tuple[Literal["door", "tyre"], ...] | None = None
    size: int | tuple[int, int] = parameter(8, multiple_of=4)
    fast: bool = False
    engine: str | Engine = "diesel"
    garage: str | Path | None = parameter(None, role="place", option=True)
    numbers: tuple[float, ...] = parameter((1.0,), least=1, above=0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("wheels=4", 4), ("wheels=+3", 3), ("speed=1e-3", 0.001), ("speed=2", 2.0), ("limit=none", None),
        ("limit=null", None), ("limit=0", 0.0), ("colour=none", "none"), ("parts=door+tyre", ("door", "tyre")),
        ("parts=door", ("door",)), ('parts=["tyre", "door"]', ("tyre", "door")), ("parts=none", None), ("size=16", 16),
        ("size=16+8", (16, 8)), ("fast=true", True), ("fast=False", False), ("engine=4", "4"), ("garage=/a=b", "/a=b"),
        ("numbers=1,2.5", (1.0, 2.5)), ("numbers=3", (3.0,)),
    ],
)  # fmt: skip
def test_texts_become_values_of_the_annotated_type(text, value):
    (found,) = read_texts(Car, split_settings([text], of="--set"), of="--set").values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wheels=2", r"--set, wheels: expected a whole number in \[3, 6\], got 2\. The default is 4\."),
        ("wheels=4.0", "wheels: expected a whole number"),
        ("wheels=\u00b2", "wheels: expected a whole number"),
        ("wheels=", "wheels: expected .*, got an empty text"),
        ("speed=abc", r"speed: expected a number above 0, got abc\. The default is 1\.5\."),
        ("speed=0", "speed: expected a number above 0, got 0"),
        ("speed=Infinity", "speed: expected a number above 0, got Infinity"),
        ("speed=nan", "speed: expected a number above 0, got nan"),
        ("speed=1e400", "speed: expected a number above 0, got 1e400"),
        ("limit=100", r"limit: expected a number in \[0, 100\) or None, got 100\. The default is None\."),
        ("colour=green", "colour: expected red, blue or none, got green"),
        ("parts=door+roof", r"parts: expected some of door, tyre or None, got door\+roof"),
        ("size=6", "size: expected a whole number, a multiple of 4 or 2 whole numbers, a multiple of 4, got 6"),
        ("size=8+8+8", "size: expected"),
        ("fast=yes", "fast: expected true or false, got yes"),
        ("numbers=0", "numbers: expected a list of numbers above 0, 1 or more, got 0"),
        ("numbers=[]", "numbers: expected a list of numbers above 0, 1 or more"),
        ("numbers=[", "numbers: expected a list"),
        ("roof=open", "--set: expected a parameter out of wheels, speed, .*, got roof"),
        ("wheels", "--set: expected KEY=VALUE, got wheels"),
        ("=4", "--set: expected KEY=VALUE, got =4"),
        ("", "--set: expected KEY=VALUE, got an empty text"),
    ],
)
def test_a_wrong_text_is_one_sentence_that_names_the_parameter(text, message):
    with pytest.raises(ArgumentError, match=message):
        read_texts(Car, split_settings([text], of="--set"), of="--set")


def test_the_same_key_twice_is_refused():
    with pytest.raises(ArgumentError, match="expected speed once, got speed=1 and speed=2"):
        split_settings(["speed=1", "speed=2"], of="--set")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wheels", 4), ("wheels", np.int64(5)), ("speed", 2), ("speed", np.float32(0.5)), ("parts", ["door"]),
        ("parts", ()), ("size", (4, 8)), ("engine", Engine()), ("garage", Path("x")), ("numbers", (1, 2)),
    ],
)  # fmt: skip
def test_right_values_are_taken_and_stored_unchanged(name, value):
    car = Car(**{name: value})
    check_parameters(car)
    assert getattr(car, name) is value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wheels", True), ("wheels", 4.0), ("wheels", "4"), ("wheels", None), ("speed", "fast"), ("speed", math.nan),
        ("speed", math.inf), ("speed", True), ("speed", 1j), ("colour", "RED"), ("colour", None), ("parts", "door"),
        ("parts", ("door", 3)), ("size", (4, 8, 8)), ("size", (4.0, 8)), ("fast", 1), ("fast", None), ("engine", 3),
        ("garage", 3), ("numbers", ()), ("numbers", 1.0), ("numbers", "1"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=f"^{name}: expected "):
        check_parameters(Car(**{name: value}))


def test_a_text_where_a_list_belongs_is_not_read_letter_by_letter():
    with pytest.raises(
        ArgumentError, match=r"parts: expected some of door, tyre or None, got door\. Write \('door',\)\."
    ):
        check_parameters(Car(parts="door"))


def test_plain_values_go_to_json_and_back():
    car = Car(
        wheels=np.int64(5), speed=np.float64(2.5), parts=("door",), size=(4, 8), engine=Engine(), garage=Path("x")
    )
    plain = json.loads(json.dumps(plain_parameters(car)))
    assert plain == {
        "wheels": 5, "speed": 2.5, "limit": None, "colour": "red", "parts": ["door"], "size": [4, 8], "fast": False,
        "engine": "diesel", "numbers": [1.0],
    }  # fmt: skip
    again = Car(**read_plain(Car, plain, of="file"))
    check_parameters(again)
    assert plain_parameters(again) == plain
    assert as_plain(Path("x")) == "x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wheels": "4"}, "file: wheels: expected a whole number"),
        ({"speed": 1}, None),
        ({"parts": ["roof"]}, "file: parts: expected some of door, tyre or None"),
        ({"roof": 1}, "file: expected the keys wheels, .*, got roof"),
        ({"size": [4, "8"]}, "file: size: expected"),
    ],
)
def test_plain_values_are_checked(values, message):
    if message is None:
        assert read_plain(Car, values, of="file") == {"speed": 1.0}
        return
    with pytest.raises(ArgumentError, match=message):
        read_plain(Car, values, of="file")


def test_what_must_be_given_must_be_given():
    @dataclass(kw_only=True)
    class Trip:
        stops: tuple[str, ...] = parameter(least=1)

    with pytest.raises(ArgumentError, match="plan: expected stops: a list of texts, 1 or more, got none"):
        read_plain(Trip, {}, of="plan")


def test_meaning_and_bounds_are_those_of_class_and_docstring():
    known = parameters_of(Car)
    assert known["wheels"].meaning == "how many, on the ground."
    assert known["limit"].meaning == known["speed"].meaning == "in m/s; `limit` is the most."
    assert known["wheels"].as_json() == {
        "name": "wheels", "type": "a whole number in [3, 6]", "default": 4, "bounds": {"at_least": 3, "at_most": 6},
        "role": "model", "meaning": "how many, on the ground.",
    }  # fmt: skip
    assert [name for name, p in known.items() if p.option] == ["garage"]


def test_get_and_set_params():
    car = Car(wheels=3)
    assert car.get_params() == {name: getattr(car, name) for name in parameters_of(Car)}
    assert car.set_params(speed=9.0, fast=True) is car
    assert (car.speed, car.fast, car.wheels) == (9.0, True, 3)
    with pytest.raises(ArgumentError, match=r"set_params: expected a parameter out of wheels, .*, got roof"):
        car.set_params(roof=1)


def test_a_spec_is_a_name_and_settings():
    assert split_spec("padim,dimensions=50,eps=1", of="methods") == ("padim", {"dimensions": "50", "eps": "1"})
    with pytest.raises(ArgumentError, match="methods padim: expected KEY=VALUE, got eps"):
        split_spec("padim,eps", of="methods")


CASES = [(name, key) for name, kind in METHODS.items() for key in parameters_of(kind)]


@pytest.mark.parametrize(("name", "key"), CASES, ids=str)
def test_every_parameter_of_every_method_says_what_it_means_and_refuses_what_it_is_not(name, key):
    known = parameters_of(METHODS[name])[key]
    assert known.meaning
    known.check(known.default)
    method = METHODS[name](**{key: object()})
    with pytest.raises(ArgumentError, match=f"^{key}: expected "):
        method.check()


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SPADE(backbone=BACKBONE, k=7), "k: expected at most 6, the normal images, got 7"),
        (SPADE(backbone=BACKBONE, kappa=10_000), r"kappa: expected at most \d+, the activation vectors"),
        (SVDD(backbone=BACKBONE, approximation="nystroem", components=7), "components: expected at most 6, the normal"),
        (PatchCore(backbone=BACKBONE, count=10**8), r"count: expected at most \d+, the patches of the images"),
        (PatchCore(backbone=BACKBONE, starts=10**8), r"starts: expected at most \d+, the patches of the images"),
        (PatchCore(backbone=BACKBONE, count=4, reweight=5), "reweight: expected at most 4, the patches of the bank"),
        (KNN(backbone=BACKBONE, k=7), "images: expected at least k = 7 normal images, got 6"),
    ],
)
def test_more_than_there_is_is_refused(method, message, sized):
    images = Images(small_pixels(6, 1))
    with pytest.raises(ArgumentError, match=message):
        method.fit(images if sized else list(images))


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("method", [SPADE(backbone=BACKBONE), SVDD(backbone=BACKBONE, approximation="nystroem")])
def test_a_default_that_is_more_takes_all_and_says_so(method, sized, caplog):
    images = Images(small_pixels(6, 1))
    method.fit(images if sized else list(images))
    assert [record.levelname for record in caplog.records if ": all 6, the normal images; " in record.message] == [
        "WARNING"
    ]


@pytest.mark.parametrize(("kind", "most"), [(PaDiM, 1e6), (ODIN, 10), (Gradient, 10)])
def test_the_bounds_of_eps(kind, most):
    eps = parameters_of(kind)["eps"]
    eps.check(most)
    for wrong in (most * 1.01, 1e308, -1.0, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match=r"eps: expected a number"):
            eps.check(wrong)
