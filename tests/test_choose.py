"""Choosing a method without defects: the criterion, the pick, and who may see which image."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from blemish import KNN, Batches, Detector, GaussianAD, PaDiM, PatchCore, Preprocess, Students, choose
from blemish.augment.changes import CHANGES
from blemish.choosing import choose as home
from blemish.choosing.candidates import Candidate, candidates
from blemish.choosing.choose import FAMILIES, FEWEST, HELD_OUT, Choice, Ranked, compare
from blemish.choosing.criterion import Trial, interval, mean_separation
from blemish.cli import app
from blemish.datasets.synthetic import draw
from blemish.errors import ArgumentError, NotEnoughMemoryError
from blemish.images.digest import pixel_digest
from blemish.images.source import from_arrays
from reference.choose import separation
from small import BACKBONE

SMALL = Preprocess(48)
PICTURES = [draw("weave", seed=seed, size=64).pixels for seed in range(40)]


def rows(*methods, preprocess=SMALL):
    return [Candidate(method, preprocess) for method in methods]


TWO = rows(PaDiM(backbone=BACKBONE, dimensions=8), KNN(backbone=BACKBONE))


def test_the_criterion_is_that_of_pairs():
    draws = np.random.default_rng(0)
    trial = Trial(tuple("abcde"), (0, 1, 2, 3, 4, 0, 2), ("x", "y", "x", "y", "x", "y", "y"))
    untouched, changed = draws.integers(0, 4, 5).astype(float), draws.integers(0, 5, 7).astype(float)
    weights = trial.weights(seed=1, repetitions=6)
    found = trial.separation(untouched, changed, weights)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 5).all()
    for counts, row in zip(weights.astype(int).tolist(), found, strict=True):
        naive = separation(untouched, changed, trial.of, trial.families, counts=counts)
        expected = [np.nan if naive[name] is None else naive[name] for name in trial.family_names]
        np.testing.assert_allclose(row, expected)
    np.testing.assert_allclose(mean_separation(found)[0], found[0].mean())


def test_a_family_of_which_nothing_was_drawn_does_not_count():
    trial = Trial(("a", "b", "c"), (0, 1), ("x", "y"))
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    found = trial.separation(np.array([0.0, 1.0, 2.0]), np.array([1.5, 0.5]), weights)
    np.testing.assert_array_equal(found, [[0.5, 0.5], [0.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(mean_separation(found), [0.5, 0.0, np.nan])


def test_the_interval_leaves_out_the_estimate():
    assert interval(np.array([9.0, 1.0, 1.0, 1.0])) == (1.0, 1.0)


@pytest.fixture(autouse=True)
def any_criterion_counts(monkeypatch):
    """A tiny network tells little."""
    monkeypatch.setattr(home, "LEAST", 0.0)


def test_an_obviously_better_candidate_is_picked_and_all_is_said():
    choice = choose(PICTURES, TWO, changes=8)
    first, second = choice.ranking
    assert [first.candidate, second.candidate] == TWO
    assert choice.picked is first.candidate
    assert first.criterion > 0.6 > second.criterion
    assert not second.alike
    assert second.behind[0] > 0
    assert first.behind == (0.0, 0.0)
    assert first.interval[0] < first.criterion < first.interval[1]
    assert set(first.families) == set(FAMILIES) < set(CHANGES)
    assert first.criterion == pytest.approx(np.mean(list(first.families.values())))
    assert first.pixel_auroc > 0.5
    assert second.pixel_auroc is None
    assert (choice.learned, len(choice.held_out), choice.changed) == (30, 10, 80)
    assert "padim" in choice.reason
    assert "knn" in choice.reason


def test_what_cannot_be_told_apart_is_decided_by_size():
    alike = rows(PaDiM(backbone=BACKBONE, dimensions=8), PaDiM(backbone=BACKBONE, dimensions=8, storage="float16"))
    for order in (alike, alike[::-1]):
        choice = choose(PICTURES, order)
        assert all(row.alike for row in choice.ranking)
        assert choice.picked is alike[1]


def test_a_map_is_worth_more_than_a_small_model():
    choice = choose(PICTURES, rows(KNN(backbone=BACKBONE), PatchCore(backbone=BACKBONE)))
    assert all(row.alike for row in choice.ranking)
    assert max(choice.ranking, key=lambda row: row.model_bytes).candidate is choice.picked
    assert choice.picked.method.name == "patchcore"


@pytest.mark.parametrize(("least", "picked"), [(0.0, "patchcore"), (1.1, "gaussian")])
def test_where_no_candidate_tells_small_changes_whole_images_are_compared(monkeypatch, least, picked):
    monkeypatch.setattr(home, "LEAST", least)
    chosen = rows(PatchCore(backbone=BACKBONE), GaussianAD(backbone=BACKBONE), KNN(backbone=BACKBONE))
    choice = choose(PICTURES, chosen)
    assert choice.picked.method.name == picked
    assert ("so small changes say little here" in choice.reason) == (least > 1)
    assert choose(PICTURES, chosen[:1]).picked is chosen[0]


def test_the_seed_says_everything():
    def facts(seed):
        choice = choose(PICTURES, TWO, seed=seed)
        return choice.held_out, [(row.criterion, row.interval, row.families) for row in choice.ranking]

    assert facts(0) == facts(0)
    assert facts(0) != facts(1)


def test_the_size_of_a_batch_changes_nothing():
    def facts(size):
        batches = Batches(from_arrays(PICTURES), SMALL, size)
        choice, _ = compare(batches, TWO)
        return choice.held_out, [pytest.approx(row.criterion) for row in choice.ranking]

    assert facts(1) == facts(8)


@pytest.mark.parametrize("seed", [0, 3])
def test_no_image_that_chose_sets_the_threshold(seed):
    source = from_arrays(PICTURES)
    detector = Detector(method=KNN(backbone=BACKBONE), preprocess=SMALL, seed=seed, false_alarm_rate=0.1)
    choice = detector.choose(source, TWO)
    chose = choice.held_out
    assert choice.learned + len(chose) == 31
    detector.fit(source)
    kept = {source.names[i] for i, picture in enumerate(PICTURES) if pixel_digest(picture) in detector.calibrated_on_}
    assert len(kept) == 9
    assert not kept & set(chose)


def test_groups_are_held_out_whole():
    names = [f"part{i // 4}-{i % 4}.png" for i in range(40)]
    choice = choose(from_arrays(PICTURES, names=names), TWO, group_by=r"part(\d+)")
    parts = [name.split("-")[0] for name in choice.held_out]
    assert all(parts.count(part) == 4 for part in parts)
    assert len(parts) == 4 * round(10 * HELD_OUT)


def test_candidates_that_differ_in_the_score_alone_are_fitted_once(monkeypatch):
    fits = []
    fit = PatchCore._learn
    monkeypatch.setattr(PatchCore, "_learn", lambda self, *a, **k: fits.append(self) or fit(self, *a, **k))
    two = rows(PatchCore(backbone=BACKBONE), PatchCore(backbone=BACKBONE, top_share=0.1))
    choice = choose(PICTURES, two)
    assert len(fits) == 1
    assert sorted("top_share=0.1" in row.candidate.name for row in choice.ranking) == [False, True]
    assert choice.ranking[0].criterion != choice.ranking[1].criterion


def test_two_sizes_are_compared_on_the_same_images():
    both = [*TWO, *rows(KNN(backbone=BACKBONE), preprocess=Preprocess(32))]
    choice = choose(PICTURES, both)
    assert len(choice.ranking) == 3
    assert {row.candidate.preprocess.resize for row in choice.ranking} == {48, 32}


def test_a_candidate_that_cannot_be_fitted_is_left_out():
    choice = choose(PICTURES, [*TWO, *rows(KNN(backbone=BACKBONE, k=1000))])
    assert len(choice.ranking) == 2
    ((name, reason),) = choice.left_out
    assert "k=1000" in name
    assert "at least k = 1000" in reason
    with pytest.raises(NotEnoughMemoryError, match="no candidate could be fitted: knn"):
        choose(PICTURES, rows(KNN(backbone=BACKBONE, k=1000)))


@pytest.mark.parametrize(
    ("images", "chosen", "message"),
    [
        (PICTURES[: FEWEST - 1], TWO, f"images: expected at least {FEWEST} normal images to choose by, got 19"),
        (PICTURES, [], "candidates: expected at least one, got none"),
        (PICTURES, [Candidate(Students(), SMALL)], "candidates: expected methods that leave the network as it is"),
        (PICTURES, rows(KNN(backbone=BACKBONE, k=0)), "k: expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(images, chosen, message):
    with pytest.raises(ArgumentError, match=message):
        choose(images, chosen)


def test_every_row_of_the_table_can_be_fitted_by_name():
    found = candidates()
    assert len({row.name for row in found}) == len(found)
    for row in found:
        assert row.options.startswith(f"--method {row.method.name}")
    options = Candidate(PatchCore(taps=("stride8", "stride16"), top_share=0.05), Preprocess((64, 128))).options
    assert options == "--method patchcore --taps stride8,stride16 --set top_share=0.05 --resize 64x128"
    assert Candidate(GaussianAD()).name == "gaussian"
    assert Candidate(KNN(normalise=True)).options == "--method knn --set normalise=true"


def test_the_command_line_says_what_to_fit(tmp_path):
    for number, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    run = CliRunner().invoke(
        app, ["choose", str(tmp_path), "--resize", "32", "--seed", "2", "--false-alarm-rate", "0.2", "--json"]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["command"].startswith(f"blemish fit {tmp_path} --method ")
    assert found["command"].endswith("--resize 32 --calibration split --false-alarm-rate 0.2 --seed 2")
    assert found["picked"] in [row["candidate"] for row in found["ranking"]]
    assert len(found["held_out"]) == 8
    model = tmp_path / "m.blemish"
    again = CliRunner().invoke(app, [*found["command"].split()[1:], "--out", str(model)])
    assert again.exit_code == 0, again.output
    plain = CliRunner().invoke(
        app, ["choose", str(tmp_path), "--resize", "32", "--seed", "2", "--false-alarm-rate", "0.2"]
    )
    assert found["command"] in plain.stdout.replace("\n", "")


def test_all_that_choose_and_fit_share_is_in_the_line_that_says_what_to_fit(tmp_path, monkeypatch):
    weights, names = tmp_path / "own + new, 1.pth", tmp_path / "not normal.txt"
    weights.touch()
    names.write_text("a.png\n")
    given = {
        "backbone": "resnet18", "weights": weights, "resize": "48x64", "white_level": "1023", "certain": "0.9",
        "false_alarm_rate": "0.01", "held_out": "0.25", "group_by": r"(\d+) _", "roi": tmp_path / "where to look.png",
        "workers": "3", "on_error": "skip", "exclude": names, "memory": "0.5", "seed": "7", "device": "cpu",
    }  # fmt: skip
    chosen, fit = ({p.name: p for p in typer.main.get_command(app).commands[name].params} for name in ("choose", "fit"))
    assert given.keys() == chosen.keys() & fit.keys() - {"data", "as_json"}
    for number in range(2):
        Image.fromarray(PICTURES[number]).save(tmp_path / f"{number}.png")

    def picked_second(_detector, _images, rows, **_more):
        row = Ranked(rows[1], 0.9, (0.8, 1.0), (0.0, 0.0), True, {}, None, 1.0, 1.0, 1)
        return Choice((row,), rows[1], "why", 1, ("1.png",), 1, (), 1.0, (("2.png", "no image"),))

    monkeypatch.setattr(Detector, "choose", picked_second)
    options = [text for name, value in given.items() for text in (chosen[name].opts[0], str(value))]
    run = CliRunner().invoke(app, ["choose", str(tmp_path), *options])
    assert run.exit_code == 0, run.output
    assert "skipped: 2.png: no image" in run.stderr
    _, name, *words = shlex.split(run.stdout.splitlines()[-1])
    called = typer.main.get_command(app).commands[name].make_context(name, words).params
    assert {name: str(called[name]) for name in given} == {name: str(value) for name, value in given.items()}
    plain = CliRunner().invoke(app, ["choose", str(tmp_path)]).stdout.splitlines()[-1]
    assert plain == f"blemish fit {tmp_path} --method padim --taps stage8,stage16 --calibration split"
