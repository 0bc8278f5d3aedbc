from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch.nn import functional

from blemish.augment import views as augment
from blemish.errors import ArgumentError
from blemish.methods.mean_shifted import MeanShifted, angular_loss, contrast
from blemish.training.loop import batch_of, generator
from contract.laws import Images, batch
from reference import knn as knn_reference
from reference import mean_shifted as reference
from trained import NET, check_resumes, varied_pixels

TRAIN, TEST = varied_pixels(9, 1), varied_pixels(4, 2)


def mean_shifted(**parameters):
    return MeanShifted(**{"backbone": NET, "epochs": 2, "batch": 5, "rate": 0.1} | parameters)


def pooled(extractor, pixels):
    return knn_reference.pool(extractor(pixels).maps[0].numpy())


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# The formulas


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_the_losses_equal_the_paper(tau):
    random = np.random.default_rng(0)
    first, second, centre = random.normal(size=(6, 5)), random.normal(size=(6, 5)), random.normal(size=5)
    views = [functional.normalize(torch.from_numpy(f)) for f in (first, second)]
    c = torch.from_numpy(centre)
    ours = contrast(views[0] - c, views[1] - c, temperature=tau)
    assert float(ours) == pytest.approx(reference.loss(first, second, centre, tau), rel=1e-5)
    assert float(angular_loss(*views, c)) == pytest.approx(reference.angular(first, second, centre))


@pytest.mark.parametrize("angular", [False, True])
def test_a_step_has_the_loss_of_two_views_as_seen_from_the_centre(angular):
    method = mean_shifted(epochs=1, batch=9, angular=angular).fit(Images(TRAIN))
    untrained = mean_shifted(epochs=1, time_limit=0.0).fit(Images(TRAIN)).extractor_
    centre = unit(pooled(untrained, TRAIN)).mean(axis=0)
    centre = centre / np.linalg.norm(centre) if angular else centre
    random = generator(0, 0, "views")
    pixels = TRAIN[batch_of(9, 9, seed=0, step=0)]
    first, second = (pooled(untrained, augment.random_view(pixels, random)) for _ in range(2))
    expected = [reference.loss(first, second, centre, 0.25)]
    expected += [reference.angular(first, second, centre)] if angular else []
    assert method.course_.losses[0].tolist() == pytest.approx(expected, rel=1e-3)


def test_scores_are_distances_of_features_of_length_1():
    method = mean_shifted().fit(Images(TRAIN))
    normal, tested = (unit(pooled(method.extractor_, pixels)) for pixels in (TRAIN, TEST))
    np.testing.assert_allclose(
        method.score(batch(TEST)).images.numpy(), knn_reference.scores(normal, tested), rtol=1e-3
    )


def test_a_fit_that_was_killed_goes_on_with_the_same_scores(tmp_path):
    check_resumes(lambda **more: mean_shifted(angular=True, **more), TRAIN, TEST, tmp_path / "c", step=3)


def test_bad_parameters():
    with pytest.raises(ArgumentError, match=r"temperature: expected a number above 0, got 0"):
        mean_shifted(temperature=0.0).fit(Images(TRAIN))


# The views


PIXELS = torch.rand(6, 3, 16, 20, generator=torch.Generator().manual_seed(0))


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_views_are_a_function_of_the_generator():
    assert torch.equal(augment.random_view(PIXELS, random()), augment.random_view(PIXELS, random()))
    assert not torch.equal(augment.random_view(PIXELS, random()), augment.random_view(PIXELS, random(1)))
    view = augment.random_view(PIXELS, random())
    assert view.shape == PIXELS.shape
    assert 0 <= float(view.min()) <= float(view.max()) <= 1


def test_a_crop_is_a_part_of_its_share_of_the_image():
    ramp = (torch.arange(100) + 0.5).div(100).repeat(3, 100, 1)[None].expand(60, -1, -1, -1)
    across = augment.crop(ramp, random())
    down = augment.crop(ramp.transpose(2, 3), random())
    wide = (across.amax(dim=(1, 2, 3)) - across.amin(dim=(1, 2, 3))) * 100 / 99
    high = (down.amax(dim=(1, 2, 3)) - down.amin(dim=(1, 2, 3))) * 100 / 99
    assert float((wide * high).min()) == pytest.approx(0.2, abs=0.05)
    assert float((wide * high).max()) > 0.85
    ratio = (wide / high)[(wide < 0.98) & (high < 0.98)]
    assert 0.72 < float(ratio.min()) < 0.9
    assert 1.1 < float(ratio.max()) < 1.37
    whole = augment.crop(PIXELS, random(), area=(1.0, 1.0))
    assert whole.shape == PIXELS.shape


def test_hue_turns_as_in_hsv():
    turn = torch.tensor([0.0, 0.1, -0.1, 0.4, 1.0, -0.6]).view(6, 1, 1, 1)
    turned = augment.turn_hue(PIXELS, turn)
    for i, j, k in ((0, 0, 0), (1, 3, 7), (2, 15, 19), (3, 8, 8), (4, 2, 1), (5, 9, 4)):
        h, s, v = colorsys.rgb_to_hsv(*PIXELS[i, :, j, k].tolist())
        expected = colorsys.hsv_to_rgb((h + float(turn[i])) % 1, s, v)
        assert turned[i, :, j, k].tolist() == pytest.approx(expected, abs=1e-5)
    plain = torch.full((1, 3, 2, 2), 0.3)
    assert torch.allclose(augment.turn_hue(plain, turn[:1] + 0.3), plain)


def test_blur_keeps_the_mean_and_takes_detail():
    blurred = augment.blur(PIXELS, random())
    torch.testing.assert_close(blurred.mean(dim=(1, 2, 3)), PIXELS.mean(dim=(1, 2, 3)), atol=0.02, rtol=0)
    assert (blurred.var(dim=(1, 2, 3)) < PIXELS.var(dim=(1, 2, 3))).all()
    point = torch.zeros(1, 3, 17, 17)
    point[0, :, 8, 8] = 1
    spot = augment.blur(point, random(3))
    deviation = 0.1 + 1.9 * float(torch.rand(1, generator=random(3)))
    assert float(spot[0, 0, 8, 9] / spot[0, 0, 8, 8]) == pytest.approx(np.exp(-1 / (2 * deviation**2)), rel=1e-3)


def test_how_often_what_happens():
    many = PIXELS[:1].expand(2000, -1, -1, -1)
    mirrored = (augment.mirror(many, random()) == many.flip(3)).all(dim=(1, 2, 3))
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.04)
    changed = augment.sometimes(0.2, many, many * 0, random()).amax(dim=(1, 2, 3)) == 0
    assert float(changed.float().mean()) == pytest.approx(0.2, abs=0.03)
    light = augment.jitter(torch.full((2000, 3, 1, 1), 0.5), random())
    assert 0.29 < float(light.min()) < 0.32
    assert 0.68 < float(light.max()) < 0.71
