"""What a paper prescribes for the course of a training, seen from outside: in the optimiser, and in the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from blemish.augment import views
from blemish.methods import DeepSVDD, MeanShifted
from blemish.training.loop import batch_of, generator
from contract.laws import Images
from reference import knn as knn_reference
from reference import mean_shifted as reference
from small import BACKBONE
from trained import varied_pixels

TRAIN = varied_pixels(10, 1)


@pytest.fixture
def rates():
    """The learning rate of every step, of whatever optimiser."""
    seen = []
    handle = register_optimizer_step_pre_hook(lambda optimiser, *_: seen.append(optimiser.param_groups[0]["lr"]))
    yield seen
    handle.remove()


@pytest.mark.parametrize("boundary", ["hard", "soft"])
def test_deep_svdd_trains_two_thirds_of_its_steps_at_a_tenth_of_the_rate(rates, boundary):
    """The paper: 150 epochs, the rate divided by 10 after 50."""
    DeepSVDD(epochs=6, batch=5, side=8, rate=1e-3, boundary=boundary).fit(Images(TRAIN))
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 8)


def test_the_autoencoder_of_deep_svdd_trains_two_sevenths_of_its_steps_at_a_tenth_of_the_rate(rates):
    """The paper: 350 epochs, the rate divided by 10 after 250."""
    DeepSVDD(epochs=3, pretrain=7, batch=5, side=8, rate=1e-3).fit(Images(TRAIN))
    assert rates == pytest.approx([1e-3] * 10 + [1e-4] * 4 + [1e-3] * 2 + [1e-4] * 4)


COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0.1, 0.1, 0.1), (0.9, 0.9, 0.9)]


@pytest.mark.parametrize("angular", [False, True])
def test_the_centre_of_mean_shifted_has_length_1_where_angles_count(angular):
    """On images so different that the mean of their directions is much shorter than 1."""
    pixels = torch.tensor(COLOURS).view(8, 3, 1, 1) * (0.5 + 0.5 * varied_pixels(8, 2))
    options = {"backbone": BACKBONE, "batch": 8, "rate": 0.1, "angular": angular}
    untrained = MeanShifted(epochs=1, time_limit=0.0, **options).fit(Images(pixels)).extractor_
    method = MeanShifted(epochs=1, **options).fit(Images(pixels))

    def directions(images):
        vectors = knn_reference.pool(untrained(images).maps[0].numpy())
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    centre = directions(pixels).mean(axis=0)
    assert np.linalg.norm(centre) < 0.95
    centre = centre / np.linalg.norm(centre) if angular else centre
    random = generator(0, 0, "views")
    drawn = pixels[batch_of(8, 8, seed=0, step=0)]
    first, second = (directions(views.random_view(drawn, random)) for _ in range(2))
    expected = [reference.loss(first, second, centre, 0.25)]
    expected += [reference.angular(first, second, centre)] if angular else []
    assert method.course_.losses[0].tolist() == pytest.approx(expected, rel=1e-3)
