"""Every law on every registered method: a new entry in the registry is enrolled by being there."""

from __future__ import annotations

import pytest

from blemish.methods import METHODS, Incremental
from contract.laws import LAWS, law_update_equals_refit


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize("name", METHODS)
def test_method_keeps(name, law):
    law(lambda: METHODS[name](backbone="filters", seed=3))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, Incremental)])
def test_incremental_method_keeps(name):
    law_update_equals_refit(lambda: METHODS[name](backbone="filters", seed=3))


@pytest.mark.parametrize("name", METHODS)
def test_name_in_the_registry_is_the_methods_own(name):
    assert METHODS[name].name == name
