"""The nouns that travel between rooms: small frozen dataclasses, no behaviour beyond checking themselves.

Larger scores are more anomalous, everywhere. Axis words: `batch channel height width position`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Floats: TypeAlias = "NDArray[np.float64]"

Size = tuple[int, int]
"""`(height, width)` in pixels."""

CalibrationKind = Literal["split", "cross", "loo", "full"]
"""How normal images that a model has not learned from come to scores: docs/decisions.md."""


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Preprocessed pixels together with the identity and the original size of each image."""

    pixels: Tensor
    """`(batch, 3, height, width)` float32 in [0, 1]."""
    names: tuple[str, ...]
    """Path or index of each image."""
    sizes: tuple[Size, ...]
    """Original `(height, width)` of each image, after EXIF orientation."""
    features: Mapping[str, Tensor] | None = None
    """Feature maps of the images by tap, each `(batch, channels, h, w)` float32, where they are known already."""
    inside: Tensor | None = None
    """`(batch, height, width)` bool, the region of interest: nothing else is learned or scored. None: all."""

    def __len__(self) -> int:
        return len(self.names)


class ImageBatches(Protocol):
    """What `Method.fit` takes: batches that can be iterated again, in the same order on every pass.

    `len`, where there is one, says how many images will come, which lets a fit plan its memory.
    """

    def __iter__(self) -> Iterator[ImageBatch]: ...


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """One feature map per tapped layer, shallow to deep, for a batch of images."""

    maps: tuple[Tensor, ...]
    """Each `(batch, channels, h, w)` float32."""
    image_size: Size
    """`(height, width)` of the pixels that went in."""
    inside: Tensor | None = None
    """`(batch, height, width)` bool at that size, the region of interest; None: all."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw scores of a batch; larger = more anomalous."""

    images: Tensor
    """`(batch,)` float32."""
    maps: Tensor | None
    """`(batch, height, width)` float32 at the size of the batch's pixels, or None for image-level methods."""
    p_values: Tensor | None = None
    """`(batch,)` float32 in [0, 1] by the method's own model of normality, for methods that have one."""
    plus: Tensor | None = None
    """What conformal p-values need beside the score; of a detector with `cross` `(batch, folds)`, the score by each
    fold's model; with `full` `(batch, n)`, the scores that the learned images have where this image is one of them."""
    fold_maps: Tensor | None = None
    """`(batch, folds, height, width)`, the maps by each fold's model, with `cross`, where all of them make maps."""

    def are_finite(self) -> list[bool]:
        """Of each image: whether no NaN and no infinity is in its score or its map."""
        found = self.images.isfinite()
        return (found if self.maps is None else found & self.maps.isfinite().flatten(1).all(dim=1)).tolist()


@dataclass(frozen=True, slots=True)
class Promise:
    """What a verdict promises of new normal images, if they are like the ones at hand: nominal and proven."""

    false_alarm_rate: float
    """Nominal: what was asked for."""
    guaranteed_rate: float | None
    """Proven on average over draws of the normal images; above `false_alarm_rate` for `cross` and `loo`. None: none."""
    certain: float | None
    """With this probability over such draws the rate is at most `false_alarm_rate`; None: not asked for."""
    plausible: tuple[float, float] | None
    """5 and 95 % quantile, over such draws, of the rate that one threshold has; None where no theory gives them."""
    held_out: int
    """What the promise counts: images that were held out, or left out in turn, or groups of them."""
    in_groups: bool
    calibration: CalibrationKind = "split"
    unproven: str = ""
    """Why no rate is guaranteed; empty where one is."""


@dataclass(frozen=True, slots=True)
class AnomalousRegion:
    """One place of an image where the map is above the threshold of regions: an 8-connected region.

    x and y in pixels of the original image, as EXIF turns it: (0, 0) is its upper left corner, (0.5, 0.5) the centre of
    its first pixel.
    """

    box: tuple[float, float, float, float]
    """x and y of the upper left corner, width, height; around the contour."""
    contour: tuple[tuple[float, float], ...]
    """The points of a closed polygon, holes filled."""
    centre: tuple[float, float]
    """Mean of its pixels."""
    area: float
    """In pixels of the original image."""
    peak: float
    """The largest level that `min_area` connected pixels of it reach: its largest value, where that is not set."""
    mean: float
    """Of the map, over its pixels."""
    p_value: float
    """Of normal images like the held-out ones, at most this share has a region with such a peak anywhere.

    On an image with a defect it bounds nothing: what lies beside the defect may be flagged with it.
    """


class Look(NamedTuple):
    """A few numbers of a picture at the size of the network's input, which a monitor watches beside its score."""

    level: float
    """Mean brightness, in [0, 1]."""
    contrast: float
    """Standard deviation of the brightness."""
    sharpness: float
    """Mean size of its second differences over that of its first ones."""
    x: float
    """Where it changes most: the mean place of its differences from column to column, as a share of the width."""
    y: float
    """The same from row to row, as a share of the height."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one image."""

    name: str
    score: float
    """Raw image score; larger = more anomalous."""
    map: NDArray[np.float32] | None
    """`(height, width)` anomaly map on the original pixels; NaN where preprocessing cropped the image away."""
    p_value: float | None
    """Conformal p-value in (0, 1]; None for an uncalibrated detector."""
    threshold: float | None
    """In score units; None for an uncalibrated detector, and with `cross` and `full`, where none exists."""
    model_p_value: float | None = None
    """By the method's own model of normality, for methods that have one; only as right as that model."""
    promise: Promise | None = None
    """What the verdict promises; None for an uncalibrated detector."""
    regions: tuple[AnomalousRegion, ...] | None = None
    """Where, highest peak first; None without maps, or without left-out maps. `is_anomalous` does not follow them."""
    look: Look | None = None
    """Of the picture, for a monitor of drift; None where there were no pixels."""

    @property
    def is_anomalous(self) -> bool | None:
        """True where the score exceeds the threshold, or without one the p-value does not exceed the rate.

        None for an uncalibrated detector.
        """
        if self.threshold is not None:
            return self.score > self.threshold
        if self.p_value is None or self.promise is None:
            return None
        return self.p_value <= self.promise.false_alarm_rate * (1 + 1e-12)  # rates and p-values are rounded


@dataclass(frozen=True, slots=True)
class PartDecision:
    """The verdict on one part, from all its images."""

    name: str
    """What the pattern found in the paths of its images."""
    images: tuple[str, ...]
    worst: str
    """The image that decides: that of the largest scaled score."""
    score: float
    """The largest over its images, in spreads from the mean of the learned images of the same view."""
    p_value: float
    """Conformal: of parts like the held-out ones, at most this share scores so high."""
    threshold: float | None
    """Of the score; None for a part with more views than the held-out ones, whose p-value is Bonferroni's."""
    promise: Promise
    """What the verdict promises of new normal parts."""

    @property
    def is_anomalous(self) -> bool:
        """True where the score exceeds the threshold; without one, where the p-value is at most the rate."""
        if self.threshold is None:
            return self.p_value <= self.promise.false_alarm_rate * (1 + 1e-12)
        return self.score > self.threshold
