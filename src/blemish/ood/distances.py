"""Distances in the space of the features before the last layer, to what in-distribution images gave.

`fit` takes labels where they are known. Otherwise the classifier's own predictions serve as classes, and
`classes_from_` says which of the two it was. Classes without an image are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError
from ..ops.neighbours import Exact
from ._base import Floats, Need, OODDetector, Outputs, blocks, by_rows, read_features, read_head, read_logits
from .logits import logsumexp


@dataclass(kw_only=True)
class Mahalanobis(OODDetector):
    """Squared Mahalanobis distance to the nearest class mean, with one covariance for all classes.

    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS
    2018, eqs. 1 and 2: min_c (x - m_c)^T S^-1 (x - m_c) with S = (1/n) sum over all images of (x - m_c)(x - m_c)^T, c
    the image's class. The paper's score is the negative. Penultimate layer only, no perturbation of the image.

    Parameters
    ----------
    floor: eigenvalues of S below this fraction of its largest are raised to it. Directions that fit images do not use
        (fewer images than channels, channels that are always 0) then count, and strongly, as the weakest of the rest;
        a pseudo-inverse would not see them at all. Changes nothing where S is well conditioned.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    learns: ClassVar[bool] = True

    floor: float = 1e-6

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> None:
        features = read_features(outputs)
        classes, self.classes_from_ = _classes(outputs, labels)
        self.classes_, members = np.unique(classes, return_inverse=True)
        self.gaussians_ = _Gaussians.of(features, members, floor=self.floor)

    def score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a squared distance without unit; about the number of channels in distribution."""
        self._require_fit("gaussians_")
        self._check(outputs)
        return self.gaussians_.nearest(read_features(outputs, channels=self.gaussians_.channels))


@dataclass(kw_only=True)
class RelativeMahalanobis(OODDetector):
    """Mahalanobis distance to the nearest class mean, minus that to one Gaussian of all images.

    Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021:
    min_c MD_c(x) - MD_0(x), where MD_0 has the mean and the covariance of all images, classes ignored.

    Parameters
    ----------
    floor: as in `Mahalanobis`, for both covariances.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    learns: ClassVar[bool] = True

    floor: float = 1e-6

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> None:
        features = read_features(outputs)
        classes, self.classes_from_ = _classes(outputs, labels)
        self.classes_, members = np.unique(classes, return_inverse=True)
        self.gaussians_ = _Gaussians.of(features, members, floor=self.floor)
        self.background_ = _Gaussians.of(features, np.zeros_like(members), floor=self.floor)

    def score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a difference of squared distances, without unit."""
        self._require_fit("background_")
        self._check(outputs)
        features = read_features(outputs, channels=self.gaussians_.channels)
        return self.gaussians_.nearest(features) - self.background_.nearest(features)


@dataclass(kw_only=True)
class NearestNeighbours(OODDetector):
    """Distance to the k-th nearest of the fit's images, between features scaled to length 1.

    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022; the search is exact.
    Features that are all 0 stay so.

    Parameters
    ----------
    k: which neighbour (the paper: 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet). No more than images.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    learns: ClassVar[bool] = True

    k: int = 50

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> None:
        if type(self.k) is not int or self.k < 1:
            raise ArgumentError.about("k", expected="a whole number of at least 1", got=self.k)
        features = read_features(outputs)
        if len(features) < self.k:
            raise ArgumentError.about(
                "outputs",
                expected=f"at least k = {self.k} images",
                got=len(features),
                instead=f"Fit on more, or write k={len(features)}.",
            )
        directions = [_directions(features[rows]) for rows in blocks(*features.shape)]
        self.bank_ = Exact().build(torch.cat(directions))

    def score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a Euclidean distance from 0 to 2."""
        self._require_fit("bank_")
        self._check(outputs)
        return by_rows(self._distances, read_features(outputs, channels=self.bank_.vectors().shape[1]))

    def _distances(self, features: Floats) -> Floats:
        queries = _directions(features)
        _, indices = self.bank_.search(queries, self.k)
        difference = queries.double() - self.bank_.vectors(indices[:, -1]).double()
        distances: Floats = torch.linalg.vector_norm(difference, dim=1).numpy()
        return distances


@dataclass(kw_only=True)
class ViM(OODDetector):
    """Virtual-logit matching: what the principal space of the features leaves over, against the logits.

    Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022. The origin of the feature space
    moves to o = -W^+ b. R are the eigenvectors of (1/n) sum (x - o)(x - o)^T beyond the `dimensions` largest. The
    virtual logit is alpha |R^T (x - o)|, with alpha = mean of max z / mean of |R^T (x - o)| over the fit's images (eq.
    6), and the score is that logit minus log sum_c exp(z_c), which ranks like its softmax probability.

    Parameters
    ----------
    dimensions: of the principal space. None takes 1000 for 2048 or more channels, 512 for 768 or more (the paper's
        choices for its networks), and half of the channels below.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})
    learns: ClassVar[bool] = True

    dimensions: int | None = None

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> None:
        features, logits, (weight, bias) = read_features(outputs), read_logits(outputs.logits), read_head(outputs)
        channels = features.shape[1]
        kept = _principal(channels) if self.dimensions is None else self.dimensions
        if type(kept) is not int or not 1 <= kept < channels:
            raise ArgumentError.about("dimensions", expected=f"1 to {channels - 1}, below the channels", got=kept)
        origin = -np.linalg.pinv(weight) @ bias
        values, vectors = np.linalg.eigh(_scatter(features, origin[None], np.zeros(len(features), dtype=np.intp)))
        residual = vectors[:, : channels - kept]
        norm = by_rows(lambda x: np.linalg.norm((x - origin) @ residual, axis=1), features).mean()
        # float32 features leave a residual of rounding errors, 1e-7 of their length, where they should leave none.
        if norm <= 1e-6 * np.sqrt(values[-1]):
            raise ArgumentError.about(
                "dimensions",
                expected="fewer than those that the features of the fit's images span",
                got=kept,
                instead="Fit on more images, or keep fewer dimensions.",
            )
        top = float(logits.max(axis=1).mean(dtype=np.float64))
        if top <= 0:
            raise ArgumentError.about(
                "outputs.logits",
                expected="largest logits above 0 on average, as ViM scales the residual to them",
                got=f"{top:.3g}",
                instead="Use Mahalanobis or NearestNeighbours.",
            )
        self.origin_, self.residual_, self.alpha_ = origin, residual, top / float(norm)

    def score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in units of the logits."""
        self._require_fit("alpha_")
        self._check(outputs)
        features = read_features(outputs, channels=len(self.origin_))

        def score(x: Floats, z: Floats) -> Floats:
            residual: Floats = np.linalg.norm((x - self.origin_) @ self.residual_, axis=1)
            return self.alpha_ * residual - logsumexp(z)

        return by_rows(score, features, read_logits(outputs.logits))


@dataclass(frozen=True)
class _Gaussians:
    """Gaussians with one covariance for all, in coordinates where that is the identity."""

    centre: Floats
    """`(channels,)`, subtracted first, so that products lose few digits."""
    whitening: Floats
    """`(channels, channels)`."""
    means: Floats
    """`(classes, channels)`, whitened."""

    @classmethod
    def of(cls, features: NDArray[np.floating], members: NDArray[np.intp], *, floor: float) -> _Gaussians:
        """Fit to `(n, channels)` features, where `members` `(n,)` says which Gaussian each belongs to."""
        if not 0 < floor < 1:
            raise ArgumentError.about("floor", expected="a number in (0, 1)", got=floor, instead="Write 1e-6.")
        means = np.stack([features[members == c].mean(axis=0, dtype=np.float64) for c in range(members.max() + 1)])
        values, vectors = np.linalg.eigh(_scatter(features, means, members))
        # Below this, features that are equal within a class differ by the rounding of their mean.
        if values[-1] <= 1e-24 * float(max(features.max(), -features.min())) ** 2:
            raise ArgumentError.about(
                "outputs.features", expected="images of a class with different features", got="equal ones in each class"
            )
        whitening = vectors / np.sqrt(np.maximum(values, floor * values[-1]))
        centre = means.mean(axis=0)
        return cls(centre, whitening, (means - centre) @ whitening)

    @property
    def channels(self) -> int:
        """Of the features."""
        return len(self.centre)

    def nearest(self, features: NDArray[np.floating]) -> Floats:
        """Squared Mahalanobis distance to the nearest mean, `(n,)`."""
        return by_rows(self._nearest, features, beside=sum(self.means.shape))

    def _nearest(self, x: Floats) -> Floats:
        white = (x - self.centre) @ self.whitening
        # |m|^2 - 2 x.m finds the mean; the distance itself comes from differences, which lose no digits.
        products = np.square(self.means).sum(axis=1) - 2 * (white @ self.means.T)
        squared: Floats = np.square(white - self.means[products.argmin(axis=1)]).sum(axis=1)
        return squared


def _scatter(features: NDArray[np.floating], means: Floats, members: NDArray[np.intp]) -> Floats:
    """(1/n) sum (x - m)(x - m)^T, m the mean that each image belongs to: `(channels, channels)`."""
    channels = features.shape[1]
    total: Floats = np.zeros((channels, channels))
    for rows in blocks(len(features), channels):
        centred = features[rows].astype(np.float64) - means[members[rows]]
        total += centred.T @ centred
    return total / len(features)


def _classes(
    outputs: Outputs, labels: NDArray[np.integer] | None
) -> tuple[NDArray[np.integer], Literal["labels", "predictions"]]:
    """A class for each image, `(n,)`, and where it comes from."""
    logits = read_logits(outputs.logits)
    if labels is None:
        return logits.argmax(axis=1), "predictions"
    given = np.asarray(labels)
    if given.shape != (len(logits),) or given.dtype.kind not in "iu":
        raise ArgumentError.about("labels", expected=f"whole numbers of shape ({len(logits)},)", got=given)
    if given.min() < 0 or given.max() >= logits.shape[1]:
        raise ArgumentError.about(
            "labels", expected=f"classes from 0 to {logits.shape[1] - 1}", got=f"{given.min()} to {given.max()}"
        )
    return given, "labels"


def _principal(channels: int) -> int:
    if channels >= 2048:
        return 1000
    return 512 if channels >= 768 else channels // 2


def _directions(features: NDArray[np.floating]) -> Tensor:
    """Scaled to length 1, float32, `(n, channels)`."""
    x = features.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy((x / np.where(length > 0, length, 1)).astype(np.float32))
