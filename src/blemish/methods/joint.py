"""Joint optimisation, DOC: normal images close together, the classes of other images still apart (Perera, Patel,
"Learning Deep Features for One-Class Classification", IEEE Transactions on Image Processing 2019).

Two streams through the same weights: the loss is the cross-entropy of a batch of a labelled reference set, plus lambda
times the compactness of a batch of normal images.
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
from ..features.patches import pool
from ..images.preprocess import Preprocess
from ..images.source import Batches
from ..parameters import parameter
from ..training.loop import SGD, Course, Recipe, batch_of
from ..training.network import Network
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import FeatureMaps
from ._embedding import NearestMethod


@dataclass(kw_only=True)
class Joint(NearestMethod):
    """Distance to the nearest normal image, in features that are compact for normal ones and tell others apart. No map.

    Parameters
    ----------
    batch: images a step, of the normal and of the reference set; at least 2 for the compactness.
    reference: labelled images of anything else: a folder with a folder for each class, or a file that
        `blemish.datasets.labelled.open_labelled` takes.
    head: `new` puts a linear layer for the classes of `reference` on the embedding, which begins as the classifier
        of equal round Gaussians; `pretrained` takes the backbone's own: `reference` must have its classes, in order.
    compactness: lambda, the weight of the compactness beside the cross-entropy of the reference set (the paper: 0.1).
    normalise: bring each embedding of d numbers to length sqrt(d) before compactness and distances; how strongly a
        network fires says little about normality. Their squares then average 1, so that lambda keeps its meaning.
    momentum: of the gradients; 0: none.
    """

    name: ClassVar[str] = "joint"

    epochs: int = parameter(15, at_least=0)
    batch: int = parameter(32, at_least=2)
    reference: str | None = None
    head: Literal["new", "pretrained"] = "new"
    compactness: float = parameter(0.1, at_least=0)
    normalise: bool = False
    rate: float = parameter(5e-5, above=0)
    weight_decay: float = parameter(5e-5, at_least=0)
    momentum: float = parameter(0.0, at_least=0, below=1)

    def _check_together(self) -> None:
        if self.reference is None:
            raise ArgumentError.about(
                "reference", expected="a folder of class folders", got="None", instead="Any other labelled images do."
            )

    def _train(self, network: Network, pictures: Pictures, training: Training) -> Course:
        others, labels = self._reference(pictures)
        logits_of = self._head(network, others, labels)

        def objective(step: int) -> dict[str, Tensor]:
            # Another seed than the normal images', or both would come in the same order.
            chosen = batch_of(len(others), min(self.batch, len(others)), seed=self.seed + 1, step=step)
            logits = logits_of(others.take(chosen))
            vectors = network(pictures.draw(step, self.batch, seed=self.seed))
            return {
                "compactness": self.compactness * leave_one_out_compactness(self._embed(vectors)),
                "reference": functional.cross_entropy(logits, labels[chosen].to(logits.device)),
            }

        sgd = SGD(rate=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        epoch = pictures.steps(self.batch)
        return training.run(
            objective,
            network,
            steps=self.epochs * epoch,
            recipe=Recipe(optimiser=sgd, precision=self.precision),
            content={"images": pictures.digest, "reference images": others.digest},
            every=epoch,
        )

    def _vectors(self, features: FeatureMaps) -> Tensor:
        return self._embed(pool(features.maps[0]))

    def _embed(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors) * vectors.shape[1] ** 0.5 if self.normalise else vectors

    def _reference(self, pictures: Pictures) -> tuple[Pictures, Tensor]:
        """The reference images at the size of the normal ones, and their classes, `(n,)` int64."""
        labelled = open_labelled(str(self.reference), folders_are_classes=True)
        labels = labelled.of(labelled.source.names)
        if labels is None:
            raise ArgumentError.about("reference", expected="images with labels", got="images without")
        classes = set(labels.tolist())
        if len(classes) < 2:
            raise ArgumentError.about("reference", expected="images of at least 2 classes", got=len(classes))
        batches = Batches(labelled.source, Preprocess(pictures.size))
        others = Pictures.read(batches, of="reference", expected=len(batches), left=self._pictures_left())
        return others, torch.from_numpy(labels)

    def _head(self, network: Network, others: Pictures, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """From pixels of the reference set to logits."""
        if self.head == "pretrained":
            own = network.classify(others.take(torch.tensor([0])))[1].shape[1]
            if int(labels.max()) + 1 != own:
                raise ArgumentError.about("reference", expected=f"{own} classes", got=int(labels.max()) + 1)
            if self.trained is None:  # the classifier learns too
                behind = list(network.body.named_parameters())
                last = max(i for i, (_, trained) in enumerate(behind) if trained.requires_grad)
                for _, weight in behind[last:]:
                    weight.requires_grad_(True)
            return lambda pixels: network.classify(pixels)[1]
        vectors = network.vectors(others.batches())
        head = gaussian_head(vectors, labels.to(vectors.device))
        network.head = head
        return lambda pixels: head(network(pixels))


def leave_one_out_compactness(vectors: Tensor) -> Tensor:
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
