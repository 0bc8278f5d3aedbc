"""Evaluation, tuning, ablation and reliability of detectors on a small trained classifier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import stripes
from blemish.datasets.labelled import LabelledImages
from blemish.errors import ArgumentError, DatasetError
from blemish.evaluation.classifiers import Reader, evaluate_ood, score_images
from blemish.evaluation.tuning import Grid, Tuning, ablate_ood, reliability_ood, tune_ood
from blemish.images.source import from_arrays
from blemish.ood import DETECTORS, MSP, ODIN, Energy, Ensemble, Gradient, Mahalanobis, NearestNeighbours, Outputs
from blemish.ood.synthetic import synthetic_outliers
from reference import metrics as naive
from reference import ood as ood_reference

READING = Reader(batch_size=7)


def inliers(count=40, seed=11, name="stripes"):
    images, labels = stripes.stripes(count, seed)
    names = [f"{name} {i}" for i in range(count)]
    return LabelledImages(from_arrays(list(images), names=names), dict(zip(names, labels.tolist(), strict=True)), name)


def outliers(count=30, seed=12):
    return LabelledImages(from_arrays(list(stripes.blobs(count, seed))), None, "blobs")


class Counting:
    """A classifier that counts the forward passes that detectors share."""

    def __init__(self):
        self.inner = stripes.classifier()
        self.images = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def outputs(self, pixels):
        self.images += len(pixels)
        return self.inner.outputs(pixels)


def test_figures_are_the_metrics_of_plain_scores():
    classifier = stripes.classifier()
    result = evaluate_ood(
        classifier, inliers(), {"blobs": outliers()}, detectors={"msp": MSP(), "odin": ODIN()}, reading=READING
    )
    for row in result.comparisons:
        inside = classifier.outputs(stripes.pixels(stripes.stripes(40, 11)[0]))
        outside = classifier.outputs(stripes.pixels(stripes.blobs(30, 12)))
        detector = {"msp": MSP(), "odin": ODIN()}[row.detector]
        scores = [*np.round(detector.score(inside), 9), *np.round(detector.score(outside), 9)]
        anomalous = [False] * 40 + [True] * 30
        assert row.auroc.value == pytest.approx(naive.auroc(scores, anomalous), abs=1e-3)
        assert row.average_precision.value == pytest.approx(naive.average_precision(scores, anomalous), abs=2e-3)
        assert row.fpr_at_95_tpr.value == pytest.approx(naive.fpr_at_tpr(scores, anomalous, 0.95), abs=0.026)
        assert abs(row.auroc.mean - row.auroc.value) < 4 * row.auroc.deviation + 1e-9
        assert (row.n_inliers, row.n_outliers) == (40, 30)
    assert result.accuracy == 1.0


def test_all_detectors_share_one_forward_pass():
    classifier = Counting()
    detectors = {"msp": MSP(), "energy": Energy(), "maha": Mahalanobis()}
    evaluate_ood(
        classifier, inliers(), {"blobs": outliers()}, detectors=detectors, learn_from=inliers(50, 13), reading=READING
    )
    assert classifier.images == 40 + 30 + 50 + 1  # and one image of noise to see what the network offers


def test_every_detector_of_the_registry_runs_here():
    members = [stripes.classifier(seed) for seed in (1, 2)]
    detectors = {name: NearestNeighbours(k=5) if name == "knn" else kind() for name, kind in DETECTORS.items()}
    result = evaluate_ood(
        stripes.classifier(0, members), inliers(), {"blobs": outliers()}, detectors=detectors,
        learn_from=inliers(60, 13), reading=READING,
    )  # fmt: skip
    assert result.left_out == {}
    assert {row.detector for row in result.comparisons} == set(DETECTORS)
    assert min(row.auroc.value for row in result.comparisons if row.detector in ("mahalanobis", "knn")) > 0.9


def test_what_cannot_run_is_left_out_with_the_reason():
    detectors = {"msp": MSP(), "maha": Mahalanobis(), "ensemble": Ensemble()}
    result = evaluate_ood(stripes.classifier(), inliers(), {"b": outliers()}, detectors=detectors, reading=READING)
    assert set(result.left_out) == {"maha", "ensemble"}
    assert "learn from" in result.left_out["maha"]
    assert "at least 2 networks" in result.left_out["ensemble"]
    with pytest.raises(ArgumentError, match="at least one that can run"):
        evaluate_ood(stripes.classifier(), inliers(), {"b": outliers()}, detectors={"e": Ensemble()})


def test_a_detector_that_cannot_learn_from_the_images_does_not_stop_the_others():
    detectors = {"msp": MSP(), "knn": NearestNeighbours(k=50)}
    result = evaluate_ood(
        stripes.classifier(),
        inliers(),
        {"b": outliers()},
        detectors=detectors,
        learn_from=inliers(20, 13),
        reading=READING,
    )
    assert "at least k = 50 images, got 20" in result.left_out["knn"]
    assert result.left_out["knn"][-1] != "."  # it is put into other sentences
    assert [row.detector for row in result.comparisons] == ["msp"]


def test_an_image_in_two_sets_stops_the_run():
    shared = list(stripes.stripes(40, 11)[0][:2])
    others = list(stripes.stripes(20, 13)[0])
    for sets, learn in (({"x": shared}, None), ({"x": outliers()}, shared + others)):
        with pytest.raises(ArgumentError, match="2 equal images"):
            evaluate_ood(
                stripes.classifier(), inliers(), sets, detectors={"m": Mahalanobis(), "msp": MSP()}, learn_from=learn
            )


def test_images_that_were_tuned_on_stop_the_run_or_are_left_out():
    classifier = stripes.classifier()
    tuning = tune_ood(
        classifier, ODIN(), inliers(), outliers(), grid=Grid((1.0,), (0.0, 0.001)), limit=10, reading=READING
    )
    arguments = {"detectors": {"odin": tuning.apply(ODIN())}, "tuned_on": frozenset(tuning.digests), "reading": READING}
    with pytest.raises(ArgumentError, match="tuned on"):
        evaluate_ood(classifier, inliers(), {"blobs": outliers()}, **arguments)
    result = evaluate_ood(classifier, inliers(), {"blobs": outliers()}, exclude_tuned=True, **arguments)
    assert (result.comparisons[0].n_inliers, result.comparisons[0].n_outliers) == (30, 20)
    assert not set(result.inliers.digests) & set(tuning.digests)
    assert len(result.inliers.labels) == 30


def test_a_trivial_difference_is_reported():
    bright = [np.clip(image.astype(int) + 120, 0, 255).astype(np.uint8) for image in stripes.blobs(20, 3)]
    result = evaluate_ood(stripes.classifier(), inliers(), {"bright": bright}, detectors={"msp": MSP()})
    assert result.trivial["bright"]["brightness"] > 0.9
    assert any("brightness alone" in warning for warning in result.warnings)
    same = evaluate_ood(stripes.classifier(), inliers(), {"same": inliers(30, 44)}, detectors={"msp": MSP()})
    assert same.warnings == ()


def test_a_stopped_run_goes_on_behind_the_finished_sets(tmp_path):
    calls = []

    class Stopping(MSP):
        def score(self, outputs: Outputs):
            calls.append(len(outputs))
            if len(calls) == 9 and stop:
                raise KeyboardInterrupt
            return super().score(outputs)

    stop = True
    arguments = {"detectors": {"msp": Stopping()}, "reading": READING, "keep": tmp_path / "scores"}
    with pytest.raises(KeyboardInterrupt):
        evaluate_ood(stripes.classifier(), inliers(), {"blobs": outliers()}, **arguments)
    assert sum(calls) == 1 + 40 + 14  # the first on an image of noise
    calls.clear()
    stop = False
    result = evaluate_ood(stripes.classifier(), inliers(), {"blobs": outliers()}, **arguments)
    assert sum(calls) == 1 + 30
    calls.clear()
    evaluate_ood(stripes.classifier(1), inliers(), {"blobs": outliers()}, **arguments)
    assert sum(calls) == 1 + 70  # another network
    plain = evaluate_ood(
        stripes.classifier(), inliers(), {"blobs": outliers()}, detectors={"msp": MSP()}, reading=READING
    )
    assert result.comparisons == plain.comparisons
    assert result.inliers.digests == plain.inliers.digests


def test_kept_scores_are_not_taken_for_other_images_of_the_same_name(tmp_path):
    kept = {"detectors": {"msp": MSP()}, "reading": READING, "keep": tmp_path}
    first = evaluate_ood(stripes.classifier(), inliers(), {"a/b": list(stripes.blobs(30, 12))}, **kept)
    second = evaluate_ood(stripes.classifier(), inliers(), {"a/b": list(stripes.blobs(30, 99))}, **kept)
    assert first.outliers[0].names == second.outliers[0].names
    assert not set(first.outliers[0].digests) & set(second.outliers[0].digests)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_bad_file_is_skipped_and_labels_stay_right(tmp_path):
    from PIL import Image

    images, labels = stripes.stripes(9, 11)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / f"class {label}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "class 1" / "4.png").write_bytes(b"broken")
    from blemish.datasets.labelled import from_class_folders

    found = score_images(
        stripes.classifier(),
        from_class_folders(tmp_path),
        {"m": MSP().score},
        reading=Reader(4, on_error="skip"),
    )
    assert len(found) == 8
    assert not found.wrong.any()


# Tuning


def test_a_grid_is_the_scores_of_the_single_detectors():
    classifier = stripes.classifier()
    inside = classifier.outputs(stripes.pixels(stripes.stripes(12, 11)[0]))
    outside = classifier.outputs(stripes.pixels(stripes.blobs(12, 12)))
    grid = Grid((1.0, 5.0), (0.0, 0.01, 0.05))
    for kind in (ODIN(), Gradient(), Gradient(label="original")):
        tuning = tune_ood(classifier, kind, inliers(12), outliers(12), grid=grid, limit=None, reading=READING)
        for i, temperature in enumerate(grid.temperatures):
            for j, eps in enumerate(grid.eps):
                single = type(kind)(
                    temperature=temperature, eps=eps, **({"label": kind.label} if isinstance(kind, Gradient) else {})
                )
                scores = [*single.score(inside), *single.score(outside)]
                wanted = naive.auroc(scores, [False] * 12 + [True] * 12)
                assert tuning.values[i][j] == pytest.approx(wanted, abs=0.02)
        best = max(max(row) for row in tuning.values)
        i, j = grid.temperatures.index(tuning.temperature), grid.eps.index(tuning.chosen_eps)
        assert tuning.values[i][j] == best


def test_of_equal_cells_the_smallest_step_wins():
    tuning = tune_ood(
        stripes.classifier(), ODIN(), inliers(6), outliers(6), grid=Grid((2.0, 1.0), (1e-9, 0.0)), reading=READING
    )
    assert tuning.values[0][0] == tuning.values[1][1]
    assert (tuning.temperature, tuning.chosen_eps) == (1.0, 0.0)


def test_tuning_without_outliers_says_so_and_never_sees_any():
    classifier = stripes.classifier()
    grid = Grid((1.0, 5.0), (0.0, 0.02))
    synthetic = tune_ood(classifier, Gradient(), inliers(12), grid=grid, reading=READING)
    assert (synthetic.objective, synthetic.n_outliers) == ("synthetic", 12)
    assert "synthetic" in synthetic.tuned_on
    own = tune_ood(classifier, ODIN(temperature=5.0), inliers(12), objective="inliers", grid=grid, reading=READING)
    assert own.grid.temperatures == (5.0,)
    assert (own.chosen_eps, own.n_outliers) == (0.02, 0)  # a step towards the class makes it more confident
    assert own.values[0][1] > own.values[0][0]


def test_a_tuning_file_comes_back(tmp_path):
    tuning = tune_ood(stripes.classifier(), ODIN(), inliers(6), grid=Grid((1.0,), (0.0,)), reading=READING)
    tuning.save(tmp_path / "t.json")
    assert Tuning.load(tmp_path / "t.json") == tuning
    with pytest.raises(ArgumentError, match="ODIN, as tuned"):
        tuning.apply(Gradient())
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"bad\.json"):
        Tuning.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"objective": "outliers"}, "outliers"),
        ({"objective": "synthetic", "outliers": outliers(4)}, "outliers"),
        ({"objective": "best"}, "objective"),
    ],
)
def test_objectives_that_do_not_fit(arguments, name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        tune_ood(stripes.classifier(), ODIN(), inliers(4), **arguments)


@pytest.mark.parametrize(("temperatures", "eps"), [((0.0,), (0.0,)), ((), (0.0,)), ((1.0,), (-0.1,))])
def test_grids_that_make_no_sense(temperatures, eps):
    with pytest.raises(ArgumentError):
        Grid(temperatures, eps)


def test_synthetic_outliers_depend_on_their_own_image_only():
    pixels = stripes.pixels(stripes.stripes(9, 1)[0])
    made = synthetic_outliers(pixels, first=0, seed=5)
    again = synthetic_outliers(pixels[4:6], first=4, seed=5)
    assert (made[4:6] == again).all()
    assert not (made == pixels).flatten(1).all(1).any()
    assert sorted(made[1].flatten().tolist()) == sorted(pixels[1].flatten().tolist())  # shuffled patches
    assert (made != synthetic_outliers(pixels, first=0, seed=6)).any()


# Ablation and reliability


def test_ablation_rows_are_the_single_variants():
    classifier = stripes.classifier()
    detector = Gradient(temperature=3.0, eps=0.02)
    rows = {row.variant: row for row in ablate_ood(classifier, detector, inliers(), outliers(), reading=READING)}
    inside = classifier.outputs(stripes.pixels(stripes.stripes(40, 11)[0]))
    outside = classifier.outputs(stripes.pixels(stripes.blobs(30, 12)))
    variants = {
        "none": Gradient(temperature=1.0, eps=0.0),
        "T = 3": Gradient(temperature=3.0, eps=0.0),
        "eps = 0.02": Gradient(temperature=1.0, eps=0.02),
        "both": detector,
        "0": Gradient(temperature=3.0, eps=0.02, parameters=("0",)),
        "0 to 3": Gradient(temperature=3.0, eps=0.02, parameters=("0", "1", "3")),
        "0 to 9": detector,
    }
    for name, variant in variants.items():
        scores = [*variant.score(inside), *variant.score(outside)]
        wanted = naive.auroc(scores, [False] * 40 + [True] * 30)
        assert rows[name].auroc == pytest.approx(wanted, abs=3e-3)
        assert rows[name].interval[0] <= rows[name].auroc <= rows[name].interval[1]
    assert [row.part for row in rows.values()] == ["preprocessing"] * 4 + ["blocks"] * 5
    tuned_on = frozenset(score_images(classifier, inliers(), {}, reading=READING).digests[:30])
    rest = ablate_ood(classifier, detector, inliers(), outliers(), tuned_on=tuned_on, reading=READING)
    scores = [*detector.score(inside)[30:], *detector.score(outside)]
    assert rest[3].auroc == pytest.approx(naive.auroc(scores, [False] * 10 + [True] * 30), abs=5e-3)
    odin = ablate_ood(classifier, ODIN(), inliers(), outliers(), reading=READING)
    assert [row.variant for row in odin] == ["none", "T = 1000", "eps = 0.0014", "both"]


def test_a_part_alone_has_its_own_best_parameter():
    """The temperature of both together is not that of the temperature alone, nor is the step."""
    grid = Grid((1.0, 3.0, 9.0, 27.0), (0.0, 0.02, 0.05))
    values = [[0.5, 0.6, 0.7], [0.55, 0.9, 0.6], [0.58, 0.6, 0.5], [0.58, 0.6, 0.5]]
    common = {
        "classifier": "c",
        "objective": "outliers",
        "tuned_on": "t",
        "n_inliers": 1,
        "n_outliers": 1,
        "digests": [],
    }
    tuning = Tuning(detector="Gradient", grid=grid, values=values, temperature=3.0, chosen_eps=0.02, **common)
    wanted = ood_reference.tuned_alone({cell: values[i // 3][i % 3] for i, cell in enumerate(grid.cells())})
    assert tuning.alone() == wanted == (9.0, 0.05)
    classifier, detector = stripes.classifier(), tuning.apply(Gradient())
    rows = ablate_ood(classifier, detector, inliers(), outliers(), tuning=tuning, reading=READING)
    assert [row.variant for row in rows[:4]] == ["none", "T = 9", "eps = 0.05", "both"]
    inside = classifier.outputs(stripes.pixels(stripes.stripes(40, 11)[0]))
    outside = classifier.outputs(stripes.pixels(stripes.blobs(30, 12)))
    alone = Gradient(temperature=1.0, eps=0.05)
    scores = [*alone.score(inside), *alone.score(outside)]
    assert rows[2].auroc == pytest.approx(naive.auroc(scores, [False] * 40 + [True] * 30), abs=3e-3)
    other = replace(tuning, grid=Grid((3.0,), (0.02, 0.05)), values=[[0.9, 0.6]])
    assert other.alone() == (None, None)
    rows = ablate_ood(classifier, detector, inliers(), outliers(), tuning=other, reading=READING)
    assert [row.variant for row in rows[:2]] == ["none", "both"]


def test_reliability_needs_labels_and_ranks_wrong_predictions():
    images, labels = stripes.stripes(60, 21)
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 90, images.shape), 0, 255).astype(np.uint8)
    names = [str(i) for i in range(60)]
    labelled = LabelledImages(
        from_arrays(list(noisy), names=names), dict(zip(names, labels.tolist(), strict=True)), "noisy"
    )
    scored = score_images(stripes.classifier(), labelled, {"msp": MSP().score}, reading=READING)
    (figures,) = reliability_ood(scored, bin_size=20)
    assert 0.05 < scored.wrong.mean() < 0.9
    confident = np.argsort(scored.scores["msp"])[:48]
    assert figures.risk_at_80_coverage == pytest.approx(scored.wrong[confident].mean(), abs=1e-9)
    assert figures.aurc < scored.wrong.mean()
    assert figures.curve.accuracy[0] == pytest.approx(1 - scored.wrong.mean())
    with pytest.raises(ArgumentError, match="class labels"):
        reliability_ood(score_images(stripes.classifier(), outliers(), {"msp": MSP().score}, reading=READING))
