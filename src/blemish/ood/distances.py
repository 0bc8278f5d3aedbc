"""Distances in the space of the features before the last layer, to what in-distribution images gave.

`fit` takes labels where they are known. Otherwise the classifier's own predictions serve as classes, and
`labelled` says which of the two it was. Classes without an image are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError
from ..ops.neighbours import Exact
from ..parameters import parameter
from ..types import Floats
from ._base import Need, OODDetector, by_rows, read_features, read_head, read_logits, row_blocks, through_torch
from .classifier import Outputs
from .logits import logsumexp

_BY_CLASS = {
    "classes": "int64 classes",
    "labelled": "bool",
    "centre": "float64 channels",
    "whitening": "float64 channels channels",
    "means": "float64 classes channels",
}


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

    name: ClassVar[str] = "mahalanobis"
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    forms: ClassVar[Mapping[str, str]] = _BY_CLASS

    floor: float = parameter(1e-6, above=0, below=1)

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> Mapping[str, Any]:
        classes, members = np.unique(_classes(outputs, labels), return_inverse=True)
        gaussians = _Gaussians.of(read_features(outputs), members, floor=self.floor)
        return {"classes": classes, "labelled": labels is not None, **vars(gaussians)}

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a squared distance without unit; about the number of channels in distribution."""
        return _Gaussians.learned(self.learned_).nearest(outputs)


@dataclass(kw_only=True)
class RelativeMahalanobis(OODDetector):
    """Mahalanobis distance to the nearest class mean, minus that to one Gaussian of all images.

    Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021:
    min_c MD_c(x) - MD_0(x), where MD_0 has the mean and the covariance of all images, classes ignored.

    Parameters
    ----------
    floor: as in `Mahalanobis`, for both covariances.
    """

    name: ClassVar[str] = "relative_mahalanobis"
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    forms: ClassVar[Mapping[str, str]] = _BY_CLASS | {
        "background_centre": "float64 channels",
        "background_whitening": "float64 channels channels",
        "background_means": "float64 one channels",
    }

    floor: float = parameter(1e-6, above=0, below=1)

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> Mapping[str, Any]:
        features = read_features(outputs)
        classes, members = np.unique(_classes(outputs, labels), return_inverse=True)
        gaussians = _Gaussians.of(features, members, floor=self.floor)
        background = _Gaussians.of(features, np.zeros_like(members), floor=self.floor)
        of_all = {f"background_{name}": value for name, value in vars(background).items()}
        return {"classes": classes, "labelled": labels is not None, **vars(gaussians), **of_all}

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a difference of squared distances, without unit."""
        gaussians, background = (_Gaussians.learned(self.learned_, of) for of in ("", "background_"))
        return gaussians.nearest(outputs) - background.nearest(outputs)


@dataclass(kw_only=True)
class NearestNeighbours(OODDetector):
    """Distance to the k-th nearest of the fit's images, between features scaled to length 1.

    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022; the search is exact.
    Features that are all 0 stay so.

    Parameters
    ----------
    k: which neighbour (the paper: 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet). No more than images.
    """

    name: ClassVar[str] = "knn"
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    forms: ClassVar[Mapping[str, str]] = {"bank": "float32 images channels", "centre": "float32 channels"}

    k: int = parameter(50, at_least=1)

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> Mapping[str, Any]:
        features = read_features(outputs)
        if len(features) < self.k:
            raise ArgumentError.about(
                "outputs",
                expected=f"at least k = {self.k} images",
                got=len(features),
                instead=f"Fit on more, or write k={len(features)}.",
            )
        directions = [_directions(features[rows]) for rows in row_blocks(*features.shape)]
        index = Exact().build(torch.from_numpy(np.concatenate(directions)))
        return {name: tensor.numpy() for name, tensor in index.state().items()}

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, a Euclidean distance from 0 to 2."""
        index = Exact().restore(self.state())

        def distances(queries: Tensor) -> Tensor:
            _, indices = index.search(queries, self.k)
            difference = queries.double() - index.vectors(indices[:, -1]).double()
            found: Tensor = torch.linalg.vector_norm(difference, dim=1)
            return found

        features = read_features(outputs, channels=len(self.learned_["centre"]))
        return by_rows(lambda rows: through_torch(distances, _directions(rows)), features)


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

    name: ClassVar[str] = "vim"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "head"})
    forms: ClassVar[Mapping[str, str]] = {
        "origin": "float64 channels",
        "residual": "float64 channels rest",
        "alpha": "float64",
    }

    dimensions: int | None = parameter(None, at_least=1)

    def _learn(self, outputs: Outputs, labels: NDArray[np.integer] | None) -> Mapping[str, Any]:
        features, logits, (weight, bias) = read_features(outputs), read_logits(outputs.logits), read_head(outputs)
        channels = features.shape[1]
        kept = _principal(channels) if self.dimensions is None else self.dimensions
        if not 1 <= kept < channels:
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
        return {"origin": origin, "residual": residual, "alpha": top / float(norm)}

    def _score(self, outputs: Outputs) -> Floats:
        """`(n,)`, in units of the logits."""
        origin, residual, alpha = (self.learned_[name] for name in self.forms)

        def score(x: Floats, z: Floats) -> Floats:
            length: Floats = np.linalg.norm((x - origin) @ residual, axis=1)
            return alpha * length - logsumexp(z)

        return by_rows(score, read_features(outputs, channels=len(origin)), read_logits(outputs.logits))


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

    @classmethod
    def learned(cls, arrays: Mapping[str, Floats], of: str = "") -> _Gaussians:
        """From what a detector learned, names beginning with `of`."""
        return cls(*(arrays[of + name] for name in ("centre", "whitening", "means")))

    def nearest(self, outputs: Outputs) -> Floats:
        """Squared Mahalanobis distance to the nearest mean, `(n,)`."""
        features = read_features(outputs, channels=len(self.centre))
        return by_rows(self._nearest, features, beside=sum(self.means.shape))

    def _nearest(self, x: Floats) -> Floats:
        white = (x - self.centre) @ self.whitening
        # |m|^2 - 2 x.m finds the mean; the distance itself comes from differences, which lose no digits.
        products = np.square(self.means).sum(axis=1) - 2 * (white @ self.means.T)
        nearest = np.take_along_axis(self.means, products.argmin(axis=1)[:, None], axis=0)
        squared: Floats = np.square(white - nearest).sum(axis=1)
        return squared


def _scatter(features: NDArray[np.floating], means: Floats, members: NDArray[np.intp]) -> Floats:
    """(1/n) sum (x - m)(x - m)^T, m the mean that each image belongs to: `(channels, channels)`."""
    channels = features.shape[1]
    total: Floats = np.zeros((channels, channels))
    for rows in row_blocks(len(features), channels):
        centred = features[rows].astype(np.float64) - means[members[rows]]
        total += centred.T @ centred
    return total / len(features)


def _classes(outputs: Outputs, labels: NDArray[np.integer] | None) -> NDArray[np.integer]:
    """A class for each image, `(n,)`: the one given, or else the one predicted."""
    logits = read_logits(outputs.logits)
    if labels is None:
        predicted: NDArray[np.integer] = logits.argmax(axis=1)
        return predicted
    given = np.asarray(labels)
    if given.shape != (len(logits),) or given.dtype.kind not in "iu":
        raise ArgumentError.about("labels", expected=f"whole numbers of shape ({len(logits)},)", got=given)
    if given.min() < 0 or given.max() >= logits.shape[1]:
        raise ArgumentError.about(
            "labels", expected=f"classes from 0 to {logits.shape[1] - 1}", got=f"{given.min()} to {given.max()}"
        )
    return given


def _principal(channels: int) -> int:
    if channels >= 2048:
        return 1000
    return 512 if channels >= 768 else channels // 2


def _directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scaled to length 1, `(n, channels)`."""
    x = features.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(length > 0, length, 1)).astype(np.float32)
