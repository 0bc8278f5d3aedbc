"""What a later run reads again - lines, places, states, stores - anybody may have changed: one line, never more."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from blemish.cli import app
from blemish.edges.mqtt import Mqtt
from blemish.edges.video import Video
from blemish.errors import ArgumentError
from blemish.files import parse_json
from blemish.methods import PatchCore
from blemish.parameters import read_texts
from blemish.station.logbook import FILE, Logbook, Verdict
from blemish.station.webhook import Webhook
from blemish.study.plan import StudyPlan
from stations import defect, fitted, pictures, png

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and four pictures, of which the last one is flagged."""
    folder = tmp_path_factory.mktemp("changed")
    fitted().save(folder / "m.blemish")
    (folder / "p").mkdir()
    for number, content in enumerate([*map(png, pictures(3, seed=5)), defect()]):
        (folder / "p" / f"{number}.png").write_bytes(content)
    return folder


def call(*words):
    """Run a command; gives its exit status and the last line that it says."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, (done.stderr.strip().splitlines() or [""])[-1]


def judged(place, out):
    words = (
        "predict",
        place / "m.blemish",
        place / "p",
        "--out",
        out,
        "--heatmaps",
        "png",
        "--coco",
        out.parent / "c.json",
    )
    return call(*words, "--fdr", "0.5"), out / "results.jsonl"


CHANGES = {
    "an image that is no text": {"image": [1]},
    "a score that is no number": {"score": "x"},
    "a p-value that is no number": {"p_value": "x"},
    "a heat map that is no name": {"heatmap": 5},
    "regions that are a text": {"regions": "x"},
    "regions without a box": {"regions": [{"area": 1}]},
    "a box that is no number": {
        "regions": [{"box": ["x"], "contour": [], "centre": [], "area": 1, "peak": 1, "mean": 1, "p_value": 1}]
    },
}


@pytest.mark.parametrize("change", [*CHANGES.values(), DEEP], ids=[*CHANGES, "a line that is nested too deep"])
def test_a_line_of_results_that_was_changed_is_judged_again(place, tmp_path, change):
    (status, _), lines = judged(place, tmp_path / "r")
    assert status == 0
    rows = lines.read_text().splitlines()
    changed = change if isinstance(change, str) else json.dumps(json.loads(rows[0]) | change)
    lines.write_text("\n".join([changed, *rows[1:]]) + "\n")
    assert judged(place, tmp_path / "r")[0][0] == 0
    again = {row["image"]: row for row in map(json.loads, lines.read_text().splitlines())}
    for row in map(json.loads, rows):
        assert again[row["image"]]["score"] == pytest.approx(row["score"], rel=1e-5)
        assert again[row["image"]]["regions"] == row["regions"]
    assert len(again) == len(rows)


@pytest.mark.parametrize("change", ["image", "deep"])
def test_feedback_passes_over_lines_that_are_none(place, tmp_path, change):
    _, lines = judged(place, tmp_path / "r")
    with lines.open("a") as file:
        file.write(DEEP + "\n" if change == "deep" else '{"image": [1], "score": 1}\n')
    (tmp_path / "fine.txt").write_text("3.png\n")
    assert call("feedback", place / "m.blemish", lines, "--fine", tmp_path / "fine.txt")[0] == 0


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
@pytest.mark.parametrize("command", ["feedback", "watch-scores"])
def test_lines_that_are_no_file_are_refused_and_not_waited_for(place, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "fine.txt").write_text("3.png\n")
    for lines, kind in ((tmp_path / "pipe", "a pipe, socket or device"), (tmp_path, "a folder")):
        more = ("--fine", tmp_path / "fine.txt") if command == "feedback" else ("--state", tmp_path / "s.json")
        status, said = call(command, place / "m.blemish", lines, *more)
        assert (status, said) == (1, f"error: {lines}: expected lines of `blemish predict`, got {kind}.")


def watch(place, out, *more):
    words = ("--once", "--settle", 0, "--every", 0, "--patience", 0)
    return call("watch", place / "m.blemish", place / "p", "--out", out, *words, *more)


def test_lines_are_added_to_lines_alone(place, tmp_path):
    out = tmp_path / "l.jsonl"
    out.write_text(f'{{"version": 1, "image": "x"}}\n{DEEP}\n{DEEP}')
    assert watch(place, out)[0] == 0
    assert len(out.read_text().splitlines()) == 2 + 4  # the end of the file was torn off
    for content in ((place / "m.blemish").read_bytes(), b'{"a": 1}\n', b"RIFF\n", b"[1]\n"):
        out.write_bytes(content)
        status, said = watch(place, out)
        assert (status, said.partition(" expected")[0]) == (1, "error: --out:")
        assert out.read_bytes() == content


PLACES = {
    "nothing of the last line": '{"version": 1, "sent": 5}',
    "another type": '{"version": 1, "sent": true, "last": ""}',
    "a text": '{"version": 1, "sent": "5", "last": ""}',
    "a list": "[]",
    "deep": DEEP,
}


@pytest.mark.parametrize("text", PLACES.values(), ids=PLACES)
def test_a_place_that_is_none_is_refused(place, tmp_path, text):
    (tmp_path / "l.jsonl.webhook").write_text(text)
    status, said = watch(place, tmp_path / "l.jsonl", "--webhook", "http://127.0.0.1:9/")
    assert (status, "expected how far lines were sent" in said) == (1, True)


@pytest.mark.parametrize("sent", [10**30, 2**62, 50])
def test_a_place_behind_the_end_is_that_of_another_file(tmp_path, sent):
    from blemish.station.delivery import _read_place

    lines, of = tmp_path / "l.jsonl", tmp_path / "l.jsonl.webhook"
    lines.write_bytes(b'{"n": 1}\n')
    of.write_text(json.dumps({"version": 1, "sent": sent, "last": "x"}))
    assert _read_place(of, lines) == (0, b"")


@pytest.mark.parametrize(
    "address",
    ["http://a..b/", f"http://{'a' * 64}/", "http://h/a b", "http://h:99999/", "http://[::1/", "http:///x", "ftp://h/"],
)
def test_an_address_that_nobody_can_have_is_refused(address):
    with pytest.raises(ArgumentError, match="--webhook: expected an address that begins with http"):
        Webhook(address)
    with pytest.raises(ArgumentError, match="--mqtt: expected"):
        Mqtt(address.replace("http://", "mqtt://") if ":///" in address or "[" in address else "a..b/t")


@pytest.mark.parametrize("topic", ["t" * 65_536, "\udcff", "a\nb", "a/+"])
def test_a_topic_that_no_broker_takes_is_refused(topic):
    with pytest.raises(ArgumentError, match="--mqtt: expected"):
        Mqtt(f"host/{topic}")


@pytest.mark.parametrize("source", ["9" * 20, "\u0663", "file:///clip.avi", "concat://a", "lavfi://testsrc"])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(ArgumentError, match="SOURCE: expected a video file, the number of a camera"):
        Video(source, max_pixels=1000)


def scores(place, tmp_path, *rows):
    (tmp_path / "s.jsonl").write_text("".join(row + "\n" for row in rows))
    return call("watch-scores", place / "m.blemish", tmp_path / "s.jsonl", "--state", tmp_path / "state.json")


def test_scores_and_states_that_are_none_are_refused(place, tmp_path):
    _, lines = judged(place, tmp_path / "r")
    good = lines.read_text().splitlines()[0]
    row = json.loads(good)
    changes = [{"score": value} for value in (float("nan"), float("inf"), True, "1", 10**400)]
    changes += [{"look": row["look"] | {"level": value}} for value in (float("nan"), 10**400, "x")]
    for bad in (DEEP, *(json.dumps(row | change) for change in changes)):
        status, said = scores(place, tmp_path, bad)
        assert (status, said.partition(": expected")[0]) == (1, f"error: {tmp_path / 's.jsonl'}")
    assert scores(place, tmp_path, good)[0] == 0
    state = json.loads((tmp_path / "state.json").read_text())
    for bad in (DEEP, *(json.dumps(state | {"taken": value}) for value in ([], "x", -1, True, None))):
        (tmp_path / "state.json").write_text(bad)
        status, said = scores(place, tmp_path, good)
        assert (status, said.partition(": expected")[0]) == (1, f"error: {tmp_path / 'state.json'}")


STORES = {
    "a name that leads out of the folder": ("UPDATE pictures SET digest = '../../evil'", "a picture that is none"),
    "a name from the root": ("UPDATE pictures SET digest = '/tmp/evil'", "a picture that is none"),
    "a number for a name": ("UPDATE pictures SET digest = 5", "a picture that is none"),
    "a text for a picture": ("UPDATE pictures SET content = 'x'", "a picture that is none"),
    "a line that is no JSON": ("UPDATE verdicts SET line = 'x'", "verdict 1 is no JSON"),
    "a line that is a list": ("UPDATE verdicts SET line = '[1]'", "verdict 1 is no JSON"),
    "a deep line": (f"UPDATE verdicts SET line = '{DEEP}'", "verdict 1 is no JSON"),
    "a table less": ("DROP TABLE feedback", "no such table"),
}


@pytest.mark.parametrize(("change", "message"), STORES.values(), ids=STORES)
def test_a_store_that_was_changed_is_refused_and_names_no_file(tmp_path, change, message):
    with Logbook(tmp_path / "store") as book:
        book.add([Verdict("m", "d" * 64, None, 1.0, 0.5, False, {"image": "a.png"}, defect())]).result()
    with closing(sqlite3.connect(tmp_path / "store" / FILE)) as file, file:
        file.execute(change)
    before = {path for path in tmp_path.rglob("*") if "store" not in path.parts[-2:]}
    out, folder = tmp_path / "l.jsonl", tmp_path / "a" / "b"
    status, said = call("store", "export", tmp_path / "store", "--out", out, "--pictures", folder)
    assert status == 1
    assert said.startswith(f"error: {tmp_path / 'store' / FILE}: ")
    assert message in said
    made = {path for path in tmp_path.rglob("*") if "store" not in path.parts[-2:]} - before
    assert made <= {out, folder, folder.parent}


def test_no_output_takes_the_place_of_what_is_read(place, tmp_path):
    with Logbook(tmp_path / "store") as book:
        book.add([Verdict("m", "d" * 64, None, 1.0, 0.5, False, {"image": "a.png"}, defect())]).result()
    store, model, images = tmp_path / "store" / FILE, tmp_path / "m.blemish", place / "p"
    model.write_bytes((place / "m.blemish").read_bytes())
    (tmp_path / "link").symlink_to(model)
    for words in (
        ("store", "export", store.parent, "--out", store),
        ("export", model, "--out", tmp_path / "link"),
        ("predict", model, images, "--coco", model),
        ("evaluate", model, images, "--report", model),
        ("explain", model, images, "--normal", images, "--report", model),
        ("compare", model, place / "m.blemish", images, "--report", model),
    ):
        content = store.read_bytes(), model.read_bytes()
        status, said = call(*words)
        assert (status, "is read, and cannot be written as well" in said) == (1, True), said
        assert (store.read_bytes(), model.read_bytes()) == content


def test_a_text_that_is_nested_too_deep_is_a_wrong_text_everywhere(place, tmp_path):
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(DEEP)
    with pytest.raises(ArgumentError, match="taps: expected"):
        read_texts(PatchCore, {"taps": DEEP}, of="--set")
    (tmp_path / "plan.toml").write_text(f"x = {DEEP}\n")
    with pytest.raises(ArgumentError, match="not a TOML file"):
        StudyPlan.load(tmp_path / "plan.toml")
    for text in (
        DEEP,
        '{"size": [1e999, 2], "polygons": []}',
        '{"size": [9, 9], "polygons": [[[0, 0], [1e30, 0], [0, NaN]]]}',
    ):
        (tmp_path / "roi.json").write_text(text)
        status, said = call("fit", place / "p", "--roi", tmp_path / "roi.json", "--out", tmp_path / "m")
        assert (status, said.partition(": expected")[0]) == (1, f"error: {tmp_path / 'roi.json'}")
