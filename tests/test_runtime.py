"""A frozen network on another runtime: the same scores, a file that names it, and nothing unsaid."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from blemish import persist, running
from blemish.calibrator import FreshScore
from blemish.cli import app
from blemish.datasets.synthetic import write_dataset
from blemish.detector import Detector
from blemish.errors import ArgumentError, MissingPackageError, ModelFileError
from blemish.evaluation.speed import STAGES, time_stages
from blemish.features import runtime as runtimes
from blemish.features.runtime import Runner
from blemish.images.preprocess import Preprocess
from blemish.images.source import Batches, from_folder, from_paths
from blemish.methods import PANDA, PaDiM, PatchCore, Students
from blemish.running import MOST_LOSS, precision_loss, report_change
from blemish.types import ImageBatch

OTHERS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", autouse=True)
def recorded_once():
    """Recording takes seconds, and gives the same each time."""
    known, record = {}, runtimes._record

    def remember(extractor, size):
        key = extractor.fingerprint(), size
        known[key] = known.get(key) or record(extractor, size)
        return known[key]

    runtimes._record = remember
    yield
    runtimes._record = record


def made(**settings):
    method = PaDiM(backbone="filters", dimensions=8)
    return Detector(**{"method": method, "preprocess": Preprocess(32), "false_alarm_rate": 0.25} | settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime") / "data"
    write_dataset(folder, product="washer", n_train=24, n_test_normal=3, n_per_defect=1, size=64)
    return folder


@pytest.fixture(scope="module")
def fitted(data):
    """One detector for each runtime, fitted on the same images."""
    return {name: made(runtime=name).fit(data) for name in ("torch", *OTHERS)}


@pytest.fixture(scope="module")
def files(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, detector in fitted.items():
        detector.save(folder / f"{name}.blemish")
    return folder


def scores(detector, data):
    return np.array([decision.score for decision in detector.predict(data / "test")])


def test_scores_are_those_of_torch(fitted, data):
    ours = scores(fitted["torch"], data)
    for name in OTHERS:
        assert fitted[name]._running.runner.name == name
        assert np.abs(scores(fitted[name], data) - ours).max() <= 1e-4 * ours.max()
    assert fitted["torch"]._running.runner is None


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_says_nothing_of_the_machine_that_made_it(files, name):
    content = (files / f"{name}.blemish").read_bytes()
    assert not [found for found in (b".py", b"site-packages", str(files).encode()) if found in content]


@pytest.mark.parametrize("name", OTHERS)
def test_from_the_networks_input_to_the_score(fitted, name):
    """The same model on two runtimes: nothing but the forward pass differs."""
    detector = fitted["torch"]
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(pixels, tuple("abcde"), ((32, 32),) * 5)
    method = copy.copy(detector.method_)
    ours = method.score(batch)
    method.extractor_ = copy.copy(method.extractor_)
    method.run_on(Runner(name, graphs=fitted[name]._running.runner.graphs))
    theirs = method.score(batch)
    assert not torch.equal(ours.images, theirs.images)  # it was not torch again
    assert (ours.images - theirs.images).abs().max() <= 1e-4 * ours.images.max()
    assert (ours.maps - theirs.maps).abs().max() <= 1e-4 * ours.maps.max()


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_names_the_runtime_that_calibrated_and_keeps_its_network(files, fitted, data, name):
    tensors, manifest = persist.load(files / f"{name}.blemish")
    assert manifest["runtime"]["name"] == name
    assert len([tensor for tensor in tensors if tensor.startswith("runtime.")]) == 1
    again = Detector.load(files / f"{name}.blemish")
    assert again.runtime == name
    assert (scores(again, data) == scores(fitted[name], data)).all()
    again.save(files / "again.blemish")
    assert persist.load(files / "again.blemish")[1] == manifest


def test_a_file_without_the_section_means_torch(files, fitted, data):
    tensors, manifest = persist.load(files / "torch.blemish")
    assert "runtime" not in manifest
    assert not [name for name in tensors if name.startswith("runtime.")]
    again = Detector.load(files / "torch.blemish")
    assert (again.runtime, again._running.runner) == ("torch", None)
    assert (scores(again, data) == scores(fitted["torch"], data)).all()


def test_another_runtime_says_what_may_move(files, fitted, data, caplog):
    caplog.set_level(logging.INFO, logger="blemish")
    other = Detector.load(files / "openvino.blemish", runtime="torch")
    (line,) = [record.getMessage() for record in caplog.records if "drawn images" in record.getMessage()]
    assert "of 5 held-out verdicts, 0 may move" in line
    ours = scores(fitted["openvino"], data)
    assert np.abs(scores(other, data) - ours).max() <= 1e-4 * ours.max()
    other.save(files / "other.blemish")  # what calibrated is still the other one
    assert persist.load(files / "other.blemish")[1]["runtime"]["name"] == "openvino"
    caplog.clear()
    report_change("torch", (1.0, 4.0), (1.0, 4.0 + 2e-4), replace(fitted["torch"].calibration_))
    assert "of 5 held-out verdicts, 1 may move: those that score" in caplog.text
    with pytest.raises(ArgumentError, match=r"runtime: expected scores within 0\.0001 .* got 5\.0e-04 by openvino"):
        report_change("openvino", (1.0, 4.0), (1.0, 4.002), None)


def test_new_calibration_images_calibrate_on_the_runtime_asked_for(files, data):
    detector = Detector.load(files / "torch.blemish", runtime="openvino")
    assert detector._running.kept is None
    detector.recalibrate(images=data / "train")
    assert detector._running.kept.name == "openvino"
    detector.save(files / "recalibrated.blemish")
    assert Detector.load(files / "recalibrated.blemish").runtime == "openvino"


def test_auto_takes_the_fastest(data, fitted, monkeypatch, caplog):
    graphs = fitted["onnxruntime"]._running.runner.graphs
    extractor = fitted["torch"].method_.extractor_
    pixels = torch.rand(2, 3, 32, 32)
    for times, best in (((9, 5, 4), "openvino"), ((9, 4, 5), "onnxruntime"), ((4, 3.9, 5), "torch")):
        monkeypatch.setattr(runtimes, "_times", lambda runs, times=times: dict(zip(runs, times, strict=True)))
        runner = Runner("auto", graphs=graphs)
        assert runner.name is None
        found = runner.maps(extractor, pixels)
        assert runner.name == best
        assert (found is None) == (best == "torch")
    monkeypatch.setattr(runtimes, "runtimes_at_hand", lambda: ("torch",))
    monkeypatch.undo()
    monkeypatch.setattr(runtimes, "runtimes_at_hand", lambda: ("torch",))
    detector = made(runtime="auto").fit(data)
    assert detector._running.kept is None  # a file of torch, like any other
    assert detector._running.runner.name == "torch"


def test_what_runs_is_measured_in_turn():
    ran = []
    found = runtimes._times({"torch": lambda: ran.append("a"), "openvino": lambda: ran.append("b")})
    assert ran == ["a", "b"] * 5
    assert min(found.values()) > 0


def test_a_missing_quantiser_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"precision int8: the package onnxruntime is not installed"):
        made(method=PaDiM(backbone="filters", precision="int8"), runtime="openvino").fit("nowhere")


def test_a_missing_runtime_is_named_before_any_work(files, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"runtime openvino: .* Install blemish\[openvino\]"):
        made(runtime="openvino").fit("nowhere")
    with pytest.raises(MissingPackageError, match=r"blemish\[openvino\]"):
        Detector.load(files / "openvino.blemish")
    assert scores(Detector.load(files / "openvino.blemish", runtime="torch"), data).shape == (10,)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript is not installed. Install blemish\[onnx\]"):
        made(runtime="onnxruntime").check()
    assert runtimes.runtimes_at_hand() == ("torch",)
    assert Detector.load(files / "onnxruntime.blemish").runtime == "onnxruntime"  # its network is recorded


def test_what_cannot_run_elsewhere_is_refused_before_any_work():
    with pytest.raises(ArgumentError, match="runtime: expected torch with students, whose networks are its own"):
        Detector(method=Students(), runtime="onnxruntime").check()
    with pytest.raises(ArgumentError, match="precision: expected float32 or int8 with runtime onnxruntime"):
        Detector(method=PaDiM(precision="bfloat16"), runtime="onnxruntime").check()
    with pytest.raises(ArgumentError, match="precision: expected float32 or bfloat16 with runtime torch, got int8"):
        Detector(method=PaDiM(precision="int8")).check()
    with pytest.raises(ArgumentError, match=r"precision: .* on torch, got int8.* Detector\(runtime='auto'\)"):
        PaDiM(precision="int8").fit([ImageBatch(torch.rand(2, 3, 64, 64), ("a", "b"), ((64, 64),) * 2)])
    with pytest.raises(ArgumentError, match="precision: expected float32 with runtime onnxruntime, as the network"):
        Detector(method=PANDA(precision="int8"), runtime="onnxruntime").check()
    with pytest.raises(ArgumentError, match="calibration: expected split with precision int8"):
        Detector(method=PaDiM(precision="int8"), runtime="auto", calibration="loo").check()
    with pytest.raises(ArgumentError, match="runtime: expected auto, torch, onnxruntime or openvino"):
        Detector(runtime="tensorrt").check()


def test_the_network_of_another_model_is_refused(files, fitted, tmp_path):
    (key, graph), *_ = fitted["onnxruntime"]._running.runner.graphs.items()
    extractor = PatchCore(backbone="filters", taps=("level2", "level1", "level3"))._extractor()
    runner = Runner("onnxruntime", graphs={f"{extractor.fingerprint()}.32x32": graph})
    with pytest.raises(ArgumentError, match=r"runtime: expected outputs of filters within 0\.0001 of torch's"):
        runner.maps(extractor, torch.rand(2, 3, 32, 32))
    tensors, manifest = persist.load(files / "onnxruntime.blemish")
    for section, more, message in (
        (None, {}, r"tensors runtime\.\*: not expected"),
        ({"name": "tensorrt"}, {}, "runtime: name: expected torch, onnxruntime or openvino"),
        ({"checks": []}, {}, "checks"),
        ({}, {"runtime.../etc": torch.zeros(3, dtype=torch.uint8)}, r"tensor runtime\.\.\./etc: not the name"),
        ({}, {f"runtime.{key}": torch.zeros(3)}, "uint8"),
    ):
        changed = {k: v for k, v in manifest.items() if k != "runtime"}
        changed |= {} if section is None else {"runtime": manifest["runtime"] | section}
        persist.save(tmp_path / "bad.blemish", tensors | more, changed)
        with pytest.raises(ModelFileError, match=message):
            Detector.load(tmp_path / "bad.blemish")


def test_a_file_brings_the_graph_of_its_network_or_is_refused_before_one_is_recorded(files, tmp_path, monkeypatch):
    tensors, manifest = persist.load(files / "onnxruntime.blemish")
    wide = manifest["detector"] | {"preprocess": manifest["detector"]["preprocess"] | {"resize": [32, 40]}}
    changed = tmp_path / "changed.blemish"
    recorded = []

    def record(network, size):
        recorded.append(size)
        raise ArgumentError("recorded")

    monkeypatch.setattr(runtimes, "_record", record)
    none = {name: tensor for name, tensor in tensors.items() if not name.startswith("runtime.")}
    for kept, more, size in ((tensors, {"detector": wide}, (32, 40)), (none, {}, (32, 32))):
        persist.save(changed, kept, manifest | more)
        with pytest.raises(
            ModelFileError, match=rf"expected the graph of its network for {size[0]} x {size[1]} pixels"
        ):
            Detector.load(changed)
        assert recorded == []
        older = manifest | more | {"versions": manifest["versions"] | {"torch": "2.0"}}
        persist.save(changed, kept, older)  # its network may be built in another way here
        with pytest.raises(ModelFileError, match="recorded"):
            Detector.load(changed)
        assert recorded.pop() == size
    again = Detector.load(files / "onnxruntime.blemish")  # other images than those of the fit may come later
    with pytest.raises(ArgumentError, match="recorded"):
        again.method_.score(ImageBatch(torch.rand(1, 3, 40, 32), ("a",), ((40, 32),)))


def test_a_network_that_cannot_be_recorded_is_one_error_and_no_traceback(monkeypatch):
    said = []
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: said.append(record))
    extractor = PatchCore(backbone="filters")._extractor()
    with pytest.raises(ArgumentError, match="which an ONNX graph cannot hold"):
        Runner("onnxruntime").maps(extractor, torch.rand(1, 3, 5, 5))
    assert [record.getMessage() for record in said if record.levelno >= logging.WARNING] == []


def test_a_network_that_changes_is_recorded_anew(fitted):
    extractor = copy.deepcopy(fitted["onnxruntime"].method_.extractor_)
    before = extractor.fingerprint()
    with extractor.on_torch():
        assert extractor.runner is None
        next(extractor.module.buffers()).mul_(2)
    assert extractor.runner is not None
    assert extractor.fingerprint() != before


def test_a_damaged_graph_says_nothing_on_stdout(fitted, capfd):
    """Lines of JSON go there."""
    graph = next(iter(fitted["onnxruntime"]._running.runner.graphs.values()))
    with pytest.raises(Exception):  # noqa: B017, PT011  # each of its versions raises another one
        runtimes._OnnxRuntime(graph.replace(b"Conv", b"Co\xffv"), 1, "float32")
    assert capfd.readouterr().out == ""


def test_threads_of_onnxruntime_wait_without_turning(fitted):
    """Turning in a circle until the next picture, they took the cores from the score, which took twice as long."""
    graph = next(iter(fitted["onnxruntime"]._running.runner.graphs.values()))
    options = runtimes._OnnxRuntime(graph, 2, "float32")._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_runner_goes_to_another_process_without_its_engines(fitted):
    again = pickle.loads(pickle.dumps(fitted["openvino"]._running.runner))
    assert (again.name, again._engines) == ("openvino", {})
    assert again.graphs == fitted["openvino"]._running.runner.graphs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_a_forked_process_does_not_wait_for_its_parents_threads(fitted, name):
    """To free an engine waits for its threads, which a fork does not have."""
    batch = ImageBatch(torch.full((1, 3, 32, 32), 0.5), ("a",), ((32, 32),))
    expected = fitted[name].score_batch(batch).images

    def child(answer):
        torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
        answer.put(fitted[name].score_batch(batch).images.tolist())

    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=child, args=(answer,), daemon=True)
    try:
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert answer.get() == pytest.approx(expected.tolist(), rel=1e-4)
    finally:
        process.kill()


_QUANTISES_FILTERS = pytest.mark.skipif(
    version("onnxruntime").startswith("1.23."),
    reason="ONNX Runtime 1.23 quantises the squares of `filters` badly, and is refused as promised",
)


@pytest.fixture(scope="module")
def quantised(data):
    method = PaDiM(backbone="filters", dimensions=8, precision="int8")
    return made(method=method, runtime="onnxruntime").fit(data)


@_QUANTISES_FILTERS
def test_int8_is_another_network_and_is_kept(quantised, fitted, data, tmp_path):
    ours, theirs = scores(quantised, data), scores(fitted["onnxruntime"], data)
    assert np.abs(ours - theirs).max() > 1e-4 * theirs.max()
    assert np.corrcoef(ours, theirs)[0, 1] > 0.8
    assert 0 < quantised._running.loss < MOST_LOSS
    quantised.save(tmp_path / "m.blemish")
    tensors, manifest = persist.load(tmp_path / "m.blemish")
    (name,) = [name for name in tensors if name.startswith("runtime.")]
    assert name[-5:] == (".vnni" if runtimes.has_vnni() else ".int8")
    assert manifest["runtime"]["loss"] == quantised._running.loss
    assert manifest["parameters"]["precision"] == "int8"
    again = Detector.load(tmp_path / "m.blemish")
    assert (scores(again, data) == ours).all()
    again.save(tmp_path / "again.blemish")
    assert persist.load(tmp_path / "again.blemish")[1] == manifest


@_QUANTISES_FILTERS
def test_another_runtime_of_int8_is_refused_before_a_graph_is_read(quantised, tmp_path, monkeypatch):
    quantised.save(tmp_path / "m.blemish")
    monkeypatch.setattr(runtimes, "_ENGINES", {})
    with pytest.raises(ArgumentError, match="runtime: expected the one of the fit with less than float32, got torch"):
        Detector.load(tmp_path / "m.blemish", runtime="torch")


def test_the_quantiser_sees_learned_images_alone(data, monkeypatch):
    seen = []
    monkeypatch.setattr(runtimes, "_quantised", lambda graph, pixels, signed: seen.extend(pixels) or graph)
    detector = made(method=PaDiM(backbone="filters", dimensions=8, precision="int8"), runtime="openvino").fit(data)
    learned = Batches(from_folder(data / "train" / "good"), Preprocess(32), 99)
    (every,) = learned
    known = {pixels.numpy().tobytes() for pixels in torch.cat(seen)}
    assert len(known) == detector.images_ == 19
    assert known < {pixels.numpy().tobytes() for pixels in every.pixels}


@_QUANTISES_FILTERS
@pytest.mark.parametrize("vnni", [True, False])
def test_weights_have_a_sign_where_the_processor_multiplies_with_it(data, monkeypatch, tmp_path, vnni):
    """And such a model does not run where products would overflow."""
    monkeypatch.setattr(runtimes, "has_vnni", lambda: vnni)
    monkeypatch.setattr(running, "MOST_LOSS", np.inf)  # where a VNNI is only claimed, products overflow
    method = PaDiM(backbone="filters", dimensions=8, precision="int8")
    detector = made(method=method, runtime="onnxruntime").fit(data)
    ((key, graph),) = detector._running.runner.graphs.items()
    assert key[-5:] == (".vnni" if vnni else ".int8")
    kept = {tensor.data_type for tensor in onnx.load_from_string(graph).graph.initializer if len(tensor.dims) == 4}
    assert (onnx.TensorProto.INT8 in kept) == vnni
    detector.save(tmp_path / "m.blemish")
    monkeypatch.setattr(runtimes, "has_vnni", lambda: not vnni)
    if vnni:
        with pytest.raises(ModelFileError, match=r"m\.blemish: precision: expected a processor with VNNI"):
            Detector.load(tmp_path / "m.blemish")
    else:  # what has no sign is right everywhere
        assert (scores(Detector.load(tmp_path / "m.blemish"), data) == scores(detector, data)).all()


@_QUANTISES_FILTERS
def test_a_precision_that_moves_scores_too_much_is_refused(quantised, data):
    batches = [
        ImageBatch(
            torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3)), tuple("abcdef"), ((32, 32),) * 6
        )
    ]
    exact = dict(zip("abcdef", _exactly(quantised, batches[0]), strict=True))
    noise = np.random.default_rng(0).normal(size=6)
    noise = (noise - noise.mean()) / noise.std() * np.std(list(exact.values()))
    for share in (0.4, 0.6):
        judged = [
            FreshScore(name, exact[name] + 7 + share * away, None) for name, away in zip(exact, noise, strict=True)
        ]
        if share < MOST_LOSS:
            assert precision_loss(quantised._scorer, batches, judged) == pytest.approx(share, rel=1e-3)
        else:
            with pytest.raises(
                ArgumentError, match=r"precision: expected one that moves .* got int8, which moves them by 0\.6\."
            ):
                precision_loss(quantised._scorer, batches, judged)


def _exactly(detector, batch):
    with detector.method_.on_torch():
        return detector._scorer.score(batch).images.tolist()


def test_bfloat16_asks_the_processor(monkeypatch):
    monkeypatch.setattr(runtimes, "_has_bfloat16", lambda: False)
    half = PaDiM(backbone="filters", precision="bfloat16")
    with pytest.raises(ArgumentError, match=r"precision: .* on this processor, which has no bfloat16 for openvino"):
        Detector(method=half, runtime="openvino").check()
    assert Runner("auto", precision="bfloat16").name == "torch"
    monkeypatch.setattr(runtimes, "_has_bfloat16", lambda: True)
    Detector(method=half, runtime="openvino").check()
    assert Runner("auto", precision="bfloat16").name == "openvino"


@pytest.mark.skipif(not runtimes._has_bfloat16(), reason="no bfloat16 here")
def test_bfloat16_on_openvino(fitted, data):
    half = made(method=PaDiM(backbone="filters", dimensions=8, precision="bfloat16"), runtime="openvino").fit(data)
    assert half._running.loss < MOST_LOSS
    assert not np.allclose(scores(half, data), scores(fitted["torch"], data), rtol=1e-5)


def test_stages_are_timed_on_each_runtime(files, data):
    options = ("--batch-sizes", "1,4", "--count", "4", "--runtimes", "torch,openvino", "--json")
    done = CliRunner().invoke(app, ["benchmark", str(files / "openvino.blemish"), str(data), *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(row["runtime"], row["batch"]) for row in found["rows"]] == [
        ("torch", 1), ("torch", 4), ("openvino", 1), ("openvino", 4),
    ]  # fmt: skip
    for row in found["rows"]:
        assert min(row[stage] for stage in (*STAGES, "images_per_second")) > 0
    done = CliRunner().invoke(
        app, ["benchmark", str(files / "torch.blemish"), "--runtimes", "torch", "--heatmaps", "none"]
    )
    assert done.exit_code == 0, done.output
    assert "forward" in done.stdout
    with pytest.raises(ArgumentError, match="images: expected at least one"):
        time_stages(made(), from_paths([]), print, batch_size=1)


def test_images_that_are_not_there_are_named_before_any_model_is_read(files, monkeypatch):
    monkeypatch.setattr("blemish.cli.benchmark.load_model", None)
    done = CliRunner().invoke(app, ["benchmark", str(files / "torch.blemish"), "none.png"])
    assert (done.exit_code, done.stderr.strip()) == (1, "error: none.png: the file does not exist.")


def test_on_the_command_line(data, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        return done

    model = tmp_path / "m.blemish"
    fit = ("fit", data, "--method", "padim", "--backbone", "filters", "--resize", 32, "--out", model)
    run(*fit, "--false-alarm-rate", 0.25, "--runtime", "onnxruntime")
    lines = {
        name: [json.loads(line) for line in run("predict", model, data, *more).stdout.splitlines()]
        for name, more in (("kept", ()), ("other", ("--runtime", "torch")))
    }
    assert len(lines["kept"]) == len(lines["other"]) == 10
    for ours, theirs in zip(*lines.values(), strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-4)
        assert ours["anomalous"] == theirs["anomalous"]
    assert "held-out verdicts, 0 may move" in run("evaluate", model, data, "--runtime", "torch").stderr


def test_a_runtime_tells_nobody_that_it_is_used(tmp_path):
    """OpenVINO would send a message, and keep a number of the user, at its import."""
    code = (
        "from blemish.features.runtime import import_openvino; import_openvino()\n"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    env = os.environ | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub\n", done.stderr
    assert list(tmp_path.iterdir()) == []
