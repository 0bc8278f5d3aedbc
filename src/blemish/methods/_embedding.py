"""What the methods share that train a network to make one vector of an image.

A fit decodes every image once, trains, and freezes what came out: everything is scored, saved and restored through the
same extractor as in a method that trains nothing. The images do not change from step to step but for what a pure
function of (seed, step) does to them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..features.backbones import Backbone
from ..features.extract import Precision
from ..ops.neighbours import Exact, ExactIndex
from ..parameters import parameter
from ..training.loop import Course
from ..training.network import Network, build_network
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import FeatureMaps, ImageBatches, Scores
from ._base import FeatureMethod, FitPlan, announced


@dataclass(kw_only=True)
class EmbeddingMethod(FeatureMethod):
    """A method that trains a network to make one vector of an image; a concrete one fills in the hooks. No map.

    Parameters
    ----------
    taps: the one module whose output, averaged over positions, is the embedding; None: the backbone's deepest.
    epochs: passes over the normal images; 0 leaves the network as it begins, to be compared with.
    batch: images a step.
    rate, weight_decay: of the optimiser.
    checkpoint: a file to which the state goes after each epoch; a fit that finds it there goes on with it, and ends
        with the same scores as one that was never interrupted. Another one for each fit.
    time_limit: seconds after which the training ends with what is there; None: never.
    """

    reads_features = False

    taps: tuple[str] | None = parameter(None, option=True)
    precision: Precision = "float32"
    batch: int = parameter(32, at_least=1)
    checkpoint: str | None = parameter(None, role="place")
    time_limit: float | None = parameter(None, at_least=0, role="place")

    @abstractmethod
    def _parts(self) -> tuple[str, ...] | None:
        """Hook: names of the modules that are trained; None: the last two stages up to the tap."""

    @abstractmethod
    def _train(self, network: Network, pictures: Pictures, training: Training) -> Course:
        """Hook: train the network, by `training.run`."""

    def _kept_bytes(self, vector: int, images: int) -> int | None:
        """Hook: what stays of so many images, of `vector` bytes each, where that is not all their vectors."""

    def _learn(self, features: Iterator[FeatureMaps]) -> None:
        """Hook: learn what scoring needs from what the trained network makes of all images."""

    def _fit(self, images: ImageBatches) -> None:
        training = Training.of(self)
        with torch.inference_mode(False):
            pictures = Pictures.read(
                self._checked(images), of=self.name, expected=announced(images), left=self._pictures_left()
            )
            (tap,), row, device = self.tapped(), self._row(), self._device()
            network = build_network(
                row, self._initial_weights(), tap=tap, trained=self._parts(), seed=self.seed, device=device
            )
            self.course_ = self._train(network, pictures, training)
            self.extractor_ = self._extractor(network.body.state_dict())
            self._learn(self._seen(pixels) for pixels in pictures.batches())

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return (row.deepest or row.taps[-1],)

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        height, width = first.image_size
        vector = 4 * sum(m.shape[1] for m in first.maps)
        kept = self._kept_bytes(vector, images)
        vectors = images * vector
        model = vectors if kept is None else kept
        return FitPlan(model_bytes=model, peak_bytes=3 * height * width * images + 2 * max(model, vectors))


@dataclass(kw_only=True)
class PartlyTrained(EmbeddingMethod):
    """One that trains a backbone, or the end of one.

    Parameters
    ----------
    trained: names of the modules that are trained; None: the last two stages up to the tap.
    """

    trained: tuple[str, ...] | None = None

    def _parts(self) -> tuple[str, ...] | None:
        return self.trained


@dataclass(kw_only=True)
class NearestMethod(PartlyTrained):
    """One that scores by the mean squared distance to the nearest normal images.

    Parameters
    ----------
    k: how many neighbours.
    """

    k: int = parameter(1, at_least=1)

    @abstractmethod
    def _vectors(self, features: FeatureMaps) -> Tensor:
        """Hook: what is compared of each image, `(batch, channels)`."""

    def _learn(self, features: Iterator[FeatureMaps]) -> None:
        self.bank_ = bank_of(torch.cat([self._vectors(maps) for maps in features]), self.k)

    def _score(self, features: FeatureMaps) -> Scores:
        return nearest(self.bank_, self._vectors(features), self.k)

    def _learned(self) -> dict[str, Tensor]:
        return self.bank_.state()

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        self.bank_ = Exact().restore(learned)


def bank_of(vectors: Tensor, k: int) -> ExactIndex:
    """What finds the `k` nearest of the normal images' `(n, channels)` vectors."""
    if len(vectors) < k:
        raise ArgumentError.about("images", expected=f"at least k = {k} normal images", got=len(vectors))
    return Exact().build(vectors)


def nearest(bank: ExactIndex, vectors: Tensor, k: int) -> Scores:
    """The mean of the squared distances to the `k` nearest normal images."""
    squared, _ = bank.search(vectors, k)
    return Scores(squared.mean(dim=1), None)
