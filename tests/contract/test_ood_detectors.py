"""Every law on every registered detector: a new entry in the registry is enrolled by being there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import blemish.ood
from blemish.ood import DETECTORS
from contract.ood_laws import LAWS

# Further parameters under which a detector takes another way through its code.
VARIANTS = {
    "msp": [{"temperature": 4.0}],
    "odin": [{"eps": 0.0}, {"unit": "normalised"}],
    "gradient": [{"label": "original", "norm": "l1"}, {"eps": 0.0, "parameters": ("fc.weight",)}],
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
CASES = [(name, parameters) for name in DETECTORS for parameters in [{}, *VARIANTS.get(name, [])]]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)
def test_detector_keeps(name, parameters, law):
    law(lambda: DETECTORS[name](**parameters))


@pytest.mark.parametrize("name", DETECTORS)
def test_registered_under_its_name_and_offered_by_the_package(name):
    kind = DETECTORS[name]
    assert kind.name == name
    assert getattr(blemish.ood, kind.__name__) is kind
    assert kind.__name__ in dir(blemish.ood)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"no attribute 'Mahalonobis'"):
        _ = blemish.ood.Mahalonobis


def test_one_detector_does_not_load_the_others():
    code = "import sys, blemish.ood.logits; print([m for m in sys.modules if m.startswith('blemish.ood.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {name.split(".")[2] for name in eval(loaded)} == {"_base", "cifar_resnet", "classifier", "logits", "open"}
