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
from ..errors import ArgumentError
from ..training.loop import SGD, Course, Recipe, generator
from ._trained import Network, Pictures, TrainedNeighbours


@dataclass(kw_only=True)
class MeanShifted(TrainedNeighbours):
    """Distance to the nearest normal images, in features trained so that views of an image agree. No map.

    Parameters
    ----------
    temperature: of the contrast.
    angular: also draw both views to the centre, which is then brought to length 1.
    """

    name: ClassVar[str] = "mean_shifted"

    epochs: int | None = 20
    batch: int = 64
    temperature: float = 0.25
    angular: bool = False
    rate: float = 1e-5
    weight_decay: float = 5e-5

    def _check_together(self) -> None:
        super()._check_together()
        if not self.temperature > 0:
            raise ArgumentError.about("temperature", expected="a number above 0", got=self.temperature)

    def _train(self, network: Network, pictures: Pictures, *, start: float) -> Course:
        centre = self._embed(self._vectors(network, pictures)).mean(dim=0)
        if self.angular:
            centre = functional.normalize(centre, dim=0)

        def objective(step: int) -> dict[str, Tensor]:
            random = generator(self.seed, step, "views")
            pixels = self._draw(pictures, step)
            views = [self._embed(network(random_view(pixels, random))) for _ in range(2)]
            terms = {"contrast": contrast(*(view - centre for view in views), temperature=self.temperature)}
            return terms | ({"angular": angular_loss(views[0], views[1], centre)} if self.angular else {})

        return self._optimise(
            objective,
            network,
            pictures,
            recipe=Recipe(optimiser=SGD(rate=self.rate, weight_decay=self.weight_decay), precision=self.precision),
            start=start,
        )

    def _embed(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors)


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
