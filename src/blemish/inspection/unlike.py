"""How unlike the others each normal image is, as a whole and at its oddest place."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from ..features.patches import pool

if TYPE_CHECKING:
    from ..types import Floats

FEWEST = 8
"""Below so many images, no score says anything."""

_CHANNELS = 32
"""Random projections that are kept of a place: all channels of 10 000 images would take more than a gigabyte."""
_REFERENCES = 500
"""Images of which the nearest is looked for: seconds, also for 10 000 images."""
_HIGHEST = 3
"""Places whose mean is an image's: one alone is noise, many hide a small defect."""


class Seen:
    """What is kept of images that went through the network: averages of all maps, and places of the middle one."""

    def __init__(self) -> None:
        self._averages: list[Tensor] = []
        self._places: list[Tensor] = []

    def add(self, maps: Sequence[Tensor]) -> None:
        """Feature maps of a batch, shallow to deep, each `(batch, channels, h, w)`."""
        self._averages.append(torch.cat([pool(layer) for layer in maps], dim=1).cpu())
        middle = maps[len(maps) // 2].cpu()
        draw = torch.randn(middle.shape[1], _CHANNELS, generator=torch.Generator().manual_seed(0))
        self._places.append(torch.einsum("nchw,cd->nhwd", middle, draw).flatten(1, 2))

    def scores(self) -> Floats:
        """Mean of the image's shares of rank by `leave_one_out` and `at_its_place`: `(n,)`, 1 is the most unlike."""
        n = sum(map(len, self._averages))
        if n < FEWEST:
            return np.empty(0)
        both = leave_one_out(torch.cat(self._averages).double().numpy()), at_its_place(torch.cat(self._places))
        ranks: Floats = np.mean([rankdata(one) for one in both], axis=0) / n
        return ranks


def at_its_place(places: Tensor, *, references: int = _REFERENCES) -> Floats:
    """Distance of each image from the nearest other one, place by place; the mean of the highest: `(n,)`.

    `places` is `(n, place, channels)`; channels are brought to one variance. The nearest is looked for among a seeded
    draw of `references` images.
    """
    spread = places.std(dim=(0, 1)).clamp_min(1e-12)
    n = len(places)
    drawn = sorted(random.Random(0).sample(range(n), min(references, n)))
    found = torch.empty(places.shape[:2])
    for place in range(places.shape[1]):
        own = places[:, place] / spread
        distances = torch.cdist(own, own[drawn])
        distances[drawn, range(len(drawn))] = torch.inf  # of an image from itself
        found[:, place] = distances.min(dim=1).values
    highest: Floats = found.topk(min(_HIGHEST, found.shape[1]), dim=1).values.mean(dim=1).double().numpy()
    return highest


def leave_one_out(vectors: Floats) -> Floats:
    """Mahalanobis distance of each of `(n, dimension)` vectors from the Gaussian of all the others: `(n,)`.

    Columns are brought to one variance, then the covariance is shrunk as by Ledoit and Wolf. With scale, target and
    intensity of the shrinkage those of all n, leaving one out changes mean and covariance by a rank of one. With
    d = x - mean, S = d's scatter matrix, shrunk, a the intensity and q = d' S^-1 d, the squared distance is
    n^2 / (n - 1) * q / (1 - (1 - a) n / (n - 1) q).
    """
    n = len(vectors)
    spread = vectors.std(axis=0)
    d = (vectors - vectors.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    if n < FEWEST or not d.shape[1]:
        return np.zeros(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single dimension
        covariance, a = ledoit_wolf(d)
    q = np.einsum("ij,ji->i", d, np.linalg.pinv(n * covariance, hermitian=True) @ d.T)
    distances: Floats = np.sqrt(n * n / (n - 1) * q / np.maximum(1 - (1 - a) * n / (n - 1) * q, 1e-12))
    return distances
