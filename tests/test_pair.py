"""`blemish compare`: two detectors on the same images."""

from __future__ import annotations

import json
import re
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector, Preprocess, evaluate
from blemish.cli import app
from blemish.datasets.layouts import Sample, open_dataset
from blemish.datasets.synthetic import write_dataset
from blemish.errors import ArgumentError, DatasetError
from blemish.evaluation import pair as home
from blemish.evaluation.pair import _of_images, evaluate_pair
from blemish.methods import KNN, PaDiM
from blemish.metrics import FoundRegions, auroc, pixel_auroc, pixel_curve
from blemish.metrics.paired import paired_differences, ranks
from blemish.metrics.table import TABLE, Outcome
from blemish.report.page import percent_range


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair") / "washer"
    write_dataset(root, product="washer", n_train=24, n_test_normal=8, n_per_defect=2, size=64)
    return root


@pytest.fixture(scope="module")
def dataset(data):
    return open_dataset(data)


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """A detector with maps, and one without."""
    folder, found = tmp_path_factory.mktemp("models"), []
    for method in (PaDiM(backbone="filters"), KNN(backbone="filters")):
        made = Detector(method=method, preprocess=Preprocess(32), false_alarm_rate=0.2).fit(data)
        made.save(folder / f"{method.name}.blemish")
        found.append(made)
    return (*found, folder)


def test_a_wrong_pattern_is_refused_before_anything_is_scored(models, dataset, monkeypatch):
    monkeypatch.setattr(home, "evaluate", None)
    with pytest.raises(ArgumentError, match="group_by: expected a pattern that is found in every path"):
        evaluate_pair(*models[:2], dataset, group_by="part([0-9]+)")


def test_a_range_below_zero_has_no_dash_beside_its_signs():
    assert percent_range((-0.634, -0.031)) == "-63.4 to -3.1 %"
    assert percent_range((0.1, 0.2)) == "10.0 \u2013 20.0 %"


def test_every_figure_that_both_have_is_compared(models, dataset):
    padim, knn, _ = models
    pair = evaluate_pair(padim, knn, dataset, repetitions=20)
    a, b = evaluate(padim, dataset).figures, evaluate(knn, dataset).figures
    of_maps = {"masks", "regions", "marked regions"}
    assert set(pair.differences) == {name for name, row in TABLE.items() if row.better and not of_maps & {*row.needs}}
    for name, found in pair.differences.items():
        assert (found.a, found.b) == pytest.approx((getattr(a, name), getattr(b, name)))
    assert pair.groups == pair.images == len(dataset.test)


def test_pixel_figures_are_compared_where_both_have_maps(models, dataset, caplog):
    padim, _, _ = models
    pair = evaluate_pair(padim, padim, dataset, repetitions=5, pixel_repetitions=3)
    figures = evaluate(padim, dataset).figures
    for name in ("pixel_auroc", "au_pro_30", "au_pro_05", "false_regions", "defects_hit", "seg_f1"):
        found = pair.differences[name]
        assert found.a == found.b == pytest.approx(getattr(figures, name))
        assert (found.interval.repetitions, found.p_value) == (3 if "masks" in TABLE[name].needs else 5, 1)
    assert "pixel_auroc" not in evaluate_pair(padim, padim, dataset, repetitions=5, pixel_repetitions=0).differences
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_groups_are_drawn_whole(models, dataset):
    padim, knn, _ = models
    pair = evaluate_pair(padim, knn, dataset, repetitions=20, group_by=r"^[^/]*/([^/]*)/")  # by kind of defect
    kinds = len({sample.kind for sample in dataset.test})
    assert (pair.groups, pair.images) == (kinds, len(dataset.test))


def test_one_kind_of_images_is_refused(models, dataset):
    padim, knn, _ = models
    normal = replace(dataset, test=tuple(sample for sample in dataset.test if not sample.anomalous))
    with pytest.raises(DatasetError, match="takes normal and anomalous test images"):
        evaluate_pair(padim, knn, normal, repetitions=5)


def test_models_that_read_different_images_are_not_compared(models, dataset, tmp_path):
    padim, knn, _ = models
    large = tmp_path / "large.png"
    Image.new("RGB", (128, 128), (90, 120, 30)).save(large)
    more = replace(dataset, test=(*dataset.test, Sample(large, "good", anomalous=False)))
    reads_less = copy(knn)
    reads_less.max_pixels, reads_less.on_error = 64 * 64, "skip"
    with pytest.raises(DatasetError, match="one of the models could not read all images"):
        evaluate_pair(padim, reads_less, more, repetitions=2, pixel_repetitions=0)


def test_the_command_prints_writes_and_says(models, data, tmp_path):
    *_, folder = models
    call = ["compare", str(folder / "padim.blemish"), str(folder / "knn.blemish"), str(data), "--repetitions", "30"]
    done = CliRunner().invoke(app, [*call, "--json", "--report", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    row = found["differences"]["image_auroc"]
    assert (
        row["difference"]
        == pytest.approx(row["a"] - row["b"])
        == pytest.approx(found["a"]["image_auroc"] - found["b"]["image_auroc"])
    )
    assert {"low", "high", "confidence", "repetitions"} == set(row["interval"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "padim against knn" in page
    assert "False alarms" in page
    printed = CliRunner().invoke(app, call).stdout
    assert re.search(r"image_auroc .*[+-]0\.\d{4} to [+-]0\.\d{4}", printed)
    assert "Image AUROC:" in printed


def test_ranks_and_scores_have_the_same_figures(models, dataset):
    """What is swapped are ranks; the figures of a model are those of its scores."""
    padim, knn, _ = models
    found = evaluate_pair(padim, knn, dataset, repetitions=1).differences["image_auroc"].a
    decisions = list(padim.predict(dataset.test_images()))
    assert found == pytest.approx(auroc([d.score for d in decisions], [s.anomalous for s in dataset.test]))


def test_what_two_detectors_swap_is_ranks_and_verdicts():
    """One of them scores a thousand times as high; each image's rank and verdict go over to the other together."""
    random, anomalous = np.random.default_rng(0), np.arange(12) % 2 == 0
    one, other = random.random(12), 1000 * random.random(12)
    flags = np.zeros(12, bool), np.ones(12, bool)
    a, b = (Outcome(s, anomalous, None, None, None, f) for s, f in zip((one, other), flags, strict=True))
    swapped = np.arange(12) < 5
    found = _of_images(a, b, ["image_auroc", "false_alarms"])(np.arange(12), swapped)
    left = np.where(swapped, ranks(other), ranks(one))
    assert found[0, 0] == auroc(left, anomalous)
    assert found[0, 1] == np.where(swapped, flags[1], flags[0])[~anomalous].mean()
    assert found[1, 1] == np.where(swapped, flags[0], flags[1])[~anomalous].mean()


def test_what_is_swapped_and_which_images_belong_together(models, dataset, monkeypatch):
    """Figures of images by swaps; those of pixels without, which are left out where a draw has no marked pixel."""
    padim, *_ = models
    calls = []

    def watched(*args, **settings):
        calls.append(settings)
        if not settings["swaps"]:
            raise ArgumentError("no marked pixel")
        return paired_differences(*args, **settings)

    monkeypatch.setattr(home, "paired_differences", watched)
    pair = evaluate_pair(padim, padim, dataset, repetitions=2, group_by=r"^[^/]*/([^/]*)/")
    assert [call["swaps"] for call in calls] == [True, False]
    kinds = [sample.kind for sample in dataset.test]
    for call in calls:
        together = np.equal.outer(call["groups"], call["groups"])
        assert together.tolist() == [[a == b for a in kinds] for b in kinds]
    assert "image_auroc" in pair.differences
    assert "pixel_auroc" not in pair.differences
    seen = replace(pair, a=replace(pair.a, overlap=("a",)), b=replace(pair.b, overlap=("a", "b")))
    assert seen.as_json()["overlap"] == 3


def test_regions_are_swapped_and_pixels_stay_with_their_detector():
    counts = np.array([3, 0, 2, 0]), np.array([0, 1, 0, 0])
    one, other = (FoundRegions(reported) for reported in counts)
    swapped = np.array([True, True, False, False])
    found = home._regions(one, other, np.array([0, 1, 2, 2]), swapped[[0, 1, 2, 2]])
    assert found.reported.tolist() == [0, 1, 2, 2]
    mask = np.array([[True, False, False, False]])
    curves = [pixel_curve([(np.array([row], np.float32), mask)]) for row in ([4, 1, 2, 3], [2, 1, 3, 4])]
    statistic = home._of_pixels(lambda _: curves[0], lambda _: curves[1], ["pixel_auroc"])
    assert statistic(np.arange(1), swapped[:1]).tolist() == [[pixel_auroc(curve)] for curve in curves]
