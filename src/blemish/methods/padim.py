"""PaDiM: one Gaussian a position (Defard et al., "PaDiM: a Patch Distribution Modeling Framework", ICPR 2020).

Feature maps are aligned to the largest (by nearest neighbour; for a projection bilinearly) and concatenated; d
dimensions are kept. For every position (i, j) the normal images give a mean and a covariance; the anomaly map is the
Mahalanobis distance (eq. 2)

    M(x_ij) = sqrt((x_ij - mu_ij)^T Sigma_ij^-1 (x_ij - mu_ij)),   Sigma_ij = S_ij + eps I   (eq. 1),

with S_ij the sample covariance, enlarged bilinearly, smoothed with a Gaussian, and the image score is its maximum. What
is added to S_ij here, unless `eps` is given, is 0.3 T: T is the mean of S_ij over all positions, plus a thousandth of
its mean variance in every direction. It follows the unit of the features, and a position where hardly anything varies
is not more sensitive to noise than the others by more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ArgumentError, ModelFileError
from ..features.backbones import Backbone, find_backbone
from ..features.patches import cells_inside, concatenate, project, random_channels, semi_orthogonal
from ..ops.forget import not_learned, vector_digest
from ..ops.gaussian import Gaussian, Moments
from ..ops.maps import enlarge_and_smooth
from ..parameters import parameter
from ..tensors import below, check_tensors
from ..types import FeatureMaps, ImageBatches, Scores
from ._base import FitPlan, Keep, LeavingMethod, MapMethod, cannot_take_groups, require_kept, require_size

_SHARE = 0.3
"""Of the pooled covariance, added to every position's: chosen without defects (docs/experiments/padim.md)."""
_RIDGE = 1e-3
"""Of the typical variance, for directions in which nothing varies anywhere."""


@dataclass(kw_only=True)
class PaDiM(MapMethod, LeavingMethod):
    """Patch distribution modelling. For parts that always lie in the same place; fast, exact.

    Parameters
    ----------
    dimensions: embedding dimensions to keep; None takes the backbone's recommendation, and all
        channels where the layers have fewer.
    reduction: `random` channels (the paper's R_d), a random semi-`orthogonal` projection of all channels,
        aligned bilinearly, which depends less on the seed, or `none` (all channels).
    eps: added to the diagonal of every covariance (the paper: 0.01). None adds to each position's covariance a share of
        their mean over all positions instead, which fits any backbone and part.
    sigma: smoothing of the map, in pixels of the network's input (the paper: 4).
    storage: `float32`, or `float16` for half the file and memory; `storage_error_` then holds the measured error.
    keep: `sums` also keeps, at each position, the rows of n images in float32 while n is at most the number d of
        dimensions (4 n d bytes), then mean and scatter in float64 (4 d (d + 3) bytes), so that images can be forgotten.
        Images then go through the network one by one: the same picture gives the same numbers again.
    """

    name: ClassVar[str] = "padim"
    paper: ClassVar[dict[str, object]] = {"reduction": "random", "eps": 0.01}

    dimensions: int | None = parameter(None, at_least=1)
    reduction: Literal["random", "orthogonal", "none"] = "orthogonal"
    eps: float | None = parameter(None, above=0, at_most=1e6)
    sigma: float = parameter(4.0, at_least=0)
    storage: Literal["float32", "float16"] = "float32"
    keep: Keep = parameter("factor", option=True)

    def __post_init__(self) -> None:
        self.sums_: dict[str, Tensor] = {}
        self.digests_: list[int] = []
        self.channels_: tuple[Tensor, ...] | None = None
        self.projection_: Tensor | None = None

    def unproven(self, groups: Sequence[int]) -> str:
        """Means and covariances move either way without an image."""
        return "Mahalanobis distances may shrink without an image"

    def _cannot(self, groups: Sequence[int]) -> str:
        return cannot_take_groups(groups)

    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        self._check_size(features)
        return self._scored(self.gaussian_.distances_without(self._embed(features), ridge=_RIDGE).float(), features)

    def _images(self, first: FeatureMaps) -> int:
        return self.gaussian_.count

    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """The same model as one fit on all images, up to the factor's precision."""
        coming = self.gaussian_.mean.shape[1] if expected is None else expected
        moments = self._moments(expected=coming)
        self._finish(moments, [*self.digests_, *self._update(moments, features)])

    def _update(self, moments: Moments, features: Iterator[FeatureMaps]) -> list[int]:
        """Take more images; gives the digests of their vectors where images can be forgotten."""
        digests = []
        for maps in features:
            self._check_size(maps)
            embedded = self._embed(maps)
            moments.update(embedded)
            if self.keep == "sums":
                digests += [vector_digest(image) for image in embedded]
        return digests

    def _moments(self, *, expected: int) -> Moments:
        """What was learned, as moments; exact where the sums are kept."""
        if self.keep == "sums":
            return Moments.of_state(self.sums_, count=self.gaussian_.count, expected=expected)
        return Moments.from_factor(self.gaussian_, expected=expected)

    def forget(self, images: ImageBatches) -> PaDiM:
        """Unlearn images that come again; what remains is a fit without them, up to rounding."""
        self._require_fit("forget")
        require_kept(self)
        moments, digests = self._moments(expected=0), list(self.digests_)
        for number, maps in enumerate(self._features(images)):
            (embedded,) = self._embed(maps)
            if (digest := vector_digest(embedded)) not in digests:
                raise not_learned(number)
            moments.remove(digests.index(digest), embedded)
            digests.remove(digest)
        self._finish(moments, digests)
        return self

    def _reads_singly(self) -> bool:
        return self.keep == "sums"

    def _absorb(self, other: PaDiM) -> None:
        mine, theirs = self._embedding(), other._embedding()
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in mine):
            different = [name for name in mine | theirs if name not in mine or name not in theirs]
            different += [name for name in mine if name in theirs and not torch.equal(mine[name], theirs[name])]
            raise ArgumentError.about(
                "other",
                expected="a PaDiM with the same taps, dimensions, seed and image size",
                got=f"other {', '.join(different)}",
            )
        if self.keep != other.keep:
            raise ArgumentError.about("other", expected=f"a PaDiM with keep {self.keep}", got=other.keep)
        moments = self._moments(expected=other.gaussian_.count)
        moments.merge(other._moments(expected=1))
        self._finish(moments, [*self.digests_, *other.digests_])

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        # A Gaussian's distance stays the same under linear maps: where layers were only widened, a choice of d channels
        # out of fewer loses less.
        return row.narrow or row.taps

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        channels = [m.shape[1] for m in first.maps]
        d = self._dimensions(sum(channels)) or sum(channels)
        positions = max(m.shape[2] * m.shape[3] for m in first.maps)
        numbers = positions * d * min(images, d) * (2 if self.storage == "float16" else 4)
        # Few images: their rows become the factor. Many: the float64 scatter, then half of the rows or the factor.
        peak = positions * d * images * 4 if images <= d else positions * d * d * 12
        if self.keep == "sums":
            kept = positions * (4 * images * d if images <= d else 4 * d * (d + 3))
            numbers, peak = numbers + kept, peak + kept
        beside = 4 * positions * d + (8 * d * d if self.eps is None else 0)  # the means, and what is added everywhere
        return FitPlan(
            model_bytes=numbers + beside,
            peak_bytes=peak + beside,
            operations=2.0 * positions * d * d * images + 6.0 * positions * min(d, images) ** 2 * d,
            instead=f"Keep fewer dimensions than {d} (dimensions={d // 2}), or make the images smaller.",
        )

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        first = next(features)
        self.image_size_ = first.image_size
        self._choose_dimensions([m.shape[1] for m in first.maps])
        embedded = self._embed(first)
        self.grid_ = max((m.shape[2], m.shape[3]) for m in first.maps)
        moments = Moments(embedded.shape[1], embedded.shape[2], expected=expected, device=embedded.device)
        digests = self._update(moments, chain([first], features))
        if moments.count < 2:
            raise ArgumentError.about("images", expected="at least 2 normal images", got=moments.count)
        self._finish(moments, digests)

    def _score(self, features: FeatureMaps) -> Scores:
        self._check_size(features)
        return self._scored(self.gaussian_.distances(self._embed(features)), features)

    def _scored(self, distances: Tensor, features: FeatureMaps) -> Scores:
        """From the distances of all positions, `(batch, position)`."""
        inside = cells_inside(features, self.grid_)
        maps = enlarge_and_smooth(distances.reshape(-1, *self.grid_), self.image_size_, sigma=self.sigma, inside=inside)
        return Scores(self._image_scores(maps, features.inside), maps)

    def _learned(self) -> dict[str, Tensor]:
        gaussian, d = self.gaussian_, self.gaussian_.mean.shape[1]
        # Only the triangle of the dense form is worth keeping.
        factor = _triangle(gaussian.factor, d) if gaussian.spectrum is None else gaussian.factor
        learned = {
            "count": torch.tensor(gaussian.count),
            "mean": gaussian.mean,
            "storage_error": torch.tensor(self.storage_error_),
            "factor": factor,
        }
        if gaussian.spectrum is not None:
            learned["spectrum"] = gaussian.spectrum
        if gaussian.target is not None:
            learned["target"] = gaussian.target
        if self.keep == "sums":
            learned |= {f"sums.{name}": value for name, value in self.sums_.items()}
            learned["digests"] = torch.tensor(self.digests_)
        return learned | self._embedding()

    def _embedding(self) -> dict[str, Tensor]:
        """What makes two models comparable, position by position and dimension by dimension."""
        found = {"image_size": torch.tensor(self.image_size_), "grid": torch.tensor(self.grid_)}
        if self.projection_ is not None:
            found["projection"] = self.projection_
        if self.channels_ is not None:
            found["channels"] = torch.cat(self.channels_)
            found["channels_of_map"] = torch.tensor([len(c) for c in self.channels_])
        return found

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        self._check_learned(learned)
        self.image_size_ = _pair(learned["image_size"])
        self.grid_ = _pair(learned["grid"])
        self.storage_error_ = float(learned["storage_error"])
        self.projection_ = learned.get("projection")
        self.channels_ = None
        if "channels" in learned:
            self.channels_ = torch.split(learned["channels"], learned["channels_of_map"].tolist())
        mean, factor, spectrum = learned["mean"], learned["factor"], learned.get("spectrum")
        if spectrum is None:
            factor = _square(factor, mean.shape[1])
        count, eps = int(learned["count"]), _SHARE if self.eps is None else self.eps
        self.gaussian_ = Gaussian(count, mean, factor, eps, spectrum, learned.get("target"))
        self.sums_ = below(learned, "sums.")
        self.digests_ = learned["digests"].tolist() if "digests" in learned else []

    def _patterns(self, learned: dict[str, Tensor]) -> dict[str, str]:
        """Types and sizes of what was learned, by these parameters."""
        dense = "spectrum" not in learned
        patterns = {"count": "int64", "image_size": "int64 2", "grid": "int64 2", "storage_error": "float32"}
        patterns |= {
            "mean": "float64|float32 positions d",
            "factor": f"{self.storage} positions {'triangle' if dense else 'rank d'}",
        }
        if not dense:
            patterns["spectrum"] = "float64|float32 positions rank"
        if self.reduction == "orthogonal":
            patterns["projection?"] = "float32 channels d"
        if self.reduction == "random":
            patterns |= {"channels?": "int64 d", "channels_of_map?": "int64 maps"}
        if self.eps is None:
            patterns["target"] = "float64 d d"
        if self.keep == "sums" and "sums.rows" in learned:
            patterns |= {"digests": "int64 images", "sums.rows": "float32 positions images d"}
        elif self.keep == "sums":
            patterns |= {"digests": "int64 images"}
            patterns |= {"sums.mean": "float64 positions d", "sums.scatter": "float64 positions half"}
        return patterns

    def _check_learned(self, learned: dict[str, Tensor]) -> None:
        """Refuse, before anything is made of them, tensors that do not go together."""
        sizes = check_tensors(learned, self._patterns(learned))
        self._check_sums(learned, sizes)
        d, (height, width) = sizes["d"], learned["grid"].tolist()
        if "spectrum" not in learned and sizes["triangle"] != d * (d + 1) // 2:
            raise ModelFileError.about("tensor factor", expected=f"{d * (d + 1) // 2} numbers", got=sizes["triangle"])
        if min(height, width) < 1 or height * width != sizes["positions"]:
            raise ModelFileError.about(
                "tensor grid", expected=f"{sizes['positions']} positions", got=f"{height} x {width}"
            )
        if int(learned["count"]) < 2 or int(learned["image_size"].min()) < 1:
            raise ModelFileError("tensors count, image_size: expected at least 2 images of at least 1 pixel.")
        if self.eps is None and bool(torch.linalg.cholesky_ex(learned["target"]).info):
            raise ModelFileError("tensor target: expected a positive definite matrix.")
        if "channels_of_map" in learned and int(learned["channels_of_map"].min()) < 0:
            raise ModelFileError("tensor channels_of_map: below 0.")

    @staticmethod
    def _check_sums(learned: dict[str, Tensor], sizes: dict[str, int]) -> None:
        d, count = sizes["d"], int(learned["count"])
        if sizes.get("half", d * (d + 1) // 2) != d * (d + 1) // 2:
            raise ModelFileError.about("tensor sums.scatter", expected=f"{d * (d + 1) // 2}", got=sizes["half"])
        if sizes.get("images", count) != count:
            raise ModelFileError.about("tensor digests", expected=f"{count} images", got=sizes["images"])

    def _dimensions(self, channels: int) -> int | None:
        """Dimensions to keep of so many channels; None keeps all."""
        if self.reduction == "none":
            return None
        if self.dimensions is not None:
            return self.dimensions
        recommended = find_backbone(self.backbone).d
        return None if recommended is None else min(recommended, channels)

    def _choose_dimensions(self, channels: list[int]) -> None:
        self.channels_ = self.projection_ = None
        d = self._dimensions(sum(channels))
        if d is None:
            return
        if self.reduction == "random":
            self.channels_ = random_channels(channels, d, seed=self.seed)
        else:
            self.projection_ = semi_orthogonal(sum(channels), d, seed=self.seed).to(self._device())

    def _embed(self, features: FeatureMaps) -> Tensor:
        if self.projection_ is not None:
            return project(features, self.projection_)
        return concatenate(features, self.channels_)

    def _finish(self, moments: Moments, digests: list[int]) -> None:
        sums = moments.state() if self.keep == "sums" else {}  # whitening uses the moments up
        target = None if self.eps is not None else _target(moments)
        self.gaussian_ = moments.whiten(_SHARE if self.eps is None else self.eps, target)
        self.sums_, self.digests_, self.storage_error_ = sums, digests, 0.0
        if self.storage == "float16":
            self.gaussian_, self.storage_error_ = self.gaussian_.stored_as(torch.float16)

    def _check_size(self, features: FeatureMaps) -> None:
        require_size(features, self.image_size_, "PaDiM has one Gaussian a position")


def _target(moments: Moments) -> Tensor:
    """What is added where `eps` is None, but for the factor."""
    pooled = moments.pooled()
    typical = pooled.trace() / len(pooled)
    if not float(typical) > 1e-10 * float(moments.mean().square().mean()):  # less may be rounding
        raise ArgumentError.about(
            "images",
            expected="normal images that differ from each other",
            got=f"{moments.count} alike",
            instead="Give other images, or eps.",
        )
    return pooled + _RIDGE * typical * torch.eye(len(pooled), dtype=pooled.dtype, device=pooled.device)


def _pair(tensor: Tensor) -> tuple[int, int]:
    return int(tensor[0]), int(tensor[1])


def _triangle(square: Tensor, d: int) -> Tensor:
    """The numbers of lower triangles, column by column, as files have always had them."""
    columns, rows = torch.triu_indices(d, d, device=square.device)
    return square[:, rows, columns]


def _square(triangle: Tensor, d: int) -> Tensor:
    columns, rows = torch.triu_indices(d, d, device=triangle.device)
    square = triangle.new_zeros(len(triangle), d, d)
    square[:, rows, columns] = triangle
    return square
