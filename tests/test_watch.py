"""A folder that a camera fills: each picture once, none missed, none before it is whole."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from blemish.cli import app
from blemish.errors import DatasetError
from blemish.station.folder import Folder
from stations import defect, fitted, pictures, png

CONTENTS = [png(array) for array in pictures(12, seed=3)]


@pytest.fixture(scope="module")
def detector():
    found = fitted()
    found.on_error, found.batch_size = "skip", 4
    return found


@pytest.fixture
def watched(detector, tmp_path):
    """A folder, and how to look at it at a time of one's choice: names of the pictures that got a line."""
    clock = [0.0]
    folder = Folder(detector, tmp_path, settle=1, patience=10, clock=lambda: clock[0])

    def look(now):
        clock[0] = now
        return [(os.path.basename(line["image"]), "error" in line) for line in folder.look()]

    return tmp_path, look


def write(path, content, age):
    path.write_bytes(content)
    os.utime(path, ns=(age, age))


def test_each_picture_is_judged_once_the_oldest_first(watched, detector):
    folder, look = watched
    for number in range(6):
        write(folder / f"{9 - number}.png", CONTENTS[number], number + 1)
    (folder / "notes.txt").write_text("no picture")
    assert look(0) == []  # it may still be written
    assert look(1) == [(f"{9 - number}.png", False) for number in range(6)]
    assert look(2) == []
    write(folder / "9.png", defect(), 99)  # written anew
    (folder / "sub").mkdir()
    write(folder / "sub" / "a.png", CONTENTS[7], 50)
    assert look(3) == []
    assert look(4) == [("a.png", False), ("9.png", False)]
    assert look(5) == []


def test_lines_are_those_of_predict(detector, tmp_path):
    write(tmp_path / "a.png", defect(), 5)
    (line,) = Folder(detector, tmp_path, settle=0).look()
    (decision,) = detector.predict([tmp_path / "a.png"])
    assert (line["image"], line["score"], line["anomalous"]) == (decision.name, decision.score, True)
    assert line["file"] == f"{len(defect())} 5"


def test_a_half_written_file_waits(watched):
    folder, look = watched
    content, path = CONTENTS[0], folder / "a.png"
    write(path, content[:100], 1)
    assert (look(0), look(2), look(5)) == ([], [], [])  # settled, but cannot be read
    write(path, content[:500], 2)  # it goes on
    assert (look(6), look(14)) == ([], [])
    write(path, content, 3)
    assert look(15) == []
    assert look(16) == [("a.png", False)]
    write(folder / "b.png", content[:100], 4)
    assert (look(20), look(29)) == ([], [])
    assert look(30) == [("b.png", True)]  # nobody writes it any more
    assert look(50) == []
    write(folder / "b.png", content, 5)
    assert (look(51), look(52)) == ([], [("b.png", False)])


def test_a_file_that_changes_while_it_is_read_is_read_again(watched, detector, monkeypatch):
    folder, look = watched
    write(folder / "a.png", CONTENTS[0], 1)
    predict = detector.predict

    def slow(source, *, maps):
        write(folder / "a.png", CONTENTS[1], 2)
        return predict(source, maps=maps)

    look(0)
    monkeypatch.setattr(detector, "predict", slow, raising=False)
    assert look(1) == []
    monkeypatch.setattr(detector, "predict", predict)
    assert (look(2), look(3)) == ([], [("a.png", False)])


def test_what_is_removed_before_its_turn_is_named_and_what_is_removed_later_is_forgotten(watched):
    folder, look = watched
    write(folder / "a.png", CONTENTS[0], 1)
    write(folder / "b.png", CONTENTS[1], 2)
    look(0)
    (folder / "a.png").unlink()
    assert look(1) == [("a.png", True), ("b.png", False)]
    (folder / "b.png").unlink()
    assert look(2) == []
    write(folder / "b.png", CONTENTS[1], 2)  # the same again is a new picture
    assert (look(3), look(4)) == ([], [("b.png", False)])


def test_a_folder_filled_while_it_is_watched_misses_nothing(watched):
    folder, look = watched
    lines = []
    for number in range(40):  # twenty a second, by the clock of the test
        write(folder / f"{number}.png", CONTENTS[number % 12], number)
        lines += look(number / 20)
    lines += look(3.0)
    assert [name for name, _ in lines] == [f"{number}.png" for number in range(40)]


def test_a_folder_that_is_gone_is_an_error(detector, tmp_path):
    with pytest.raises(DatasetError, match="expected a folder"):
        list(Folder(detector, tmp_path / "none").look())


def test_a_restart_goes_on_behind_the_lines_that_are_there(tmp_path):
    fitted().save(tmp_path / "m.blemish")
    folder, out = tmp_path / "camera", tmp_path / "lines.jsonl"
    folder.mkdir()
    write(folder / "a.png", CONTENTS[0], 1)

    def watch(*options):
        arguments = ["watch", str(tmp_path / "m.blemish"), str(folder), "--once", "--settle", "0", "--every", "0"]
        done = CliRunner().invoke(app, [*arguments, *options])
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    assert [json.loads(line)["image"] for line in watch()] == [str(folder / "a.png")]
    watch("--out", str(out))
    with out.open("a") as file:
        file.write('{"image": "torn')
    write(folder / "b.png", CONTENTS[1], 2)
    write(folder / "bad.png", b"no picture", 3)
    watch("--out", str(out), "--patience", "0")
    lines = out.read_text().splitlines()
    whole = [json.loads(line) for line in lines]
    assert [os.path.basename(row["image"]) for row in whole] == ["a.png", "b.png", "bad.png"]
    assert len({row["model"] for row in whole}) == 1
    assert "not an image" in whole[2]["error"]
    out.write_text("\n".join(lines))  # all but the end of the last line
    watch("--out", str(out))
    assert out.read_text() == "\n".join(lines) + "\n"
    watch("--out", str(out))
    assert out.read_text().splitlines() == lines
