"""A model file is data, perhaps damaged, perhaps made by somebody else: `Detector.load` believes nothing in it."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from blemish import Detector, PaDiM, PatchCore, Preprocess, custom_backbone, persist
from blemish.cli import app
from blemish.errors import ArgumentError, ModelFileError
from blemish.features.backbones import BACKBONES, find_backbone
from blemish.methods import CFlow, DeepSVDD, GaussianAD, GaussianFinetune, Geom, OneClassSVM, Students
from blemish.methods._base import _input_scaling
from test_padim import Net
from test_persist import write_format_2

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 40, 40, 3), dtype=np.uint8)
SMALL = Preprocess(40)


def fitted(method, path, **settings):
    settings = {"preprocess": SMALL, "false_alarm_rate": 0.2, **settings}
    Detector(method=method, **settings).fit(IMAGES).save(path)
    return persist.load(path)


@pytest.fixture(scope="module")
def padim(tmp_path_factory):
    return fitted(PaDiM(backbone="filters", dimensions=9), tmp_path_factory.mktemp("models") / "m")


def scores(path):
    return [decision.score for decision in Detector.load(path).predict(IMAGES[:3])]


def refuse(path, tensors, manifest, message):
    """The file, written with a right digest, is refused when it is loaded, by name."""
    persist.save(path, tensors, manifest)
    with pytest.raises(ModelFileError, match=rf"^{path}: .*{message}"):
        Detector.load(path)


ALTERED = {
    "an unknown section": (lambda m: m.update(extra=1), "expected the keys method, parameters, .*, got extra"),
    "no method": (lambda m: m.pop("method"), "not a detector's model file: its manifest has no method"),
    "no versions": (lambda m: m.pop("versions"), "versions: a table of texts, got none"),
    "a method of another type": (lambda m: m.update(method=["padim"]), "method: expected a text"),
    "an unknown method": (lambda m: m.update(method="x\x1b[31m"), r"method x \[31m is not known here. Known: cflow"),
    "images of another type": (lambda m: m.update(images="20"), "images: expected a whole number of at least 1"),
    "no images": (lambda m: m.update(images=0), "images: expected a whole number of at least 1, got 0"),
    "half an image": (lambda m: m.update(images=1.5), "images: expected a whole number"),
    "versions that are no texts": (lambda m: m["versions"].update(torch=2), "versions: expected a table of texts"),
    "parameters of another type": (lambda m: m.update(parameters=[1]), "parameters: expected a table"),
    "an unknown parameter": (lambda m: m["parameters"].update(x=1), "parameters: expected the keys .*, got x"),
    "a missing parameter": (lambda m: m["parameters"].pop("sigma"), "parameters: expected sigma: .*, got none"),
    "a parameter of another type": (lambda m: m["parameters"].update(sigma="4"), "sigma: expected a number"),
    "a parameter out of bounds": (
        lambda m: m["parameters"].update(sigma=-1.0),
        r"sigma: expected a number of at least 0",
    ),
    "a vast sigma": (lambda m: m["parameters"].update(sigma=1e9), "sigma: expected at most the image's 40 pixels"),
    "a parameter of the place": (
        lambda m: m["parameters"].update(memory_gb=1.0),
        "parameters: expected no parameter of the place, got memory_gb",
    ),
    "weights on a disk": (
        lambda m: m["parameters"].update(weights="/etc/passwd"),
        "no parameter of the place, got weig",
    ),
    "threads": (lambda m: m["detector"].update(workers=10**6), "expected no parameter of the place, got workers"),
    "an unknown setting": (lambda m: m["detector"].update(x=1), "detector: expected the keys"),
    "a missing setting": (lambda m: m["detector"].pop("held_out"), "detector: expected held_out"),
    "a rate of 2": (lambda m: m["detector"].update(false_alarm_rate=2), "false_alarm_rate: expected a number in"),
    "no preprocessing": (lambda m: m["detector"].pop("preprocess"), "preprocess: expected resize and crop"),
    "preprocessing by name": (
        lambda m: m["detector"].update(preprocess="paper"),
        "expected resize and crop, got paper",
    ),
    "vast images": (lambda m: m["detector"]["preprocess"].update(resize=10**6), "resize: expected at most 8192 pixels"),
    "vast batches": (lambda m: m["detector"].update(batch_size=10**9), "batches of at most 268435456 pixels"),
    "other images": (lambda m: m["detector"]["preprocess"].update(resize=44), "images of size .40, 40., as in the fit"),
    "tiles larger than images": (lambda m: m["detector"].update(tile=41), "at most the preprocessed image's 40 pixels"),
    "an unknown backbone": (lambda m: m["parameters"].update(backbone="x" * 99_999), "backbone: expected"),
    "a backbone of another type": (lambda m: m["parameters"].update(backbone={"a": 1}), "backbone: expected a text"),
    "taps that are not there": (lambda m: m["parameters"].update(taps=["x"]), "taps: expected module names"),
    "another number of dimensions": (
        lambda m: m["parameters"].update(storage="float16"),
        "tensor factor: expected float",
    ),
}


@pytest.mark.parametrize(("change", "message"), ALTERED.values(), ids=ALTERED)
def test_a_manifest_is_believed_in_nothing(tmp_path, padim, change, message):
    tensors, manifest = padim[0], copy.deepcopy(padim[1])
    change(manifest)
    refuse(tmp_path / "m", tensors, manifest, message)


TENSORS = {
    "NaN": ("method.mean", lambda t: t * torch.nan, "tensor method.mean: NaN or infinity"),
    "infinity": ("method.factor", lambda t: t / 0, "tensor method.factor: NaN or infinity"),
    "a wide mean": (
        "method.mean",
        lambda t: torch.zeros(len(t), 90_000).to(t),
        r"tensor projection: expected float32 .channels = 81, d = 90000",
    ),
    "half a triangle": ("method.factor", lambda t: t[:, 1:], "tensor factor: expected 45 numbers, got 44"),
    "one mean for all": ("method.mean", lambda t: t[:1], "tensor factor: expected float32 .positions = 1"),
    "another type": ("method.mean", lambda t: t.long(), "tensor mean: expected float64 or float32"),
    "another grid": ("method.grid", lambda t: t * 1000, "tensor grid: expected 100 positions"),
    "a negative grid": ("method.grid", lambda t: -t, "tensor grid: expected 100 positions"),
    "no images": ("method.count", lambda t: t * 0, "tensors count, image_size: expected at least 2 images"),
    "another size": ("method.image_size", lambda t: t + 1, "of size .41, 41., as in the fit"),
    "another projection": ("method.projection", lambda t: t[1:], "not a model of this version"),
    "unsorted scores": ("calibration.scores", lambda t: t.flip(0), "calibration.scores: not in ascending order"),
    "unsorted peaks": ("peaks.scores", lambda t: t.flip(0), "peaks.scores: not in ascending order"),
    "too few peaks": ("peaks.scores", lambda t: t[:1], "false_alarm_rate 0.2 needs at least 4"),
    "scores that are not finite": ("calibration.scores", lambda t: t / 0, "calibration.scores: NaN or infinity"),
    "fewer scores than looks": (
        "calibration.scores",
        lambda t: t[:1],
        r"calibration.looks: expected float64 .k = 1, 5",
    ),
    "a look of four numbers": ("calibration.looks", lambda t: t[:, 1:], "calibration.looks: expected float64"),
    "scores of another shape": ("calibration.scores", lambda t: t[None], r"calibration.scores: expected float64 \(k\)"),
    "an overflow": ("method.factor", lambda t: torch.full_like(t, 3e38), "gives NaN or infinity for a black image"),
    "a target that is no covariance": ("method.target", lambda t: -t, "tensor target: expected a positive definite"),
    "no mean": ("method.mean", None, "tensor mean: missing"),
}


@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS)
def test_tensors_fit_each_other_and_the_parameters(tmp_path, padim, case):
    name, change, message = case
    tensors = dict(padim[0])
    old = tensors.pop(name)
    if change is not None:
        tensors[name] = change(old)
    refuse(tmp_path / "m", tensors, padim[1], message)


@pytest.mark.parametrize("name", ["x", "method.x", "calibration.x", "method.backbone.x"])
def test_tensors_that_nobody_reads_are_refused(tmp_path, padim, name):
    refuse(tmp_path / "m", padim[0] | {name: torch.zeros(1)}, padim[1], "")


OTHERS = {
    "a bank of other vectors": (
        PatchCore(backbone="filters"), "method.bank", lambda t: t[:, 1:], "tensor centre: expected float32 .d = 53",
    ),
    "an empty bank": (PatchCore(backbone="filters"), "method.bank", lambda t: t[:0], "tensor bank: no vector in it"),
    "other channels": (PatchCore(backbone="filters"), "method.channels", lambda t: t * 1000, "channels: expected"),
    "a level of another network": (
        GaussianAD(backbone="filters"), "method.1.mean", lambda t: t[1:], "tensor mean: expected float32 .d = 27",
    ),
    "vectors of another network": (
        OneClassSVM(backbone="filters"), "method.vectors", lambda t: t[:, 1:], "not a model of this version",
    ),
    "another condition": (
        CFlow(backbone="filters", blocks=1, condition=4, positions=8, steps=1), "method.flow.0.of_condition",
        lambda t: t[:, 1:], "tensor of_condition: expected float32 .1, 4, 36",
    ),
    "errors of one kind": (
        Students(patches=(17,), steps=1, grid=2, students=1, dense=False), "method.17.error_mean", lambda t: t[:1],
        "not a model of this version",
    ),
    "an overflow in the map alone": (
        GaussianFinetune(epochs=1), "method.position.0.mean", lambda t: torch.full_like(t, 1e38),
        "gives NaN or infinity for a black image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_what_other_methods_learned_fits(tmp_path, case):
    method, name, change, message = case
    tensors, manifest = fitted(method, tmp_path / "m")
    refuse(tmp_path / "m", tensors | {name: change(tensors[name]).contiguous()}, manifest, message)


@pytest.mark.parametrize("method", [Geom(side=8, epochs=0), DeepSVDD(side=8, epochs=0)], ids=["geom", "deep_svdd"])
def test_a_size_that_is_in_no_tensor_is_bounded(tmp_path, method):
    tensors, manifest = fitted(method, tmp_path / "m")
    manifest["parameters"]["side"] = 10**6
    refuse(
        tmp_path / "m", tensors, manifest, r"side: expected a whole number in \[8, 256\], a multiple of .*got 1000000"
    )


def test_a_tensor_of_no_number_makes_no_large_one(tmp_path):
    method = CFlow(backbone="filters", blocks=1, condition=4, positions=8, steps=1)
    tensors, manifest = fitted(method, tmp_path / "m")
    for condition, message in ((2**40, "which no number is behind"), (2**20, "of_condition: expected float32")):
        manifest["parameters"]["condition"] = condition
        vast = {"method.flow.0.of_condition": torch.zeros(1, condition, 0)}
        refuse(tmp_path / "m", tensors | vast, manifest, message)


def test_a_tensor_that_a_method_passes_over_is_refused(tmp_path):
    tensors, manifest = fitted(PatchCore(backbone="filters"), tmp_path / "m")
    refuse(tmp_path / "m", tensors | {"method.x": torch.zeros(1)}, manifest, "tensor method.x: not expected here")


def test_no_more_students_are_made_than_the_file_has(tmp_path):
    method = Students(patches=(17,), steps=1, grid=2, students=1, dense=False)
    tensors, manifest = fitted(method, tmp_path / "m", calibration="none")
    manifest["parameters"]["students"] = 10**9
    refuse(tmp_path / "m", tensors, manifest, "students: expected 1000000000 of them, got 1")


def test_a_file_of_a_version_that_knew_no_distance_keeps_the_papers(tmp_path):
    """And a file that says the other one, and lacks what it is measured by, is refused."""
    path, small = tmp_path / "m", {"patches": (17,), "steps": 1, "grid": 2, "students": 1, "dense": False}
    tensors, manifest = fitted(Students(**small), path, calibration="none")
    expected = scores(path)
    del manifest["parameters"]["distance"]
    manifest["versions"]["blemish"] = "0.0.1"
    persist.save(path, tensors, manifest)
    assert Detector.load(path).method_.distance == "euclidean"
    assert scores(path) == expected
    manifest["parameters"]["distance"] = "mahalanobis"
    refuse(path, tensors, manifest, "residual_factor")


def test_a_backbone_that_does_not_fit_is_the_callers_fault(tmp_path):
    torch.manual_seed(0)
    row = custom_backbone(Net(), taps=("a", "b"), name="mine", trace_size=40)
    fitted(PaDiM(backbone=row), tmp_path / "m", calibration="none")
    other = custom_backbone(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), taps=("0",), name="mine", trace_size=40)
    scaled = custom_backbone(Net(), taps=("a", "b"), name="mine", trace_size=40, mean=(0.0, 0.0, 0.0))
    for wrong in (other, scaled):
        with pytest.raises(ArgumentError, match=r"backbone: expected the network with which .*m was fitted"):
            Detector.load(tmp_path / "m", backbone=wrong)
    assert Detector.load(tmp_path / "m", backbone=row).images_ == 20


def test_a_wrong_device_is_the_callers_fault(tmp_path, padim):
    persist.save(tmp_path / "m", *padim)
    with pytest.raises(ArgumentError, match="device: expected auto, cpu"):
        Detector.load(tmp_path / "m", device="abacus")


def test_a_file_of_another_version_may_lack_what_is_new(tmp_path, padim):
    tensors, manifest = padim[0], copy.deepcopy(padim[1])
    del manifest["parameters"]["sigma"], manifest["detector"]["held_out"]
    manifest["versions"]["blemish"] = "0.0.1"
    persist.save(tmp_path / "m", tensors, manifest)
    assert Detector.load(tmp_path / "m").method_.sigma == 4.0


@pytest.mark.parametrize("images", [12, 4], ids=["dense", "low rank"])
def test_a_file_from_before_eps_followed_the_data_scores_as_it_did(tmp_path, images):
    row = custom_backbone(Net(), taps=("a", "b"), trace_size=24, name="net")
    detector = Detector(method=PaDiM(backbone=row, dimensions=6, eps=0.001), preprocess=SMALL, calibration="none")
    detector.fit(IMAGES[:images]).save(tmp_path / "m")
    tensors, manifest = persist.load(tmp_path / "m")
    assert manifest["parameters"]["eps"] == 0.001
    assert "method.target" not in tensors
    loaded = Detector.load(tmp_path / "m", backbone=row)
    np.testing.assert_array_equal(loaded.method_.gaussian_.factor, detector.method_.gaussian_.factor)
    assert [d.score for d in loaded.predict(IMAGES[:3])] == [d.score for d in detector.predict(IMAGES[:3])]


@pytest.mark.parametrize("section", ["digests", "sums", "left_out"])
def test_sections_of_later_versions_are_passed_over(tmp_path, padim, section):
    persist.save(tmp_path / "m", padim[0], padim[1] | {section: {"a": [1, 2]}})
    assert Detector.load(tmp_path / "m").images_ == 16
    refuse(tmp_path / "m", padim[0], padim[1] | {section: [1]}, f"{section}: expected a table or None")


def test_upgrade_keeps_the_scores_and_leaves_new_files_alone(tmp_path, padim):
    tensors, manifest = padim
    old, new = tmp_path / "old", tmp_path / "new"
    persist.save(new, tensors, manifest)
    write_format_2(old, tensors, {key: value for key, value in manifest.items() if key not in ("format", "digest")})
    before, content = scores(old), new.read_bytes()
    run = CliRunner().invoke(app, ["upgrade", str(old), str(new)])
    assert run.exit_code == 0
    assert run.output == (f"{old}: format 2 -> 3, written to {old}.\n{new}: has format 3 already, left alone.\n")
    assert new.read_bytes() == content
    assert persist.load(old)[1] == persist.load(new)[1]
    assert scores(old) == before == scores(new)


def test_upgrade_writes_elsewhere_where_it_shall(tmp_path, padim):
    write_format_2(tmp_path / "old", padim[0], {})
    content = (tmp_path / "old").read_bytes()
    arguments = ["upgrade", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "old").read_bytes() == content
    assert persist.load(tmp_path / "new")[1]["format"] == 3
    run = CliRunner().invoke(app, [*arguments, str(tmp_path / "new")])
    assert (run.exit_code, "--out: expected one file with it, got 2 files" in run.output) == (1, True)


def test_upgrade_refuses_a_damaged_file_and_keeps_it(tmp_path):
    (tmp_path / "m").write_bytes(b"no")
    run = CliRunner().invoke(app, ["upgrade", str(tmp_path / "m")])
    assert (run.exit_code, "it is no safetensors file" in run.output) == (1, True)
    assert (tmp_path / "m").read_bytes() == b"no"


def test_some_mutants_do_no_harm():
    script = Path(__file__).parent / "fuzz" / "model_files.py"
    # Not a test of time: the limit is there to end what never ends.
    arguments = ["--count", "50", "--seed", "1", "--quick", "--seconds", "60"]
    run = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "50 mutants, 0 faults" in run.stdout


@pytest.mark.parametrize("case", ["of another network", "too few"])
def test_a_large_network_is_not_built_for_a_small_file(tmp_path, padim, monkeypatch, case):
    tensors, manifest = padim[0], copy.deepcopy(padim[1])
    manifest["parameters"] |= {"backbone": "vgg19", "taps": ["features"]}
    rest = {name: tensor for name, tensor in tensors.items() if "backbone." not in name}
    rest["method.backbone.features.0.weight"] = torch.zeros(64, 3, *((3, 3) if case == "too few" else (5, 5)))
    row = find_backbone("vgg19")
    tensors = rest | {f"method.{name}": value for name, value in _input_scaling(row).items()}
    built = []

    def build():
        built.append(torch.empty(0).device.type)
        return row.build()

    monkeypatch.setitem(BACKBONES, "vgg19", replace(row, build=build))
    message = "of the tapped modules are there" if case == "too few" else "is none of its parameters"
    refuse(tmp_path / "m", tensors, manifest, f"the stored parameters do not fit the network.*{message}")
    assert built == ["meta"]
