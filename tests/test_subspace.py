from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError, ModelFileError
from blemish.features.backbones import custom_backbone
from blemish.methods import Subspace
from blemish.ops.patch_sums import PatchSums
from contract.laws import Images, batch
from reference import patchcore
from reference import subspace as reference
from reference.bilinear import enlarge
from small import BACKBONE, Net, layers, small_pixels

TAPS = ("b", "c")


@pytest.mark.parametrize("share", [0.6, 0.9, 0.999999])
@pytest.mark.parametrize("taps", [TAPS, ("a", "b", "c"), ("c", "b")])
def test_equals_the_paper(share, taps):
    train, test = small_pixels(5, 1), small_pixels(3, 2)
    scores = Subspace(backbone=BACKBONE, taps=taps, variance=share, sigma=2.0).fit(Images(train)).score(batch(test))
    patches, queries = (patchcore.average_patches(layers(pixels, taps)) for pixels in (train, test))
    mean, basis = reference.fit(patches.reshape(-1, patches.shape[2]), share)
    side = round(queries.shape[1] ** 0.5)
    for i in range(3):
        grid = np.array([reference.residual(mean, basis, x) for x in queries[i]]).reshape(side, side)
        expected = patchcore.anomaly_map(grid, (24, 24), 2.0)
        np.testing.assert_allclose(scores.maps[i].numpy(), expected, rtol=1e-3)
        assert float(scores.images[i]) == pytest.approx(expected.max(), rel=1e-3)


def test_one_image_is_enough_and_any_size_can_be_scored():
    method = Subspace(backbone=BACKBONE).fit(Images(small_pixels(1, 1)))
    learned, other = method.score(batch(small_pixels(1, 1))), method.score(batch(small_pixels(1, 2)))
    assert float(learned.images) < float(other.images)
    assert method.score(batch(small_pixels(2, 2, (40, 32)))).maps.shape == (2, 40, 32)


def test_at_least_one_direction_stays_outside_and_one_inside():
    train = Images(small_pixels(4, 1))
    assert Subspace(backbone=BACKBONE, variance=1 - 1e-15).fit(train).directions_.shape == (18, 1)
    assert Subspace(backbone=BACKBONE, variance=1e-9).fit(train).directions_.shape == (18, 17)


def test_parts_in_any_order_and_through_a_file_are_the_whole():
    pixels = small_pixels(9, 1)
    whole = Subspace(backbone=BACKBONE).fit(Images(pixels))
    first, last = (Subspace(backbone=BACKBONE).fit(Images(part)) for part in (pixels[:2], pixels[5:]))
    loaded = Subspace(backbone=BACKBONE)
    loaded.restore(last.state())
    grown = loaded.partial_fit(Images(pixels[2:5])).merge(first)
    assert float(grown.sums_.count) == float(whole.sums_.count) == 9 * 36
    test = batch(small_pixels(3, 2))
    torch.testing.assert_close(grown.score(test).maps, whole.score(test).maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grown.sums_.moments()[1], whole.sums_.moments()[1], rtol=1e-5, atol=1e-9)


def test_bad_parameters_and_images_are_refused():
    for variance in (0.0, 1.0):
        with pytest.raises(ArgumentError, match=rf"variance: expected a number in \(0, 1\), got {variance}"):
            Subspace(backbone=BACKBONE, variance=variance).fit(Images(small_pixels(3, 1)))
    plain = torch.nn.Sequential(torch.nn.AvgPool2d(2))
    still = custom_backbone(plain, taps=("0",), trace_size=24, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ArgumentError, match=r"images: expected normal images with patches that differ"):
        Subspace(backbone=still).fit(Images(torch.zeros(3, 3, 24, 24)))
    wider = Subspace(backbone=custom_backbone(Net(), taps=("a", "b", "c"), trace_size=24), taps=("a", "b", "c"))
    with pytest.raises(ArgumentError, match=r"other: expected layers of \(8, 10\) channels, got \(6, 8, 10\)"):
        Subspace(backbone=BACKBONE).fit(Images(small_pixels(3, 1))).merge(wider.fit(Images(small_pixels(3, 1))))


@pytest.mark.parametrize("sides", [((8, 6), (4, 3)), ((4, 5), (9, 7), (2, 3)), ((6, 6), (6, 6))])
def test_sums_are_those_of_the_patches(sides):
    random = np.random.default_rng(0)
    arrays = [random.normal(2.0, 1.0, (2, 3 + i, *side)) for i, side in enumerate(sides)]
    sums = PatchSums.empty(sum(a.shape[1] for a in arrays), torch.device("cpu"))
    for image in range(2):
        sums.update([torch.from_numpy(a[image : image + 1]) for a in arrays], sides[0])
    grids = [[enlarge(image.transpose(1, 2, 0), sides[0]) for image in a] for a in arrays]
    patches = np.concatenate([np.stack(grid) for grid in grids], axis=3).reshape(-1, len(sums.linear))
    mean, covariance = sums.moments()
    assert float(sums.count) == len(patches)
    np.testing.assert_allclose(mean.numpy(), patches.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(covariance.numpy(), np.cov(patches.T, bias=True), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("outer", torch.zeros(5, dtype=torch.float64), r"tensor outer: expected 171 numbers, got 5"),
        ("directions", torch.zeros(17, 4), r"tensor directions: expected float32 \(d = 18, outside\)"),
        ("channels", torch.tensor([8, 9]), r"tensors channels, count"),
        ("count", torch.tensor(0.5, dtype=torch.float64), r"tensors channels, count"),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(name, value, message):
    state = Subspace(backbone=BACKBONE).fit(Images(small_pixels(3, 1))).state()
    with pytest.raises(ModelFileError, match=message):
        Subspace(backbone=BACKBONE).restore(state | {name: value})
