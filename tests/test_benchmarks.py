"""Scripts behind the figures of README and docs: each can be imported, and takes the command lines that are shown."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="benchmarks measure memory as POSIX systems do")

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/**/*.py")])
    if not path.stem.endswith("_side")  # these run in the environment of another library
}
SCRIPT = r"((?:benchmarks|docs)/[\w/]+\.py)"
LINE = re.compile(rf"^    .*\bpython {SCRIPT}\b((?:'[^'\n]*'|[^'#;&|()\n])*)", re.MULTILINE)
INLINE = re.compile(rf"`(?:[^`\s]+=\S+ )?(?:python )?{SCRIPT} ([^`]+)`")


class Parsed(Exception):
    """A command line was taken; nothing was run."""


@cache
def load(script):
    return runpy.run_path(str(SCRIPTS[script]))


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch):
    """Scripts import each other, as they do where they are run."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def commands_in(text):
    """Script and words of each command line, in a line of its own or with arguments in backquotes."""
    text = text.replace("\\\n", " ").replace("\\`", "`")
    for script, rest in LINE.findall(text) + INLINE.findall(text):
        yield script, shlex.split(re.sub(r"[][]|\.\.\.", " ", rest))  # what may come, and more of the same


def shown_commands():
    found = defaultdict(list)
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *SCRIPTS.values()]:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".py":
            text = ast.get_docstring(ast.parse(text), clean=False) or ""
        for script, words in commands_in(text):
            found[script].append((page.name, words))
    return found


SHOWN = shown_commands()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_imported(script):
    load(script)


@pytest.mark.parametrize(
    "script", [script for script in SHOWN if "ArgumentParser" in SCRIPTS[script].read_text(encoding="utf-8")]
)
def test_a_script_takes_the_command_lines_that_are_shown(script, monkeypatch, capsys):
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser):
        parse_args(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for page, words in SHOWN[script]:
        monkeypatch.setattr("sys.argv", [script, *words])
        try:
            with pytest.raises(Parsed):
                load(script)["main"]()
        except SystemExit:
            pytest.fail(f"{page}: {shlex.join([script, *words])}\n{capsys.readouterr().err}")


def test_command_lines_are_found():
    text = r"""
    KEY=x python benchmarks/a.py DATA 'x:y=z' \
        --count 1 2 ... [--out FILE]    # one
    python benchmarks/b.py; python benchmarks/c.py --last
Figures of `benchmarks/d.py one
--two`, `benchmarks/e.py` and `docs/f.py --three`."""
    assert dict(commands_in(text)) == {
        "benchmarks/a.py": ["DATA", "x:y=z", "--count", "1", "2", "--out", "FILE"],
        "benchmarks/c.py": ["--last"],
        "benchmarks/d.py": ["one", "--two"],
        "docs/f.py": ["--three"],
    }
