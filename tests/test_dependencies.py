"""What the package needs may be used by anybody for anything: no licence binds those who use it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "make_licences.py"
spec = importlib.util.spec_from_file_location("make_licences", SCRIPT)
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)


def test_every_dependency_is_permissive():
    found = licences.direct()
    assert {"numpy", "torch", "safetensors"} <= {name for name, _, _ in found}
    assert [(name, licence) for name, _, licence in found if not licences.is_permissive(licence)] == []


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 AND BSD-3-Clause", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("BSD License", True),
        ("Python Software Foundation License", True),
        ("GPL-3.0-or-later", False),
        ("MIT AND LGPL-2.1", False),
        ("GNU Affero General Public License", False),
        ("Proprietary", False),
        ("unknown", False),
    ],
)
def test_licences_are_told_apart(licence, permissive):
    assert licences.is_permissive(licence) is permissive


def test_the_bill_of_materials_names_every_direct_dependency_and_its_licence():
    bill = licences.bill_of_materials()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    parts = {part["name"]: part for part in bill["components"]}
    assert {name for name, _, _ in licences.direct()} <= parts.keys()
    torch = parts["torch"]
    assert torch["purl"].startswith("pkg:pypi/torch@")
    assert "BSD" in str(torch["licenses"])  # older ones do not say which
    assert "sympy" in parts  # which torch needs
