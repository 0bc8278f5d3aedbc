"""Files of detectors, tunings and kept scores: they come back exactly, and a bad one is blamed by name."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch

import stripes
from blemish import persist
from blemish.datasets.labelled import LabelledImages
from blemish.errors import DatasetError, ModelFileError, NotFittedError, OutputError
from blemish.evaluation.classifiers import Reader, evaluate_ood
from blemish.evaluation.tuning import Grid, Tuning
from blemish.images.source import from_arrays
from blemish.ood import MSP, Gradient, NearestNeighbours, ViM, load_detector
from toy import MORE, TEST, TRAIN

VIM = {"kind": "ood", "name": "vim", "parameters": {"dimensions": 4}, "versions": {}}


def test_a_detector_file_says_what_it_holds(tmp_path):
    detector = ViM(dimensions=4).fit(TRAIN)
    detector.save(tmp_path / "vim.safetensors")
    tensors, manifest = persist.load(tmp_path / "vim.safetensors")
    assert {key: manifest[key] for key in ("kind", "name", "parameters")} == {k: VIM[k] for k in VIM if k != "versions"}
    assert manifest["versions"].keys() == {"blemish", "torch", "numpy"}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == dict.fromkeys(ViM.forms, torch.float64)


def test_parameters_come_back_as_they_were(tmp_path):
    detector = Gradient(temperature=5.0, parameters=("layer1", "fc"), norm="l1")
    detector.save(tmp_path / "gradient")
    assert load_detector(tmp_path / "gradient") == detector


def test_an_unfitted_detector_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError, match=r"ViM.state needs a fitted detector"):
        ViM().save(tmp_path / "vim")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"method": "padim", "parameters": {}}, "not a detector of `blemish.ood`"),
        (VIM | {"kind": "method"}, "not a detector of `blemish.ood`"),
        (VIM | {"name": "wim"}, "detector wim is not known here. Known: msp, "),
        (VIM | {"name": ["vim"]}, "not a detector of this version"),
        ({"kind": "ood", "parameters": {}}, "not a detector of this version of blemish ('name')"),
        ({"kind": "ood", "name": "vim"}, "not a detector of this version of blemish ('parameters')"),
        (VIM | {"parameters": {"dimension": 4}}, "parameters: expected the keys dimensions, got dimension"),
        (VIM | {"parameters": {"dimensions": "4"}}, "parameters: dimensions: expected a whole number"),
        (VIM | {"parameters": [4]}, "not a detector of this version"),
        (VIM | {"name": "react", "parameters": {}}, "state: expected threshold, channels, got"),
    ],
)
def test_foreign_files_are_blamed(tmp_path, manifest, words):
    path = tmp_path / "other.safetensors"
    persist.save(path, ViM(dimensions=4).fit(TRAIN).state(), manifest)
    with pytest.raises(ModelFileError, match=rf"^{re.escape(str(path))}: .*{re.escape(words)}"):
        load_detector(path)


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("alpha", torch.ones(3, dtype=torch.float64), "state alpha: expected float64"),
        ("origin", torch.ones(24), "state origin: expected float64 channels"),
        ("origin", torch.ones(23, dtype=torch.float64), "state residual: expected float64 channels rest, equal axes"),
        ("residual", torch.full((24, 20), torch.inf, dtype=torch.float64), "state residual: expected finite numbers"),
    ],
)
def test_tensors_that_do_not_fit_are_blamed(tmp_path, name, wrong, words):
    path = tmp_path / "vim.safetensors"
    persist.save(path, ViM(dimensions=4).fit(TRAIN).state() | {name: wrong}, VIM)
    with pytest.raises(ModelFileError, match=rf"^{re.escape(str(path))}: .*{re.escape(words)}"):
        load_detector(path)


def test_damaged_and_missing_files_are_blamed(tmp_path):
    path = tmp_path / "vim.safetensors"
    with pytest.raises(ModelFileError, match=r"vim\.safetensors: the file does not exist"):
        load_detector(path)
    ViM().fit(TRAIN).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFileError, match=r"vim\.safetensors: .*damaged"):
        load_detector(path)
    path.write_text("{}")
    with pytest.raises(ModelFileError, match=r"vim\.safetensors: "):
        load_detector(path)


def test_a_refused_state_leaves_the_detector_as_it_was():
    detector = NearestNeighbours(k=5).fit(TRAIN)
    before = detector.score(TEST)
    with pytest.raises(ValueError, match=r"^state centre: expected float32 channels, equal axes"):
        detector.restore(NearestNeighbours(k=5).fit(MORE).state() | {"centre": torch.zeros(3)})
    np.testing.assert_array_equal(detector.score(TEST), before)


# Tuning files

TUNING = Tuning(
    "stripes", "ODIN", "synthetic", "stripes (6)", 6, 6, Grid((1.0, 2.0), (0.0,)), [[0.5], [0.75]], 2.0, 0.0, ["a"]
)  # fmt: skip


def test_a_tuning_file_is_written_whole(tmp_path):
    TUNING.save(tmp_path / "t.json")
    assert Tuning.load(tmp_path / "t.json") == TUNING
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    with pytest.raises(OutputError, match=r"none/t\.json: expected a file in an existing folder"):
        TUNING.save(tmp_path / "none" / "t.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"folder: expected a file, got a folder"):
        TUNING.save(tmp_path / "folder")


def test_what_is_wrong_with_a_tuning_file_is_said(tmp_path):
    content = json.loads(json.dumps(asdict(TUNING)))
    texts = {
        "half.json": (json.dumps(content)[:40], "damaged, no JSON"),
        "bytes.json": (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        "list.json": ("[]", "not a file written by `blemish ood tune`"),
        "other.json": ("{}", "not a file written by `blemish ood tune` ('grid')"),
        "more.json": (json.dumps(content | {"more": 1}), "unexpected keyword argument 'more'"),
        "type.json": (json.dumps(content | {"temperature": "2"}), "temperature: expected a number, got 2"),
        "goal.json": (json.dumps(content | {"objective": "best"}), "objective: expected outliers, synthetic or inl"),
        "grid.json": (json.dumps(content | {"grid": {"temperatures": [0], "eps": [0]}}), "temperatures: expected"),
    }
    for name, (text, words) in texts.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DatasetError, match=rf"{name}: .*{re.escape(words)}"):
            Tuning.load(tmp_path / name)
    with pytest.raises(
        DatasetError, match=r"none\.json: the file does not exist, expected a tuning\. `blemish ood tune --out .*none"
    ):
        Tuning.load(tmp_path / "none.json")
    with pytest.raises(DatasetError, match=": expected a tuning, got a folder"):
        Tuning.load(tmp_path)


# Kept scores


def test_kept_scores_are_written_whole_and_a_damaged_file_is_blamed(tmp_path):
    images = LabelledImages(from_arrays(list(stripes.stripes(8, 11)[0])), None, "stripes")
    others = LabelledImages(from_arrays(list(stripes.blobs(8, 12))), None, "blobs")
    arguments = {"detectors": {"msp": MSP()}, "reading": Reader(batch_size=4), "keep": tmp_path / "kept"}
    first = evaluate_ood(stripes.classifier(), images, {"blobs": others}, **arguments)
    files = sorted((tmp_path / "kept").iterdir())
    assert [re.sub(r"-[0-9a-f]{16}", "", path.name) for path in files] == ["blobs.npz", "stripes.npz"]
    assert evaluate_ood(stripes.classifier(), images, {"blobs": others}, **arguments).comparisons == first.comparisons
    files[1].write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"stripes-.*\.npz: kept scores that cannot be read .*Delete the file"):
        evaluate_ood(stripes.classifier(), images, {"blobs": others}, **arguments)
