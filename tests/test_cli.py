from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector
from blemish.cli import app
from blemish.datasets import synthetic
from blemish.datasets.synthetic import write_dataset
from calls import CALLS, commands
from fuzz.commands import options_of


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, product="washer", n_train=30, n_test_normal=6, n_per_defect=2, size=128)


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.blemish"
    small = ("--backbone", "filters", "--resize", 64, "--false-alarm-rate", 0.2)
    result = run("fit", dataset, "--method", "padim", *small, "--out", path, "--json")
    printed = json.loads(result.stdout)
    assert (printed["images"], printed["held_out"]) == (24, 6)
    assert printed["model_bytes"] == path.stat().st_size
    assert printed["seconds"] > 0
    assert printed["peak_bytes"] > 10_000_000
    assert "fit: 24/24 images" in result.stderr
    return path


@pytest.mark.parametrize(("number", "kind"), [("nan", float), ("inf", float), ("1" + 30 * "0", int)])
def test_no_option_takes_a_number_that_is_none(number, kind):
    """They pass a lower bound, and some of them an upper one."""
    for name, function in commands():
        words = [*name.split(), *CALLS[name].arguments.split()]  # right ones, but for files that are not there
        for option in options_of(function):
            if option.kind is kind and option.name and not option.is_list:
                done = CliRunner().invoke(app, [*words, option.name, number])
                assert (done.exit_code, option.name in done.output) in ((1, True), (2, True)), (name, done.output)


def test_every_command_teaches():
    for command in ("demo", "fit", "update", "predict", "evaluate", "list"):
        assert "Usage" in run(command, "--help").stdout
        assert command in run("--help").stdout


def test_evaluate_prints_every_promised_figure(model, dataset, tmp_path):
    result = run("evaluate", model, dataset, "--json", "--report", tmp_path / "r.html", "--intervals")
    figures = json.loads(result.stdout)
    promised = "image_auroc pixel_auroc au_pro_30 au_pro_05 average_precision fpr_at_95_tpr f1 f1_max_oracle threshold"
    for name in promised.split():
        assert isinstance(figures[name], float)
    assert figures["n_normal"] == 6
    assert figures["n_anomalous"] == sum(kind["images"] for kind in figures["kinds"]) - 6
    low, high = figures["intervals"]["image_auroc"]
    assert low <= figures["image_auroc"] <= high
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    table = run("evaluate", model, dataset).stdout
    assert re.search(rf"image_auroc .*{figures['image_auroc']:.4f}", table)


def test_a_share_of_false_alarms_that_is_none_is_refused_by_the_options_name(model, dataset):
    wrong = run("predict", model, dataset, "--fdr", "nan", status=1)
    assert "--fdr: expected a finite number, got nan." in wrong.stderr


def test_predict_prints_json_lines_and_goes_on_after_a_bad_file(model, dataset, tmp_path):
    folder = dataset / "test" / "good"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"junk")
    result = run("predict", model, bad, folder)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image"] for row in rows[:-1]] == [str(p) for p in sorted(folder.glob("*.png"))]
    assert all(row["anomalous"] == (row["score"] > row["threshold"]) for row in rows[:-1])
    assert rows[-1]["image"] == str(bad)
    assert "not an image" in rows[-1]["error"]
    assert "1 files skipped" in result.stderr


def test_regions_are_drawn_and_written_as_coco(model, dataset, tmp_path):
    out, coco = tmp_path / "out", tmp_path / "regions.json"
    run("predict", model, dataset, "--out", out, "--heatmaps", "none", "--overlays", "--coco", coco)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert any(row["regions"] for row in rows)
    assert all(("overlay" in row) == bool(row["regions"]) for row in rows)
    found = json.loads(coco.read_text())
    names = {image["id"]: image["file_name"] for image in found["images"]}
    boxes = [(names[a["image_id"]], a["bbox"], a["p_value"]) for a in found["annotations"]]
    assert boxes == [(row["image"], r["box"], r["p_value"]) for row in rows for r in row["regions"]]
    again = run("predict", model, dataset, "--out", out, "--heatmaps", "none", "--overlays", "--coco", coco)
    assert f"{len(rows)} of {len(rows)} images were judged by an earlier run" in again.stderr
    assert json.loads(coco.read_text()) == found


def test_a_model_older_than_regions_says_so(model, dataset, tmp_path):
    old = Detector.load(model)
    old.peaks_ = None
    old.save(tmp_path / "old.blemish")
    result = run("predict", tmp_path / "old.blemish", dataset / "test" / "good")
    assert json.loads(result.stdout.splitlines()[0])["regions"] is None
    assert result.stderr.count("No regions from") == 1
    for option in (["--coco", tmp_path / "c.json"], ["--overlays", "--out", tmp_path / "out"]):
        refused = run("predict", tmp_path / "old.blemish", dataset, *option, status=1)
        assert f"{option[0]}: expected a model with regions, got" in refused.stderr
    refused = run("predict", model, dataset, "--overlays", status=1)
    assert "--overlays: expected a folder for them, --out FOLDER" in refused.stderr


def test_a_folder_of_odd_files_does_what_the_documentation_says(model, tmp_path):
    part = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(part).save(tmp_path / "sound.png")
    content = (tmp_path / "sound.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    Image.fromarray(part[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.frombytes("CMYK", (40, 60), bytes(9600)).save(tmp_path / "cmyk.jpg")
    frames = [Image.fromarray(part), Image.new("RGB", (40, 60))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(part).save(tmp_path / "rotated.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    result = run("predict", model, tmp_path, "--out", tmp_path / "out", "--heatmaps", "npy")
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert sorted(Path(row["image"]).name for row in rows if "error" in row) == ["letter.jpg", "truncated.png"]
    shapes = {Path(r["image"]).name: np.load(tmp_path / "out" / r["heatmap"]).shape for r in rows if "error" not in r}
    assert shapes.pop("rotated.jpg") == (40, 60)
    assert shapes.pop("dot.png") == (1, 1)
    assert shapes == dict.fromkeys(["sound.png", "deep.png", "cmyk.jpg", "moving.gif"], (60, 40))
    assert "2 files skipped" in result.stderr


def test_predict_keeps_what_it_has_when_it_must_stop(model, dataset, tmp_path):
    good = sorted((dataset / "test" / "good").glob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"junk")
    out = tmp_path / "out"
    arguments = ("--on-error", "raise", "--batch-size", 1, "--out", out)
    result = run("predict", model, *good[:3], bad, *good[3:], *arguments, status=1)
    assert re.search(r"error: .*bad\.png: not an image", result.stderr)
    assert len((out / "results.jsonl").read_text().splitlines()) == 3


def test_heatmaps_hold_the_scores(model, dataset, tmp_path):
    image = dataset / "test" / "good" / "000.png"
    run("predict", model, image, "--out", tmp_path / "png")
    run("predict", model, image, "--out", tmp_path / "npy", "--heatmaps", "npy")
    row = json.loads((tmp_path / "png" / "results.jsonl").read_text())
    exact = np.load(tmp_path / "npy" / "heatmaps" / "good" / "000.npy")
    assert row["heatmap"] == "heatmaps/good/000.png"
    index = np.asarray(Image.open(tmp_path / "png" / row["heatmap"]))
    scale = 2 * row["threshold"]
    np.testing.assert_allclose(index / 254 * scale, np.minimum(exact, scale), atol=scale / 254)
    assert exact.shape == (128, 128)
    assert exact.max() == pytest.approx(row["score"], rel=0.05)  # shrunk from 256 to 128 pixels


def test_same_file_names_do_not_overwrite_each_other(model, dataset, tmp_path):
    run("predict", model, dataset / "test", "--out", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len({row["heatmap"] for row in rows}) == len(rows)
    assert all((tmp_path / row["heatmap"]).is_file() for row in rows)


def test_settings_reach_the_method(dataset, tmp_path):
    arguments = ("--backbone", "filters", "--preset", "paper", "--set", "dimensions=9", "--set", "sigma=2")
    run("fit", dataset, *arguments, "--taps", "level1,level2", "--out", tmp_path / "m", "--json")
    from blemish.persist import load

    manifest = load(tmp_path / "m")[1]
    assert manifest["parameters"] == {
        "backbone": "filters",
        "taps": ["level1", "level2"],
        "seed": 0,
        "precision": "float32",
        "top_share": 0.0,
        "dimensions": 9,
        "reduction": "random",
        "eps": 0.01,
        "sigma": 2.0,
        "storage": "float32",
        "keep": "factor",
    }
    assert manifest["detector"]["preprocess"] == {"resize": 256, "crop": 224, "white_level": None}
    assert manifest["detector"]["calibration"] == "none"
    assert manifest["images"] == 30


def test_update(model, dataset, tmp_path):
    printed = json.loads(run("update", model, dataset / "test" / "good", "--out", tmp_path / "m", "--json").stdout)
    assert (printed["images"], printed["threshold"]) == (30, None)
    said = run("update", model, dataset / "test" / "good", "--out", tmp_path / "m").stdout
    assert "no threshold (the old one belonged to the old model; `blemish recalibrate` makes a new one)" in said
    raw = run("fit", dataset, "--backbone", "filters", "--calibration", "none", "--out", tmp_path / "raw").stdout
    assert "no threshold (calibration off)" in raw


def test_images_too_few_for_a_new_threshold_are_told_only_what_the_command_can_do(model, dataset, tmp_path):
    good, rate = dataset / "test" / "good", ("--false-alarm-rate", 0.05)
    for arguments in (("recalibrate", model, good, *rate), ("update", model, good, "--held-out", good / "000.png")):
        said = run(*arguments, "--out", tmp_path / "m", status=1).stderr
        assert "held-out normal images, there" in said
        assert "--calibration" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "method: expected one of cflow, .* got magic"),
        (["--set", "epsilon=1"], "--set: expected a parameter out of .*sigma.* got epsilon"),
        (["--set", "seed=3"], "--set: expected no parameter that has an option, got seed. Use --seed"),
        (["--set", "sigma"], "--set: expected KEY=VALUE, got sigma"),
        (["--set", "sigma=small"], "--set, sigma: expected a number of at least 0, got small. The default is 4.0"),
        (["--backbone", "resnet19"], "backbone: expected a name of the table, such as .*resnet18.* got resnet19"),
        (["--false-alarm-rate", "0.001"], "needs at least 999 held-out normal images, there are 6"),
        (["--out", "/nowhere/at/all/m"], "/nowhere/at/all/m: expected a file in an existing folder"),
    ],
)
def test_wrong_use_is_one_line_and_status_1(dataset, tmp_path, arguments, message):
    sound = ("--backbone", "filters", "--out", tmp_path / "never", "--false-alarm-rate", 0.2)
    result = run("fit", dataset, *sound, *arguments, status=1)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line)


def test_images_for_a_threshold_are_not_said_to_be_learned(model, dataset, tmp_path):
    good = dataset / "test" / "good"
    said = run("recalibrate", model, good, "--out", tmp_path / "m").stderr
    assert "6 images, normal, for the threshold" in said
    assert "to learn from" not in said


def test_a_model_without_a_threshold_says_so_where_it_judges(dataset, tmp_path):
    run("fit", dataset, "--backbone", "filters", "--calibration", "none", "--resize", 64, "--out", tmp_path / "m")
    said = run("predict", tmp_path / "m", dataset / "test" / "good").stderr
    assert f"No verdicts and no regions from {tmp_path / 'm'}: it has no threshold" in said
    assert "`blemish recalibrate` makes one" in said


def test_a_model_of_folds_is_not_explained_and_says_what_is(dataset, tmp_path):
    small = ("--method", "padim", "--backbone", "filters", "--resize", 64, "--false-alarm-rate", 0.2, "--folds", 3)
    run("fit", dataset, *small, "--calibration", "cross", "--out", tmp_path / "m")
    said = run("explain", tmp_path / "m", dataset / "test", "--normal", dataset / "train", status=1).stderr
    assert "got the 3 of cross. Fit again with calibration='split' (--calibration split)." in said


def test_missing_argument_is_status_2():
    run("fit", status=2)
    run("fit", "data", "--on-error", "huge", status=2)


@pytest.mark.parametrize("table", ["methods", "presets", "backbones", "datasets"])
def test_list(table):
    rows = json.loads(run("list", table, "--json").stdout)[table]
    printed = run("list", table).stdout
    for row in rows:
        assert row["name"] in printed


@pytest.mark.heavy  # README, which a test runs, has each of its steps
def test_demo(tmp_path, monkeypatch):
    small = partial(write_dataset, size=64, n_test_normal=4, n_per_defect=1)
    monkeypatch.setattr(synthetic, "write_dataset", small)
    result = run("demo", "--out", tmp_path, "--images", 95)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "demo.blemish").is_file()
    assert f"Report: {tmp_path / 'report.html'}" in result.stderr
    assert "image_auroc" in result.stdout


def test_fit_of_a_bank_in_tiles_with_an_index(dataset, tmp_path):
    path = tmp_path / "m.blemish"
    result = run(
        "fit", dataset, "--method", "patchcore", "--backbone", "filters", "--resize", "96x128", "--tile", 64,
        "--index", "faiss:flat", "--set", "ratio=0.05", "--false-alarm-rate", 0.2, "--memory", 4, "--out", path,
    )  # fmt: skip
    plan = r"patchcore: 144 inputs of the network; model \d\.\d MB, peak \d+\.\d MB beside the backbone; about \d+ s"
    assert re.search(plan, result.stderr)
    row = json.loads(run("predict", path, next((dataset / "test" / "good").glob("*.png"))).stdout)
    assert row["anomalous"] in (True, False)
    assert json.loads(run("evaluate", path, dataset, "--json").stdout)["pixel_auroc"] > 0.5


def test_image_level_methods_evaluate_predict_and_report(dataset, tmp_path):
    path = tmp_path / "m.blemish"
    small = ("--backbone", "filters", "--resize", 64, "--false-alarm-rate", 0.2)
    run("fit", dataset, "--method", "gaussian", *small, "--out", path)
    figures = json.loads(run("evaluate", path, dataset, "--json", "--report", tmp_path / "r.html").stdout)
    assert figures["pixel_auroc"] is None
    assert 0 <= figures["image_auroc"] <= 1
    run("predict", path, dataset / "test" / "good", "--out", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert all(0 <= row["model_p_value"] <= 1 and "heatmap" not in row for row in rows)


def test_an_update_says_what_it_needs_and_is_refused_where_that_is_not_there(dataset, tmp_path):
    path, more = tmp_path / "m", dataset / "test" / "good"
    run(*f"fit {dataset} --method knn --backbone filters --calibration none --out {path}".split())
    before = path.read_bytes()
    result = run("update", path, more, "--memory", 0.01, status=1)
    assert "are left for it" in result.stderr
    assert path.read_bytes() == before
    assert "knn: 6 inputs of the network; model" in run("update", path, more, "--memory", 8).stderr


def test_a_fit_that_needs_too_much_memory_is_refused(dataset, tmp_path):
    result = run(
        *f"fit {dataset} --method spade --backbone filters --memory 0.1 --calibration none --out {tmp_path}/m".split(),
        status=1,
    )
    assert "spade: 30 inputs of the network" in result.stderr
    assert "storage=float16" in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resize", "big"], "--resize: expected SIDE or HEIGHTxWIDTH"),
        (["--resize", "64x128", "--preset", "paper"], "resize: expected one SIDE with a preset that crops"),
        (["--index", "annoy", "--method", "knn"], "index: expected exact or faiss:"),
        (["--method", "padim", "--index", "exact"], "--method: expected an option that padim knows"),
        (["--set", "memory_gb=4"], "Use --memory"),
        (["--preset", "huge"], "preset: expected one of default, paper"),
        (["--preset", "few", "--method", "knn"], "method: expected subspace with this preset, got knn"),
        (["--tile", "512"], "tile: expected at most the preprocessed image's 256 pixels"),
    ],
)
def test_bad_fit_options(dataset, tmp_path, arguments, message):
    result = run(
        "fit", dataset, "--backbone", "filters", "--calibration", "none", *arguments, "--out", tmp_path / "m", status=1
    )
    assert message in result.stderr


def test_a_stopped_run_goes_on_where_it_was(model, dataset, tmp_path):
    folder, out = dataset / "test" / "good", tmp_path / "out"
    whole = run("predict", model, folder, "--out", out)
    lines = (out / "results.jsonl").read_text().splitlines()
    assert "judged by an earlier run" not in whole.stderr
    (out / "results.jsonl").write_text("\n".join([*lines[:2], lines[2][:30]]))  # a kill tore the third line
    Path(out / json.loads(lines[1])["heatmap"]).unlink()
    again = run("predict", model, folder, "--out", out)
    assert f"1 of {len(lines)} images were judged by an earlier run; their lines stay." in again.stderr
    found = {row["image"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    wanted = {row["image"]: row for row in map(json.loads, lines)}
    assert found.keys() == wanted.keys()
    for name, row in wanted.items():  # another batch rounds a score otherwise in its last digits
        look = pytest.approx(row["look"], rel=1e-9)
        assert found[name] == row | {"score": pytest.approx(row["score"], rel=1e-5), "look": look}
    assert all((out / json.loads(line)["heatmap"]).is_file() for line in lines)


def test_the_exit_status_tells_a_machine_on_request(model, dataset, tmp_path):
    good = sorted((dataset / "test" / "good").glob("*.png"))
    rows = [json.loads(line) for line in run("predict", model, dataset / "test").stdout.splitlines()]
    normal, anomalous = (next(row["image"] for row in rows if row["anomalous"] is wanted) for wanted in (False, True))
    (tmp_path / "bad.png").write_bytes(b"junk")
    run("predict", model, normal, "--exit-code")
    run("predict", model, normal, tmp_path / "bad.png", "--exit-code", status=4)
    out = ("--out", tmp_path / "out", "--exit-code")
    run("predict", model, anomalous, tmp_path / "bad.png", *out, status=3)
    run("predict", model, anomalous, *out, status=3)  # its line is of an earlier run
    run("predict", model, normal, *out)
    run("predict", tmp_path / "none", normal, "--exit-code", status=1)
    run("fit", dataset, "--backbone", "filters", "--resize", 32, "--calibration", "none", "--out", tmp_path / "raw")
    result = run("predict", tmp_path / "raw", good[0], "--exit-code", status=1)
    assert "--exit-code: expected a model with a threshold" in result.stderr


def test_fit_prints_the_promise_in_one_line(dataset, tmp_path):
    small = ("--backbone", "filters", "--resize", 32, "--false-alarm-rate", 0.3, "--certain", 0.9)
    printed = run("fit", dataset, *small, "--out", tmp_path / "m").stdout
    assert re.search(
        r"^False alarms .*: 30 % asked for, and guaranteed with certainty 0\.9; guaranteed .* plausibly ", printed, re.M
    )
    promise = json.loads(run("fit", dataset, *small, "--out", tmp_path / "m", "--json").stdout)["promise"]
    assert (promise["false_alarm_rate"], promise["certain"], promise["held_out"]) == (0.3, 0.9, 7)


def test_another_model_or_a_changed_picture_is_judged_again(model, dataset, tmp_path):
    shutil.copytree(dataset / "test" / "good", tmp_path / "images")
    run("predict", model, tmp_path / "images", "--out", tmp_path / "out")
    first = sorted((tmp_path / "images").iterdir())[0]
    shutil.copy(sorted((tmp_path / "images").iterdir())[1], first)
    os.utime(first, ns=(1, 1))
    count = len(list((tmp_path / "images").iterdir()))
    assert (
        f"{count - 1} of {count} images" in run("predict", model, tmp_path / "images", "--out", tmp_path / "out").stderr
    )
    run("update", model, dataset / "test" / "good", "--out", tmp_path / "other")
    other = run("predict", tmp_path / "other", tmp_path / "images", "--out", tmp_path / "out")
    assert "judged by an earlier run" not in other.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == count
    assert len({row["model"] for row in rows}) == 1


def test_results_that_cannot_be_written_are_refused_before_the_work(model, dataset, tmp_path):
    (tmp_path / "file").touch()
    result = run("predict", model, dataset / "test" / "good", "--out", tmp_path / "file", status=1)
    assert "file: expected a folder for the results, got a file" in result.stderr
    (tmp_path / "out" / "results.jsonl").mkdir(parents=True)
    result = run("predict", model, dataset / "test" / "good", "--out", tmp_path / "out", status=1)
    assert "results.jsonl: expected a file, got a folder" in result.stderr


def test_a_file_that_may_not_be_read_is_one_line_and_not_wrong_use(tmp_path, monkeypatch):
    (tmp_path / "m.blemish").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    result = run("upgrade", tmp_path / "m.blemish", status=1)
    said = result.stderr.replace("Path", "path")  # one release of click to another
    assert said == f"error: path '{tmp_path / 'm.blemish'}' is not readable. There is no permission for it.\n"


def test_every_command_says_what_it_does_on_a_terminal_of_windows():
    for name, _ in commands():
        done = CliRunner(charset="cp1252").invoke(app, [*name.split(), "--help"])
        assert done.exit_code == 0
        assert not re.search(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}", done.output), name


def test_a_name_that_the_terminal_cannot_show_is_no_error(model, tmp_path):
    shutil.copy(model, tmp_path / "\u0142.blemish")
    done = CliRunner(charset="cp1252").invoke(app, ["upgrade", str(tmp_path / "\u0142.blemish")])
    assert (done.exit_code, "\\u0142.blemish: has format 3 already" in done.stdout) == (0, True), done.output


def test_a_reader_that_has_gone_is_no_error():
    """As with `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "blemish", "list", "datasets"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("command", ["predict {model} {image}", "watch {model} {folder} --once --settle 0"])
def test_a_reader_that_has_gone_is_no_error_to_what_writes_lines(command, model, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    given = command.format(model=model, image=tmp_path / "a.png", folder=tmp_path).split()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "blemish", *given], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, "error" in done.stderr) == (1, False), done.stderr


def test_white_level_pixel_limit_and_tiles_reach_the_detector(tmp_path):
    for i in range(3):
        levels = np.random.default_rng(i).integers(0, 1024, (96, 48)).astype(np.uint16)
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(levels).save(tmp_path / "deep" / f"{i}.png")
    options = (
        "--backbone", "filters", "--calibration", "none", "--resize", "96x48", "--tile", "64x48", "--overlap", 8,
        "--out", tmp_path / "deep.blemish",
    )  # fmt: skip
    noted = run("fit", tmp_path / "deep", *options)
    assert "--white-level 1023" in noted.stderr
    quiet = run("fit", tmp_path / "deep", *options, "--white-level", "auto")
    assert "White level 1023" in quiet.stderr
    detector = Detector.load(tmp_path / "deep.blemish")
    assert detector.preprocessing.white_level == 1023
    assert detector.tile == (64, 48)
    refused = run("predict", tmp_path / "deep.blemish", tmp_path / "deep", "--max-pixels", 100)
    assert refused.stdout.count("the limit is 100 ") == 3
    assert "the limit is 100 " in run("fit", tmp_path / "deep", *options, "--max-pixels", 100, status=1).stderr
    for option, value, expected in (("--white-level", "0", "a number in"), ("--tile", "8x64", "HEIGHTxWIDTH")):
        assert f"{option}: expected" in run("fit", tmp_path / "deep", *options, option, value, status=1).stderr, (
            expected
        )
