"""Uninformed Students: anomalies by a teacher that students cannot follow (Bergmann, Fauser, Sattlegger, Steger,
"Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent Embeddings", CVPR 2020).

On normal images alone, M students of the teacher's architecture learn from random weights what it says of each patch.
Elsewhere they are wrong (regression error e), and differ from each other (predictive variance v).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from .. import persist
from ..errors import ArgumentError, NotEnoughMemoryError, NotFittedError
from ..features.descriptors import DIMENSION, PATCHES, PatchDescriptor, find_descriptor
from ..memory import available_bytes
from ..training.loop import Adam, Checkpoint, Cosine, Recipe, batch_of, generator, optimise
from ..types import ImageBatch, ImageBatches, Scores, Size
from ._base import Method, announced, check_batch
from ._trained import as_bytes, as_pixels
from ._training import log_progress, split_off

_CHECKPOINT_EVERY = 500
_RESCALE_IMAGES = 64
_CLIP_NORM = 5.0  # an image that is unlike the others must not undo what was learned from them


@dataclass(kw_only=True)
class Students(Method):
    """Students of a teacher that knows all images, taught on normal ones alone. Sharp maps; trains for long.

    Parameters
    ----------
    weights: file of the teacher, made by `blemish distil descriptor`, or a folder of them named
        `descriptor33.safetensors`; None: the built-in ones.
    patches: sides p of the receptive fields, of 17, 33 and 65; each has its own teacher and students, and scores are
        averaged.
    students: M, how many for each p.
    dense: a map value for every pixel; else for each 4 x 4 (p = 33) or 8 x 8 pixels (p = 65), enlarged, for a fraction
        of the time.
    fast: one student, trained on its largest errors, no predictive variance, and maps that are not dense.
    hard: with `fast`, the share of the squared errors of a step, the largest ones, that are trained on.
    steps: of the training. At each of them all students learn from one image.
    grid: side of the square of descriptors that a student learns from at a step; of neighbouring fields, p = 17, 1,
        p = 33, 4, and p = 65, 8 pixels apart.
    rate, weight_decay: of Adam; the rate falls to 0 along half a cosine.
    validation: share of the normal images that are not learned from; e and v are normalised by what they are there.
    checkpoint: file to go on from after a kill; written every 500 steps.
    time_limit: seconds of training after which it ends with what there is.
    seed: for everything random.
    device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
    """

    name: ClassVar[str] = "students"

    weights: str | Path | None = None
    patches: tuple[int, ...] = (33,)
    students: int = 3
    dense: bool = True
    fast: bool = False
    hard: float = 0.05
    steps: int = 2000
    grid: int = 16
    rate: float = 1e-3
    weight_decay: float = 1e-5
    validation: float = 0.1
    checkpoint: str | None = None
    time_limit: float | None = None
    seed: int = 0
    device: str = "auto"

    def fit(self, images: ImageBatches) -> Students:
        """Learn from normal images, which stay in memory meanwhile; forgets earlier fits."""
        self._check()
        self.__dict__.pop("scales_", None)  # half a model must not score
        scales = {p: self._scale(find_descriptor(p, self.weights)) for p in self.patches}
        kept = _remember(images)
        learned, held_out = (
            [kept[i] for i in some.tolist()] for some in split_off(len(kept), self.validation, seed=self.seed)
        )
        for scale in scales.values():
            crops = (scale.crop(_pixels(image), self._random(i, scale)) for i, image in enumerate(learned))
            scale.fit_targets(crops)
            some = range(0, len(learned), -(-len(learned) // _RESCALE_IMAGES))
            scale.rescale([scale.crop(_pixels(learned[i]), self._random(i, scale)) for i in some])
        self._train(scales, learned)
        for scale in scales.values():
            scale.fit_errors(_pixels(image) for image in held_out)
        self.scales_ = scales
        return self

    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch of images."""
        self._require_fit("score")
        _check_pixels(batch)
        with torch.inference_mode():
            maps = torch.stack([scale.map(batch.pixels) for scale in self.scales_.values()]).mean(dim=0)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def state(self) -> dict[str, Tensor]:
        """Teachers and students in half precision, and what normalises targets and errors, below the patch's side."""
        self._require_fit("state")
        return {
            f"{p}.{name}": tensor.half() if ".layers." in name else tensor
            for p, scale in self.scales_.items()
            for name, tensor in scale.state_dict().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Build the networks again, and give them their weights."""
        scales: dict[int, _Scale] = {}
        students = {name.split(".")[2] for name in state if name.split(".")[1:2] == ["students"]}
        if len(students) != (1 if self.fast else self.students):  # before that many are made
            raise ArgumentError.about("students", expected=f"{self.students} of them", got=len(students))
        for p in self.patches:
            own = {k.removeprefix(f"{p}."): tensor for k, tensor in state.items() if k.startswith(f"{p}.")}
            scales[p] = self._scale(PatchDescriptor(p, width=float(own["width"])))
            scales[p].load_state_dict(own)
        self.scales_ = scales

    def _check(self) -> None:
        known = tuple(p for p in PATCHES if p > 17) if self.fast else PATCHES
        if not self.patches or len(set(self.patches)) < len(self.patches) or not set(self.patches) <= set(known):
            raise ArgumentError.about(
                "patches", expected=f"some of {', '.join(map(str, known))}{' with fast' * self.fast}", got=self.patches
            )
        for name in ("students", "steps", "grid"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError.about(name, expected="a whole number of at least 1", got=value)
        for name, expected, right in (
            ("hard", "a number above 0, at most 1", 0 < self.hard <= 1),
            ("validation", "a share between 0 and 1", 0 < self.validation < 1),
            ("rate", "a number above 0", self.rate > 0),
            ("time_limit", "None or a number of seconds above 0", self.time_limit is None or self.time_limit > 0),
        ):
            if not right:
                raise ArgumentError.about(name, expected=expected, got=getattr(self, name))

    def _scale(self, teacher: PatchDescriptor) -> _Scale:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            scale = _Scale(
                teacher, 1 if self.fast else self.students, grid=self.grid, dense=self.dense and not self.fast
            )
        return scale.to(self._device())

    def _random(self, step: int, scale: _Scale, use: str = "targets") -> torch.Generator:
        return generator(self.seed, step, f"{use} {scale.teacher.patch}")

    def _train(self, scales: dict[int, _Scale], images: list[Tensor]) -> None:
        hard = self.hard if self.fast else None

        def objective(step: int) -> dict[str, Tensor]:
            (image,) = batch_of(len(images), 1, seed=self.seed, step=step).tolist()
            pixels = _pixels(images[image])
            return {
                f"p = {p}": scale.loss(scale.crop(pixels, self._random(step, scale, "crop")), hard=hard)
                for p, scale in scales.items()
            }

        module = nn.ModuleDict({f"{p} {i}": s for p, scale in scales.items() for i, s in enumerate(scale.students)})
        teachers = {f"{p} {k}": t for p, scale in scales.items() for k, t in scale.teacher.state_dict().items()}
        identity: dict[str, str | int | float | None] = {
            "images": persist.digest({str(i): image for i, image in enumerate(images)}),
            "teachers": persist.digest(teachers), "grid": self.grid, "hard": hard,
        }  # fmt: skip
        optimise(
            objective,
            module,
            steps=self.steps,
            recipe=Recipe(
                optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay),
                schedule=Cosine(steps=self.steps),
                clip_norm=_CLIP_NORM,
                clip_each=True,
            ),
            seed=self.seed,
            checkpoint=None
            if self.checkpoint is None
            else Checkpoint(path=Path(self.checkpoint), every=_CHECKPOINT_EVERY, identity=identity),
            time_limit=self.time_limit,
            progress=log_progress(self.name),
        )

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.zeros((), device=self.device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError.about(
                "device", expected="auto, cpu, cuda or cuda:N, present here", got=f"{self.device} ({reason})"
            ) from None

    def _require_fit(self, what: str) -> None:
        if not hasattr(self, "scales_"):
            raise NotFittedError(f"Students.{what} needs a fitted method. Call fit(normal_images) first.")


def regression_error_and_variance(outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """e = ||mean_i mu_i - y||^2 and v = mean_i ||mu_i||^2 - ||mean_i mu_i||^2, each `(batch, h, w)`.

    Of the output of each student, and targets, all `(batch, channel, h, w)`. v is taken as mean_i ||mu_i - mean||^2,
    which is the same and does not cancel.
    """
    mean = sum(outputs[1:], outputs[0]) / len(outputs)  # `torch.stack(outputs).mean(dim=0)` takes 13 times as long
    variances = [(output - mean).square_().sum(dim=1) for output in outputs]
    return (mean - targets).square_().sum(dim=1), torch.stack(variances).mean(dim=0)


def hard_loss(squared: Tensor, share: float) -> Tensor:
    """Mean of the largest `share` of all squared errors (Batzner, Heckler, König, "EfficientAD", WACV 2024, eq. 2)."""
    return squared.flatten().topk(max(1, round(share * squared.numel()))).values.mean()


class _Scale(nn.Module):
    """Teacher and students of one patch size, and what normalises targets and errors."""

    width: Tensor
    target_mean: Tensor
    target_factor: Tensor
    error_mean: Tensor
    error_factor: Tensor

    def __init__(self, teacher: PatchDescriptor, students: int, *, grid: int, dense: bool) -> None:
        super().__init__()
        self.grid, self.dense = grid, dense
        self.teacher = teacher.requires_grad_(False)
        self.students = nn.ModuleList(PatchDescriptor(teacher.patch, width=teacher.width) for _ in range(students))
        self.register_buffer("width", torch.tensor(teacher.width, dtype=torch.float64))
        for name, shape in (("target", (DIMENSION, 1, 1)), ("error", (2, 1, 1))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_factor", torch.ones(shape))

    @torch.no_grad()
    def fit_targets(self, crops: Iterable[Tensor]) -> None:
        """Take mean and deviation of each of the teacher's numbers over these crops."""
        self.target_mean, self.target_factor = _normalisation(self.teacher.inside(c, dense=False) for c in crops)

    def rescale(self, crops: list[Tensor]) -> None:
        """Rescale the students' new weights on these crops."""
        for student in self._students():
            student.rescale(crops)

    @torch.no_grad()
    def fit_errors(self, images: Iterable[Tensor]) -> None:
        """Take mean and deviation of e and v over these images, of students as precise as a model file keeps them.

        Over fields `stride` pixels apart: those between have nearly the same, and take most of the time.
        """
        for parameter in self.students.requires_grad_(False).parameters():
            parameter.copy_(parameter.half())
        self.error_mean, self.error_factor = _normalisation(self.errors(image, dense=False) for image in images)

    def crop(self, pixels: Tensor, random: torch.Generator) -> Tensor:
        """Cut a part out of one mirrored image, anywhere, that holds `grid` x `grid` fields, or all there are."""
        padded, field, stride = self.teacher.padded(pixels), self.teacher.field, self.teacher.stride
        starts, sides = [], []
        for length in padded.shape[2:]:
            sides.append(field + stride * min(self.grid - 1, (length - field) // stride))
            starts.append(int(torch.randint(length - sides[-1] + 1, (), generator=random)))
        (top, left), (height, width) = starts, sides
        return padded[:, :, top : top + height, left : left + width].to(self.width.device)

    def loss(self, crop: Tensor, *, hard: float | None) -> Tensor:
        """Mean of ||mu_i - y||^2, or of its `hard` part, summed over the students: each learns as if it were alone."""
        targets = self._targets(crop, dense=False)
        squared = [(student.inside(crop, dense=False) - targets).square() for student in self._students()]
        parts = [each.sum(dim=1).mean() if hard is None else hard_loss(each, hard) for each in squared]
        return torch.stack(parts).sum()

    def errors(self, pixels: Tensor, *, dense: bool) -> Tensor:
        """Measure e and v, `(batch, 2, h, w)`, of every field or every `stride`-th.

        One image at a time, in strips, so that memory stays bounded.
        """
        images = [pixels[i : i + 1].to(self.width.device) for i in range(len(pixels))]
        return torch.cat([torch.cat(list(self._strips_of_errors(image, dense)), dim=2) for image in images])

    def map(self, pixels: Tensor) -> Tensor:
        """(e - e_mu) / e_sigma + (v - v_mu) / v_sigma, `(batch, height, width)` at the size of the images."""
        grid = ((self.errors(pixels, dense=self.dense) - self.error_mean) * self.error_factor).sum(dim=1)
        height, width = pixels.shape[2:]
        return grid if self.dense else _enlarge(grid, self.teacher.stride, (height, width))

    def _strips_of_errors(self, image: Tensor, dense: bool) -> Iterator[Tensor]:
        for _, _, strip in self.teacher.strips(image, dense=dense):
            outputs = [student.inside(strip, dense=dense) for student in self._students()]
            targets = self._targets(strip, dense=dense)
            yield torch.stack(regression_error_and_variance(outputs, targets), dim=1)

    def _targets(self, pixels: Tensor, *, dense: bool) -> Tensor:
        with torch.no_grad():
            return (self.teacher.inside(pixels, dense=dense) - self.target_mean) * self.target_factor

    def _students(self) -> list[PatchDescriptor]:
        return [student for student in self.students if isinstance(student, PatchDescriptor)]


def _normalisation(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation (0 where that is 0) of the channels of `(batch, channel, h, w)`: `(channel, 1, 1)`."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        rows = part.movedim(1, -1).flatten(0, -2).double()
        count, total, squares = count + len(rows), total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    factor = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0)
    return mean.float()[:, None, None], factor.float()[:, None, None]


def _enlarge(grid: Tensor, factor: int, size: Size) -> Tensor:
    """Enlarge `(batch, h, w)` bilinearly, each value in the middle of its `factor` x `factor` pixels, to this size."""
    large = interpolate(grid[:, None], scale_factor=factor, mode="bilinear")
    missing = [max(0, size[0] - large.shape[2]), max(0, size[1] - large.shape[3])]
    return pad(large, (0, missing[1], 0, missing[0]), mode="replicate")[:, 0, : size[0], : size[1]]


def _remember(images: ImageBatches) -> list[Tensor]:
    """Hold all images in memory, for they come in random order: each `(3, height, width)`, in bytes where these do."""
    expected, free = announced(images), available_bytes()
    kept: list[Tensor] = []
    for batch in images:
        _check_pixels(batch)
        small = as_bytes(batch.pixels)
        needed = (expected or 0) * small[0].numel() * small.element_size()
        if free is not None and needed > 0.9 * free:
            raise NotEnoughMemoryError(
                f"images: {expected} of them take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. "
                "Make them smaller (--resize), or give fewer."
            )
        kept += small.unbind()
    return kept


def _check_pixels(batch: ImageBatch) -> None:
    """Refuse bad pixels also where features come with them: these are of no use here."""
    check_batch(replace(batch, features=None) if isinstance(batch, ImageBatch) else batch)


def _pixels(image: Tensor) -> Tensor:
    return as_pixels(image[None])
