from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from blemish.ops.maps import enlarge_and_smooth, mean_of_highest


@pytest.mark.parametrize(
    ("grid", "size", "sigma"), [((7, 9), (28, 30), 2.0), ((4, 4), (64, 64), 4.0), ((8, 8), (8, 8), 0)]
)
def test_equals_interpolation_then_gaussian_filter(grid, size, sigma):
    maps = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    expected = np.stack([gaussian_filter(m, sigma) if sigma else m for m in enlarged.double().numpy()])
    np.testing.assert_allclose(enlarge_and_smooth(maps, size, sigma=sigma).numpy(), expected, rtol=1e-5)


def test_a_constant_stays_constant():
    smooth = enlarge_and_smooth(torch.full((1, 5, 5), 3.0), (20, 20), sigma=4.0)
    torch.testing.assert_close(smooth, torch.full((1, 20, 20), 3.0))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 1), (0.01, 1), (0.1, 6), (1.0, 63)])
def test_the_mean_of_the_highest(share, kept):
    maps = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = [sum(sorted(values.tolist(), reverse=True)[:kept]) / kept for values in maps.flatten(1)]
    np.testing.assert_allclose(mean_of_highest(maps, share).numpy(), expected, rtol=1e-6)
