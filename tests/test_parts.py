"""Parts: the largest scaled score of a part against that of held-out parts, by plain loops; files, lines, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blemish.calibrate import with_margin
from blemish.cli import app
from blemish.datasets.dataset import Dataset, Sample
from blemish.detector import Detector
from blemish.errors import ArgumentError, CalibrationError, NotFittedError
from blemish.evaluation.detector import evaluate, evaluation_json
from blemish.images.preprocess import Preprocess
from blemish.methods import PaDiM
from blemish.parts import Parts, View, learned_views, views_of
from blemish.report.lines import BatchLine, PartLine
from contract.laws import anomalous_pixels, normal_pixels

PATTERN = r"(p\d+)_([ab])"


def views(*names):
    return [View(name, name.split("_")[0], name.split("_")[1]) for name in names]


LEARNED = {"a": (1.0, 0.5), "b": (100.0, 20.0)}
NAMES = [f"p{i}_{view}" for i in range(9) for view in "ab"]
SCORES = np.random.default_rng(0).normal([1, 100], [0.5, 20], (9, 2)).ravel().tolist()


def held_out(names=NAMES, scores=SCORES, rate=0.2):
    groups = [int(name[1:].split("_")[0]) for name in names]
    return Parts.of(views(*names), scores, groups, views=LEARNED, false_alarm_rate=rate, certain=None)


def scaled(name, score):
    mean, spread = LEARNED[name[-1]]
    return (score - mean) / spread


def part_scores(names, scores):
    found = {}
    for name, score in zip(names, scores, strict=True):
        part = name.split("_")[0]
        found[part] = max(found.get(part, -np.inf), scaled(name, score))
    return found


def test_a_part_is_ranked_by_its_largest_scaled_score():
    parts = held_out()
    known = sorted(with_margin(list(part_scores(NAMES, SCORES).values())))
    np.testing.assert_array_equal(parts.calibration.scores, known)
    for low, high in ((0.5, 90.0), (1.0, 170.0), (3.0, 60.0), (-1, 0)):
        (one,) = parts.judge(views("q_a", "q_b"), [low, high], [1.0, 1.0])
        score = max(scaled("q_a", low), scaled("q_b", high))
        assert one.score == pytest.approx(score)
        assert one.p_value == (1 + sum(value >= score for value in known)) / 10
        assert one.is_anomalous == (one.p_value <= 0.2) == (one.score > one.threshold)
        assert one.worst == ("q_a" if scaled("q_a", low) > scaled("q_b", high) else "q_b")
        assert (one.name, one.images, one.promise.held_out) == ("q", ("q_a", "q_b"), 9)


def test_fewer_views_are_ranked_and_others_pay_for_their_number():
    parts = held_out()
    fewer, other, more = parts.judge(
        views("q_a", "r_a", "r_c", "s_b", "s_b", "s_a"),
        [9.0, 9.0, 9.0, 900.0, 100.0, 1.0],
        [0.1, 0.3, 0.05, 0.5, 0.5, 0.9],
    )
    assert (fewer.p_value, fewer.threshold is None) == (0.1, False)
    assert (other.p_value, other.threshold, other.is_anomalous) == (0.1, None, True)
    assert (more.p_value, more.threshold, more.is_anomalous) == (1.0, None, False)
    assert [one.name for one in (fewer, other, more)] == ["q", "r", "s"]


def test_the_most_images_that_a_held_out_part_has_are_known():
    parts = held_out([*NAMES, "p0_a", "p9_b"], [*SCORES, 1.0, 100.0])
    assert dict(parts.most) == {"a": 2, "b": 1}  # the first part has two, the last none
    twice, thrice = parts.judge(views("q_a", "q_a", "r_a", "r_a", "r_a"), [1.0] * 5, [0.5] * 5)
    assert (twice.threshold is None, thrice.threshold is None) == (False, True)


def test_views_are_scaled_by_the_learned_images_alone():
    found = learned_views(views("p0_a", "p1_a", "p0_b"), [1.0, 3.0, 7.0])
    assert found == {"a": (2.0, 1.0), "b": (7.0, 1.0)}  # one value has no spread
    assert views_of(["n"], ["good/p7_b.png"], PATTERN) == [View("n", "p7", "b")]
    assert views_of(["n"], ["good/p7_b.png"], r"(p\d+)") == [View("n", "p7", "")]
    with pytest.raises(ArgumentError, match=r"a pattern that is found in every path, such as 'x\.png'"):
        views_of(["n"], ["x.png"], PATTERN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-four parts with a plain and a noisy view; three new ones, the last of which has a defect in view a."""
    root = tmp_path_factory.mktemp("parts")
    plain, noisy = normal_pixels(27, 1), normal_pixels(27, 2)
    noisy = (noisy + 0.1 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    plain[26] = anomalous_pixels(1, 4)[0]
    for view, images in (("a", plain), ("b", noisy)):
        for i, image in enumerate(images):
            place = root / ("train" if i < 24 else "new")
            place.mkdir(exist_ok=True)
            array = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            Image.fromarray(array).save(place / f"p{i:02}_{view}.png")
    return root


def make(**settings):
    method = PaDiM(backbone="filters")
    return Detector(
        **{"method": method, "preprocess": Preprocess(64), "false_alarm_rate": 0.2, "part_by": PATTERN} | settings
    )


@pytest.fixture(scope="module")
def detector(folder):
    return make().fit(folder / "train")


def test_parts_are_held_out_whole_and_kept_in_the_file(detector, folder, tmp_path):
    assert len(detector.parts_.calibration.scores) == 5
    assert len(detector.calibration_.scores) == 10
    assert detector.calibration_.n_groups == 5
    assert dict(detector.parts_.most) == {"a": 1, "b": 1}
    (low, _), (high, _) = detector.parts_.views["a"], detector.parts_.views["b"]
    assert high != low
    decisions = list(detector.predict(folder / "new"))
    found = detector.judge_parts(decisions, [one.name for one in decisions])
    assert [one.is_anomalous for one in found] == [False, False, True]
    assert found[2].worst.endswith("p26_a.png")
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    again = list(loaded.predict(folder / "new"))
    for one, two in zip(found, loaded.judge_parts(again, [one.name for one in again]), strict=True):
        assert (one.name, one.p_value, one.threshold) == (two.name, two.p_value, two.threshold)
    assert loaded.recalibrate(0.5).parts_.calibration.threshold < detector.parts_.calibration.threshold


def test_what_held_out_parts_promised_goes_with_the_old_model(detector, folder, tmp_path):
    views = detector.parts_.views
    detector.save(tmp_path / "m.blemish")
    detector = Detector.load(tmp_path / "m.blemish")
    detector.update(folder / "new")
    assert (detector.parts_, detector.peaks_, detector.calibration_) == (None, None, None)
    detector.save(tmp_path / "m.blemish")
    again = Detector.load(tmp_path / "m.blemish").recalibrate(0.2, images=folder / "train")
    assert again.parts_ is not None
    assert dict(again.parts_.views) == {name: tuple(stats) for name, stats in views.items()}  # of what was learned


def test_a_part_of_one_image_a_view_without_names_is_its_image(folder):
    """Nothing is scaled where the pattern names no views, so parts of one image are ranked as images are."""
    detector = make(part_by=r"(p\d+_[ab])").fit(folder / "train")
    np.testing.assert_allclose(detector.parts_.calibration.scores, detector.calibration_.scores)


def test_what_does_not_go_with_parts_is_refused(folder):
    for settings, message in (
        ({"group_by": r"(p\d)"}, "group_by: expected None with part_by"),
        ({"calibration": "cross"}, "part_by: expected None with calibration cross"),
        ({"part_by": "p"}, "part_by: expected a regular expression with a group in parentheses"),
        ({"part_by": "("}, "part_by: expected a regular expression, got"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make(**settings).fit(folder / "train")
    with pytest.raises(CalibrationError, match="needs at least 19 held-out groups of normal images, there are 5 of 24"):
        make(false_alarm_rate=0.05, held_out=0.2).fit(folder / "train")
    with pytest.raises(NotFittedError, match="judge_parts needs held-out parts"):
        make(part_by=None).judge_parts([], [])


def test_the_command_writes_a_line_for_each_part(folder, tmp_path):
    model, out = tmp_path / "m.blemish", tmp_path / "out"
    fit = ["fit", folder / "train", "--method", "padim", "--backbone", "filters", "--resize", 64, "--part-by", PATTERN]
    done = CliRunner().invoke(app, [str(a) for a in [*fit, "--false-alarm-rate", 0.2, "--out", model]])
    assert done.exit_code == 0, done.output
    predict = [str(a) for a in ("predict", model, folder / "new")]
    done = CliRunner().invoke(app, [*predict, "--out", str(out), "--heatmaps", "none", "--exit-code"])
    assert done.exit_code == 3, done.output
    rows = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [list(get_type_hints(PartLine))] * 3
    assert [(row["part"], row["anomalous"]) for row in rows] == [("p24", False), ("p25", False), ("p26", True)]
    assert [Path(name).name for name in rows[0]["images"]] == ["p24_a.png", "p24_b.png"]
    again = CliRunner().invoke(app, [*predict, "--out", str(out), "--heatmaps", "none", "--exit-code"])
    assert again.exit_code == 3  # the lines of the earlier run say the same
    assert [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()] == rows
    done = CliRunner().invoke(app, [*predict[:2], *map(str, sorted((folder / "new").glob("p2[45]*"))), "--exit-code"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [("part" in line, "image" in line) for line in lines] == [(False, True)] * 4 + [(True, False)] * 2


BAD = {"p26_a.png"}


def test_evaluate_has_figures_of_parts(detector, folder):
    """A part is anomalous where one of its images is, whatever the others are."""
    paths = sorted((folder / "new").iterdir())
    samples = [Sample(path, "flip" if path.name in BAD else "good", path.name in BAD) for path in paths]
    evaluation = evaluate(detector, Dataset(folder, "own", (), tuple(samples)))
    decisions = list(detector.predict(paths))
    expected = detector.judge_parts(decisions, [path.name for path in paths])
    parts = evaluation.parts
    assert [(part.name, part.is_anomalous) for part in parts.decisions] == [(p.name, p.is_anomalous) for p in expected]
    assert parts.anomalous == (False, False, True)
    alarms = sum(part.is_anomalous for part in expected[:2])
    assert (parts.realised.alarms, parts.realised.images, parts.missed.images) == (alarms, 2, 1)
    assert parts.missed.misses == (not expected[2].is_anomalous)
    assert parts.auroc == np.mean([part.score < expected[2].score for part in expected[:2]])
    assert parts.lines()[0].startswith("3 parts, 1 of them anomalous, AUROC 100.0 %.")
    assert f"{alarms} of 2 normal test parts are flagged" in " ".join(parts.lines())
    assert evaluation_json(evaluation)["parts"]["realised"]["units"] == "parts"


def test_every_field_of_a_part_and_of_a_batch_is_on_the_page():
    page = (Path(__file__).parents[1] / "docs" / "parts.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert found == [*get_type_hints(PartLine), *get_type_hints(BatchLine)]
