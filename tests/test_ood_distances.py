from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import toy
from blemish.errors import ArgumentError
from blemish.ood import Head, Mahalanobis, NearestNeighbours, Outputs, RelativeMahalanobis, ViM, _base
from reference import ood as reference
from toy import LABELS, TEST, TRAIN


@pytest.mark.parametrize(
    ("detector", "expected"),
    [(Mahalanobis, reference.mahalanobis), (RelativeMahalanobis, reference.relative_mahalanobis)],
)
def test_mahalanobis_equals_the_paper(detector, expected):
    scores = detector().fit(TRAIN, LABELS).score(TEST)
    paper = [expected(TRAIN.features, LABELS, x) for x in TEST.features]
    np.testing.assert_allclose(scores, paper, rtol=1e-9)


def test_mahalanobis_finds_the_nearest_of_overlapping_classes():
    """Means at different distances from the centre, and images between them."""
    random = np.random.default_rng(5)
    labels = np.arange(60) % 3
    features = random.normal(0, 1, (60, 4)) + np.array([0.0, 1, 4])[labels, None]
    outputs = Outputs(random.normal(0, 1, (60, 3)), features)
    paper = [reference.mahalanobis(features, labels, x) for x in features]
    np.testing.assert_allclose(Mahalanobis().fit(outputs, labels).score(outputs), paper, rtol=1e-9)


def test_labels_or_predictions():
    labels = (LABELS + 1) % 3
    labels[:10] = 0  # not the predictions, nor a permutation of them
    known, guessed = Mahalanobis().fit(TRAIN, labels), Mahalanobis().fit(TRAIN)
    assert (known.learned_["labelled"], guessed.learned_["labelled"]) == (True, False)
    paper = [reference.mahalanobis(TRAIN.features, labels, x) for x in TEST.features]
    np.testing.assert_allclose(known.score(TEST), paper, rtol=1e-9)
    predicted = Mahalanobis().fit(TRAIN, TRAIN.logits.argmax(axis=1)).score(TEST)
    np.testing.assert_array_equal(guessed.score(TEST), predicted)


@pytest.mark.parametrize("detector", [Mahalanobis, RelativeMahalanobis])
def test_classes_without_images_are_left_out(detector):
    index = LABELS != 1
    fitted = detector().fit(toy.rows(TRAIN, index), LABELS[index])
    assert fitted.learned_["classes"].tolist() == [0, 2]
    expected = {Mahalanobis: reference.mahalanobis, RelativeMahalanobis: reference.relative_mahalanobis}[detector]
    paper = [expected(TRAIN.features[index], LABELS[index], x) for x in TEST.features]
    np.testing.assert_allclose(fitted.score(TEST), paper, rtol=1e-9)


def test_directions_that_no_image_used_count_most():
    """A channel that was always 0: there the covariance has the floor times its largest eigenvalue."""
    features = TRAIN.features.copy()
    features[:, 20] = 0
    fitted = Mahalanobis(floor=1e-4).fit(replace(TRAIN, features=features), LABELS)
    probe = toy.rows(replace(TRAIN, features=features), [0])
    moved = probe.features.copy()
    moved[0, 20] = 0.5
    step = fitted.score(replace(probe, features=moved)) - fitted.score(probe)
    within = np.concatenate([features[c == LABELS] - features[c == LABELS].mean(axis=0) for c in range(3)])
    largest = np.linalg.eigvalsh(within.T @ within / len(within))[-1]
    np.testing.assert_allclose(step, 0.25 / (1e-4 * largest), rtol=1e-6)


@pytest.mark.parametrize("detector", [Mahalanobis, RelativeMahalanobis])
def test_fewer_images_than_channels(detector):
    fitted = detector().fit(toy.rows(TRAIN, slice(0, 12)), LABELS[:12])
    scores = fitted.score(TEST)
    assert np.isfinite(scores).all()
    assert scores[toy.OUTLIER].min() > np.median(scores[~toy.OUTLIER])


@pytest.mark.parametrize("value", [0.0, 1.1, 1e6])
def test_features_that_never_vary_are_refused(value):
    constant = replace(TRAIN, features=np.full_like(TRAIN.features, value))
    for detector in (Mahalanobis(), RelativeMahalanobis()):
        with pytest.raises(
            ArgumentError, match=r"outputs.features: expected images of a class with different features"
        ):
            detector.fit(constant, LABELS)


@pytest.mark.parametrize("k", [1, 2, 50, 180])
def test_knn_equals_the_paper(k):
    scores = NearestNeighbours(k=k).fit(TRAIN).score(TEST)
    paper = [reference.nearest_neighbour(TRAIN.features, x, k) for x in TEST.features]
    np.testing.assert_allclose(scores, paper, rtol=1e-6)


def test_knn_ignores_length_and_takes_features_of_0():
    fitted = NearestNeighbours(k=5).fit(TRAIN)
    longer = replace(TEST, features=TEST.features * 1000)
    np.testing.assert_allclose(fitted.score(longer), fitted.score(TEST), rtol=1e-6)
    np.testing.assert_allclose(fitted.score(replace(TEST, features=TEST.features * 0)), 1, rtol=1e-6)


def test_knn_finds_a_learned_image_at_0():
    np.testing.assert_array_equal(NearestNeighbours(k=1).fit(TRAIN).score(TRAIN), 0)


def test_knn_needs_k_images():
    with pytest.raises(ArgumentError, match=r"outputs: expected at least k = 50 images, got 49. .* write k=49"):
        NearestNeighbours().fit(toy.rows(TRAIN, slice(0, 49)))
    with pytest.raises(ArgumentError, match=r"k: expected a whole number of at least 1, got 0"):
        NearestNeighbours(k=0).fit(TRAIN)


@pytest.mark.parametrize("dimensions", [1, 4, None])
def test_vim_equals_the_paper(dimensions):
    head = TRAIN.head
    scores = ViM(dimensions=dimensions).fit(TRAIN).score(TEST)
    paper = reference.ViM(TRAIN.features, head.weight, head.bias, 12 if dimensions is None else dimensions)
    np.testing.assert_allclose(scores, [paper.score(x) for x in TEST.features], rtol=1e-9)


@pytest.mark.parametrize(("channels", "dimensions"), [(64, 32), (512, 256), (768, 512), (2048, 1000)])
def test_vim_takes_the_papers_dimensions(channels, dimensions):
    from blemish.ood.distances import _principal

    assert _principal(channels) == dimensions


def test_vim_refuses_what_leaves_nothing_over():
    few = toy.rows(TRAIN, slice(0, 6))
    flat = np.random.default_rng(0).normal(0, 1, (180, 6)) @ few.features
    rounded = replace(TRAIN, features=flat.astype(np.float32))  # off the 6 dimensions by rounding errors alone
    for outputs in (few, rounded):
        with pytest.raises(ArgumentError, match=r"dimensions: expected fewer than those .* span, got 12"):
            ViM().fit(outputs)
    with pytest.raises(ArgumentError, match=r"dimensions: expected 1 to 23"):
        ViM(dimensions=24).fit(TRAIN)
    for dimensions in (0, 2.5):
        with pytest.raises(ArgumentError, match=r"dimensions: expected a whole number of at least 1 or None, got"):
            ViM(dimensions=dimensions).fit(TRAIN)
    low = replace(TRAIN, logits=TRAIN.logits - 100, head=replace(TRAIN.head, bias=TRAIN.head.bias - 100))
    with pytest.raises(ArgumentError, match=r"outputs.logits: expected largest logits above 0 on average"):
        ViM().fit(low)


@pytest.mark.parametrize("make", [Mahalanobis, RelativeMahalanobis, NearestNeighbours, ViM])
def test_blocks_do_not_matter(make, monkeypatch):
    whole = make().fit(TRAIN).score(TEST)
    monkeypatch.setattr(_base, "_NUMBERS", 7 * 24)
    np.testing.assert_allclose(make().fit(TRAIN).score(TEST), whole, rtol=1e-9)


@pytest.mark.parametrize("make", [Mahalanobis, RelativeMahalanobis])
def test_bad_labels_and_floors(make):
    for labels in (LABELS[1:], LABELS.astype(np.float64), LABELS[:, None]):
        with pytest.raises(ArgumentError, match=r"labels: expected whole numbers of shape \(180,\)"):
            make().fit(TRAIN, labels)
    for labels in (LABELS - 1, LABELS + 1):
        with pytest.raises(ArgumentError, match=r"labels: expected classes from 0 to 2"):
            make().fit(TRAIN, labels)
    with pytest.raises(ArgumentError, match=r"floor: expected a number in \(0, 1\), got 0"):
        make(floor=0).fit(TRAIN)


@pytest.mark.parametrize("make", [Mahalanobis, RelativeMahalanobis, NearestNeighbours, ViM])
def test_other_channels_than_in_the_fit(make):
    fitted = make().fit(TRAIN)
    head = Head(TEST.head.weight[:, :20], TEST.head.bias)
    with pytest.raises(ArgumentError, match=r"outputs.features: expected 24 channels, as in the fit"):
        fitted.score(Outputs(TEST.logits, TEST.features[:, :20], head))
