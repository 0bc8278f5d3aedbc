"""Every example in the README runs, and every command is in it."""

from __future__ import annotations

import pydoc
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from blemish.choosing.choose import FAMILIES
from blemish.cli import app
from blemish.datasets.layouts import LAYOUTS
from blemish.datasets.synthetic import write_dataset
from blemish.detector import Detector
from blemish.images.preprocess import Preprocess
from blemish.methods import METHODS
from blemish.model_file import ModelManifest
from blemish.ood import DETECTORS
from blemish.parameters import parameters_of
from blemish.presets import PRESETS

README = Path(__file__).parents[1] / "README.md"
CONTRIBUTING = README.with_name("CONTRIBUTING.md")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    write_dataset(folder / "bottle", product="capsule", n_train=40, n_test_normal=4, n_per_defect=1, size=64)
    return folder


def test_readme_runs_from_top_to_bottom(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for name, small in (("default", Preprocess(128)), ("paper", Preprocess(128, 112))):
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], preprocess=small))  # as large as a tile
    (python,) = blocks("python")
    exec(compile(python, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(list((workplace / "bottle" / "test").rglob("*.png"))) + 1
    (shell,) = blocks("sh")
    for line in shell.splitlines():
        program, *arguments = shlex.split(line.split(">")[0])
        assert program == "blemish"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (workplace / "results" / "results.jsonl").is_file()
    assert (workplace / "report.html").is_file()


def test_readme_names_every_command():
    text = README.read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert re.search(rf"(blemish|make) {name}\b", text), f"README does not show `blemish {name}`"


def test_readme_counts_right():
    text = README.read_text(encoding="utf-8")
    project = README.with_name("pyproject.toml").read_text(encoding="utf-8")
    needed = re.search(r"^dependencies = \[\n(.*?)^\]", project, flags=re.DOTALL | re.MULTILINE).group(1).splitlines()
    always = [line for line in needed if ";" not in line]  # without those of Python 3.10 alone
    assert f"{len(always)} dependencies" in text


@pytest.mark.parametrize(("path", "most"), [(README, 125), (CONTRIBUTING, 60)])
def test_front_pages_stay_short(path, most):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_page(name):
    page = README.parent / "docs" / "methods" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    parts = ("**Use it**", "**Not**", "## Recipe", "## Deviations", "## Parameters", "## Figures", "![", "## Cost")
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_page_holds_what_a_user_needs_and_no_diary(name):
    """Beside the table of parameters, which is written and as long as it has to be."""
    text = (README.parent / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    by_hand = re.sub(r"<!-- parameters.*end of parameters -->\n", "", text, flags=re.DOTALL)
    assert len(by_hand.splitlines()) <= 70


def test_a_classifier_of_your_own_takes_ten_lines(capsys):
    page = (README.parent / "docs" / "ood.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    code = [line for line in python.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 10
    exec(compile(python, "docs/ood.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


def test_every_detector_is_on_its_page():
    page = (README.parent / "docs" / "ood.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in DETECTORS)


def test_tables_of_parameters_are_up_to_date():
    make = runpy.run_path(str(README.parent / "docs" / "make_parameters.py"))
    assert not make["stale_pages"](), "run `python docs/make_parameters.py`"


PAGES = (README, CONTRIBUTING, *README.parent.glob("docs/**/*.md"))


def test_modules_and_scripts_that_are_named_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\bblemish(?:\.[A-Za-z_]\w*)+", re.sub(r"\w+\.blemish", "", text)):
            assert pydoc.locate(name), f"{page.name}: {name}"
        for path in re.findall(r"\b(?:src|tests|benchmarks|docs)/[\w/]+\.py", text):
            assert (README.parent / path).is_file(), f"{page.name}: {path}"


def shown_commands():
    """Page, command and options of each line that a page shows, indented, fenced or in backquotes."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ").replace("\\`", "`")
        lines = re.findall(r"^    .*|^blemish .*", text, flags=re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            for words in re.findall(r"\bblemish ([a-z][^|#;&]*)", line):
                yield page.name, words.split()


def test_commands_that_are_shown_have_the_options_that_are_shown():
    groups = typer.main.get_command(app).commands
    for page, words in shown_commands():
        command, rest = groups.get(words[0]), words[1:]
        assert command, f"{page}: blemish {words[0]}"
        for name in (rest[0].split("|") if rest else ()) if hasattr(command, "commands") else (None,):
            found = command if name is None else command.commands.get(name)
            assert found, f"{page}: blemish {words[0]} {name}"
            known = {"--help"}.union(*(option.opts + option.secondary_opts for option in found.params))
            wrong = {word.partition("=")[0] for word in rest if re.match("--[a-z]", word)} - known
            assert not wrong, f"{page}: blemish {' '.join(words)}: {wrong}"


def test_every_key_of_a_model_file_is_on_its_page():
    page = README.parent.joinpath("docs", "security.md").read_text(encoding="utf-8")
    missing = [name for name in parameters_of(ModelManifest) if f"`{name}`" not in page]
    missing += [
        name for name, known in parameters_of(Detector).items() if known.role == "model" and f"`{name}`" not in page
    ]
    assert not missing


def test_every_layout_preset_and_drawn_change_is_on_its_page():
    rows = {"data": [layout.name for layout in LAYOUTS], "images": PRESETS, "choose": FAMILIES}
    for name, words in rows.items():
        page = README.parent.joinpath("docs", f"{name}.md").read_text(encoding="utf-8")
        assert not [word for word in words if f"`{word}`" not in page], name


def anchors(page):
    """Of the headings of a page, as GitHub spells them."""
    heads = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)", page.read_text(encoding="utf-8")):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(found), f"{page.name}: {target}#{anchor}"
