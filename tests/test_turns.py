from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.methods import PatchCore, Subspace
from blemish.ops.turns import turned
from contract.laws import Images, batch
from reference.turns import turn
from small import BACKBONE, small_pixels


@pytest.mark.parametrize("size", [(10, 10), (8, 14)])
@pytest.mark.parametrize("degrees", [0, 30, 90, 215.5])
def test_turned_images_are_those_of_the_formula(size, degrees):
    pixels = small_pixels(2, 1, size)
    expected = np.stack([turn(image, degrees) for image in pixels.numpy().astype(float)])
    np.testing.assert_allclose(turned(pixels, degrees).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("kind", [Subspace, PatchCore])
def test_turns_learn_each_image_in_so_many_directions(kind):
    pixels, more, test = small_pixels(3, 1), small_pixels(2, 3), batch(small_pixels(3, 2))
    all_ways = [torch.cat([torch.rot90(p, -k, (2, 3)) for k in range(4)]) for p in (pixels, more)]
    own, given = kind(backbone=BACKBONE, turns=4), kind(backbone=BACKBONE)
    own.fit(Images(pixels)), given.fit(Images(all_ways[0]))
    torch.testing.assert_close(own.score(test).images, given.score(test).images, rtol=1e-3, atol=0)
    own.partial_fit(Images(more)), given.partial_fit(Images(all_ways[1]))
    torch.testing.assert_close(own.score(test).images, given.score(test).images, rtol=1e-3, atol=0)


def test_every_direction_is_planned_for():
    method = Subspace(backbone=BACKBONE, turns=4).fit(Images(small_pixels(2, 1)))
    first = method.extractor_(small_pixels(2, 1))
    assert method.plan(first, 3) == Subspace(backbone=BACKBONE).plan(first, 12)
    assert float(method.sums_.count) == 2 * 4 * 36


def test_maps_of_one_direction_do_not_stand_for_others():
    one = batch(small_pixels(2, 1))
    maps = Subspace(backbone=BACKBONE).fit(Images(small_pixels(2, 1))).extractor_(one.pixels).maps
    known = replace(one, features=dict(zip(("b", "c"), maps, strict=True)))
    assert Subspace(backbone=BACKBONE).fit([known]).reads_features
    assert not Subspace(backbone=BACKBONE, turns=2).reads_features
    with pytest.raises(ArgumentError, match=r"features: expected none: subspace reads the pixels itself"):
        Subspace(backbone=BACKBONE, turns=2).fit([known])
