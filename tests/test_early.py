"""An input that is not there is refused before a model is loaded, a network opened, or pictures are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import blemish.cli
from blemish.errors import BlemishError
from calls import CALLS, READS, begin, commands, prepare
from fuzz.commands import options_of

NOWHERE = "{out}/nowhere.png"
PLACE = re.compile(r"\{(?!out\}|model\}|other\}|study\}|kept\})\w+\}")
LATER = {
    "study {data}": "the other data sets of a study go on",
    "study --plan": "goes with nothing that is in the call",
    **{f"ood {name} --weights": "the classifier itself reads them" for name in (
        "score", "export", "evaluate", "tune", "ablate", "reliability",
    )},
}  # fmt: skip
WORK = (
    "blemish.detector.Detector.load", "blemish.detector.find_groups", "blemish.ood.open_classifier",
    "blemish.augment.crops.as_image",
)  # fmt: skip


def inputs():
    """Every input of every command, by name: a word of its call in `calls.py`, or an option that is not in it."""
    found = {}
    for name, function in commands():
        words = CALLS[name].arguments.split()
        for at, word in enumerate(words):
            if PLACE.search(word):
                found[f"{name} {word}"] = name, [*words[:at], NOWHERE, *words[at + 1 :]]
        for option in options_of(function):
            if option.kind is Path and option.name in READS and option.name not in words:
                found[f"{name} {option.name}"] = name, [*words, option.name, NOWHERE]
    return [pytest.param(*words, id=key) for key, words in found.items() if key not in LATER]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("calls"))


@pytest.fixture
def _idle(monkeypatch):
    def work(*_args, **_options):
        raise AssertionError("it works before it has looked")

    for place in WORK:
        monkeypatch.setattr(place, work)


@pytest.mark.usefixtures("_idle")
@pytest.mark.parametrize(("name", "words"), inputs())
def test_an_input_that_is_not_there_is_refused_before_the_work(name, words, places, tmp_path):
    begin(CALLS[name], places, tmp_path / "out")
    needs = {"--webhook-token-file": "--webhook http://127.0.0.1:9/", "--mqtt-password-file": "--mqtt a@127.0.0.1:9/t"}
    needed = [more for option, text in needs.items() if option in words for more in text.split()]
    words = [word.format(out=tmp_path / "out", **places) for word in (*words, *needed)]
    done = CliRunner().invoke(blemish.cli.app, [*name.split(), *words])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit), repr(done.exception)
    assert "nowhere" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.usefixtures("_idle")
@pytest.mark.parametrize(
    "line",
    [
        "study {data} {bad} --methods padim --backbones filters --out {out}/s",
        "ood evaluate {test} --model stripes:factory --outliers {blobs} --scores {long}",
        "ood evaluate {long} --model stripes:factory --outliers {blobs}",
        "fit {data} --weights {long}",
        "fit {data} --roi {long}",
        "distil descriptor {data} --weights {long}",
        "watch-scores {model} {long}",
        "feedback {model} {long} --fine {fine}",
        "predict {model} {long}",
        "stream {model} {long}",
        "store export {long} --out {out}/v.jsonl",
        "demo --product {long} --out {out}/d",
    ],
)
def test_a_name_that_no_file_can_have_is_one_line_before_the_work(line, places, tmp_path, monkeypatch):
    monkeypatch.setattr(
        blemish.cli, "OSError", BlemishError, raising=False
    )  # else it would be one line of the system's
    (tmp_path / "out").mkdir()
    places = places | {"out": tmp_path / "out", "long": "x" * 300, "bad": "\udcff"}
    done = CliRunner().invoke(blemish.cli.app, line.format(**places).split())
    assert (done.exit_code, type(done.exception)) == (1, SystemExit), repr(done.exception)
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("gigabytes", ["-1", "0", "1e308"])
@pytest.mark.parametrize(
    "name", [name for name, made in commands() if any(o.name == "--memory" for o in options_of(made))]
)
def test_an_amount_of_memory_that_is_none_is_refused(name, gigabytes, places, tmp_path):
    """`serve --memory -1` served nothing from memory, and 1e308 was a traceback."""
    words = begin(CALLS[name], places, tmp_path / "out")
    ended = CliRunner().invoke(blemish.cli.app, [*name.split(), *words, "--memory", gigabytes])
    assert (ended.exit_code, "--memory" in ended.output) == (2, True), ended.output


def test_a_product_that_is_none_names_no_folder(tmp_path):
    done = CliRunner().invoke(blemish.cli.app, ["demo", "--product", "../../x", "--out", str(tmp_path / "a" / "b")])
    assert done.stderr.startswith("error: product: expected one of weave")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["benchmark m.blemish --threads", "fit data --workers", "study data --threads"])
def test_a_number_of_threads_that_ends_the_process_is_refused(command):
    """With 30 000 threads OpenMP ended `benchmark` in the middle, with a line of its own."""
    ended = CliRunner().invoke(blemish.cli.app, [*command.split(), "257"])
    assert ended.exit_code == 2
    assert "256" in ended.output
