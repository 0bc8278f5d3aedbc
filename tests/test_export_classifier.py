"""A classifier and a detector of `ood/` in one file: the graph is made of the detector's own score."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from blemish.calibrate import calibrate, with_margin
from blemish.errors import ArgumentError, ExportError, ImageError
from blemish.export import run
from blemish.export.arrays import Recorded
from blemish.export.classifier import ClassifierJudge, export_classifier
from blemish.export.nodes import Made, Nodes
from blemish.images.drawn import clouds
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_arrays, from_paths
from blemish.ood import DETECTORS, ODIN, Classifier, Energy, Gradient, Head, NearestNeighbours, Outputs
from small import needs_exporter
from trained import Classifier as TinyClassifier

pytestmark = needs_exporter

CLASSES, CHANNELS = 7, 12
VARIANTS = {
    "gen": {"gamma": 0.5, "top": 2}, "last_layer": {"temperature": 3.0, "bias": False}, "ex_grad": {"norm": "l2"},
    "ash": {"variant": "b"}, "ensemble": {"measure": "epkl"}, "knn": {"k": 1},
}  # fmt: skip
ONE_PASS = [name for name, kind in DETECTORS.items() if "network" not in kind.needs]
"""Those that are exported."""


def test_the_page_names_every_detector():
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    rows = [
        set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| (`.*`) \| (?:yes|no)", page, flags=re.MULTILINE)
    ]
    assert set(ONE_PASS) in rows
    assert set(DETECTORS) - set(ONE_PASS) in rows


def outputs(count, seed=0):
    """Of a drawn last layer; one row in four is very sure of its class."""
    random = np.random.default_rng(0)
    head = Head(
        (3 * random.normal(size=(CLASSES, CHANNELS))).astype(np.float32),
        random.normal(3, size=CLASSES).astype(np.float32),
    )
    random = np.random.default_rng(seed)
    features = np.square(random.normal(size=(count, CHANNELS))).astype(np.float32)
    features[::4] *= 10
    logits = (features @ head.weight.T + head.bias).astype(np.float32)
    other = (0.7 * logits + random.normal(size=logits.shape)).astype(np.float32)
    return Outputs(logits, features, head, (logits, other))


def recorded_score(detector, one):
    """The session that scores one row, whose outputs `one` it was recorded with."""
    graph = Nodes("x")
    logits, features, other = (Recorded.of(array, Made(graph, name)) for name, array in rows_of(one, 0).items())
    score = detector.score(Outputs(logits, features, one.head, (logits, other)))
    np.testing.assert_array_equal(np.asarray(score), detector.score(one))
    graph.rename(score.made, "score")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape))
        for name, array in rows_of(one, 0).items()
    ]
    made = [helper.make_tensor_value_info("score", TensorProto.DOUBLE, [1])]
    nodes, constants = graph.as_onnx()
    whole = helper.make_graph(nodes, "x", inputs, made, constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString())


def rows_of(found, i):
    arrays = {"logits": found.logits, "features": found.features, "other": found.members[1]}
    return {name: array[i : i + 1] for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("name", "more"), [(name, {}) for name in ONE_PASS] + [(name, VARIANTS[name]) for name in VARIANTS]
)
def test_a_graph_scores_as_the_detector_that_it_is_made_of(name, more):
    detector = DETECTORS[name](**more)
    if detector.learns:
        detector.fit(outputs(60, 1))
    session, test = recorded_score(detector, outputs(1, 2)), outputs(20, 3)
    known = {given.name for given in session.get_inputs()}
    found = [
        session.run(None, {name: row for name, row in rows_of(test, i).items() if name in known})[0] for i in range(20)
    ]
    np.testing.assert_allclose(np.concatenate(found), detector.score(test), rtol=1e-12)


def test_an_unknown_operation_is_refused():
    array = Recorded.of(np.zeros((1, 3)), Made(Nodes("x"), "z"))
    for operation in (np.sort, np.sin, np.cumsum, lambda a: a.reshape(3) + 1):
        with pytest.raises(TypeError, match="which no graph is made of"):
            operation(array)


@pytest.fixture(scope="module")
def classifier():
    network = TinyClassifier(1)
    network.head.bias.data.add_(1.0)
    return Classifier(network.eval(), preprocess=Preprocess(36, 32), name="tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several sizes, some of them darker."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, drawn in enumerate(clouds([(40, 50), (33, 32), (64, 48)] * 8)):
        Image.fromarray((drawn * (0.2 + 0.03 * i)).astype(np.uint8)).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def calibration(classifier, pictures):
    scores = [one.score for one in ClassifierJudge(classifier, Energy()).predict(from_paths(pictures[:20]))]
    return calibrate(with_margin(scores), false_alarm_rate=0.3)


def test_a_file_prints_class_score_p_value_and_verdict(classifier, pictures, calibration, tmp_path):
    made = export_classifier(
        classifier, Energy(), tmp_path / "m.onnx", calibration=calibration, images=from_paths(pictures)
    )
    assert made.parity.score < 1e-5
    assert made.parity.images == len(pictures)
    model, card = run.open_model(str(made.path), "onnxruntime", 1)
    assert card["made_of"] == {"classifier": "tiny", "detector": "energy", "parameters": {"temperature": 1.0}}
    verdicts = set()
    judged = list(ClassifierJudge(classifier, Energy(), calibration).predict(from_paths(pictures)))
    for path, decision in zip(pictures, judged, strict=True):
        line = json.loads(json.dumps(run.judge(model, card["line"], path, None)))
        assert line["score"] == pytest.approx(decision.score, rel=1e-5)
        assert (line["p_value"], line["anomalous"]) == (decision.p_value, decision.is_anomalous)
        assert line["false_alarm_rate"] == 0.3
        pixels = classifier.preprocess.pixels(Image.open(path))
        assert line["predicted"] == int(classifier.outputs(pixels[None]).logits.argmax())
        verdicts.add(line["anomalous"])
    assert verdicts == {True, False}


def test_without_held_out_images_there_is_no_verdict(classifier, tmp_path):
    made = export_classifier(classifier, Energy(), tmp_path / "m.onnx")
    assert made.parity.drawn
    assert {value.name for value in onnx.load(made.path).graph.output} == {"score", "predicted"}


@pytest.mark.parametrize("count", [40, pytest.param(9000, marks=pytest.mark.heavy)])  # a search in three parts
def test_a_search_among_neighbours_is_in_the_file(classifier, pictures, tmp_path, count):
    pixels = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = NearestNeighbours(k=3).fit(classifier.outputs(pixels))
    made = export_classifier(classifier, detector, tmp_path / "m.onnx", images=from_paths(pictures))
    assert made.parity.score < 1e-6
    model, _ = run.open_model(str(made.path), "onnxruntime", 1)
    decisions = ClassifierJudge(classifier, detector).predict(from_paths(pictures))
    found = [model(run.read_pixels(path))["score"].item() for path in pictures]
    np.testing.assert_allclose(found, [decision.score for decision in decisions], rtol=1e-5)


class Elsewhere(Energy):
    """Leaves the arrays that it was given."""

    def _score(self, outputs):
        return super()._score(replace(outputs, logits=np.array(outputs.logits)))


@pytest.mark.parametrize(
    ("detector", "why"),
    [(ODIN(), "takes gradients"), (Gradient(), "takes gradients"), (Elsewhere(), "does not come from its arrays")],
    ids=["odin", "gradient", "elsewhere"],
)
def test_what_cannot_be_exported_is_refused(classifier, tmp_path, detector, why):
    with pytest.raises(ArgumentError, match=why):
        export_classifier(classifier, detector, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_no_file_can_hold_is_refused(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("blemish.export.trace._MOST_BYTES", 100_000)
    large = NearestNeighbours(k=1).fit(classifier.outputs(torch.zeros(9000, 3, 1, 1)))
    with pytest.raises(ArgumentError, match="detector: expected a model below 2 GB"):
        export_classifier(classifier, large, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_compared_are_refused_before_a_graph_is_built(classifier, tmp_path, monkeypatch):
    def build(_judge):
        raise AssertionError("it builds before it has looked")

    monkeypatch.setattr("blemish.export.classifier._build", build)
    with pytest.raises(ArgumentError, match="images: expected at least 1 to compare on, got none"):
        export_classifier(classifier, Energy(), tmp_path / "m.onnx", images=from_paths([]))
    with pytest.raises(ImageError, match="nowhere"):
        export_classifier(classifier, Energy(), tmp_path / "m.onnx", images=from_paths([tmp_path / "nowhere.png"]))


class Drifting(nn.Module):
    """Answers otherwise while it is recorded."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, pixels):
        return self.head(pixels.mean((2, 3))) * (1.0 if torch.compiler.is_compiling() else 1.5)


def test_a_network_that_is_not_the_recorded_one_is_found(tmp_path):
    odd = Classifier(Drifting().eval(), preprocess=Preprocess(16), name="odd")
    with pytest.raises(ExportError, match=r"first that differs: layer\.logits"):
        export_classifier(odd, Energy(), tmp_path / "m.onnx", images=from_arrays(list(clouds([(16, 16)] * 4))))
    assert list(tmp_path.iterdir()) == []
