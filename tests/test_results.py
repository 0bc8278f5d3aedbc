"""What `blemish predict --out` writes, without a model: names of heat maps, and a disk that fills up on the way."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

from blemish.calibrate import calibrate
from blemish.cli.results import JudgedInFolder, ResultWriter
from blemish.errors import OutputError
from blemish.report.lines import VERSION, LookLine, NotJudged, RegionLine
from blemish.report.overlay import FOUND
from blemish.types import AnomalousRegion, Decision
from faults import WriteFault, failing, watching

REGION = AnomalousRegion(
    box=(1.0, 1.0, 2.0, 1.5), contour=((1.0, 1.0), (3.0, 1.0), (3.0, 2.5)), centre=(2.0, 1.5), area=3.0, peak=9.0,
    mean=8.0, p_value=0.05,
)  # fmt: skip


@pytest.fixture
def model(tmp_path):
    (tmp_path / "m").write_bytes(b"a model")
    return tmp_path / "m"


def decision(path):
    return Decision(str(path), 1.0, np.zeros((4, 4), np.float32), None, None, None)


def test_heat_maps_of_folders_that_differ_in_letter_case_have_other_names(tmp_path, model):
    writer = ResultWriter(tmp_path / "out", "npy", model=model)
    with writer:
        for name in ("a/part/0.png", "b/PART/0.png", "c/part/0.png"):
            writer.write(decision(tmp_path / name))
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    found = [row["heatmap"] for row in rows]
    assert found == ["heatmaps/part/0.npy", "heatmaps/PART/0-2.npy", "heatmaps/part/0-3.npy"]
    assert all((tmp_path / "out" / name).is_file() for name in found)


def test_a_heat_map_is_whole_or_not_there(tmp_path, model):
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match=r"0\.npy: cannot be written \(No space left on device\)"),
        ResultWriter(out, "npy", model=model) as writer,
        watching(WriteFault(out / "heatmaps", 3, failing(28))),
    ):
        writer.write(decision(tmp_path / "a" / "0.png"))
    assert os.listdir(out / "heatmaps" / "a") == []
    assert (out / "results.jsonl").read_bytes() == b""


@pytest.mark.parametrize("promise", [None, calibrate(range(19), false_alarm_rate=0.05).promise])
def test_lines_have_the_fields_and_types_of_their_schema(tmp_path, model, promise):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "0.png")
    judged = replace(decision(tmp_path / "0.png"), p_value=0.5, threshold=0.5, promise=promise, regions=(REGION,))
    with ResultWriter(tmp_path / "out", "npy", model=model, overlays=True) as writer:
        writer.write(judged)
        writer.write_skipped([("1.png", "not an image")])
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    for line, kind in zip(map(json.loads, lines), (JudgedInFolder, NotJudged), strict=True):
        schema = get_type_hints(kind)
        assert list(line) == list(schema)
        kinds = {name: [get_origin(k) or k for k in get_args(schema[name]) or (schema[name],)] for name in schema}
        assert all(type(value) in kinds[name] for name, value in line.items())
    place = json.loads(lines[0])["regions"][0]
    assert list(place) == list(get_type_hints(RegionLine)) == [field.name for field in fields(AnomalousRegion)][:7]
    assert place == json.loads(json.dumps(asdict(REGION)))


def test_overlays_and_coco_hold_the_regions_of_earlier_runs_too(tmp_path, model):
    out, coco = tmp_path / "out", tmp_path / "regions.json"
    paths = [tmp_path / "a" / "0.png", tmp_path / "b" / "a" / "0.png"]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 6), 90, np.uint8)).save(path)
    for run, path in enumerate(paths):
        writer = ResultWriter(out, "none", model=model, overlays=True, coco=coco)
        assert writer.left(paths) == paths[run:]
        with writer:
            writer.write(replace(decision(path), map=np.zeros((4, 6), np.float32), regions=(REGION,) * (run + 1)))
            writer.write_coco()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["overlay"] for row in rows] == ["overlays/a/0.png", "overlays/a/0-2.png"]
    drawn = np.asarray(Image.open(out / rows[0]["overlay"]))
    assert drawn.shape == (4, 6, 3)
    assert (drawn == FOUND).all(axis=2).any()
    found = json.loads(coco.read_text())
    assert [(i["file_name"], i["width"], i["height"]) for i in found["images"]] == [(str(p), 6, 4) for p in paths]
    assert [a["image_id"] for a in found["annotations"]] == [1, 2, 2]
    assert [a["id"] for a in found["annotations"]] == [1, 2, 3]
    first = found["annotations"][0]
    assert first["segmentation"] == [[1.0, 1.0, 3.0, 1.0, 3.0, 2.5]]
    assert (first["bbox"], first["area"], first["score"]) == ([1.0, 1.0, 2.0, 1.5], 3.0, 9.0)
    (out / rows[0]["overlay"]).unlink()
    assert ResultWriter(out, "none", model=model).left(paths) == []
    assert ResultWriter(out, "none", model=model, overlays=True).left(paths) == paths[:1]


def test_lines_of_another_version_are_judged_again(tmp_path, model):
    out = tmp_path / "out"
    with ResultWriter(out, "none", model=model) as writer:
        writer.write(decision(tmp_path / "0.png"))
    assert ResultWriter(out, "none", model=model).left([tmp_path / "0.png"]) == []
    lines = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text(lines.replace(f'"version": {VERSION}', f'"version": {VERSION - 1}'))
    assert ResultWriter(out, "none", model=model).left([tmp_path / "0.png"]) == [tmp_path / "0.png"]


def test_every_field_of_a_line_is_on_the_page():
    page = (Path(__file__).parents[1] / "docs" / "decisions.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page.split("## The lines of")[1], flags=re.MULTILINE))
    words = {int: "integer", str: "text", float: "number", bool: "true or false", list: "list", LookLine: "object",
             type(None): "null"}  # fmt: skip
    schema = get_type_hints(JudgedInFolder) | get_type_hints(NotJudged)
    assert listed == {
        name: ", ".join(words[get_origin(kind) or kind] for kind in get_args(kind) or (kind,))
        for name, kind in schema.items()
    }
    assert f"Version {VERSION}" in page
    (table,) = re.findall(r"\| field of a region .*?\n\n", page, flags=re.DOTALL)
    assert re.findall(r"^\| ([a-z_, ]+) \|", table, flags=re.MULTILINE)[1:] == [
        "box", "contour", "centre", "area", "peak, mean", "p_value",
    ]  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_a_line_that_does_not_fit_is_an_error_of_its_file(tmp_path, model):
    with ResultWriter(tmp_path / "out", "none", model=model) as writer:
        writer._lines.close()
        writer._lines = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
        with pytest.raises(OutputError, match=r"/dev/full: cannot be written \(No space left on device\)"):
            writer.write(decision(tmp_path / "0.png"))
