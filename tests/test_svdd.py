from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from blemish.errors import ArgumentError, NotFittedError
from blemish.methods import SVDD, OneClassSVM
from blemish.ops.kernels import capped_simplex
from contract.laws import TEST, TRAIN, Images, batch
from reference import knn, ocsvm, svdd
from small import BACKBONE, layers, small_pixels

KERNELS = [
    {"kernel": "rbf"},
    {"kernel": "rbf", "gamma": 3.0},
    {"kernel": "linear"},
    {"kernel": "poly", "gamma": 0.7, "degree": 2, "coef0": 0.5},
    {"kernel": "poly"},
]


def standardised(train, *others):
    vectors = [knn.pool(layers(pixels)[-1]) for pixels in (train, *others)]
    return [v / vectors[0].std(axis=0) for v in vectors]


def fit(train, **parameters):
    return SVDD(backbone=BACKBONE, normalise=False, standardise=True, **parameters).fit(Images(train))


@pytest.mark.parametrize("nu", [0.1, 0.33, 0.77])
@pytest.mark.parametrize("parameters", KERNELS, ids=str)
def test_equals_the_paper(parameters, nu):
    train, test = small_pixels(14, 1), small_pixels(5, 2)
    method = fit(train, nu=nu, **parameters)
    known = {name: value for name, value in parameters.items() if name != "kernel"} | {"gamma": float(method.gamma_)}
    name, (a, b) = parameters["kernel"], standardised(train, test)
    expected = svdd.scores(name, a, b, nu, **known)
    np.testing.assert_allclose(
        method.score(batch(test)).images.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
    _, squared_radius = svdd.ball(name, a, nu, **known)
    assert method.radius == pytest.approx(squared_radius**0.5, rel=1e-3)


def test_the_smallest_ball_of_three_points_is_known():
    """The circle through the corners of an obtuse triangle is not the smallest; that has the long side as diameter."""
    points = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0]])
    alpha = capped_simplex(points @ points.T, (points**2).sum(axis=1), 10.0)
    np.testing.assert_allclose(alpha, [0.5, 0.5, 0], atol=1e-6)
    with_slack = capped_simplex(points @ points.T, (points**2).sum(axis=1), 0.4)
    np.testing.assert_allclose(with_slack, [0.4, 0.4, 0.2], atol=1e-6)


@pytest.mark.parametrize("n", [3, 30])
def test_rows_and_matrix_are_the_same_problem(n):
    rows = np.random.default_rng(0).normal(size=(n, 5)) + 1
    for linear in ((rows**2).sum(axis=1), np.zeros(n)):
        expected = ocsvm.dual(rows @ rows.T, linear, 0.4)
        value = expected @ rows @ rows.T @ expected - linear @ expected
        for alpha in (
            capped_simplex(rows @ rows.T, linear, 1 / (0.4 * n)),
            capped_simplex(rows, linear, 1 / (0.4 * n), rows=True),
        ):
            assert alpha.sum() == pytest.approx(1, abs=1e-12)
            assert alpha.min() >= 0
            assert alpha.max() <= 1 / (0.4 * n) + 1e-9
            assert alpha @ rows @ rows.T @ alpha - linear @ alpha == pytest.approx(value, rel=1e-7, abs=1e-9)


def test_is_ocsvm_for_rbf():
    """Where k(x, x) is constant, ball and hyperplane are the same problem (Schölkopf et al. 2001)."""
    train, test = small_pixels(30, 1), small_pixels(20, 2)
    ball = fit(train, nu=0.33)
    plane = OneClassSVM(backbone=BACKBONE, normalise=False, standardise=True, nu=0.33).fit(Images(train))
    a, b = (method.score(batch(test)).images.double().numpy() for method in (ball, plane))
    np.testing.assert_allclose(rankdata(a), rankdata(b))
    np.testing.assert_allclose(a / a.std() - (a / a.std()).mean(), b / b.std() - (b / b.std()).mean(), atol=1e-4)


def test_is_not_ocsvm_for_a_linear_kernel():
    train, test = small_pixels(30, 1), small_pixels(20, 2)
    plane = OneClassSVM(backbone=BACKBONE, normalise=False, standardise=True, nu=0.33, kernel="linear").fit(
        Images(train)
    )
    a, b = (m.score(batch(test)).images.numpy() for m in (fit(train, nu=0.33, kernel="linear"), plane))
    assert np.corrcoef(rankdata(a), rankdata(b))[0, 1] < 0.9


@pytest.mark.parametrize("parameters", KERNELS, ids=str)
@pytest.mark.parametrize("nu", [0.05, 0.25, 0.5, 1.0])
def test_nu_bounds_the_share_outside(nu, parameters):
    train = small_pixels(40, 1)
    scores = fit(train, nu=nu, **parameters).score(batch(train)).images
    slack = 1e-5 * float(scores.abs().max())
    assert int((scores > slack).sum()) <= nu * 40
    assert int((scores > -slack).sum()) >= nu * 40


def test_centre_and_radius_in_the_space_of_the_embedding():
    train, test = small_pixels(14, 1), small_pixels(5, 2)
    a, b = standardised(train, test)
    method = fit(train, nu=0.33, kernel="linear")
    alpha, squared_radius = svdd.ball("linear", a, 0.33)
    np.testing.assert_allclose(method.centre, alpha @ a, rtol=1e-3, atol=1e-3)
    expected = ((b - method.centre.numpy()) ** 2).sum(axis=1) - method.radius**2
    np.testing.assert_allclose(method.score(batch(test)).images.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert method.radius**2 == pytest.approx(squared_radius, rel=1e-3)


def test_all_images_at_the_boundary_or_outside_have_their_mean_as_centre():
    train = small_pixels(14, 1)
    method = fit(train, nu=1.0, kernel="linear")
    np.testing.assert_allclose(method.centre, standardised(train)[0].mean(axis=0), rtol=1e-5)


def test_centre_of_a_curved_space_is_no_vector():
    method = fit(small_pixels(14, 1))
    assert method.radius > 0
    with pytest.raises(ArgumentError, match=r"centre: expected kernel='linear' or an approximation, got kernel='rbf'"):
        _ = method.centre
    assert fit(small_pixels(14, 1), approximation="fourier", components=8).centre.shape == (16,)
    with pytest.raises(NotFittedError, match="radius"):
        _ = SVDD(backbone=BACKBONE).radius


@pytest.mark.parametrize("approximation", ["fourier", "nystroem"])
def test_approximations_come_close_to_the_kernel(approximation):
    train, test = small_pixels(40, 1), small_pixels(20, 2)
    count = len(train) if approximation == "nystroem" else 2000
    exact, close = (fit(train, nu=0.3, approximation=a, components=c) for a, c in (("none", 1), (approximation, count)))
    a, b = (method.score(batch(test)).images for method in (exact, close))
    assert float((a - b).abs().max()) < (1e-4 if approximation == "nystroem" else 0.15) * float(a.max() - a.min())


def test_batches_do_not_change_a_bit_and_neither_does_a_model_file():
    for parameters in ({}, {"kernel": "linear"}, {"approximation": "nystroem", "components": 5}):
        method = SVDD(backbone="filters", seed=3, **parameters).fit(Images(TRAIN))
        together = method.score(batch(TEST)).images
        alone = torch.cat([method.score(batch(TEST[i : i + 1])).images for i in range(len(TEST))])
        assert torch.equal(together, alone)
        fresh = SVDD(backbone="filters", seed=3, **parameters)
        fresh.restore(method.state())
        assert torch.equal(fresh.score(batch(TEST)).images, together)


def test_the_plan_grows_with_the_images_as_stated():
    from blemish.features.extract import build_extractor

    maps = build_extractor(BACKBONE)(small_pixels(2, 1))
    exact = SVDD(backbone=BACKBONE)
    assert exact.plan(maps, 20000).peak_bytes > 3.7 * exact.plan(maps, 10000).peak_bytes
    linear = SVDD(backbone=BACKBONE, kernel="linear")  # fewer numbers than images: no kernel matrix
    assert linear.plan(maps, 20000).peak_bytes < 2.1 * linear.plan(maps, 10000).peak_bytes
