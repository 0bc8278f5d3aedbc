"""Writes the tables in docs/ that come from the code, between two comments: `python docs/make_parameters.py [--check]`.

What many methods share stands once, in docs/parameters.md. With --check nothing is written, and the exit status is 1
where a page is not up to date.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from blemish.methods import METHODS
from blemish.ood import DETECTORS
from blemish.parameters import Parameter, as_plain, parameters_of

DOCS = Path(__file__).parent
BEGIN = "<!-- parameters: written by docs/make_parameters.py -->"
END = "<!-- end of parameters -->"
SHARED_BY = 4
"""A parameter with the same type and meaning in so many methods stands on the page of shared ones."""


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is not up to date")
    check = parser.parse_args().check
    stale = stale_pages()
    for page, text in stale.items():
        print(f"{'not up to date' if check else 'written'}: {page.relative_to(DOCS.parent)}")
        if not check:
            page.write_text(text, encoding="utf-8")
    if check and stale:
        raise SystemExit("run `python docs/make_parameters.py`")


def stale_pages() -> dict[Path, str]:
    """The pages whose table is not up to date, each with the text that it should have."""
    found = {}
    for page, table in tables().items():
        text = page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise SystemExit(f"{page}: the comments {BEGIN} and {END} are missing")
        wanted = f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
        if text != wanted:
            found[page] = wanted
    return found


def tables() -> dict[Path, str]:
    """What stands between the comments of each page."""
    pages = {DOCS / "methods" / f"{name}.md": of_method(name) for name in METHODS}
    index = DOCS / "methods" / "README.md"
    return pages | {index: of_registry(), DOCS / "parameters.md": of_all_methods(), DOCS / "ood.md": of_detectors()}


def of_registry() -> str:
    """All methods, each with its page and the first line of its docstring."""
    what = {name: (kind.__doc__ or "").splitlines()[0] for name, kind in METHODS.items()}
    return table([(f"[{name}]({name}.md)", words) for name, words in what.items()], "method", "what it is")


def of_method(name: str) -> str:
    """Its own parameters, and the names of those that it shares."""
    known = parameters_of(METHODS[name]).values()
    own = [row(p.name, p) for p in known if key(p) not in shared()]
    inherited = [_named(p) for p in known if key(p) in shared()]
    return table(own) + f"\n\nAs for other methods ([parameters](../parameters.md)): {', '.join(inherited)}."


def of_all_methods() -> str:
    """The shared parameters, and who has them."""
    rows = []
    order = {p.name: number for number, (p, _) in reversed(list(enumerate(shared().values())))}
    for p, names in sorted(shared().values(), key=lambda found: order[found[0].name]):
        others = [f"`{name}`" for name in METHODS if name not in names]
        methods = ", ".join(f"`{name}`" for name in names)
        if len(others) <= 2:
            methods = f"all but {' and '.join(others)}" if others else "all"
        rows.append((*row(p.name, p), methods))
    return table(rows, "parameter", "type and bounds", "default", "meaning", "methods")


def of_detectors() -> str:
    """The parameters of all detectors; most have one or none."""
    return table(
        [(f"`{name}`", *row(p.name, p)) for name, kind in DETECTORS.items() for p in parameters_of(kind).values()],
        "detector", "parameter", "type and bounds", "default", "meaning",
    )  # fmt: skip


def shared() -> dict[tuple[str, str, str], tuple[Parameter, list[str]]]:
    """By name, type and meaning: a parameter of many methods, and their names."""
    found: dict[tuple[str, str, str], tuple[Parameter, list[str]]] = {}
    for name, kind in METHODS.items():
        for p in parameters_of(kind).values():
            found.setdefault(key(p), (p, []))[1].append(name)
    return {at: (p, names) for at, (p, names) in found.items() if p.meaning and len(names) >= SHARED_BY}


def key(p: Parameter) -> tuple[str, str, str]:
    """What two methods must agree on to share a parameter; their defaults may differ."""
    return p.name, p.expected, p.meaning


def row(name: str, p: Parameter) -> tuple[str, str, str, str]:
    """Four cells of a table."""
    default = "varies" if key(p) in shared() and _defaults_differ(p) else spelled(p.default)
    return f"`{name}`", p.expected, default, p.meaning


def _defaults_differ(p: Parameter) -> bool:
    _, names = shared()[key(p)]
    return len(Counter(spelled(parameters_of(METHODS[name])[p.name].default) for name in names)) > 1


def _named(p: Parameter) -> str:
    return f"`{p.name}`" + (f" ({spelled(p.default)})" if _defaults_differ(p) else "")


def spelled(value: Any) -> str:
    """A default as one writes it behind `--set NAME=`."""
    if value is MISSING:
        return "must be given"
    plain = as_plain(value)
    if isinstance(plain, list):
        return f"`{'+'.join(map(str, plain))}`"
    return "none" if plain is None else f"`{plain if isinstance(plain, str) else json.dumps(plain)}`"


def table(rows: Iterable[tuple[str, ...]], *heads: str) -> str:
    """In Markdown; a bar within a cell would begin another one."""
    heads = heads or ("parameter", "type and bounds", "default", "meaning")
    lines = [heads, ("---",) * len(heads), *([cell.replace("|", "\\|") for cell in cells] for cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
