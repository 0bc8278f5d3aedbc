from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM as LibSVM

from blemish.errors import ArgumentError
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.methods import OneClassSVM
from blemish.ops.kernels import Kernel, capped_simplex, default_gamma
from contract.laws import TEST, TRAIN, Images, batch
from reference import knn, ocsvm
from small import BACKBONE, layers, small_pixels

KERNELS = [
    {"kernel": "rbf"},
    {"kernel": "rbf", "gamma": 3.0},
    {"kernel": "linear"},
    {"kernel": "poly", "gamma": 0.7, "degree": 2, "coef0": 0.5},
    {"kernel": "poly"},
]


def pooled(pixels):
    return knn.pool(layers(pixels)[-1])


def fit(train, **parameters):
    return OneClassSVM(backbone=BACKBONE, normalise=False, standardise=True, **parameters).fit(Images(train))


@pytest.mark.parametrize("nu", [0.03, 0.33, 0.77])
@pytest.mark.parametrize("parameters", KERNELS, ids=str)
def test_equals_scikit_learn(parameters, nu):
    train, test = small_pixels(40, 1), small_pixels(9, 2)
    method = fit(train, nu=nu, **parameters)
    vectors = pooled(train)
    a, b = vectors / vectors.std(axis=0), pooled(test) / vectors.std(axis=0)
    known = {"kernel": "rbf", "degree": 3, "coef0": 1.0} | parameters | {"gamma": float(method.gamma_)}
    svm = LibSVM(nu=nu, tol=1e-9, **known).fit(a)
    alpha = svm.dual_coef_[0]
    of_kernel = {name: value for name, value in known.items() if name != "kernel"}
    length = np.sqrt(
        alpha @ ocsvm.matrix(known["kernel"], svm.support_vectors_, svm.support_vectors_, **of_kernel) @ alpha
    )
    expected = -svm.decision_function(b) / length
    np.testing.assert_allclose(method.score(batch(test)).images.numpy(), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("parameters", KERNELS, ids=str)
def test_equals_the_paper(parameters):
    train, test = small_pixels(13, 1), small_pixels(5, 2)
    method = fit(train, nu=0.33, **parameters)
    vectors = pooled(train)
    known = {name: value for name, value in parameters.items() if name != "kernel"} | {"gamma": float(method.gamma_)}
    expected = ocsvm.scores(
        parameters["kernel"], vectors / vectors.std(axis=0), pooled(test) / vectors.std(axis=0), 0.33, **known
    )
    np.testing.assert_allclose(method.score(batch(test)).images.numpy(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("nu", [0.05, 0.1, 0.25, 0.5, 1.0])
def test_nu_bounds_the_share_outside(nu):
    train = small_pixels(40, 1)
    scores = fit(train, nu=nu).score(batch(train)).images
    assert int((scores > 1e-6).sum()) <= nu * 40
    assert int((scores > -1e-6).sum()) >= nu * 40


@pytest.mark.parametrize("approximation", ["fourier", "nystroem"])
def test_approximations_come_close_to_the_kernel(approximation):
    train, test = small_pixels(40, 1), small_pixels(20, 2)
    count = len(train) if approximation == "nystroem" else 2000
    exact, close = (fit(train, nu=0.3, approximation=a, components=c) for a, c in (("none", 1), (approximation, count)))
    a, b = (method.score(batch(test)).images for method in (exact, close))
    # Nystroem with all images as landmarks is exact on their span; random frequencies err by 1 / sqrt(2000).
    assert float((a - b).abs().max()) < (1e-4 if approximation == "nystroem" else 0.1) * float(a.max() - a.min())


def test_nystroem_with_few_landmarks_is_not_exact_but_separates():
    method = OneClassSVM(backbone="filters", approximation="nystroem", components=6, seed=3).fit(Images(TRAIN))
    scores = method.score(batch(TEST)).images
    assert float(scores[3:].min()) > float(scores[:3].max())
    assert method.state()["landmarks"].shape == (6, 27)


def test_the_median_heuristic_is_recorded():
    train = small_pixels(15, 1)
    vectors = pooled(train)
    method = OneClassSVM(backbone=BACKBONE, normalise=False).fit(Images(train))
    distances = [np.linalg.norm(vectors[i] - vectors[j]) for i in range(15) for j in range(i)]
    assert float(method.gamma_) == pytest.approx(1 / (2 * np.median(distances) ** 2), rel=1e-4)
    lengths = [float(v @ v) for v in vectors]
    polynomial = OneClassSVM(backbone=BACKBONE, normalise=False, kernel="poly").fit(Images(train))
    assert float(polynomial.gamma_) == pytest.approx(1 / np.median(lengths), rel=1e-4)
    assert float(OneClassSVM(backbone=BACKBONE, gamma=0.25).fit(Images(train)).gamma_) == 0.25


def test_many_vectors_are_sampled_for_the_median():
    vectors = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    some, again, other = (default_gamma("rbf", vectors, seed=seed) for seed in (0, 0, 1))
    assert some == again != other
    assert some == pytest.approx(1 / (2 * float(torch.pdist(vectors[:1500]).median()) ** 2), rel=0.1)


def test_pca_keeps_the_share_of_the_variance():
    train, test = small_pixels(30, 1), small_pixels(6, 2)
    vectors, others = pooled(train), pooled(test)
    _, values, directions = np.linalg.svd(vectors - vectors.mean(axis=0))
    shares = np.cumsum(values**2) / (values**2).sum()
    count = int(np.argmax(shares >= 0.8)) + 1
    assert 0 < count < len(shares)
    method = OneClassSVM(backbone=BACKBONE, normalise=False, pca=0.8, nu=0.33).fit(Images(train))
    assert method.state()["reduction"].shape == (vectors.shape[1], count)
    turned = directions[:count].T
    expected = ocsvm.scores("rbf", vectors @ turned, others @ turned, 0.33, gamma=float(method.gamma_))
    np.testing.assert_allclose(method.score(batch(test)).images.numpy(), expected, rtol=2e-3, atol=2e-4)


def test_a_constant_channel_is_left_out_by_standardise():
    vectors = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    vectors[:, 1] = 0.25
    from blemish.ops.kernels import learn_reduction

    reduction = learn_reduction(vectors, standardise=True, share=None)
    assert reduction[1] == 0
    np.testing.assert_allclose(reduction[[0, 2]], 1 / vectors.numpy()[:, [0, 2]].std(axis=0), rtol=1e-5)


def test_batches_do_not_change_a_bit_and_neither_does_a_model_file(tmp_path):
    method = OneClassSVM(backbone="filters", seed=3).fit(Images(TRAIN))
    together = method.score(batch(TEST)).images
    assert torch.equal(together, torch.cat([method.score(batch(TEST[i : i + 1])).images for i in range(len(TEST))]))
    fresh = OneClassSVM(backbone="filters", seed=3)
    fresh.restore(method.state())
    assert torch.equal(fresh.score(batch(TEST)).images, together)


def test_support_vectors_alone_are_kept():
    train = small_pixels(40, 1)
    method = fit(train, nu=0.1)
    assert 4 <= len(method.vectors_) < 40
    assert len(fit(train, nu=0.1, kernel="linear").vectors_) == 1  # they add up to the normal vector


def test_a_hyperplane_needs_the_origin_outside():
    vectors = np.random.default_rng(0).normal(size=(50, 2))
    alpha = capped_simplex(vectors @ vectors.T, np.zeros(50), 1 / 25)
    assert alpha @ vectors @ vectors.T @ alpha == pytest.approx(0, abs=1e-9)
    pixels = torch.cat([small_pixels(20, 1), 1 - small_pixels(20, 1)])
    method = OneClassSVM(backbone=centred(pixels), normalise=False, nu=1.0, kernel="linear")
    with pytest.raises(ArgumentError, match=r"kernel: expected a space where a hyperplane .* Use kernel='rbf'"):
        method.fit(Images(pixels))


def centred(pixels):
    """A backbone whose pooled features of these pixels have the origin as their mean."""
    from blemish.features.backbones import custom_backbone

    mean = tuple(pixels.mean(dim=(0, 2, 3)).tolist())
    return custom_backbone(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1, bias=False)), taps=("0",), mean=mean)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nu": 0.0}, r"nu: expected a number in \(0, 1\], got 0"),
        ({"kernel": "sigmoid"}, r"kernel: expected rbf, linear or poly, got sigmoid"),
        ({"gamma": -1.0}, r"gamma: expected a number above 0 or None"),
        ({"degree": 0}, r"degree: expected a whole number of at least 1"),
        ({"coef0": -1.0}, r"coef0: expected a number of at least 0"),
        ({"pca": 1.5}, r"pca: expected a number in"),
        ({"components": 0}, r"components: expected a whole number of at least 1"),
        ({"approximation": "random"}, r"approximation: expected none, fourier or nystroem"),
        (
            {"approximation": "fourier", "kernel": "poly"},
            r"kernel: expected rbf with approximation='fourier', got poly",
        ),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        OneClassSVM(backbone=BACKBONE, **parameters).fit(Images(small_pixels(6, 1)))


def test_equal_images_have_no_scale():
    same = small_pixels(1, 1).expand(6, -1, -1, -1)
    with pytest.raises(ArgumentError, match=r"gamma: expected a number, as the images do not differ"):
        OneClassSVM(backbone=BACKBONE, normalise=False).fit(Images(same))


def test_reads_the_deepest_layer():
    assert OneClassSVM()._taps(find_backbone("resnet18")) == ("layer4",)
    assert OneClassSVM(taps=("layer2", "layer3"))._taps(find_backbone("resnet18")) == ("layer2", "layer3")


def test_embeddings_are_brought_to_length_1():
    train, test = small_pixels(13, 1), small_pixels(5, 2)
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (pooled(train), pooled(test)))
    method = OneClassSVM(backbone=BACKBONE, nu=0.33).fit(Images(train))
    expected = ocsvm.scores("rbf", a, b, 0.33, gamma=float(method.gamma_))
    np.testing.assert_allclose(method.score(batch(test)).images.numpy(), expected, rtol=2e-3, atol=2e-4)


def test_several_taps_are_put_side_by_side():
    method = OneClassSVM(backbone=BACKBONE, taps=("a", "c")).fit(Images(small_pixels(6, 1)))
    channels = [m.shape[1] for m in build_extractor(BACKBONE, taps=("a", "c"))(small_pixels(1, 1)).maps]
    assert method.vectors_.shape[1] == sum(channels)


def test_the_plan_grows_with_the_images_as_stated():
    maps = build_extractor(BACKBONE)(small_pixels(2, 1))
    exact, mapped = OneClassSVM(backbone=BACKBONE), OneClassSVM(backbone=BACKBONE, approximation="nystroem")
    assert exact.plan(maps, 2000).operations == 4 * exact.plan(maps, 1000).operations
    assert mapped.plan(maps, 2000).operations == 2 * mapped.plan(maps, 1000).operations
    assert "nystroem" in exact.plan(maps, 10).instead


def test_chunks_do_not_show(monkeypatch):
    monkeypatch.setattr("blemish.ops.kernels._VECTORS", 7)
    monkeypatch.setattr("blemish.ops.kernels._QUERIES", 3)
    a, b = (torch.rand(n, 4, generator=torch.Generator().manual_seed(n)) for n in (10, 16))
    coefficients, kernel = torch.rand(16, dtype=torch.float64), Kernel("poly", 0.5, 2, 1.0)
    expected = ocsvm.matrix("poly", a.numpy(), b.numpy(), gamma=0.5, degree=2, coef0=1.0) @ coefficients.numpy()
    np.testing.assert_allclose(kernel.expansion(a, b, coefficients), expected, rtol=1e-6)
    np.testing.assert_allclose(kernel.diagonal(a), np.diag(kernel(a, a)), rtol=1e-12)
