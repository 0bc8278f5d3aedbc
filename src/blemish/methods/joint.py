"""Joint optimisation, DOC: normal images close together, the classes of other images still apart (Perera, Patel,
"Learning Deep Features for One-Class Classification", IEEE Transactions on Image Processing 2019).

Two streams through the same weights: the loss is the compactness of a batch of normal images, plus lambda times the
cross-entropy of a batch of a labelled reference set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..datasets.labelled import open_labelled
from ..errors import ArgumentError
from ..images.preprocess import Preprocess
from ..images.source import Batches
from ..training.loop import SGD, Course, Recipe, batch_of
from ._trained import Network, Pictures, TrainedNeighbours, as_bytes


@dataclass(kw_only=True)
class Joint(TrainedNeighbours):
    """Distance to the nearest normal image, in features that are compact for normal ones and tell others apart. No map.

    Parameters
    ----------
    reference: labelled images of anything else: a folder with a folder for each class, or a file that
        `blemish.datasets.labelled.open_labelled` takes.
    head: `new` puts a linear layer for the classes of `reference` on the embedding, which begins as the classifier
        of equal round Gaussians; `pretrained` takes the backbone's own: `reference` must have its classes, in order.
    cross_entropy: lambda.
    """

    name: ClassVar[str] = "joint"

    k: int = 1
    epochs: int | None = 15
    reference: str | None = None
    head: Literal["new", "pretrained"] = "new"
    cross_entropy: float = 0.1
    rate: float = 5e-5
    weight_decay: float = 5e-5
    momentum: float = 0.0

    def _check_together(self) -> None:
        super()._check_together()
        if self.reference is None:
            raise ArgumentError.about(
                "reference", expected="a folder of class folders", got="None", instead="Any other labelled images do."
            )
        if self.head not in ("new", "pretrained"):
            raise ArgumentError.about("head", expected="new or pretrained", got=self.head)
        if self.batch < 2:
            raise ArgumentError.about("batch", expected="at least 2, for the compactness", got=self.batch)

    def _train(self, network: Network, pictures: Pictures, *, start: float) -> Course:
        others, labels = self._reference(pictures)
        logits_of = self._head(network, others, labels)

        def objective(step: int) -> dict[str, Tensor]:
            # Another seed than the normal images', or both would come in the same order.
            chosen = batch_of(len(others), min(self.batch, len(others)), seed=self.seed + 1, step=step)
            logits = logits_of(others.take(chosen))
            return {
                "compactness": compactness(network(self._draw(pictures, step))),
                "reference": self.cross_entropy * functional.cross_entropy(logits, labels[chosen].to(logits.device)),
            }

        sgd = SGD(rate=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        recipe = Recipe(optimiser=sgd, precision=self.precision)
        return self._optimise(objective, network, pictures, recipe=recipe, start=start)

    def _reference(self, pictures: Pictures) -> tuple[Pictures, Tensor]:
        """The reference images at the size of the normal ones, and their classes, `(n,)` int64."""
        labelled = open_labelled(str(self.reference), folders_are_classes=True)
        kept: list[Tensor] = []
        labels: list[int] = []
        for batch in Batches(labelled.source, Preprocess(pictures.size)):
            found = labelled.of(batch.names)
            if found is None:
                raise ArgumentError.about("reference", expected="images with labels", got="images without")
            kept += as_bytes(batch.pixels).unbind()
            labels += found.tolist()
        if len(set(labels)) < 2:
            raise ArgumentError.about("reference", expected="images of at least 2 classes", got=len(set(labels)))
        return Pictures(kept), torch.tensor(labels)

    def _head(self, network: Network, others: Pictures, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """From pixels of the reference set to logits."""
        if self.head == "pretrained":
            self._require_classifier()
            own = network.classify(others.take(torch.tensor([0])))[1].shape[1]
            if int(labels.max()) + 1 != own:
                raise ArgumentError.about("reference", expected=f"{own} classes", got=int(labels.max()) + 1)
            if self.trained is None:  # the classifier learns too
                behind = list(network.body.named_parameters())
                last = max(i for i, (_, parameter) in enumerate(behind) if parameter.requires_grad)
                for _, parameter in behind[last:]:
                    parameter.requires_grad_(True)
            return lambda pixels: network.classify(pixels)[1]
        vectors = self._vectors(network, others)
        head = gaussian_head(vectors, labels.to(vectors.device))
        network.head = head
        return lambda pixels: head(network(pixels))


def compactness(vectors: Tensor) -> Tensor:
    """(1 / n d) sum_i z_i . z_i, z_i being vector i of `(n, d)` minus the mean of the other ones."""
    n = len(vectors)
    others = (vectors.sum(dim=0) - vectors) / (n - 1)
    return (vectors - others).square().mean()


def gaussian_head(vectors: Tensor, labels: Tensor) -> nn.Linear:
    """The linear layer that is best for `(n, d)` vectors of Gaussian classes with one and the same round covariance."""
    classes = int(labels.max()) + 1
    means = torch.stack(
        [vectors[labels == i].mean(dim=0) if (labels == i).any() else vectors.mean(0) for i in range(classes)]
    )
    variance = (vectors - means[labels]).square().mean().clamp_min(1e-12)
    head = nn.Linear(vectors.shape[1], classes).to(vectors.device)
    with torch.no_grad():
        head.weight.copy_(means / variance)
        head.bias.copy_(-means.square().sum(dim=1) / (2 * variance))
    return head
