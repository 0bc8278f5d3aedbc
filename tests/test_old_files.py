"""Model files of every published version load, and score as they did (`tests/old/make.py` wrote them)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import blemish
from blemish import Detector
from old.make import METHODS, judged

FOLDER = Path(__file__).parent / "old"
VERSIONS = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_a_published_version_scores_as_it_did(version, name, tmp_path):
    known = json.loads((FOLDER / f"{version}.json").read_text())[name]
    detector = Detector.load(FOLDER / f"{version}-{name}.blemish")
    for path in (None, tmp_path / "again.blemish"):
        if path is not None:  # written again, it is a file of today
            detector.save(path)
            detector = Detector.load(path)
        assert detector.calibration_.threshold == known["threshold"]
        for found, expected in zip(judged(detector), known["images"], strict=True):
            assert found == {"score": pytest.approx(expected["score"], rel=1e-5), "p_value": expected["p_value"]}


def test_this_version_has_its_files():
    """One that is not published yet is newer than all that are."""
    published, _, between = blemish.__version__.partition(".dev")
    if between:
        assert parts(published) > max(map(parts, VERSIONS))
    else:
        assert published in VERSIONS, "run tests/old/make.py with the new version"


def parts(version):
    return [int(part) for part in version.split(".")]
