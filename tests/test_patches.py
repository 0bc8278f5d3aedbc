from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.features.patches import concatenate, project, random_channels, semi_orthogonal
from blemish.types import FeatureMaps
from reference.bilinear import enlarge


def feature_maps():
    random = torch.Generator().manual_seed(0)
    shapes = ((3, 8, 6), (5, 4, 3), (2, 3, 2))
    return FeatureMaps(tuple(torch.rand(2, *shape, generator=random) for shape in shapes), (32, 24))


def test_concatenate_aligns_by_nearest_neighbour():
    features = feature_maps()
    embedded = concatenate(features)
    assert embedded.shape == (2, 48, 10)
    for y in range(8):
        for x in range(6):
            parts = [m[:, :, y * m.shape[2] // 8, x * m.shape[3] // 6] for m in features.maps]
            assert torch.equal(embedded[:, y * 6 + x], torch.cat(parts, dim=1))


def test_chosen_channels_are_those_of_the_full_embedding():
    features = feature_maps()
    picks = random_channels([3, 5, 2], 6, seed=5)
    offsets = [0, 3, 8]
    chosen = torch.cat([pick + offset for pick, offset in zip(picks, offsets, strict=True)])
    assert len(chosen.unique()) == 6
    assert torch.equal(concatenate(features, picks), concatenate(features)[:, :, chosen])


def test_projection_commutes_with_alignment():
    features = feature_maps()
    matrix = semi_orthogonal(10, 4, seed=0)
    aligned = [torch.from_numpy(enlarged(m.numpy(), (8, 6))) for m in features.maps]
    expected = torch.cat(aligned, dim=1).permute(0, 2, 3, 1).flatten(1, 2) @ matrix.double()
    torch.testing.assert_close(project(features, matrix).double(), expected, rtol=1e-5, atol=1e-5)


def enlarged(maps, size):
    grids = maps.transpose(0, 2, 3, 1).astype(float)
    return np.stack([enlarge(grid, size) for grid in grids]).transpose(0, 3, 1, 2)


def test_random_channels_are_pythons_sample():
    import random

    expected = sorted(random.Random(1024).sample(range(448), 100))
    picks = random_channels([64, 128, 256], 100, seed=1024)
    assert [int(c) + o for pick, o in zip(picks, (0, 64, 192), strict=True) for c in pick] == expected


@pytest.mark.parametrize(
    "choose", [lambda d: random_channels([3, 5], d, seed=0), lambda d: semi_orthogonal(8, d, seed=0)]
)
@pytest.mark.parametrize("d", [0, 9])
def test_impossible_dimension_is_refused(choose, d):
    with pytest.raises(ArgumentError, match=f"dimensions: expected 1 to 8, the channels of the taps, got {d}"):
        choose(d)
