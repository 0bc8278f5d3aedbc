from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from blemish import evaluate, open_dataset
from blemish.datasets import layouts as datasets
from blemish.datasets.dataset import Sample
from blemish.detector import Detector
from blemish.errors import ArgumentError
from blemish.evaluation import masks as study_masks
from blemish.features.backbones import find_backbone
from blemish.features.extract import Extractor
from blemish.images.decode import read_mask
from blemish.images.preprocess import Preprocess
from blemish.methods import SVDD, DeepSVDD, PaDiM
from blemish.methods.registry import METHODS
from blemish.study import run as study_run
from blemish.study.estimate import estimate
from blemish.study.messages import Finished, ImagesRead, Started
from blemish.study.plan import groups
from blemish.study.run import LocalExecutor, run_study
from blemish.study.store import COLUMNS, COSTS, FIGURES, Store
from studies import ONE_THREAD, Inline, Scripted, plan, write_products
from trained import write_reference

FIVE = ("padim", "patchcore", "spade", "knn", "gaussian")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_products(tmp_path_factory.mktemp("data"))


def twenty(data):
    """Two groups of cells, with two sets of layers each."""
    return plan(data, data=(str(data / "*"),), methods=FIVE, taps=("default", "level1+level3"))


def same(rows):
    """What must not depend on when, where and how often a study ran."""
    return [{name: value for name, value in row.items() if name not in COSTS} for row in rows]


def run(path, plan, executor=None, **settings):
    with Store(path) as store:
        run_study(plan, store, executor=executor or Inline(), **settings)
        return store.rows()


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """The rows of twenty cells, from an undisturbed run with two workers; the tests below have one."""
    assert len(groups(twenty(data).cells())) == 2
    rows = run(tmp_path_factory.mktemp("reference") / "study.sqlite", twenty(data), LocalExecutor(2, ONE_THREAD))
    assert [row["status"] for row in rows] == ["finished"] * 20
    return rows


# Rows


def test_a_row_holds_the_figures_of_a_plain_fit_and_all_that_was_promised(data, tmp_path):
    (row,) = run(tmp_path / "s.sqlite", plan(data, methods=("padim,dimensions=20",), seeds=(3,), intervals=True))
    method = PaDiM(backbone="filters", dimensions=20, seed=3)
    detector = Detector(method=method, preprocess=Preprocess(64), held_out=0.25, false_alarm_rate=0.25, seed=3)
    dataset = open_dataset(data / "washer")
    detector.fit(dataset.train_images())
    for name, value in vars(evaluate(detector, dataset).figures).items():
        assert row[name] == value, name
    detector.save(tmp_path / "m.blemish")
    assert row["model_bytes"] == pytest.approx((tmp_path / "m.blemish").stat().st_size, abs=8000)
    assert (row["n_fit"], row["n_held_out"], row["n_normal"], row["n_anomalous"]) == (12, 4, 3, 7)
    for name in ("fit_seconds", "decode_ms", "forward_ms", "score_ms", "seconds", "peak_bytes", "shared_bytes"):
        assert row[name] > 0, name
    assert '"image_auroc": [' in row["intervals"]
    assert "pixel_auroc" not in row["intervals"]
    assert '"torch": ' in row["versions"]
    assert len(row["dataset_digest"]) == len(row["weights_digest"]) == 64
    assert (row["status"], row["reason"], row["threads"], row["device"]) == ("finished", None, 1, "cpu")


def test_a_threshold_gets_as_many_images_as_its_rate_takes_as_in_fit(data, tmp_path):
    """Without this a study of 38 to 94 images failed in every cell, with its defaults, where `fit` went through."""
    few = plan(data, methods=("knn",), held_out=0.1)  # 2 of 16, and a rate of 25 % takes 3
    (row,) = run(tmp_path / "s", few)
    assert (row["status"], row["n_fit"], row["n_held_out"], row["held_out"]) == ("finished", 13, 3, 0.1)


def test_too_few_images_for_the_rate_are_told_before_anything_runs(data):
    (group,) = groups(plan(data, methods=("knn",), false_alarm_rate=0.05).cells())
    (cell,) = estimate(group, ONE_THREAD).cells
    assert "needs at least 19 held-out normal images, there are 4 of 16" in cell.problem


def test_a_method_that_trains_is_a_cell_beside_those_that_share_features(data, tmp_path):
    trained, shared = run(tmp_path / "s", plan(data, methods=("deep_svdd,epochs=2,side=16", "knn")))
    (alone,) = run(tmp_path / "a", plan(data, methods=("deep_svdd,epochs=2,side=16",)))
    method = DeepSVDD(backbone="filters", epochs=2, side=16)
    detector = Detector(method=method, preprocess=Preprocess(64), held_out=0.25, false_alarm_rate=0.25)
    dataset = open_dataset(data / "washer")
    expected = evaluate(detector.fit(dataset.train_images()), dataset).figures
    assert shared["status"] == "finished"
    assert (trained["image_auroc"], trained["threshold"]) == (expected.image_auroc, expected.threshold)
    assert same([trained]) == same([alone])


def test_pictures_of_a_camera_of_ten_bits_are_cells_like_others(tmp_path):
    random = np.random.default_rng(0)
    for part, number in (("train/good", 12), ("test/good", 4), ("test/dark", 4)):
        for depth in ("eight", "ten"):
            (tmp_path / depth / part).mkdir(parents=True)
        for i in range(number):
            levels = random.integers(0, 120 if part == "test/dark" else 256, (32, 32)).astype(np.uint16)
            Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "eight" / part / f"{i}.png")
            Image.fromarray(levels * 4).save(tmp_path / "ten" / part / f"{i}.png")
    (eight,) = run(tmp_path / "8", plan(tmp_path, data=(str(tmp_path / "eight"),), methods=("knn",)))
    ten = plan(tmp_path, data=(str(tmp_path / "ten"),), methods=("knn",))
    (said,) = run(tmp_path / "10", replace(ten, white_level=1020))
    (not_said,) = run(tmp_path / "10", ten)[1:]
    assert said["white_level"] == "1020"
    assert said["threshold"] == pytest.approx(eight["threshold"], rel=0.01)  # 8 bits are rounded when resized
    assert not_said["threshold"] < 0.5 * eight["threshold"]


def test_digests_change_with_what_they_digest(data, tmp_path):
    (before, other) = run(tmp_path / "1", plan(data, data=(str(data / "*"),), methods=("knn",)))
    copy = tmp_path / "washer"
    subprocess.run(["cp", "-r", data / "washer", copy], check=True)
    (copied,) = run(tmp_path / "2", plan(data, data=(str(copy),), methods=("knn",)))
    (copy / "train" / "good" / "000.png").unlink()
    (less,) = run(tmp_path / "3", plan(data, data=(str(copy),), methods=("knn",)))
    assert before["dataset_digest"] == copied["dataset_digest"]
    assert len({row["dataset_digest"] for row in (before, other, less)}) == 3


def test_random_weights_depend_on_the_seed_alone(data, tmp_path):
    again = plan(data, methods=("knn",), backbones=("squeezenet1_1",), weights="random", seeds=(0, 1))
    torch.manual_seed(1)
    one = run(tmp_path / "1", again)
    torch.manual_seed(2)
    two = run(tmp_path / "2", again)
    assert same(one) == same(two)
    assert one[0]["weights_digest"] != one[1]["weights_digest"]
    assert one[0]["image_auroc"] is not None


# Sharing


def count_images(monkeypatch):
    seen = []
    call = Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda self, pixels: seen.append(len(pixels)) or call(self, pixels))
    return seen


def test_five_methods_on_one_backbone_cost_one_extraction(data, tmp_path, monkeypatch):
    images = 16 + 10
    timed = 3 * 8  # passes over images, for each choice of layers
    five = plan(data, methods=FIVE)
    seen = count_images(monkeypatch)
    together = run(tmp_path / "together", five)
    assert sum(seen) == images + 3 * timed  # patchcore and knn read other layers than the rest
    seen.clear()
    alone = [row for cell in five.cells() for row in _alone(tmp_path, five, cell)]
    assert sum(seen) == 5 * (images + timed)
    assert same(together) == same(alone)


def _alone(tmp_path, plan, cell):
    changes = {"methods": (cell.spec,), "taps": ("+".join(cell.taps),) if cell.taps else ("default",)}
    return run(tmp_path / cell.key, type(plan)(**{**vars(plan), **changes}))


def test_masks_are_decoded_once_a_group(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(study_masks, "read_mask", lambda path, **limit: seen.append(path) or read_mask(path, **limit))
    run(tmp_path / "s", plan(data, methods=("padim", "spade")))
    assert len(seen) == len(set(seen)) == 7


def test_masks_come_back_as_they_were(tmp_path):
    mask = np.random.default_rng(0).random((13, 7)) < 0.3
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    masks = study_masks.Masks()
    for _ in range(2):
        found = masks.of(Sample(tmp_path / "x.png", "scratch", True, tmp_path / "m.png"), mask.shape)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)


# Failures


def test_a_failing_cell_is_recorded_with_its_reason_and_the_rest_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(SVDD, "_solve", staticmethod(torch.linalg.eigh))  # an error that is not of our own tree
    rows = run(
        tmp_path / "s",
        plan(
            data,
            data=(str(tmp_path / "missing"), str(data / "washer"), str(data / "washer" / "train" / "good")),
            methods=("svdd", "padim,taps=level9", "knn,k=100", "knn"),
        ),
    )
    reasons = [row["reason"] or row["status"] for row in rows]
    assert all("missing: expected a dataset folder, got nothing there" in reason for reason in reasons[:4])
    assert reasons[4].startswith("TypeError: ")
    assert "test_study_run" not in rows[4]["trace"]
    assert "Traceback" in rows[4]["trace"]
    assert reasons[5].startswith("ArgumentError: taps: expected module names of filters")
    assert reasons[6].startswith("ArgumentError: images: expected at least k = 100 normal images")
    assert reasons[7] == "finished"
    assert all("no labelled test images (folder layout)" in reason for reason in reasons[8:])
    assert all(row["image_auroc"] is None for row in rows if row["status"] == "failed")


def test_missing_weights_fail_their_cells_only(data, tmp_path, monkeypatch):
    monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
    (tmp_path / "resnet18.pth").write_bytes(b"not weights")
    rows = run(tmp_path / "s", plan(data, backbones=("resnet18", "filters")))
    assert [row["status"] for row in rows] == ["failed", "failed", "finished", "finished"]
    assert "resnet18.pth: cannot be read as a state dict" in rows[0]["reason"]
    (row,) = run(tmp_path / "t", plan(data, methods=("knn",), weights=str(tmp_path / "none.pth")))
    assert "none.pth: the file does not exist" in row["reason"]


def test_weights_that_end_before_the_deepest_layer_serve_the_cells_that_do_not_read_it(data, tmp_path):
    state = find_backbone("squeezenet1_1").build().state_dict()
    torch.save({name: value for name, value in state.items() if "features.12" not in name}, tmp_path / "w.pth")
    methods = ("padim,taps=features.4", "knn")
    rows = run(
        tmp_path / "s", plan(data, methods=methods, backbones=("squeezenet1_1",), weights=str(tmp_path / "w.pth"))
    )
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert rows[1]["reason"].startswith("WeightsError: weights of squeezenet1_1: ")


def test_failed_cells_run_again_when_asked_and_finished_ones_never(data, tmp_path):
    folder = tmp_path / "late"
    both = plan(data, data=(str(folder), str(data / "washer")), methods=("knn",))
    first = run(tmp_path / "s", both)
    assert [row["status"] for row in first] == ["failed", "finished"]
    folder.symlink_to(data / "weave")
    assert run(tmp_path / "s", both) == first
    again = run(tmp_path / "s", both, retry_failed=True)
    assert [(row["status"], row["reason"], row["trace"]) for row in again] == [("finished", None, None)] * 2
    assert again[1] == first[1]
    assert run(tmp_path / "s", both, retry_failed=True) == again


def test_a_cell_whose_process_dies_is_tried_once_more_after_the_others(data, tmp_path):
    executor = Scripted("knn", "knn")
    rows = run(tmp_path / "s", plan(data, methods=("padim", "knn", "spade")), executor)
    assert executor.runs == [["padim", "knn", "spade"], ["spade", "knn"]]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert rows[1]["reason"] == "WorkerDied: killed, twice"
    executor = Scripted("knn")
    rows = run(tmp_path / "t", plan(data, methods=("padim", "knn")), executor)
    assert executor.runs == [["padim", "knn"], ["knn"]]
    assert [row["status"] for row in rows] == ["finished", "finished"]


def test_a_death_while_images_are_read_costs_one_more_try(data, tmp_path):
    executor = Scripted("reading", "reading")
    rows = run(tmp_path / "s", plan(data), executor)
    assert executor.runs == [["padim", "knn"]] * 2
    assert {row["reason"] for row in rows} == {"WorkerDied: while the images were read: killed, twice"}
    assert {row["status"] for row in run(tmp_path / "t", plan(data), Scripted("reading"))} == {"finished"}


def test_a_process_that_is_killed_is_replaced(data, tmp_path):
    """A real process and a real SIGKILL, as from a system that is out of memory."""
    starts = Counter()

    def kill(progress):
        if isinstance(progress.message, Started):
            starts[progress.cell.method] += 1
            if progress.cell.method == "padim":
                os.kill(progress.message.pid, signal.SIGKILL)

    rows = run(tmp_path / "s", plan(data), LocalExecutor(1, ONE_THREAD), progress=kill)
    assert starts == {"padim": 2, "knn": 1}
    assert [row["status"] for row in rows] == ["failed", "finished"]
    assert rows[0]["reason"].startswith("WorkerDied: its process was ended by SIGKILL: most often, the system ran out")


def test_an_error_of_the_executor_ends_the_study(data, tmp_path):
    class Broken(Inline):
        def run(self, group):
            raise ConnectionError("the cluster is gone")
            yield

    with pytest.raises(ConnectionError, match="the cluster is gone"):
        run(tmp_path / "s", plan(data), Broken())


# Stopping and going on


def test_progress_counts_and_foretells(data, tmp_path, monkeypatch):
    told, looks = [], count()  # a second passes between two looks at the clock
    monkeypatch.setattr(study_run, "time", SimpleNamespace(monotonic=lambda: next(looks)))
    run(tmp_path / "s", plan(data, methods=("padim", "knn", "knn,k=100")), progress=told.append)
    kinds = [type(progress.message) for progress in told]
    assert kinds == [ImagesRead] * 4 + [Started, Finished] * 3
    assert [p.message.done for p in told[:4]] == [8, 16, 24, 26]
    assert [(p.finished, p.failed, p.total) for p in told[5::2]] == [(1, 0, 3), (2, 0, 3), (2, 1, 3)]
    assert told[0].seconds_left is None
    assert [p.seconds_left for p in told[5:]] == [1 / 1 * 2, 2 / 1 * 2, 3 / 2 * 1, 4 / 2 * 1, 0]


def test_an_interrupted_study_goes_on_where_it_was(data, tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.finished == 2:
            raise Stop

    four = plan(data, methods=("padim", "knn", "spade", "gaussian"))
    with pytest.raises(Stop):
        run(tmp_path / "s", four, progress=stop)
    with Store(tmp_path / "s") as store:
        part = store.rows()
    assert [row["status"] for row in part] == ["finished", "finished", "waiting", "waiting"]
    executor = Scripted()
    whole = run(tmp_path / "s", four, executor)
    assert executor.runs == [["spade", "gaussian"]]
    assert whole[:2] == part[:2]
    assert same(whole) == same(run(tmp_path / "t", four))


def test_another_plan_adds_cells_and_deletes_none(data, tmp_path):
    first = run(tmp_path / "s", plan(data, methods=("knn",)))
    both = run(tmp_path / "s", plan(data, methods=("padim",)))
    assert [row["method"] for row in both] == ["knn", "padim"]
    assert both[:1] == first
    executor = Scripted()
    assert run(tmp_path / "s", plan(data, methods=("padim", "knn")), executor) == both
    assert executor.runs == []


def command(one, out, *more):
    out.mkdir(exist_ok=True)
    (out / "wanted.toml").write_text(one.text(), encoding="utf-8")
    code = "from blemish.cli import app; app()"
    options = ("--plan", out / "wanted.toml", "--out", out, "--threads", "1", *more)
    return [sys.executable, "-c", code, "study", *map(str, options)]


@pytest.mark.heavy
@pytest.mark.parametrize("kills", [1, 3])
def test_a_study_of_one_worker_that_was_killed_ends_as_an_undisturbed_one_of_two(kills, data, reference, tmp_path):
    draw = random.Random()  # other moments each time: no moment may matter
    kept = []
    for _ in range(kills):
        process = subprocess.Popen(
            command(twenty(data), tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process, process.stderr as lines:
            for _ in range(draw.randrange(1 + (20 - len(kept)) // 5)):  # so few that work is left for the next kill
                assert "cells: " in lines.readline()
            try:
                process.wait(draw.uniform(0, 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        if (tmp_path / "study.sqlite").exists():
            with Store(tmp_path / "study.sqlite") as store:
                finished = [row for row in store.rows() if row["status"] == "finished"]
            assert [row for row in finished if row["key"] in {k["key"] for k in kept}] == kept  # not even run again
            kept = finished
    assert len(kept) < 20
    subprocess.run(command(twenty(data), tmp_path), check=True, capture_output=True)
    with Store(tmp_path / "study.sqlite") as store:
        rows = store.rows()
    assert same(rows) == same(reference)
    assert [row for row in rows if row["key"] in {k["key"] for k in kept}] == kept
    with closing(sqlite3.connect(tmp_path / "study.sqlite")) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert len((tmp_path / "study.csv").read_text().splitlines()) == 21


ORPHANAGE = """
import ctypes, os, resource, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36  # whoever loses its parent below this process becomes a child of this process
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
resource.setrlimit(resource.RLIMIT_CPU, (60, 90))  # seconds of work, not of waiting: ends what would go on for ever
study = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
said = []
for line in study.stderr:  # others come as well, where the machine is slow
    said.append(line)
    if "1/2 cells: " in line:
        break
else:
    sys.exit("the study ended before its first cell did: " + "".join(said))
print(line, end="")
study.kill()
ends = []
try:
    while True:
        ends.append(os.waitstatus_to_exitcode(os.wait()[1]))
except ChildProcessError:
    print(*sorted(ends))
study.returncode = ends[0]
"""


@pytest.mark.heavy
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system says where orphans go")
def test_a_killed_parent_leaves_nothing_running(data, tmp_path):
    """The worker is in a cell without end, and leaves it because its parent is gone, not because its time is up."""
    endless = plan(data, methods=("knn", "padim"), intervals=True, repetitions=10**9)
    result = subprocess.run(
        [sys.executable, "-c", ORPHANAGE, *command(endless, tmp_path)], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    told, ends = result.stdout.splitlines()
    assert "1/2 cells: " in told
    assert -signal.SIGKILL in map(int, ends.split())  # the parent
    assert set(map(int, ends.split())) <= {-signal.SIGKILL, 0, 1}, "a worker went on"


# Where it runs


def test_a_ray_cluster_finds_what_this_machine_finds(data, tmp_path):
    pytest.importorskip("ray")
    patience = {f"RAY_{name}": "600" for name in ("raylet_start_wait_time_s", "worker_register_timeout_seconds")}
    four = plan(data, data=(str(data / "*"),))
    assert len(groups(four.cells())) == 2
    there = subprocess.run(
        command(four, tmp_path, "--ray", "local", "--workers", "2"),
        check=False, capture_output=True, text=True, env=os.environ | patience,
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    here = run(tmp_path / "here.sqlite", four, LocalExecutor(2, ONE_THREAD))
    assert [row["status"] for row in here] == ["finished"] * 4
    with Store(tmp_path / "study.sqlite") as store:
        assert same(store.rows()) == same(here)


def test_workers_are_counted():
    with pytest.raises(ArgumentError, match="workers: expected at least 1, got 0"):
        LocalExecutor(0)


# The file


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 20)
    with closing(sqlite3.connect(tmp_path / "foreign")) as file:
        file.execute("CREATE TABLE birds (name TEXT)")
    with closing(sqlite3.connect(tmp_path / "newer")) as file:
        file.execute("PRAGMA user_version = 9")
    for name, found in (("text", "not a database"), ("foreign", "version 0"), ("newer", "version 9")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ArgumentError, match=f"{name}: expected a study file.*, got .*{found}"):
            Store(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_a_finished_row_is_never_written_again(data, tmp_path):
    (cell,) = plan(data, methods=("knn",)).cells()
    with Store(tmp_path / "s") as store:
        store.add([cell])
        store.add([cell])
        store.record(cell.key, {"status": "finished", "image_auroc": 0.5})
        store.record(cell.key, {"status": "failed", "reason": "late"})
        store.retry([cell])
        (row,) = store.rows()
    assert (row["status"], row["reason"], row["image_auroc"]) == ("finished", None, 0.5)


def test_the_csv_has_all_columns(data, tmp_path):
    with Store(tmp_path / "s") as store:
        store.add(plan(data).cells())
        store.write_csv(tmp_path / "s.csv")
    header, *rows = (tmp_path / "s.csv").read_text().splitlines()
    assert header.split(",") == list(COLUMNS)
    assert len(rows) == 2


def test_every_column_of_a_result_is_described():
    page = Path(__file__).parents[1] / "docs" / "study.md"
    described = set(re.findall(r"`(\w+)`", page.read_text(encoding="utf-8")))
    assert set(FIGURES) | set(COSTS) <= described


# What a stranger adds


def test_a_dataset_layout_is_one_line(data, tmp_path, monkeypatch):
    for ours, theirs in (("train/good", "fine"), ("test", "check"), ("ground_truth", "where")):
        (tmp_path / "shop" / theirs).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", data / "washer" / ours, tmp_path / "shop" / theirs], check=True)
    page = (Path(__file__).parents[1] / "docs" / "study.md").read_text(encoding="utf-8")
    patterns, line = re.search(r"^(_SHOP = .*)\n(Layout\(.*\)),$", page, re.MULTILINE).groups()
    names = dict(vars(datasets))
    exec(patterns, names)
    row = eval(line, names)
    monkeypatch.setattr(datasets, "LAYOUTS", (row, *datasets.LAYOUTS))
    theirs, ours = run(
        tmp_path / "s", plan(data, data=(str(tmp_path / "shop"), str(data / "washer")), methods=("padim",))
    )
    for name in FIGURES:
        assert theirs[name] == ours[name] or name == "dataset_digest", name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system forgets its peak")
def test_the_peak_can_be_measured_anew():
    """In a process of its own: one that has freed much may take a tensor from what it still holds."""
    code = (
        "import torch; from blemish.memory import forget_peak, peak_since; torch.ones(60_000_000); "
        "high = peak_since(); assert forget_peak(); assert peak_since() < high - 100_000_000, (high, peak_since())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.heavy
def test_every_method_runs_in_a_study(data, tmp_path):
    """Those that train as well, each with few steps; what cannot run by itself is refused when it is planned."""
    short = dict.fromkeys(("panda", "deep_svdd", "geom", "mean_shifted", "gaussian_finetune"), ",epochs=1")
    reference = write_reference(tmp_path / "r.npz")
    short |= {"cflow": ",steps=2", "students": ",steps=2", "joint": f",epochs=1,reference={reference}"}
    specs = tuple(name + short.get(name, "") for name in METHODS)
    rows = run(tmp_path / "s", plan(data, methods=specs, backbones=("compact",)))
    assert {row["method"]: row["reason"] for row in rows} == dict.fromkeys(METHODS)
    assert all(0 <= row["image_auroc"] <= 1 for row in rows)
