"""Print the licences of what blemish needs, or a bill of materials, from what is installed here.

    python docs/make_licences.py          # a table; exit 1 where a licence is not permissive
    python docs/make_licences.py --sbom   # CycloneDX 1.5 in JSON: these packages and all that they need in turn

Nothing but the standard library, so it runs wherever the package does.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires

PERMISSIVE = re.compile(
    r"^(MIT|MIT-CMU|CMU License|BSD|0BSD|BSL-1\.0|ISC|Zlib|CC0|Apache|PSF|Python Software Foundation|HPND|Unlicense"
    r"|Matplotlib)",
    re.IGNORECASE,
)
_HINTS = (
    ("Apache", "Apache-2.0"), ("BSD 2-Clause", "BSD-2-Clause"), ("BSD", "BSD"), ("MIT", "MIT"),
    ("Redistribution and use in source and binary forms", "BSD"), ("matplotlib", "Matplotlib"),
)  # fmt: skip
"""In the long texts that some packages have where others name their licence."""


def direct() -> list[tuple[str, str, str]]:
    """Name, version and licence of each package that blemish itself asks for, extras but `dev` included."""
    asked = [line for line in requires("blemish") or () if not re.search(r"extra == ['\"]dev['\"]", line)]
    found = (_installed(_name(line)) for line in asked)
    return sorted((d.metadata["Name"].lower(), d.version, licence_of(d)) for d in found if d is not None)


def licence_of(package: Distribution) -> str:
    """The licence as an SPDX expression where the package gives one, else as it says it."""
    about = package.metadata
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or ()
        if line.startswith("License :: OSI Approved :: ")
    ]
    if classified:
        return " AND ".join(dict.fromkeys(classified))
    text = (about.get("License") or "").strip().removeprefix("OSI Approved :: ")
    short = text if 0 < len(text) < 40 else next((name for hint, name in _HINTS if hint in text), "")
    return short or "unknown"


def is_permissive(licence: str) -> bool:
    """Whether it asks for no more than that its text is kept; of an `OR` one choice is enough."""
    choices = re.split(r"\s+OR\s+", licence)
    return any(all(PERMISSIVE.match(part.strip("() ")) for part in re.split(r"\s+AND\s+", c)) for c in choices)


def bill_of_materials() -> dict[str, object]:
    """CycloneDX 1.5: every installed package that blemish needs, directly or not."""
    found: dict[str, Distribution] = {}
    waiting = [_name(line) for line in requires("blemish") or () if "extra ==" not in line]
    waiting += [name for name, _, _ in direct()]
    while waiting:
        package = _installed(waiting.pop())
        if package is None or package.metadata["Name"].lower() in found:
            continue
        found[package.metadata["Name"].lower()] = package
        waiting += [_name(line) for line in package.requires or () if "extra ==" not in line]
    parts = [
        {
            "type": "library",
            "name": name,
            "version": package.version,
            "purl": f"pkg:pypi/{name}@{package.version}",
            "licenses": [{"license": {"name": licence_of(package)}}],
        }
        for name, package in sorted(found.items())
    ]
    own = distribution("blemish")
    about = {"component": {"type": "library", "name": "blemish", "version": own.version}}
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": about, "components": parts}


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:  # an extra, or for another version of Python
        return None


def main() -> int:
    """Parse, print, and exit with 1 where a licence is not permissive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbom", action="store_true", help="print a bill of materials")
    if parser.parse_args().sbom:
        print(json.dumps(bill_of_materials(), indent=1))
        return 0
    for name, version, licence in direct():
        print(f"{name:14} {version:12} {licence}{'' if is_permissive(licence) else '   <-- not permissive'}")
    return int(any(not is_permissive(licence) for _, _, licence in direct()))


if __name__ == "__main__":
    sys.exit(main())
