from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.datasets.synthetic import draw
from blemish.errors import ArgumentError
from blemish.features.backbones import custom_backbone
from blemish.methods import PaDiM
from contract.laws import TEST, TRAIN, Images, batch
from reference import padim as reference
from reference.bilinear import enlarge
from small import BACKBONE, Net, layers, small_pixels


@pytest.mark.parametrize("n_train", [9, 40], ids=["low rank", "dense"])
def test_equals_the_paper(n_train):
    train, test = small_pixels(n_train, 1), small_pixels(3, 2)
    method = PaDiM(backbone=BACKBONE, dimensions=12, seed=7, sigma=2.0, **PaDiM.paper).fit(Images(train))
    assert (method.gaussian_.spectrum is not None) == (n_train <= 12)

    dims = reference.random_dimensions(24, 12, seed=7)
    grids = reference.distances(
        reference.embeddings(layers(train), dims), reference.embeddings(layers(test), dims), 0.01 * np.eye(12)
    )
    expected = reference.maps(grids, 24, sigma=2.0)
    scores = method.score(batch(test))
    np.testing.assert_allclose(scores.maps.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(scores.images.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


def test_no_reduction_keeps_all_channels():
    train, test = small_pixels(30, 1), small_pixels(2, 2)
    method = PaDiM(backbone=BACKBONE, reduction="none", dimensions=5, sigma=0.0, eps=0.01).fit(Images(train))
    all_dims = list(range(24))
    grids = reference.distances(
        reference.embeddings(layers(train), all_dims), reference.embeddings(layers(test), all_dims), 0.01 * np.eye(24)
    )
    np.testing.assert_allclose(method.score(batch(test)).maps.numpy(), reference.maps(grids, 24, 0.0), rtol=1e-4)


@pytest.mark.parametrize("eps", [None, 0.01], ids=["by the data", "absolute"])
@pytest.mark.parametrize("n_train", [6, 30], ids=["low rank", "dense"])
def test_orthogonal_projection_equals_projecting_the_full_embedding(n_train, eps):
    train, test = small_pixels(n_train, 1), small_pixels(2, 2)
    method = PaDiM(backbone=BACKBONE, dimensions=9, sigma=0.0, eps=eps).fit(Images(train))
    matrix = method.projection_.double().numpy()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(9), atol=1e-6)
    project = [np.concatenate([aligned(layer) for layer in layers(p)], axis=3) @ matrix for p in (train, test)]
    added = 0.3 * reference.typical(project[0]) if eps is None else eps * np.eye(9)
    grids = reference.distances(*project, added)
    np.testing.assert_allclose(method.score(batch(test)).maps.numpy(), reference.maps(grids, 24, 0.0), rtol=1e-4)


def aligned(layer):
    """Bilinear, as we align for a projection; the paper aligns by nearest neighbour."""
    return np.stack([enlarge(grid, (12, 12)) for grid in layer.transpose(0, 2, 3, 1).astype(float)])


class Louder(Net):
    """The same features in another unit."""

    def __init__(self, unit):
        super().__init__()
        for layer in (self.a, self.b, self.c):
            layer.bias.data.zero_()
        self.a.weight.data *= unit


@pytest.mark.parametrize("n_train", [6, 30], ids=["low rank", "dense"])
def test_the_unit_of_the_features_does_not_matter(n_train):
    train, test = small_pixels(n_train, 1), small_pixels(4, 2)
    maps = []
    for unit in (1, 2048):
        row = custom_backbone(Louder(unit), taps=("a", "b", "c"), trace_size=24)
        maps.append(PaDiM(backbone=row, dimensions=9).fit(Images(train)).score(batch(test)).maps)
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("sizes", [(3, 3), (20, 14), (5, 29)], ids=["low rank", "dense", "low rank to dense"])
def test_parts_give_the_model_of_the_whole(sizes):
    train, test = small_pixels(sum(sizes), 1), batch(small_pixels(4, 2))
    first, second = train.split(list(sizes))
    whole, updated, left, right = (PaDiM(backbone=BACKBONE, dimensions=9) for _ in range(4))
    expected = whole.fit(Images(train)).score(test).maps
    updated.fit(Images(first)).partial_fit(Images(second))
    torch.testing.assert_close(updated.score(test).maps, expected, rtol=2e-4, atol=0)
    left.fit(Images(first)).merge(right.fit(Images(second)))
    torch.testing.assert_close(left.score(test).maps, expected, rtol=2e-4, atol=0)


def test_noise_on_a_constant_ground_does_not_outshine_the_part():
    def pixels(samples):
        stacked = np.stack([sample.pixels for sample in samples])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255

    train = pixels([draw("cork", seed=seed, size=64) for seed in range(40)])
    defective = batch(pixels([draw("cork", seed=seed, defect="scratch", size=64) for seed in range(100, 108)]))

    def on_the_part(eps):
        maps = PaDiM(backbone="filters", dimensions=30, eps=eps).fit(Images(train)).score(defective).maps
        at = maps.flatten(1).argmax(dim=1)
        rows, columns = (at // 64 - 31.5).abs(), (at % 64 - 31.5).abs()
        return int(((rows < 20) & (columns < 14)).sum())

    assert on_the_part(None) == 8
    assert on_the_part(1e-5) <= 6  # small beside the variance of the part, as a number may be anywhere


def test_nothing_varies():
    with pytest.raises(ArgumentError, match="images: expected normal images that differ from each other, got 3 alike"):
        PaDiM(backbone=BACKBONE, dimensions=9).fit(Images(small_pixels(1, 0).repeat(3, 1, 1, 1)))


def test_half_precision_refuses_what_it_cannot_hold():
    row = custom_backbone(Louder(1e-6), taps=("a", "b", "c"), trace_size=24)
    with pytest.raises(ArgumentError, match=r"storage: expected a precision that holds the model, got float16. Take"):
        PaDiM(backbone=row, dimensions=9, storage="float16").fit(Images(small_pixels(30, 0)))


def test_half_precision_reports_the_error_that_it_makes():
    exact = PaDiM(backbone="filters").fit(Images(TRAIN))
    half = PaDiM(backbone="filters", storage="float16").fit(Images(TRAIN))
    assert exact.storage_error_ == 0
    assert 0 < half.storage_error_ < 0.01
    a, b = exact.score(batch(TEST)).images, half.score(batch(TEST)).images
    error = ((a - b).abs() / a).max()
    assert 0 < error < 0.01
    sizes = [sum(t.numel() * t.element_size() for t in m.state().values()) for m in (exact, half)]
    assert sizes[1] < 0.62 * sizes[0]


def test_seed_chooses_the_channels():
    row = custom_backbone(Net(), taps=("a", "b", "c"), trace_size=24, d=10)
    picks = [
        PaDiM(backbone=row, seed=s, reduction="random").fit(Images(small_pixels(15, 0))).state()["channels"]
        for s in (1, 1, 2)
    ]
    assert torch.equal(picks[0], picks[1])
    assert not torch.equal(picks[0], picks[2])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dimensions": 0}, "dimensions: expected a whole number of at least 1 or None, got 0"),
        ({"dimensions": 50.5}, "dimensions: expected a whole number of at least 1 or None, got 50.5"),
        ({"eps": 0.0}, r"eps: expected a number in \(0, 1e\+06\] or None, got 0.0"),
        ({"reduction": "pca"}, "reduction: expected random, orthogonal or none, got pca"),
        ({"storage": "int8"}, "storage: expected float32 or float16, got int8"),
        ({"sigma": -1.0}, "sigma: expected a number of at least 0"),
        ({"dimensions": 100, "reduction": "random"}, "dimensions: expected 1 to 81, the channels of the taps, got 100"),
        ({"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:N, present here, got gpu"),
        ({"taps": ("level1", "level9")}, r"taps: expected module names of filters \(level1, level2, level3"),
    ],
)
def test_wrong_parameter_is_named(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        PaDiM(**{"backbone": "filters", **parameters}).fit(Images(TRAIN))


def test_one_image_is_too_few():
    with pytest.raises(ArgumentError, match=r"images: expected at least 2 normal images, got 1"):
        PaDiM(backbone="filters").fit(Images(TRAIN[:1]))


def test_another_size_is_refused():
    method = PaDiM(backbone="filters").fit(Images(TRAIN))
    with pytest.raises(
        ArgumentError, match=r"expected preprocessed images of size \(64, 64\), as in the fit, got size"
    ):
        method.score(batch(torch.rand(1, 3, 96, 96)))


def test_merge_refuses_another_model():
    method = PaDiM(backbone=BACKBONE, dimensions=8, seed=1, reduction="random").fit(Images(small_pixels(5, 0)))
    other = PaDiM(backbone=BACKBONE, dimensions=8, seed=2, reduction="random").fit(Images(small_pixels(5, 0)))
    with pytest.raises(ArgumentError, match=r"other: expected a PaDiM with the same .* got other channels"):
        method.merge(other)
