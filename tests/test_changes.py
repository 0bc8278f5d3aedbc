"""Small changes: one place, in bounds, by the seed alone, of several sizes."""

from __future__ import annotations

import pytest
import torch

from blemish.augment.changes import CHANGES, VISIBLE, draw_change
from blemish.datasets.synthetic import draw


def picture(seed, size=96):
    return torch.from_numpy(draw("weave", seed=seed, size=size).pixels.copy()).permute(2, 0, 1).float() / 255


IMAGE, OTHER = picture(0), picture(1)


def drawn(name, seed, image=IMAGE):
    return draw_change(name, image, OTHER, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_stays_in_bounds_and_comes_of_the_seed(name):
    kept = IMAGE.clone()
    changed, mask = drawn(name, 3)
    assert torch.equal(IMAGE, kept)
    assert changed.shape == IMAGE.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(mask, (changed - IMAGE).abs().amax(dim=0) > VISIBLE)
    assert int(mask.sum()) >= 12
    again, _ = drawn(name, 3)
    other, _ = drawn(name, 4)
    assert torch.equal(changed, again)
    assert not torch.equal(changed, other)


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"augmix", "cutpaste"}))
def test_a_change_is_small_and_differs_in_size(name):
    sizes = [float(drawn(name, seed)[1].float().mean()) for seed in range(8)]
    assert max(sizes) < 0.12
    assert max(sizes) > 1.5 * min(sizes)


def test_a_piece_of_another_image_needs_that_image():
    even = torch.full_like(IMAGE, 0.5)
    changed, mask = draw_change("blend", even, even, torch.Generator().manual_seed(0))
    assert torch.equal(changed, even)
    assert not mask.any()
    assert draw_change("blend", even, OTHER, torch.Generator().manual_seed(0))[1].any()


def test_what_is_missing_is_filled_from_around():
    spotted = torch.full((3, 64, 64), 0.5)
    spotted[:, 20:44, 20:44] = 0.9
    changed, mask = draw_change("missing", spotted, spotted, torch.Generator().manual_seed(1))
    assert mask.any()
    assert 0.5 - 1e-5 <= float(changed.min()) <= float(changed.max()) <= 0.9 + 1e-5


@pytest.mark.parametrize("name", CHANGES)
def test_images_that_are_not_square(name):
    wide, other = IMAGE[:, :40], OTHER[:, :40]
    changed, mask = draw_change(name, wide, other, torch.Generator().manual_seed(0))
    assert (changed.shape, mask.shape) == ((3, 40, 96), (40, 96))
