"""An exported file says what its detector says, without torch and blemish, or is not written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from blemish.cli import app
from blemish.datasets.synthetic import write_dataset
from blemish.detector import Detector
from blemish.errors import ArgumentError, BlemishError, ExportError, MissingPackageError, NotFittedError, OutputError
from blemish.export import parity, run
from blemish.export.as_torch import build_program, record_program, saved
from blemish.export.nodes import Made, Nodes
from blemish.export.pixels import PictureFrame
from blemish.export.runs import OnOnnxruntime, OnTorch
from blemish.export.whole import Whole, check_exportable
from blemish.export.write import SUFFIXES as OF_FORMATS
from blemish.export.write import export_model
from blemish.features.onnx_graph import quiet
from blemish.images.decode import SUFFIXES, decode
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_paths
from blemish.methods import KNN, PaDiM
from small import TORCH, needs_exporter, needs_programs

pytestmark = needs_exporter

# Runs a program as if torch and blemish, or what else its first argument names, were not installed.
BLOCKED = """
import runpy, sys
blocked = sys.argv[1].split(",")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not there", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of a product at three sizes, larger and smaller than the network's input."""
    folder = tmp_path_factory.mktemp("export") / "data"
    write_dataset(folder, product="washer", n_train=24, n_test_normal=3, n_per_defect=1, size=64)
    for path, size in zip(sorted(folder.glob("test/*/*.png")), ((101, 33), (40, 64), (20, 30)), strict=False):
        Image.open(path).resize(size).save(path)
    return folder


@pytest.fixture(scope="module")
def detector(data):
    method = PaDiM(backbone="filters", dimensions=8)
    return Detector(method=method, preprocess=Preprocess((32, 40)), false_alarm_rate=0.25).fit(data)


@pytest.fixture(scope="module")
def device(detector, data, tmp_path_factory):
    """A folder with a model file and what `blemish export` made of it."""
    folder = tmp_path_factory.mktemp("device")
    detector.save(folder / "m.blemish")
    options = ("--images", data, "--out", folder / "m.onnx", "--json")
    done = CliRunner().invoke(app, [str(a) for a in ("export", folder / "m.blemish", *options)])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["parity"]["images"] == 24
    assert 0 <= made["parity"]["score"] < 1e-5 > made["parity"]["map"]
    assert made["parity"]["nearest"] < 1e-4  # a held-out image made the threshold
    assert made["bytes"] == (folder / "m.onnx").stat().st_size
    return folder


def on_device(folder, *arguments, blocked="torch,blemish,scipy,torchvision"):
    """What run.py prints where there is no torch: the lines, and the exit status."""
    command = [sys.executable, "-c", BLOCKED, blocked, str(folder / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done


def test_the_device_prints_the_lines_of_predict(device, data, tmp_path):
    pictures = sorted(data.glob("test/*/*.png"))
    Image.open(pictures[0]).convert("RGBA").save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(pictures[0]).convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    Image.open(pictures[0]).convert("P").save(tmp_path / "palette.gif")
    (tmp_path / "torn.png").write_bytes(pictures[0].read_bytes()[:60])
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    places = (data / "test", tmp_path)
    here, done = on_device(device, device / "m.onnx", *places, "--exit-code", "--maps", tmp_path / "maps")
    done_there = CliRunner().invoke(app, ["predict", str(device / "m.blemish"), *map(str, (*pictures, tmp_path))])
    there = {line["image"]: line for line in map(json.loads, done_there.stdout.splitlines())}
    deep = there.pop(str(tmp_path / "deep.png"))
    refused = [line for line in here if line["image"] == deep["image"]]
    assert "8 bits" in refused[0]["error"]  # which only blemish can judge
    here = {line["image"]: line for line in here if line["image"] != deep["image"]}
    assert here.keys() == there.keys()
    assert "score" in here[str(tmp_path / "turned.jpg")]
    maps = {}
    for name, line in there.items():
        heatmap = here[name].pop("heatmap", None)
        assert list(here[name]) == list(line)
        if "error" in line:
            assert name in here[name]["error"]
            continue
        maps[name] = np.load(tmp_path / "maps" / heatmap)
        for field in ("regions", "look"):  # which need more than one graph
            del line[field], here[name][field]
        assert here[name].pop("score") == pytest.approx(line.pop("score"), rel=1e-5)
        assert here[name] == line
    assert {line.get("anomalous") for line in here.values()} == {True, False, None}
    assert done.returncode == 3
    for decision in Detector.load(device / "m.blemish").predict(pictures):
        np.testing.assert_allclose(maps[decision.name], decision.map, rtol=1e-4)


def test_the_device_refuses_what_is_no_model(device, tmp_path):
    (tmp_path / "torn.onnx").write_bytes((device / "m.onnx").read_bytes()[:5000])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["score"])], "foreign",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "foreign.onnx")
    for name in ("torn", "foreign", "missing"):
        lines, done = on_device(device, tmp_path / f"{name}.onnx", tmp_path)
        assert (lines, done.returncode) == ([], 1)
        assert f"{name}.onnx: not a file that `blemish export` wrote, or damaged" in done.stderr


def test_the_card_says_where_the_file_comes_from(device, detector):
    session = onnxruntime.InferenceSession(device / "m.onnx", providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["blemish"])
    assert card["made_of"]["method"] == "padim"
    assert card["made_of"]["parameters"]["dimensions"] == 8
    assert card["calibration"]["scores"] == detector.calibration_.scores.tolist()
    assert card["digests"]["learned"] == sorted(detector.learned_)
    assert card["parity"]["score"] < 1e-5
    assert set(card["made_of"]["versions"]) >= {"blemish", "torch", "onnx"}
    assert len((device / "run.py").read_text(encoding="utf-8").splitlines()) < 120


def frame(preprocess):
    """A graph of a `PictureFrame` alone: from `pixels` to `input`, and from `maps` to `map`."""
    graph = Nodes("frame")
    made = PictureFrame(graph, Made(graph, "pixels"), preprocess)
    graph.rename(made.network_input(), "input")
    graph.rename(made.to_original(Made(graph, "maps")), "map")
    shapes = {"pixels": (TensorProto.UINT8, [None, None, None, 3]), "maps": (TensorProto.FLOAT, [None, None, None])}
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in shapes.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", "map")]
    nodes, constants = graph.as_onnx()
    whole = helper.make_graph(nodes, "frame", inputs, outputs, constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


@pytest.mark.parametrize("preprocess", [Preprocess((48, 80)), Preprocess(57, 32)], ids=["stretched", "cropped"])
def test_the_resize_in_the_graph_is_ours_bit_for_bit(preprocess):
    session = onnxruntime.InferenceSession(frame(preprocess), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for size in ((200, 300), (48, 80), (101, 79), (1, 1), (3, 170), (61, 30), (57, 57), (233, 90)):
        picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        map = random.normal(size=preprocess.size).astype(np.float32)
        pixels, placed = session.run(None, {"pixels": picture[None], "maps": map[None]})
        assert (pixels[0] == preprocess.pixels(Image.fromarray(picture)).numpy()).all()
        wanted = preprocess.to_original(torch.from_numpy(map), size)
        np.testing.assert_allclose(placed[0], wanted, atol=1e-3)  # noise, of which a pixel is a step


def test_the_resize_is_ours_on_openvino_too():
    """All but the last division, by 255, which it does by a factor."""
    core, random = openvino.Core(), np.random.default_rng(0)
    for preprocess in (Preprocess((48, 80)), Preprocess(57, 32)):
        model = core.compile_model(core.read_model(frame(preprocess)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for size in ((200, 300), (48, 80), (1, 1), (3, 170), (61, 30), (900, 1200)):
            picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            map = np.zeros(preprocess.size, np.float32)
            pixels = model({"pixels": picture[None], "maps": map[None]})["input"][0]
            assert np.abs(pixels - preprocess.pixels(Image.fromarray(picture)).numpy()).max() < 1e-6


@needs_programs
@pytest.mark.parametrize(
    "preprocess",
    [Preprocess((48, 80)), pytest.param(Preprocess(57, 32), marks=pytest.mark.heavy), Preprocess(32, 32)],
    ids=["stretched", "cropped", "its short side whole"],
)
def test_the_resize_is_ours_bit_for_bit_in_torch_too(preprocess):
    """For pictures of any size: the exporter may not take for granted what is so of its example alone."""

    class Core(nn.Module):
        def forward(self, pixels):
            return (pixels[:, 0],)

    graph = Nodes("frame")
    made = PictureFrame(graph, Made(graph, "pixels"), preprocess)
    graph.rename(made.network_input(), "network.input")
    before = len(graph.nodes)
    graph.rename(made.to_original(Made(graph, "network.map")), "map")
    kinds = {"network.input": (np.float32, []), "map": (np.float32, [])}
    judge = OnTorch(saved(record_program(Core(), ["network.map"], Whole(graph, before, kinds)), ""))
    random = np.random.default_rng(0)
    for size in ((200, 300), (48, 80), (79, 101), (1, 1), (3, 170), (57, 57), (90, 233), (900, 40)):
        picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        found, ours = judge(picture[None]), preprocess.pixels(Image.fromarray(picture))
        assert (found["network.input"][0] == ours.numpy()).all()
        np.testing.assert_allclose(found["map"][0], preprocess.to_original(ours[0], size), atol=1e-6)


@pytest.fixture(scope="module")
def for_torch(detector, data, tmp_path_factory):
    """What `blemish export --format torch` made of the same detector, without ONNX's packages."""
    if TORCH < (2, 9):
        pytest.skip("programs of torch are made from torch 2.9 on")
    folder = tmp_path_factory.mktemp("torch")
    detector.save(folder / "m.blemish")
    options = ("--format", "torch", "--images", data, "--out", folder / "m.pt2", "--json")
    with pytest.MonkeyPatch.context() as without:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            without.setitem(sys.modules, name, None)
        done = CliRunner().invoke(app, [str(a) for a in ("export", folder / "m.blemish", *options)])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert 0 <= made["parity"]["score"] < 1e-5 > made["parity"]["map"]
    assert (made["format"], made["parity"]["images"]) == ("torch", 24)
    return folder


def test_a_program_of_torch_says_the_same(for_torch, detector, data, tmp_path):
    assert sorted(path.name for path in for_torch.iterdir()) == ["m.blemish", "m.pt2", "run.py"]
    pictures = sorted(data.glob("test/*/*.png"))
    arguments = (for_torch / "m.pt2", data / "test", "--threads", 1, "--maps", tmp_path)
    lines, done = on_device(for_torch, *arguments, blocked="blemish,scipy,torchvision")
    assert [line["image"] for line in lines] == [str(path) for path in pictures], done.stderr
    for line, decision in zip(lines, detector.predict(pictures), strict=True):
        assert line["score"] == pytest.approx(decision.score, rel=1e-5)
        assert (line["p_value"], line["anomalous"]) == (decision.p_value, decision.is_anomalous)
        np.testing.assert_allclose(np.load(tmp_path / line["heatmap"]), decision.map, rtol=1e-4)
    found = {"blemish": ""}
    program = torch.export.load(for_torch / "m.pt2", extra_files=found)
    outputs = program.module()(torch.zeros(1, 5, 7, 3, dtype=torch.uint8))
    assert {name: (tuple(value.shape), value.dtype) for name, value in outputs.items()} == {
        "score": ((1,), torch.float32), "map": ((1, 5, 7), torch.float32), "p_value": ((1,), torch.float64),
        "threshold": ((), torch.float64), "anomalous": ((1,), torch.bool),
    }  # fmt: skip
    assert json.loads(found["blemish"])["made_of"]["method"] == "padim"


def test_what_is_no_program_of_ours_is_refused(detector, for_torch, tmp_path):
    (tmp_path / "torn.pt2").write_bytes((for_torch / "m.pt2").read_bytes()[:5000])
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    with quiet():
        torch.export.save(program, tmp_path / "foreign.pt2")
    for name, why in (("torn", ""), ("foreign", "it has no card"), ("missing", "No such file")):
        refused = rf"error: .*{name}\.pt2: not a file that `blemish export` wrote, or damaged \(.*{why}"
        with pytest.raises(SystemExit, match=refused):
            run.open_model(str(tmp_path / f"{name}.pt2"), "torch", 1)
    _, done = on_device(for_torch, tmp_path / "torn.pt2", tmp_path, blocked="blemish,scipy")  # torch is new there
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    with pytest.raises(ArgumentError, match=r"path: expected a file that ends in \.pt2, for torch, got m\.onnx"):
        export_model(detector, tmp_path / "m.onnx", format="torch")


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_a_file_says_nothing_of_the_machine_that_made_it(device, for_torch, name):
    folder = device if name == "m.onnx" else for_torch
    content = (folder / name).read_bytes()
    assert not [found for found in (b".py", b"site-packages", str(folder).encode()) if found in content]


@pytest.fixture(scope="module")
def for_openvino(detector, data, tmp_path_factory):
    """What `blemish export --format openvino` made of the same detector."""
    folder = tmp_path_factory.mktemp("openvino")
    detector.save(folder / "m.blemish")
    options = ("--format", "openvino", "--images", data, "--out", folder / "m.xml", "--json")
    done = CliRunner().invoke(app, [str(a) for a in ("export", folder / "m.blemish", *options)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["parity"]
    assert 0 <= found["score"] < 1e-5 > found["map"]
    return folder


def test_openvinos_own_file_says_the_same(for_openvino, device, detector, data):
    assert sorted(path.name for path in for_openvino.iterdir()) == ["m.bin", "m.blemish", "m.xml", "run.py"]
    pictures = sorted(data.glob("test/*/*.png"))
    ours = {decision.name: decision for decision in detector.predict(pictures)}
    for folder, *arguments in (
        (for_openvino, for_openvino / "m.xml"), (device, device / "m.onnx", "--runtime", "openvino"),
    ):  # fmt: skip
        lines, done = on_device(folder, *arguments, "--threads", 1, *pictures)
        assert len(lines) == len(pictures), done.stderr
        for line in lines:
            assert line["score"] == pytest.approx(ours[line["image"]].score, rel=1e-5)
            assert line["p_value"] == pytest.approx(ours[line["image"]].p_value, rel=1e-6)
            assert line["anomalous"] == ours[line["image"]].is_anomalous


@pytest.mark.parametrize("card", ["{}", "[]", '{"line": 1}', "[" * 100_000])
def test_the_device_refuses_a_card_that_is_none(device, tmp_path, card):
    model = onnx.load(device / "m.onnx")
    (row,) = (row for row in model.metadata_props if row.key == "blemish")
    row.value = card
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SystemExit, match=r"error: .*m\.onnx: not a file that `blemish export` wrote, or damaged"):
        run.open_model(str(tmp_path / "m.onnx"), "onnxruntime", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes, and no descriptors to close")
def test_the_device_waits_for_no_pipe_and_ends_without_a_word_where_nobody_reads(device, data, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    here, _ = on_device(device, device / "m.onnx", tmp_path / "pipe.png")
    assert "a folder, pipe, socket or device" in here[0]["error"]
    assert on_device(device, device / "m.onnx", data, "--threads", "-1")[1].returncode == 2
    (tmp_path / "file").touch()
    assert on_device(device, device / "m.onnx", data / "test", "--maps", tmp_path / "file")[1].stderr.startswith(
        "error: "
    )
    command = [sys.executable, str(device / "run.py"), str(device / "m.onnx"), str(data / "test")]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_what_openvino_cannot_have_is_refused(detector, for_openvino, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"path: expected a file that ends in \.xml"):
        export_model(detector, tmp_path / "m.onnx", format="openvino")
    (tmp_path / "m.xml").write_bytes((for_openvino / "m.xml").read_bytes()[:-200])
    _, done = on_device(for_openvino, tmp_path / "m.xml", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'm.xml'}: not a file that `blemish export` wrote")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"openvino is not installed. Install blemish\[openvino\]"):
        export_model(detector, tmp_path / "m.xml", format="openvino")


def test_all_p_values_are_those_of_the_calibration(detector):
    """At each held-out score, and at the next float32 on both sides, with ties and groups."""
    from blemish.export.whole import _decide

    scores = np.sort(np.random.default_rng(0).normal(size=19).astype(np.float32).astype(np.float64) * (1 + 1e-9))
    scores[4] = scores[5]
    for groups in (None, np.arange(19) // 2):
        known = replace(detector.calibration_, scores=scores, groups=groups)
        graph = Nodes("decide")
        _decide(graph, Made(graph, "score"), known)
        kinds = {"p_value": TensorProto.DOUBLE, "threshold": TensorProto.DOUBLE, "anomalous": TensorProto.BOOL}
        nodes, constants = graph.as_onnx()
        whole = helper.make_graph(
            nodes, "decide", [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()], constants,
        )  # fmt: skip
        model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        near = scores.astype(np.float32)
        for score in (*near, *np.nextafter(near, np.float32(9)), *np.nextafter(near, np.float32(-9))):
            p_value, threshold, anomalous = session.run(None, {"score": score[None]})
            assert p_value[0] == known.p_value(float(score))
            assert (float(threshold), bool(anomalous[0])) == (known.threshold, float(score) > known.threshold)


@pytest.fixture(scope="module")
def built(device):
    return onnx.load(device / "m.onnx")


def damaged(model, axes):
    """The same graph with its largest constant of so many axes a hundredth larger."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    tensors = [t for t in found.graph.initializer if (t.data_type, len(t.dims)) == (TensorProto.FLOAT, axes)]
    chosen = max(tensors, key=lambda tensor: int(np.prod(tensor.dims)))
    chosen.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(chosen) * np.float32(1.01), chosen.name))
    return found


def damaged_program(detector, axes):
    """The same of a program of torch, a copy, as a program shares its tensors with its detector."""
    program = torch.export.load(io.BytesIO(saved(build_program(detector), "")))
    every = (*program.state_dict.values(), *program.constants.values())
    tensors = [t for t in every if isinstance(t, torch.Tensor) and (t.dtype, t.ndim) == (torch.float32, axes)]
    max(tensors, key=torch.numel).mul_(1.01)
    return program


@pytest.mark.parametrize("format", ["onnx", "openvino", pytest.param("torch", marks=needs_programs)])
@pytest.mark.parametrize(
    ("axes", "first"),
    [(0, r"network\.input"), (4, r"layer\.\w+\."), (3, "what is made of the layers")],
    ids=["resize", "network", "method"],
)
def test_a_file_that_says_something_else_is_not_written(  # noqa: PLR0917
    built, detector, data, tmp_path, monkeypatch, axes, first, format
):
    monkeypatch.setattr("blemish.export.write.build", lambda *_: damaged(built, axes))
    monkeypatch.setattr("blemish.export.write.build_program", lambda known: damaged_program(known, axes))
    path = tmp_path / f"m{OF_FORMATS[format]}"
    with pytest.raises(ExportError, match=rf"{path.name}: not written, because .* The first that differs: {first}"):
        export_model(detector, path, format=format, images=data)
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_that_differs_is_enough(built, detector, data, monkeypatch):
    """Even where scores agree as far as rounding goes."""
    calibration = detector.calibration_
    held_out = [decision for decision in detector.predict(data / "train" / "good")]
    score = np.median([decision.score for decision in held_out])
    shifted = replace(calibration, scores=np.full(5, score), false_alarm_rate=0.4)
    monkeypatch.setattr(detector, "calibration_", shifted)
    images = from_paths(sorted(data.glob("train/good/*.png")))
    with pytest.raises(ExportError, match=r"good/\d+\.png is (normal|anomalous), and not by the file"):
        parity.check_parity(detector, OnOnnxruntime(built), images, layers=lambda _: {}, path="m.onnx")


def test_what_cannot_be_exported_is_refused_before_the_work(detector, data, tmp_path, monkeypatch):
    with pytest.raises(NotFittedError, match="fitted detector"):
        export_model(Detector(method="padim"), tmp_path / "m.onnx")
    (tmp_path / "run.py").write_text("print('mine')\n", encoding="utf-8")
    with pytest.raises(OutputError, match=r"run\.py: is there already, and none of ours"):
        export_model(detector, tmp_path / "m.onnx")
    camera = Detector(method=PaDiM(backbone="filters"), preprocess=Preprocess(32, white_level=1023.0))
    with pytest.raises(ArgumentError, match="white_level: expected pictures of 8 bits"):
        check_exportable(camera)
    folded = Detector(method=PaDiM(backbone="filters"), preprocess=Preprocess(32))
    folded.calibration_ = replace(detector.calibration_, kind="cross")
    with pytest.raises(ArgumentError, match="calibration: expected split or loo"):
        check_exportable(folded)
    half = Detector(method=PaDiM(backbone="filters", precision="bfloat16"), preprocess=Preprocess(32))
    with pytest.raises(ArgumentError, match="precision: expected float32"):
        check_exportable(half)
    with monkeypatch.context() as old:
        old.setattr(torch, "__version__", "2.6.0+debian")
        with pytest.raises(MissingPackageError, match=r"export: torch 2\.6\.0\+debian is too old"):
            export_model(detector, data / "other.onnx")
        old.setattr(torch, "__version__", "2.8.0+cpu")
        with pytest.raises(MissingPackageError, match=r"--format torch: torch 2\.8\.0\+cpu is too old.*torch>=2\.9'"):
            export_model(detector, data / "other.pt2", format="torch")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript is not installed. Install blemish\[onnx\]"):
        export_model(detector, data / "other.onnx")


def test_images_that_cannot_be_compared_are_refused_before_a_graph_is_built(detector, tmp_path, monkeypatch):
    def build(*_args):
        raise AssertionError("it builds before it has looked")

    monkeypatch.setattr("blemish.export.write.build", build)
    (tmp_path / "torn.png").write_bytes(b"")
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
    for names, why in (
        ([], "images: expected at least 1 to compare on, got none"),
        (["torn.png"], r"torn\.png"),
        (["deep.png"], r"pictures of 8 bits, as an exported file takes, got .*deep\.png"),
    ):
        with pytest.raises(BlemishError, match=why):
            export_model(detector, tmp_path / "m.onnx", images=from_paths(tmp_path / name for name in names))


def test_a_method_that_no_graph_can_hold_is_named(data, tmp_path):
    class Odd(KNN):
        def _score(self, features):
            return super()._score(features) if float(features.maps[0].sum()) > 0 else None

    odd = Detector(method=Odd(backbone="filters"), preprocess=Preprocess(32), calibration="none").fit(data)
    with pytest.raises(ArgumentError, match="method: expected operations that a graph can hold, got knn"):
        export_model(odd, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@needs_programs
@pytest.mark.heavy  # a second export: seconds
def test_a_region_of_interest_is_in_the_graph(data, tmp_path):
    mask = np.zeros((64, 64), bool)
    mask[10:50, 5:40] = True
    method = PaDiM(backbone="filters", dimensions=8)
    detector = Detector(method=method, preprocess=Preprocess(32), calibration="none", roi=mask).fit(data / "train")
    made = export_model(detector, tmp_path / "m.onnx", images=data / "train")
    assert (made.parity.images, made.parity.nearest) == (24, None)
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["score", "map"]
    picture = np.asarray(decode(sorted(data.glob("train/good/*.png"))[0]))
    other = picture.copy()
    other[~mask] = 7  # what is outside is not looked at
    score, map = session.run(None, {"pixels": picture[None]})
    assert session.run(None, {"pixels": other[None]})[0] == score
    assert (np.isnan(map[0]) == ~mask).mean() > 0.97  # its edge is one of the network's input
    made = export_model(detector, tmp_path / "m.pt2", format="torch", images=data / "train")
    found = OnTorch(made.path.read_bytes())(other[None])
    assert found["score"] == pytest.approx(score, rel=1e-6)
    np.testing.assert_array_equal(np.isnan(found["map"]), np.isnan(map))


def test_the_program_lists_the_pictures_that_we_list():
    assert {f".{ending}" for ending in run.ENDINGS} == SUFFIXES
