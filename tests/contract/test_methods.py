"""Every law on every registered method: a new entry in the registry is enrolled by being there."""

from __future__ import annotations

import pytest

from blemish.methods import METHODS, Incremental
from contract.laws import LAWS, law_update_equals_refit

# Further parameters under which a method takes another way through its code.
VARIANTS = {
    "padim": [
        {"dimensions": 9},
        {"dimensions": 9, "reduction": "random"},
        {"storage": "float16"},
        {"precision": "bfloat16"},
    ]
}
CASES = [(name, parameters) for name in METHODS for parameters in [{}, *VARIANTS.get(name, [])]]


def maker(name, parameters):
    return lambda: METHODS[name](backbone="filters", seed=3, **parameters)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)
def test_method_keeps(name, parameters, law):
    law(maker(name, parameters))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [(n, p) for n, p in CASES if issubclass(METHODS[n], Incremental) and p.get("storage") != "float16"],
    ids=str,
)
def test_incremental_method_keeps(name, parameters):
    law_update_equals_refit(maker(name, parameters))


@pytest.mark.parametrize("name", METHODS)
def test_name_in_the_registry_is_the_methods_own(name):
    assert METHODS[name].name == name
