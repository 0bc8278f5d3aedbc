"""How unlike the others each normal image is, as a whole and at its oddest place."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from ..features.patches import pool

if TYPE_CHECKING:
    from ..types import Floats, Size

_FEWEST = 8
"""Below so many images, no score says anything."""

_CHANNELS = 32
"""Random projections that are kept of a place: all channels of 10 000 images would take more than a gigabyte."""
_REFERENCES = 500
"""Images of which the nearest is looked for: seconds, also for 10 000 images."""
_RIM = 12
"""A twelfth of a map at each side is no part of its mean: without it more defects are found, for whatever reason."""
_OTHER_SHAPE = 0.1
"""An aspect that differs by more from the median is another shape."""
_HIGHEST = 3
"""Places whose mean is an image's: one alone is noise, many hide a small defect."""


class Seen:
    """What is kept of images that went through the network: mean and deviation of each channel, inside, and places."""

    def __init__(self) -> None:
        self._wholes: list[Tensor] = []
        self._places: list[Tensor] = []

    def add(self, maps: Sequence[Tensor]) -> None:
        """Feature maps of a batch, shallow to deep, each `(batch, channels, h, w)`."""
        inside = [_without_rim(m) for m in maps]
        self._wholes.append(torch.cat([part for m in inside for part in (pool(m), m.std(dim=(2, 3)))], dim=1).cpu())
        middle = maps[len(maps) // 2].cpu()
        draw = torch.randn(middle.shape[1], _CHANNELS, generator=torch.Generator().manual_seed(0))
        self._places.append(torch.einsum("nchw,cd->nhwd", middle, draw).half())

    def scores(self, sizes: Sequence[Size]) -> Floats:
        """How unlike each image is, as a whole and at its oddest places: `(n,)`, shares of rank, 1 is the most unlike.

        Fisher's way to combine two tests: the sum of -log(1 - rank / (n + 1)) by `leave_one_out` and `near_its_place`;
        by the first alone where pictures, of `sizes`, have many shapes, stretched to one here: no place of one is that
        of another.
        """
        n = sum(map(len, self._wholes))
        if n < _FEWEST:
            return np.empty(0)
        tests = [leave_one_out(torch.cat(self._wholes).double().numpy())]
        if not _are_of_many_shapes(sizes):
            tests.append(near_its_place(torch.cat(self._places)))
        unlike = sum(-np.log(1 - rankdata(one) / (n + 1)) for one in tests)
        shares: Floats = rankdata(np.round(unlike, 9)) / n  # the same two ranks the other way round are a tie
        return shares


def _are_of_many_shapes(sizes: Sequence[Size]) -> bool:
    """Whether the aspect of most pictures is more than a tenth from the median."""
    aspects = np.array([width / height for height, width in sizes])
    return bool(np.mean(np.abs(aspects / np.median(aspects) - 1) > _OTHER_SHAPE) > 0.5)


def _without_rim(maps: Tensor) -> Tensor:
    height, width = maps.shape[2:]
    rows, columns = height // _RIM, width // _RIM
    return maps[:, :, rows : height - rows, columns : width - columns]


def near_its_place(places: Tensor, *, references: int = _REFERENCES) -> Floats:
    """Distance of places from the nearest of other images, there or one place away; the mean of the highest: `(n,)`.

    `places` is `(n, h, w, channels)`. The nearest is looked for in a seeded draw of `references` images, in which each
    channel is brought to the variance 1.
    """
    n, height, width, _ = places.shape
    drawn = sorted(random.Random(0).sample(range(n), min(references, n)))
    spread = places[drawn].float().std(dim=(0, 1, 2)).clamp_min(1e-12)
    found = torch.empty(n, height, width)
    for row, column in product(range(height), range(width)):
        around = places[drawn, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].float() / spread
        others = around.flatten(1, 2)
        distances = torch.cdist(places[:, row, column].float() / spread, others.flatten(0, 1))
        nearest = distances.reshape(n, len(drawn), -1).amin(dim=2)
        nearest[drawn, range(len(drawn))] = torch.inf  # of an image from itself
        found[:, row, column] = nearest.amin(dim=1)
    highest = found.flatten(1).topk(min(_HIGHEST, height * width), dim=1).values
    mean: Floats = highest.mean(dim=1).double().numpy()
    return mean


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
    if n < _FEWEST or not d.shape[1]:
        return np.zeros(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single dimension
        covariance, a = ledoit_wolf(d)
    q = np.einsum("ij,ji->i", d, np.linalg.pinv(n * covariance, hermitian=True) @ d.T)
    distances: Floats = np.sqrt(n * n / (n - 1) * q / np.maximum(1 - (1 - a) * n / (n - 1) * q, 1e-12))
    return distances
