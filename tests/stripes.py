"""A small classifier trained on three kinds of stripes, and images that are none of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from blemish.images.preprocess import Preprocess
from blemish.ood import Classifier

SIDE = 16


def stripes(count, seed):
    """`(n, 16, 16, 3)` uint8: horizontal, vertical or diagonal stripes with noise; and their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[:SIDE, :SIDE]
    phases = random.integers(0, 4, count)
    waves = [((y, x, x + y)[c] + p) % 4 < 2 for c, p in zip(labels, phases, strict=True)]
    images = 80.0 + 90 * np.array(waves)[..., None] + random.normal(0, 12, (count, SIDE, SIDE, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def blobs(count, seed):
    """Outliers: smooth grey blobs with the same noise, without stripes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    centres = random.uniform(2, SIDE - 2, (count, 2))
    squared = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    images = 80.0 + 90 * np.exp(-squared / 30)[..., None] + random.normal(0, 12, (count, SIDE, SIDE, 3))
    return images.clip(0, 255).astype(np.uint8)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


@cache
def trained(seed=0):
    """The network after 60 steps: every training image is right."""
    with torch.random.fork_rng():
        model = network(seed).train()
        images, labels = stripes(96, 1)
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), torch.from_numpy(labels)).backward()
            optimiser.step()
        model.zero_grad(set_to_none=True)
        return model.eval()


def classifier(seed=0, members=()):
    return Classifier(
        trained(seed), preprocess=Preprocess(SIDE), mean=(0.5,) * 3, std=(0.25,) * 3, name="stripes", members=members
    )


def factory():
    """For `module:factory`."""
    return classifier()


def pixels(images):
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
