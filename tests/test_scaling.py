from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.ops.scaling import position_moments
from reference import scaling as reference


def test_moments_equal_the_plain_loops_whatever_the_parts():
    maps = np.random.default_rng(0).normal(size=(7, 3, 4, 5)) * (1 + np.arange(5)) + 20
    maps[:, 1, :2] = 3.0  # never fires there
    expected = reference.position_moments(maps)
    for size in (1, 3, 7):
        found = position_moments(torch.from_numpy(maps).split(size))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)
    assert (found[1] > 0).all()


def test_maps_of_several_sizes_are_refused():
    with pytest.raises(ArgumentError, match=r"images: expected maps of \(2, 4, 4\), got \(2, 4, 5\)"):
        position_moments([torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5)])
