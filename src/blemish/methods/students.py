"""Uninformed Students: anomalies by a teacher that students cannot follow (Bergmann, Fauser, Sattlegger, Steger,
"Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent Embeddings", CVPR 2020).

On normal images alone, M students of the teacher's architecture learn from random weights what it says of each patch.
Elsewhere they are wrong (regression error e), and differ from each other (predictive variance v).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, pad

from .. import persist
from ..device import find_device
from ..errors import ArgumentError
from ..features.descriptors import DIMENSION, PATCHES, PatchDescriptor, find_descriptor
from ..ops.scaling import PRIOR, position_moments
from ..ops.shrinkage import ShrinkageSums
from ..parameters import parameter
from ..tensors import below
from ..training.loop import Adam, Cosine, Recipe, generator
from ..training.pictures import Pictures
from ..training.run import Training
from ..types import ImageBatch, ImageBatches, Scores, Size
from ._base import MapMethod, Method, announced, check_batch, memory_left, require_fit

_CHECKPOINT_EVERY = 500
_RESCALE_IMAGES = 64
_CLIP_NORM = 5.0  # an image that is unlike the others must not undo what was learned from them


@dataclass(kw_only=True)
class Students(MapMethod, Method):
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
    steps: of the training. At each of them all students learn from one image. 0: students as they begin.
    grid: side of the square of descriptors that a student learns from at a step; of neighbouring fields, p = 17, 1,
        p = 33, 4, and p = 65, 8 pixels apart.
    rate, weight_decay: of Adam; the rate falls to 0 along half a cosine.
    validation: share of the normal images that are not learned from; e and v are normalised by what they are there.
    scale: whether mean and deviation of e and v are taken at each `position`, which asks for images of one size, or
        `global`, over all of them (the paper). Where fewer than 10 images are held out it is `global` all the same:
        they tell too little of a position.
    distance: how errors are measured: `euclidean`, all directions alike (the paper); `mahalanobis`, each direction by
        how large they usually are there on held-out images (their Ledoit-Wolf covariance).
    checkpoint: file to go on from after a kill; written every 500 steps.
    time_limit: seconds of training after which it ends with what there is.
    seed: for everything random.
    device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
    """

    name: ClassVar[str] = "students"
    paper: ClassVar[dict[str, object]] = {"scale": "global"}

    weights: str | Path | None = parameter(None, role="place", option=True)
    patches: tuple[Literal[17, 33, 65], ...] = (33,)
    students: int = parameter(3, at_least=1)
    dense: bool = True
    fast: bool = False
    hard: float = parameter(0.05, above=0, at_most=1)
    steps: int = parameter(2000, at_least=0)
    grid: int = parameter(16, at_least=1)
    rate: float = parameter(1e-3, above=0)
    weight_decay: float = parameter(1e-5, at_least=0)
    validation: float = parameter(0.1, above=0, below=1)
    scale: Literal["position", "global"] = "position"
    distance: Literal["euclidean", "mahalanobis"] = "euclidean"
    checkpoint: str | None = parameter(None, role="place")
    time_limit: float | None = parameter(None, at_least=0, role="place")
    seed: int = parameter(0, option=True)
    device: str = parameter("auto", role="place", option=True)

    def fit(self, images: ImageBatches) -> Students:
        """Learn from normal images, which stay in memory meanwhile; forgets earlier fits."""
        self.check()
        vars(self).pop("scales_", None)  # half a model must not score
        device = find_device(self.device)
        scales: dict[int, _Scale] = {}
        for p in self.patches:
            scales[p] = self._scale(find_descriptor(p, self.weights)).to(device)
        left = memory_left(torch.device("cpu"))
        pictures = Pictures.read(map(_with_region, images), of=self.name, expected=announced(images), left=left)
        learned, held_out = pictures.split(self.validation, seed=self.seed)
        some = learned.subset(torch.arange(0, len(learned), -(-len(learned) // _RESCALE_IMAGES)))
        for scale in scales.values():
            scale.fit_targets(scale.crop(pixels, self._random(i, scale)) for i, pixels in enumerate(learned.batches(1)))
            scale.rescale([scale.crop(pixels, self._random(i, scale)) for i, pixels in enumerate(some.batches(1))])
        self._train(scales, learned)
        for scale in scales.values():
            scale.round()
            if self.distance == "mahalanobis":
                scale.fit_residuals(held_out.batches(1))
            scale.fit_errors(held_out.batches(1), by_position=self.scale == "position" and len(held_out) >= PRIOR)
        self.scales_ = scales
        return self

    def score(self, batch: ImageBatch) -> Scores:
        """Score a batch of images."""
        require_fit(self, "scales_", "score")
        _checked(batch)
        with torch.inference_mode():
            return self.measure(batch)

    def measure(self, batch: ImageBatch) -> Scores:
        """Score a batch of images that was checked."""
        maps = torch.stack([scale.map(batch.pixels) for scale in self.scales_.values()]).mean(dim=0)
        return Scores(self._image_scores(maps, None if batch.inside is None else batch.inside.to(maps.device)), maps)

    def state(self) -> dict[str, Tensor]:
        """Teachers and students in half precision, and what normalises targets and errors, below the patch's side."""
        require_fit(self, "scales_", "state")
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
            own = below(state, f"{p}.")
            scales[p] = self._scale(PatchDescriptor(p, width=float(own["width"])))
            scales[p].error_mean, scales[p].error_factor = own["error_mean"], own["error_factor"]  # of any size
            if self.distance == "mahalanobis":
                scales[p].residual_factor = torch.zeros(DIMENSION, DIMENSION, 1, 1)
                scales[p].residual_shift = torch.zeros(DIMENSION)
            scales[p].load_state_dict(own)
            scales[p].to(find_device(self.device))
        self.scales_ = scales

    def _check_together(self) -> None:
        known = [p for p in PATCHES if p > 17] if self.fast else PATCHES
        if not self.patches or len(set(self.patches)) < len(self.patches) or not set(self.patches) <= set(known):
            expected = f"some of {', '.join(map(str, known))}{' with fast' * self.fast}, each once"
            raise ArgumentError.about("patches", expected=expected, got=self.patches)

    def _scale(self, teacher: PatchDescriptor) -> _Scale:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            count, dense = 1 if self.fast else self.students, self.dense and not self.fast
            return _Scale(teacher, count, grid=self.grid, dense=dense)

    def _random(self, step: int, scale: _Scale, use: str = "targets") -> torch.Generator:
        return generator(self.seed, step, f"{use} {scale.teacher.patch}")

    def _train(self, scales: dict[int, _Scale], pictures: Pictures) -> None:
        hard = self.hard if self.fast else None

        def objective(step: int) -> dict[str, Tensor]:
            pixels = pictures.draw(step, 1, seed=self.seed)
            return {
                f"p = {p}": scale.loss(scale.crop(pixels, self._random(step, scale, "crop")), hard=hard)
                for p, scale in scales.items()
            }

        teachers = {f"{p} {k}": t for p, scale in scales.items() for k, t in scale.teacher.state_dict().items()}
        Training.of(self).run(
            objective,
            nn.ModuleDict({f"{p} {i}": s for p, scale in scales.items() for i, s in enumerate(scale.students)}),
            steps=self.steps,
            recipe=Recipe(
                optimiser=Adam(rate=self.rate, weight_decay=self.weight_decay),
                schedule=Cosine(steps=self.steps),
                clip_norm=_CLIP_NORM,
                clip_each=True,
            ),
            content={"images": pictures.digest, "teachers": lambda: persist.digest(teachers)},
            every=_CHECKPOINT_EVERY,
        )


def regression_error_and_variance(residuals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """e = ||mean_i r_i||^2 and v = mean_i ||r_i - mean_i r_i||^2 of r_i = mu_i - y, each `(batch, h, w)`.

    Of the residual of each student, `(batch, channel, h, w)`. v is the same as mean_i ||mu_i||^2 - ||mean_i mu_i||^2,
    but does not cancel.
    """
    mean = sum(residuals[1:], residuals[0]) / len(residuals)  # `torch.stack(...).mean(dim=0)` takes 13 times as long
    variances = [(residual - mean).square_().sum(dim=1) for residual in residuals]
    return mean.square_().sum(dim=1), torch.stack(variances).mean(dim=0)


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
    residual_factor: Tensor | None
    residual_shift: Tensor | None

    def __init__(self, teacher: PatchDescriptor, students: int, *, grid: int, dense: bool) -> None:
        super().__init__()
        self.grid, self.dense = grid, dense
        self.teacher = teacher.requires_grad_(False)
        self.students = nn.ModuleList(PatchDescriptor(teacher.patch, width=teacher.width) for _ in range(students))
        self.register_buffer("width", torch.tensor(teacher.width, dtype=torch.float64))
        for name, shape in (("target", (DIMENSION, 1, 1)), ("error", (2, 1, 1))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_factor", torch.ones(shape))
        for name in ("factor", "shift"):
            self.register_buffer(f"residual_{name}", None)

    @torch.no_grad()
    def fit_targets(self, crops: Iterable[Tensor]) -> None:
        """Take mean and deviation of each of the teacher's numbers over these crops."""
        described = ((self.teacher.inside(c[:, :3], dense=False), self._places(c)) for c in crops)
        self.target_mean, self.target_factor = _normalisation(described)

    def rescale(self, crops: list[Tensor]) -> None:
        """Rescale the students' new weights on these crops."""
        for student in self._students():
            student.rescale([crop[:, :3] for crop in crops])

    @torch.no_grad()
    def round(self) -> None:
        """Make the trained students as precise as a model file keeps them: what follows is measured of these."""
        for weights in self.students.requires_grad_(False).parameters():
            weights.copy_(weights.half())

    @torch.no_grad()
    def fit_residuals(self, images: Iterable[Tensor]) -> None:
        """Take what whitens the residuals mean_i mu_i - y of these images: F and b with |F r + b|^2 their distance.

        Mean and covariance are those of Ledoit and Wolf over fields `stride` pixels apart. A direction in which no
        residual varies counts for nothing.
        """
        sums = ShrinkageSums.empty(DIMENSION, self.width.device)
        for image in images:
            places = self._places_of_map(image)
            for _, rows, strip in self.teacher.strips(image[:, :3].to(self.width.device), dense=False):
                residual = torch.stack(self._residuals(strip, dense=False)).mean(dim=0).movedim(1, -1)
                sums.update(residual.flatten(0, -2) if places is None else residual[places[:, rows]])
        mean, covariance, _ = sums.estimate()
        values, vectors = torch.linalg.eigh(covariance)
        factor = torch.where(values > 1e-12 * values[-1], values.rsqrt(), 0)[:, None] * vectors.T
        self.residual_factor = factor.float()[:, :, None, None]
        self.residual_shift = -(factor @ mean).float()

    @torch.no_grad()
    def fit_errors(self, images: Iterable[Tensor], *, by_position: bool) -> None:
        """Take mean and deviation of e and v over these images.

        Over fields `stride` pixels apart: those between have nearly the same, and take most of the time.
        """
        errors = ((self.errors(image[:, :3], dense=False), self._places_of_map(image)) for image in images)
        self.error_mean, self.error_factor = _by_position(errors) if by_position else _normalisation(errors)

    def crop(self, pixels: Tensor, random: torch.Generator) -> Tensor:
        """Cut a part out of one mirrored image, anywhere, that holds `grid` x `grid` fields, or all there are.

        With a fourth channel, the region of interest, there is always something of it in that part.
        """
        padded, field, stride = self.teacher.padded(pixels), self.teacher.field, self.teacher.stride
        near: list[int | None] = [None, None]
        if pixels.shape[1] > 3:
            places = pixels[0, 3].nonzero()
            near = places[int(torch.randint(len(places), (), generator=random))].tolist()
        starts, sides = [], []
        for length, at in zip(padded.shape[2:], near, strict=True):
            sides.append(field + stride * min(self.grid - 1, (length - field) // stride))
            first, last = 0, length - sides[-1]
            if at is not None:
                first, last = max(first, at - sides[-1] + field), min(last, at)
            starts.append(first + int(torch.randint(last - first + 1, (), generator=random)))
        (top, left), (height, width) = starts, sides
        return padded[:, :, top : top + height, left : left + width].to(self.width.device)

    def loss(self, crop: Tensor, *, hard: float | None) -> Tensor:
        """Mean of ||mu_i - y||^2, or of its `hard` part, summed over the students: each learns as if it were alone."""
        pixels, places = crop[:, :3], self._places(crop)
        squared = [residual.square() for residual in self._residuals(pixels, dense=False)]
        if places is not None:
            squared = [each.movedim(1, -1)[places] for each in squared]
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
        size = (pixels.shape[2], pixels.shape[3])
        normal = torch.stack([self.error_mean, self.error_factor])
        if normal.shape[2:] != (1, 1):  # of each position
            grid = self.teacher.grid(size)
            if normal.shape[2:] != grid:
                raise ArgumentError.about(
                    "images",
                    expected=f"preprocessed images of the fit's size, {tuple(normal.shape[2:])} fields of p = "
                    f"{self.teacher.patch} with scale='position'",
                    got=f"size {size}, {grid} fields",
                    instead="Use one Preprocess for all images, or scale='global'.",
                )
            if self.dense:
                normal = torch.stack([_enlarge(part, self.teacher.stride, size) for part in normal])
        errors = ((self.errors(pixels, dense=self.dense) - normal[0]) * normal[1]).sum(dim=1)
        return errors if self.dense else _enlarge(errors, self.teacher.stride, size)

    def _strips_of_errors(self, image: Tensor, dense: bool) -> Iterator[Tensor]:
        for _, _, strip in self.teacher.strips(image, dense=dense):
            residuals = self._residuals(strip, dense=dense)
            if self.residual_factor is not None:
                residuals = [conv2d(each, self.residual_factor, self.residual_shift) for each in residuals]
            yield torch.stack(regression_error_and_variance(residuals), dim=1)

    def _residuals(self, pixels: Tensor, *, dense: bool) -> list[Tensor]:
        """mu_i - y of each student."""
        targets = self._targets(pixels, dense=dense)
        return [student.inside(pixels, dense=dense) - targets for student in self._students()]

    def _targets(self, pixels: Tensor, *, dense: bool) -> Tensor:
        with torch.no_grad():
            return (self.teacher.inside(pixels, dense=dense) - self.target_mean) * self.target_factor

    def _places(self, crop: Tensor) -> Tensor | None:
        """Which of a crop's fields have the region of interest in the middle, the crop's fourth channel: `(1, h, w)`.

        The middle of a field is as many pixels as one field lies from the next. None: all, as there is no region.
        """
        if crop.shape[1] == 3:
            return None
        field, stride = self.teacher.field, self.teacher.stride
        first = (field - 1) // 2 - (stride - 1) // 2
        height, width = ((side - field) // stride + 1 for side in crop.shape[2:])
        return max_pool2d(crop[:, 3:, first:, first:], stride)[:, 0, :height, :width] > 0

    def _places_of_map(self, image: Tensor) -> Tensor | None:
        """The same of a whole image's map that is not dense.

        The last row and column also stand for pixels behind theirs, as where `_enlarge` repeats them.
        """
        if image.shape[1] == 3:
            return None
        height, width = self.teacher.grid((image.shape[2], image.shape[3]))
        images, rows, columns = image[:, 3].nonzero(as_tuple=True)
        places = torch.zeros(len(image), height, width, dtype=torch.bool, device=image.device)
        rows, columns = rows // self.teacher.stride, columns // self.teacher.stride
        places[images, rows.clamp_max(height - 1), columns.clamp_max(width - 1)] = True
        return places

    def _students(self) -> list[PatchDescriptor]:
        return [student for student in self.students if isinstance(student, PatchDescriptor)]


_Placed = Iterable[tuple[Tensor, Tensor | None]]
"""`(batch, channel, h, w)`, and which of their positions count, bool `(batch, h, w)`; None: all."""


def _normalisation(parts: _Placed) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation (0 where that is 0) of the channels: `(channel, 1, 1)`."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part, places in parts:
        vectors = part.movedim(1, -1)
        rows = (vectors.flatten(0, -2) if places is None else vectors[places]).double()
        count, total, squares = count + len(rows), total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    factor = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0)
    return mean.float()[:, None, None], factor.float()[:, None, None]


def _by_position(parts: _Placed) -> tuple[Tensor, Tensor]:
    """The same at each position: `(channel, h, w)`."""
    values, places = zip(*parts, strict=True)
    known = [of_image for of_image in places if of_image is not None]
    mean, deviation = position_moments(values, inside=torch.cat(known).any(dim=0) if known else None)
    return mean, torch.where(deviation > 0, 1 / deviation, 0)


def _enlarge(grid: Tensor, factor: int, size: Size) -> Tensor:
    """Enlarge `(batch, h, w)` bilinearly, each value in the middle of its `factor` x `factor` pixels, to this size."""
    large = interpolate(grid[:, None], scale_factor=factor, mode="bilinear")
    missing = [max(0, size[0] - large.shape[2]), max(0, size[1] - large.shape[3])]
    return pad(large, (0, missing[1], 0, missing[0]), mode="replicate")[:, 0, : size[0], : size[1]]


def _checked(batch: ImageBatch) -> ImageBatch:
    """Refuse bad pixels also where features come with them: these are of no use here."""
    check_batch(replace(batch, features=None) if isinstance(batch, ImageBatch) else batch)
    return batch


def _with_region(batch: ImageBatch) -> ImageBatch:
    """Refuse bad pixels; the region of interest becomes a fourth channel, and is cut and mirrored as the others are."""
    inside = _checked(batch).inside
    if inside is None:
        return batch
    return replace(batch, pixels=torch.cat([batch.pixels, inside[:, None].to(batch.pixels)], dim=1))
