"""PANDA: pretrained features drawn together around the centre of the normal ones (Reiss, Cohen, Bergman, Hoshen,
"PANDA: Adapting Pretrained Features for Anomaly Detection and Segmentation", CVPR 2021).

The loss is ||f(x) - c||^2 / d with c the mean of the features before the training (section 3.2). Left alone it ends
with one point for everything, anomalies included; the three ways to `stop` before that are the paper's (sections 3.3
to 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..datasets.labelled import open_labelled
from ..errors import ArgumentError
from ..features.extract import Extractor
from ..features.patches import pool
from ..images.preprocess import Preprocess
from ..images.source import Batches
from ..training.loop import SGD, Course, Recipe, Watch
from ..types import ImageBatch, Scores
from ._base import check_batch
from ._trained import Network, Pictures, TrainedNeighbours, below

_HELD_OUT = 64
_EPOCHS = {"early": 15, "ses": 50, "ewc": 50}


@dataclass(kw_only=True)
class PANDA(TrainedNeighbours):
    """Distance to the nearest normal images, in features that were drawn together around their centre. No map.

    Parameters
    ----------
    epochs: None: 15 with stop='early', 50 with the others.
    stop: `early` trains for few epochs; `ses` keeps the network every `snapshot_every` epochs, and an image's score is
        the largest of its distances to the centre, each divided by its mean over the normal images; `ewc` holds every
        parameter back by `penalty` times its Fisher information.
    normalise: bring each embedding to length 1; how strongly a network fires says little about normality.
    choose: `last` takes the network after the last epoch; `criterion` the epoch at which the centre distance of held
        out normal images is smallest against that of the same images with their quarters shuffled. Recorded in
        `course_.looks`, smaller = better; a tenth of the images, at most 64, is then not trained on.
    penalty: lambda of `ewc`.
    fisher_images: folder of images of the task that the network was trained for; None: the normal images themselves.
    fisher_labels: `predicted` takes the network's own answer for the class of each; `folders` the folder, one a class.
    """

    name: ClassVar[str] = "panda"

    epochs: int | None = None
    stop: Literal["early", "ses", "ewc"] = "early"
    normalise: bool = False
    choose: Literal["last", "criterion"] = "last"
    snapshot_every: int = 5
    penalty: float = 1e4
    fisher_images: str | None = None
    fisher_labels: Literal["predicted", "folders"] = "predicted"
    rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 5e-5
    clip_norm: float = 1e-3

    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch of images."""
        if self.stop != "ses":
            return super().score(batch)
        self._require_fit("score")
        check_batch(batch)
        with torch.inference_mode():
            stages = [self._to_centre(pool(extractor(batch.pixels).maps[0])) for extractor in self._stages()]
            return Scores((torch.stack(stages) / self.means_[:, None]).amax(dim=0), None)

    def _check_together(self) -> None:
        super()._check_together()
        for name, known in (
            ("stop", tuple(_EPOCHS)),
            ("choose", ("last", "criterion")),
            ("fisher_labels", ("predicted", "folders")),
        ):
            if getattr(self, name) not in known:
                raise ArgumentError.about(name, expected=" or ".join(known), got=getattr(self, name))
        if type(self.snapshot_every) is not int or self.snapshot_every < 1:
            raise ArgumentError.about(
                "snapshot_every", expected="a whole number of at least 1", got=self.snapshot_every
            )
        if self.stop == "ses" and self.choose != "last":
            raise ArgumentError.about("choose", expected="last with stop='ses', which uses all", got=self.choose)
        if self.fisher_labels == "folders" and self.fisher_images is None:
            raise ArgumentError.about("fisher_images", expected="a folder of class folders", got="None")

    def _epochs(self) -> int:
        return self.epochs or _EPOCHS[self.stop]

    def _train(self, network: Network, pictures: Pictures, *, start: float) -> Course:
        before = self._embed(self._vectors(network, pictures))
        self.centre_ = before.mean(dim=0)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(self.seed))
        held_out = min(_HELD_OUT, len(pictures) // 10 or 1) if self.choose == "criterion" else 0
        penalty = self._penalty(network, pictures) if self.stop == "ewc" else None

        def objective(step: int) -> dict[str, Tensor]:
            vectors = self._embed(network(self._draw(pictures, step, among=order[held_out:])))
            terms = {"centre": centre_loss(vectors, self.centre_)}
            return terms if penalty is None else terms | {"ewc": penalty()}

        every = self._steps(len(pictures))
        watch, kept = None, None
        if self.choose == "criterion":
            shown = pictures.take(order[:held_out])
            watch = Watch(criterion=lambda _step: self._criterion(network, shown), every=every)
        elif self.stop == "ses":
            every *= self.snapshot_every
            kept = Snapshots(network.trained(), self._epochs() // self.snapshot_every)
            network.kept = kept  # so that a checkpoint holds them
            watch = Watch(criterion=lambda step: kept.keep(step // every), every=every, keep_best=False)
        sgd = SGD(rate=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        course = self._optimise(
            objective,
            network,
            pictures,
            recipe=Recipe(optimiser=sgd, clip_norm=self.clip_norm, precision=self.precision),
            start=start,
            watch=watch,
        )
        self.snapshots_: list[Extractor] = []
        if kept is not None:  # the last one is the network itself
            body = network.body.state_dict()
            earlier = [step // every for step, _ in course.looks if 0 < step < course.steps]
            self.snapshots_ = [self._freeze(body | kept.of(number)) for number in earlier]
        return course

    def _conclude(self, pictures: Pictures) -> None:
        super()._conclude(pictures)
        if self.stop == "ses":
            self.means_ = torch.stack([self._mean_distance(stage, pictures) for stage in self._stages()])

    def _mean_distance(self, extractor: Extractor, pictures: Pictures) -> Tensor:
        """Of the normal images to the centre, a scalar; above 0, also where all lie in it."""
        distances = torch.cat([self._to_centre(pool(maps.maps[0])) for maps in self._seen(extractor, pictures)])
        return distances.mean().clamp_min(torch.finfo(torch.float32).tiny)

    def _learned(self) -> dict[str, Tensor]:
        if self.stop != "ses":
            return super()._learned()
        learned = super()._learned() | {"origin": self.centre_, "means": self.means_}
        for i, extractor in enumerate(self.snapshots_):
            learned |= {f"snapshot{i}.{name}": value for name, value in extractor.state().items()}
        return learned

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        super()._relearn(learned)
        if self.stop == "ses":
            self.centre_, self.means_ = learned["origin"], learned["means"]
            parts = [below(learned, f"snapshot{i}.") for i in range(len(self.means_) - 1)]
            self.snapshots_ = [self._freeze(folded=part) for part in parts]

    def _stages(self) -> list[Extractor]:
        return [*self.snapshots_, self.extractor_]

    def _to_centre(self, vectors: Tensor) -> Tensor:
        return (self._embed(vectors) - self.centre_).square().sum(dim=1)

    def _embed(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors) if self.normalise else vectors

    def _criterion(self, network: Network, shown: Tensor) -> float:
        """Log ratio of the geometric means of the centre distances: of images, and with their quarters shuffled."""
        whole, shuffled = (self._to_centre(self._plain(network, part)) for part in (shown, shuffle_quarters(shown)))
        tiny = torch.finfo(torch.float32).tiny
        return float(whole.clamp_min(tiny).log().mean() - shuffled.clamp_min(tiny).log().mean())

    @staticmethod
    def _plain(network: Network, pixels: Tensor) -> Tensor:
        return torch.cat([network(part) for part in pixels.split(16)])  # type: ignore[no-untyped-call]

    def _penalty(self, network: Network, pictures: Pictures) -> Callable[[], Tensor]:
        """What `ewc` adds to the loss, as a function of the parameters that they then have."""
        self._require_classifier()
        parameters = network.trained()
        first = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        fisher = fisher_diagonal(lambda pixels: network.classify(pixels)[1], parameters, self._task(pictures))
        return lambda: ewc_penalty(parameters, first, fisher, self.penalty)

    def _task(self, pictures: Pictures) -> Iterator[tuple[Tensor, int | None]]:
        """Images of the pretraining task, `(1, 3, height, width)`, and their classes where they are known."""
        if self.fisher_images is None:
            for i in range(len(pictures)):
                yield pictures.take(torch.tensor([i])), None
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
    parts = [(fisher[name] * (parameter - first[name]).square()).sum() for name, parameter in parameters.items()]
    return weight / 2 * torch.stack(parts).sum()


def fisher_diagonal(
    logits_of: Callable[[Tensor], Tensor],
    parameters: dict[str, nn.Parameter],
    images: Iterable[tuple[Tensor, int | None]],
) -> dict[str, Tensor]:
    """Mean over images of the squared derivative of the cross-entropy; the class is the most likely one where None."""
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
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
            for i, parameter in enumerate(parameters.values()):
                self.register_buffer(f"{number}_{i}", torch.zeros_like(parameter))

    def keep(self, number: int) -> float:
        """Copy the parameters as they are; 0 is not kept."""
        for name, tensor in self.of(number).items() if number else ():
            tensor.copy_(self._parameters_kept[name].detach())
        return 0.0

    def of(self, number: int) -> dict[str, Tensor]:
        """The parameters at one time."""
        return {name: self.get_buffer(f"{number}_{i}") for i, name in enumerate(self._parameters_kept)}
