"""The laws of a method, on the file that was exported from it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from blemish.detector import Detector
from blemish.errors import ArgumentError
from blemish.export.runs import OnTorch
from blemish.export.write import SUFFIXES, export_model
from blemish.images.preprocess import Preprocess
from blemish.methods import METHODS, PatchCore
from small import TORCH, needs_exporter
from test_tiling import PRETRAINED
from trained import quick

pytestmark = needs_exporter

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
(EXPORTED,) = re.findall(r"^\| (`padim`.*?) \| yes \|$", PAGE, flags=re.MULTILINE)
WORKING = set(re.findall(r"`(\w+)`", EXPORTED))


def test_the_page_names_every_method():
    assert set(METHODS) == WORKING


def pictures(count, seed=0):
    """Alike, but not so that scores are mere differences of rounded numbers: there no margin keeps a verdict."""
    random = np.random.default_rng(seed)
    base = random.integers(40, 200, (70, 90, 3))
    return [np.clip(base + random.normal(0, 12, base.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def detectors():
    for name in METHODS:
        yield pytest.param(lambda name=name: quick(name, **PRETRAINED.get(name, {})), id=name)
    yield pytest.param(lambda: PatchCore(backbone="filters", reweight=3, count=20), id="patchcore, re-weighted")
    yield pytest.param(lambda: quick("padim", reduction="random"), id="padim, random channels")


def judge_of(path):
    """What makes all outputs by name of a picture."""
    if path.suffix == ".pt2":
        on_torch = OnTorch(path.read_bytes())
        return lambda image: on_torch(image[None])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(None, {"pixels": image[None]}), strict=True))


@pytest.mark.heavy
@pytest.mark.parametrize("make", list(detectors()))
def test_an_exported_file_keeps_the_laws(make, tmp_path):
    images = pictures(16)
    detector = Detector(method=make(), preprocess=Preprocess((64, 80)), false_alarm_rate=0.3).fit(images)
    for format in ("onnx", "torch") if TORCH >= (2, 9) else ("onnx",):
        made = export_model(detector, tmp_path / f"m{SUFFIXES[format]}", format=format, images=images)
        assert max(made.parity.score, made.parity.map or 0) < 1e-4
        judge = judge_of(made.path)
        bad = images[0].copy()
        bad[20:50, 30:60] = np.random.default_rng(1).integers(0, 256, (30, 30, 3))
        good, worse, again = judge(images[0]), judge(bad), judge(images[0])
        assert worse["score"] > good["score"] == again["score"]  # larger is more anomalous; nothing is remembered
        assert worse["p_value"] <= good["p_value"]
        assert bool(worse["anomalous"][0]) == (worse["score"][0] > detector.calibration_.threshold)
        for size in ((70, 90), (31, 200), (64, 80), (1, 1)):
            found = judge(np.resize(images[0], (*size, 3)))
            assert np.isfinite(found["score"]).all()
            assert "map" not in found or found["map"].shape == (1, *size)


def test_what_no_graph_holds_is_refused(tmp_path):
    pytest.importorskip("faiss")
    from blemish.edges.faiss import Faiss

    method = quick("knn", index=Faiss("flat"))
    detector = Detector(method=method, preprocess=Preprocess(64), calibration="none").fit(pictures(8))
    with pytest.raises(ArgumentError, match="method: expected operations that a graph can hold, got knn"):
        export_model(detector, tmp_path / "m.onnx")
