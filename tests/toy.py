"""A toy classifier with a linear last layer, for detectors of out-of-distribution images.

Of 24 channels each of 3 classes lights up 6, about 5 high; the others hold a little noise. Outliers light up the 6 that
no class uses, where the members of the ensemble disagree. Features are never negative. The pixels are the features
themselves, 32 equal ones each.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from blemish.images.preprocess import Preprocess
from blemish.ood import Classifier, Head, Outputs

CLASSES, CHANNELS = 3, 24


def head(member=0):
    """Member 0 does not read the channels that no class uses; the others read them at random."""
    weight = np.zeros((CLASSES, CHANNELS))
    for c in range(CLASSES):
        weight[c, 6 * c : 6 * c + 6] = 0.5
    if member:
        weight[:, 18:] = np.random.default_rng(member).normal(0, 0.3, (CLASSES, 6))
    return Head(weight, np.array([0.2, -0.1, 0.0]))


class Network(torch.nn.Module):
    """From pixels to logits."""

    def __init__(self, head):
        super().__init__()
        self.fc = torch.nn.Linear(CHANNELS, CLASSES)
        self.fc.weight.data, self.fc.bias.data = torch.from_numpy(head.weight), torch.from_numpy(head.bias)

    def forward(self, x):
        return self.fc(x.to(self.fc.weight.dtype).unflatten(2, (2, 8)).mean((2, 4)).flatten(1))


def features(labels, seed):
    """`(n, 24)` of the class of each label; -1 stands for an outlier."""
    random = np.random.default_rng(seed)
    x = np.abs(random.normal(0, 0.3, (len(labels), CHANNELS)))
    for row, label in enumerate(labels):
        place = 6 * (label if label >= 0 else CLASSES)
        x[row, place : place + 6] = np.abs(random.normal(5, 0.7, 6))
    return x


def outputs(x, dtype=np.float64):
    heads = [head(member) for member in range(4)]
    logits = [(x @ h.weight.T + h.bias).astype(dtype) for h in heads]
    first = Head(heads[0].weight.astype(dtype), heads[0].bias.astype(dtype))
    classifier = Classifier(Network(first), Preprocess(16), (0.0,) * 3, (1.0,) * 3)
    pixels = torch.from_numpy(x.astype(dtype)).reshape(-1, 3, 8, 1).repeat(1, 1, 2, 16)
    return Outputs(logits[0], x.astype(dtype), first, tuple(logits), pixels, classifier)


def rows(of, index):
    """Some of the images."""
    members = tuple(member[index] for member in of.members)
    pixels = of.pixels[torch.from_numpy(np.arange(len(of))[index].copy())]
    return replace(of, logits=of.logits[index], features=of.features[index], members=members, pixels=pixels)


LABELS = np.arange(180) % CLASSES
TRAIN = outputs(features(LABELS, seed=1))
MORE = outputs(features(LABELS[:75], seed=2) * 1.3)
OUTLIER = np.arange(60) % 3 == 2
TEST = outputs(features(np.where(OUTLIER, -1, np.arange(60) % CLASSES), seed=3))
