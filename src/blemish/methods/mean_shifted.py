"""Mean-shifted contrastive loss: two views of an image shall agree as seen from the centre of the normal ones (Reiss,
Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection", AAAI 2023).

With f of length 1 and c the mean of f before the training, a view is (f - c) / |f - c|; the loss is NT-Xent on these
(equations 5 and 6). Seen from the origin instead, contrast would push normal images away from their centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..augment.views import random_view
from ..features.patches import pool
from ..parameters import parameter
from ..training.loop import SGD, Course, Recipe, generator
from ..training.network import Network
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import FeatureMaps
from ._embedding import NearestMethod


@dataclass(kw_only=True)
class MeanShifted(NearestMethod):
    """Distance to the nearest normal images, in features trained so that views of an image agree. No map.

    Parameters
    ----------
    temperature: of the contrast.
    angular: also draw both views to the centre, which is then brought to length 1.
    """

    name: ClassVar[str] = "mean_shifted"

    k: int = parameter(2, at_least=1)
    epochs: int = parameter(20, at_least=0)
    batch: int = parameter(64, at_least=1)
    temperature: float = parameter(0.25, above=0)
    angular: bool = False
    rate: float = parameter(1e-5, above=0)
    weight_decay: float = parameter(5e-5, at_least=0)

    def _train(self, network: Network, pictures: Pictures, training: Training) -> Course:
        centre = functional.normalize(network.vectors(pictures.batches())).mean(dim=0)
        if self.angular:
            centre = functional.normalize(centre, dim=0)

        def objective(step: int) -> dict[str, Tensor]:
            random = generator(self.seed, step, "views")
            pixels = pictures.draw(step, self.batch, seed=self.seed)
            views = [functional.normalize(network(random_view(pixels, random))) for _ in range(2)]
            terms = {"contrast": contrast(*(view - centre for view in views), temperature=self.temperature)}
            return terms | ({"angular": angular_loss(views[0], views[1], centre)} if self.angular else {})

        epoch = pictures.steps(self.batch)
        return training.run(
            objective,
            network,
            steps=self.epochs * epoch,
            recipe=Recipe(optimiser=SGD(rate=self.rate, weight_decay=self.weight_decay), precision=self.precision),
            content={"images": pictures.digest},
            every=epoch,
        )

    def _vectors(self, features: FeatureMaps) -> Tensor:
        return functional.normalize(pool(features.maps[0]))


def contrast(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent: -log of the share of its other view in sum over all others of exp(cosine / tau), mean over all views.

    Both `(n, d)`, of any length; row i of one and row i of the other are views of the same image.
    """
    unit = functional.normalize(torch.cat([first, second]).float())
    similar = unit @ unit.T / temperature
    similar = similar.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), -torch.inf)
    partner = torch.arange(len(unit), device=unit.device).roll(len(first))
    return functional.cross_entropy(similar, partner)


def angular_loss(first: Tensor, second: Tensor, centre: Tensor) -> Tensor:
    """Mean of ||f - c||^2 over the first views, and over the second."""
    return sum_of_squares(first - centre).mean() + sum_of_squares(second - centre).mean()


def sum_of_squares(vectors: Tensor) -> Tensor:
    """Of each row."""
    return vectors.square().sum(dim=1)
