"""PANDA: pretrained features drawn together around the centre of the normal ones (Reiss, Cohen, Bergman, Hoshen,
"PANDA: Adapting Pretrained Features for Anomaly Detection and Segmentation", CVPR 2021).

The loss is ||f(x) - c||^2 / d with c the mean of the features before the training (section 3.2). Left alone it ends
with one point for everything, anomalies included; the three ways to `stop` before that are the paper's (sections 3.3
to 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..datasets.labelled import open_labelled
from ..errors import ArgumentError
from ..features.costs import hollow
from ..features.extract import Extractor
from ..features.patches import pool
from ..images.preprocess import Preprocess
from ..images.source import Batches
from ..ops.neighbours import Exact
from ..parameters import parameter
from ..tensors import below
from ..training.loop import SGD, Course, Recipe, Watch
from ..training.network import Network
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import FeatureMaps, Scores
from ._embedding import PartlyTrained, bank_of, nearest

_HELD_OUT = 64
_EPOCHS = {"early": 15, "ses": 50, "ewc": 50}
_TINY = torch.finfo(torch.float32).tiny


@dataclass(kw_only=True)
class PANDA(PartlyTrained):
    """Distance to the nearest normal images, in features that were drawn together around their centre. No map.

    Parameters
    ----------
    k: how many neighbours.
    epochs: passes over the normal images; None: 15 with stop='early', 50 with the others; 0: none, to be compared with.
    stop: `early` trains for few epochs; `ses` keeps the network every `snapshot_every` epochs, and an image's score is
        the largest of its distances to the centre, each divided by its mean over the normal images; `ewc` holds every
        parameter back by `penalty` times its Fisher information.
    normalise: bring each embedding to length 1; how strongly a network fires says little about normality.
    choose: `last` takes the network after the last epoch; `criterion` the epoch at which the centre distance of held
        out normal images is smallest against that of the same images with their quarters shuffled. Recorded in
        `course_.looks`, smaller = better; a tenth of the images, at most 64, is then not trained on.
    snapshot_every: epochs between two networks that `ses` keeps.
    penalty: lambda of `ewc` (the paper: 1e4); None: such that a move as far as the training can go, in a direction of
        average Fisher information, costs as much as the loss at the start.
    fisher_images: folder of images of the task that the network was trained for; None: the normal images themselves.
    fisher_labels: `predicted` takes the network's own answer for the class of each; `folders` the folder, one a class.
    momentum: of the gradients; 0: none.
    clip_norm: gradients with a joint norm above this are scaled down to it.
    """

    name: ClassVar[str] = "panda"
    paper: ClassVar[dict[str, object]] = {"penalty": 1e4}

    k: int = parameter(2, at_least=1)
    epochs: int | None = parameter(None, at_least=0)
    stop: Literal["early", "ses", "ewc"] = "early"
    normalise: bool = False
    choose: Literal["last", "criterion"] = "last"
    snapshot_every: int = parameter(5, at_least=1)
    penalty: float | None = parameter(None, at_least=0)
    fisher_images: str | None = None
    fisher_labels: Literal["predicted", "folders"] = "predicted"
    rate: float = parameter(1e-2, above=0)
    momentum: float = parameter(0.9, at_least=0, below=1)
    weight_decay: float = parameter(5e-5, at_least=0)
    clip_norm: float = parameter(1e-3, above=0)

    def _check_together(self) -> None:
        if self.stop == "ses" and self.choose != "last":
            raise ArgumentError.about("choose", expected="last with stop='ses', which uses all", got=self.choose)
        if self.fisher_labels == "folders" and self.fisher_images is None:
            raise ArgumentError.about("fisher_images", expected="a folder of class folders", got="None")

    def _kept_bytes(self, vector: int, images: int) -> int | None:
        networks = max(0, -(-self._epochs() // self.snapshot_every) - 1) if self.stop == "ses" else 0
        if not networks:
            return None
        # With what lies behind the tap, and is not kept: to find that out the network would have to run.
        parameters = sum(weights.numel() for weights in hollow(self._row().build).parameters())
        return images * vector + networks * 4 * parameters

    def _further_extractors(self) -> Sequence[Extractor]:
        return self.snapshots_

    def _train(self, network: Network, pictures: Pictures, training: Training) -> Course:
        self.centre_ = self._embed(network.vectors(pictures.batches())).mean(dim=0)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(self.seed))
        held_out = min(_HELD_OUT, len(pictures) // 10 or 1) if self.choose == "criterion" else 0
        learned = pictures.subset(order[held_out:])
        epoch, epochs = pictures.steps(self.batch), self._epochs()
        penalty = self._penalty(network, pictures, epochs * epoch) if self.stop == "ewc" else None

        def objective(step: int) -> dict[str, Tensor]:
            vectors = self._embed(network(learned.draw(step, self.batch, seed=self.seed)))
            terms = {"centre": centre_loss(vectors, self.centre_)}
            return terms if penalty is None else terms | {"ewc": penalty()}

        watch, kept, apart = None, None, epoch * self.snapshot_every
        if self.choose == "criterion":
            shown = pictures.take(order[:held_out])
            watch = Watch(criterion=lambda _step: self._criterion(network, shown), every=epoch)
        elif self.stop == "ses":
            kept = Snapshots(network.trained(), epochs // self.snapshot_every)
            network.kept = kept  # so that a checkpoint holds them
            watch = Watch(criterion=lambda step: kept.keep(step // apart), every=apart, keep_best=False)
        sgd = SGD(rate=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        course = training.run(
            objective,
            network,
            steps=epochs * epoch,
            recipe=Recipe(optimiser=sgd, clip_norm=self.clip_norm, precision=self.precision),
            content={"images": pictures.digest},
            every=epoch,
            watch=watch,
        )
        self.snapshots_: list[Extractor] = []
        if kept is not None:  # the last one is the network itself
            body = network.body.state_dict()
            earlier = [step // apart for step, _ in course.looks if 0 < step < course.steps]
            self.snapshots_ = [self._extractor(body | kept.of(number)) for number in earlier]
        return course

    def _learn(self, features: Iterator[FeatureMaps]) -> None:
        seen = zip(*(self._stages(maps) for maps in features), strict=True)
        stages = [torch.cat(vectors) for vectors in seen]
        self.bank_ = bank_of(stages[-1], self.k)
        # Above 0, also where all normal images lie in the centre.
        self.means_ = torch.stack([self._to_centre(vectors).mean().clamp_min(_TINY) for vectors in stages])

    def _score(self, features: FeatureMaps) -> Scores:
        stages = self._stages(features)
        if self.stop != "ses":
            return nearest(self.bank_, stages[-1], self.k)
        distances = torch.stack([self._to_centre(vectors) for vectors in stages])
        return Scores((distances / self.means_[:, None]).amax(dim=0), None)

    def _learned(self) -> dict[str, Tensor]:
        learned = self.bank_.state()
        if self.stop == "ses":
            learned |= {"origin": self.centre_, "means": self.means_}
        for i, extractor in enumerate(self.snapshots_):
            learned |= {f"snapshot{i}.{name}": value for name, value in extractor.state().items()}
        return learned

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        self.bank_, self.snapshots_ = Exact().restore(learned), []
        if self.stop == "ses":
            self.centre_, self.means_ = learned["origin"], learned["means"]
            parts = [below(learned, f"snapshot{i}.") for i in range(len(self.means_) - 1)]
            self.snapshots_ = [self._extractor(folded=part) for part in parts]

    def _stages(self, features: FeatureMaps) -> list[Tensor]:
        """The embeddings by the network at each time that was kept, the last one at the end."""
        last, *earlier = (self._embed(pool(m)) for m in features.maps)
        return [*earlier, last]

    def _embed(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors) if self.normalise else vectors

    def _to_centre(self, vectors: Tensor) -> Tensor:
        return (vectors - self.centre_).square().sum(dim=1)

    def _epochs(self) -> int:
        return _EPOCHS[self.stop] if self.epochs is None else self.epochs

    def _criterion(self, network: Network, shown: Tensor) -> float:
        """Log ratio of the geometric means of the centre distances: of images, and with their quarters shuffled."""
        parts = (part.split(16) for part in (shown, shuffle_quarters(shown)))  # type: ignore[no-untyped-call]
        whole, shuffled = (self._to_centre(self._embed(network.vectors(part))) for part in parts)
        return float(whole.clamp_min(_TINY).log().mean() - shuffled.clamp_min(_TINY).log().mean())

    def _penalty(self, network: Network, pictures: Pictures, steps: int) -> Callable[[], Tensor]:
        """What `ewc` adds to the loss, as a function of the parameters that they then have."""
        parameters = network.trained()
        first = {name: weight.detach().clone() for name, weight in parameters.items()}
        fisher = fisher_diagonal(lambda pixels: network.classify(pixels)[1], parameters, self._task(pictures))
        weight = self.penalty
        if weight is None:
            with torch.no_grad():
                vectors = self._embed(network.vectors(pictures.batches()))
                loss = float(centre_loss(vectors, self.centre_))
                size = float(torch.stack([weights.square().sum() for weights in first.values()]).sum().sqrt())
            # Weight decay comes on top of clipped gradients.
            pull = self.clip_norm + self.weight_decay * size
            weight = ewc_weight(fisher, loss, self.rate * pull / (1 - self.momentum) * steps)
        self.penalty_ = weight
        return lambda: ewc_penalty(parameters, first, fisher, weight)

    def _task(self, pictures: Pictures) -> Iterator[tuple[Tensor, int | None]]:
        """Images of the pretraining task, `(1, 3, height, width)`, and their classes where they are known."""
        if self.fisher_images is None:
            yield from ((image, None) for image in pictures.batches(1))
            return
        labelled = open_labelled(self.fisher_images, folders_are_classes=self.fisher_labels == "folders")
        for batch in Batches(labelled.source, Preprocess(pictures.size)):
            labels = labelled.of(batch.names) if self.fisher_labels == "folders" else None
            for i, image in enumerate(batch.pixels.split(1)):  # type: ignore[no-untyped-call]
                yield image, None if labels is None else int(labels[i])


def centre_loss(vectors: Tensor, centre: Tensor) -> Tensor:
    """||f - c||^2 / d, mean over `(n, d)` vectors."""
    return (vectors - centre).square().mean()


def ewc_penalty(
    parameters: dict[str, nn.Parameter], first: dict[str, Tensor], fisher: dict[str, Tensor], weight: float
) -> Tensor:
    """lambda / 2 sum_i F_i (theta_i - theta*_i)^2 (Kirkpatrick et al. 2017, equation 3)."""
    parts = [(fisher[name] * (weights - first[name]).square()).sum() for name, weights in parameters.items()]
    return weight / 2 * torch.stack(parts).sum()


def ewc_weight(fisher: dict[str, Tensor], loss: float, distance: float) -> float:
    """lambda with which lambda / 2 (trace F / n) distance^2 is the loss; 0 where the training goes nowhere."""
    trace = sum(float(values.sum()) for values in fisher.values())
    cost = trace / sum(values.numel() for values in fisher.values()) * distance**2 / 2
    return loss / cost if cost > 0 else 0.0


def fisher_diagonal(
    logits_of: Callable[[Tensor], Tensor],
    parameters: dict[str, nn.Parameter],
    images: Iterable[tuple[Tensor, int | None]],
) -> dict[str, Tensor]:
    """Mean over images of the squared derivative of the cross-entropy; the class is the most likely one where None."""
    total = {name: torch.zeros_like(weights) for name, weights in parameters.items()}
    count = 0
    for pixels, label in images:
        with torch.enable_grad():
            logits = logits_of(pixels)
            if label is not None and label >= logits.shape[1]:
                raise ArgumentError.about("fisher_images", expected=f"{logits.shape[1]} classes", got=f"class {label}")
            wanted = logits.argmax(dim=1) if label is None else torch.tensor([label], device=logits.device)
            loss = functional.cross_entropy(logits, wanted)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
        count += 1
    if not count:
        raise ArgumentError.about("fisher_images", expected="at least 1 image", got="none")
    return {name: value / count for name, value in total.items()}


def shuffle_quarters(pixels: Tensor) -> Tensor:
    """Exchange the quarters of `(n, 3, height, width)` diagonally: what is left of an image is its texture."""
    return pixels.roll((pixels.shape[2] // 2, pixels.shape[3] // 2), dims=(2, 3))


class Snapshots(nn.Module):
    """Copies of parameters at several times, as buffers."""

    def __init__(self, parameters: dict[str, nn.Parameter], count: int) -> None:
        super().__init__()
        self._parameters_kept = parameters
        for number in range(1, count + 1):
            for i, weights in enumerate(parameters.values()):
                self.register_buffer(f"{number}_{i}", torch.zeros_like(weights))

    def keep(self, number: int) -> float:
        """Copy the parameters as they are; 0 is not kept."""
        for name, tensor in self.of(number).items() if number else ():
            tensor.copy_(self._parameters_kept[name].detach())
        return 0.0

    def of(self, number: int) -> dict[str, Tensor]:
        """The parameters at one time."""
        return {name: self.get_buffer(f"{number}_{i}") for i, name in enumerate(self._parameters_kept)}
