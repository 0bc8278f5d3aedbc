"""Whether an exported file says what the detector says: found out before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..calibrate import Calibration
from ..datasets.region import Region
from ..errors import ArgumentError, ExportError
from ..features.runtime import TOLERANCE
from ..images.decode import Picture
from ..images.drawn import clouds
from ..images.preprocess import Preprocess
from ..images.source import ImageSource, from_arrays
from ..progress import Progress
from ..types import Decision
from .runs import Run

_TINY = 1e-30


class Judge(Protocol):
    """What is exported: a fitted detector, or a classifier with a detector beside it."""

    @property
    def calibration_(self) -> Calibration | None:
        """What is known of held-out scores."""

    @property
    def preprocessing(self) -> Preprocess:
        """How pictures become the network's input."""

    @property
    def region_(self) -> Region | None:
        """Where it looks; None: everywhere."""

    def predict(self, images: ImageSource) -> Iterator[Decision]:
        """The verdict on each image."""


Layers = Callable[[Tensor], dict[str, Tensor]]
"""Values of the graph between picture and score, by name, for `(1, 3, height, width)` pixels."""


@dataclass(frozen=True)
class Parity:
    """By how much a file differs from its detector, over all images that were compared."""

    images: int
    score: float
    """The largest difference of a score, relative to the largest score."""
    map: float | None
    """The largest difference of a map's value, relative to the largest of all maps; None where there is no map."""
    nearest: float | None
    """How near to the threshold a score came, relative to the threshold; None without a threshold."""
    drawn: bool
    """Whether the images were drawn, for want of real ones."""


def check_parity(
    detector: Judge,
    run: Run,
    images: ImageSource | None,
    *,
    layers: Layers,
    path: str,
    progress: Progress | None = None,
) -> Parity:
    """Judge images both ways. Raises `ExportError` where a verdict, a score or a map differs, and names the layer.

    `run` runs the file; `layers` makes the values in which the first difference is looked for.
    """
    source = drawn(detector) if images is None else images
    first = partial(_first_difference, detector, layers, run)
    rows, total, has_map = [], len(source), False
    for i, decision in enumerate(detector.predict(source)):
        found = run(pixels_of(source.load(i), source.names[i]))
        has_map = "map" in found
        score = float(found["score"][0])
        if decision.is_anomalous is not None and decision.is_anomalous != bool(found["anomalous"][0]):
            verdict = "anomalous" if decision.is_anomalous else "normal"
            raise _refusal(
                path,
                f"{decision.name} is {verdict}, and not by the file (scores {decision.score} and {score}, threshold "
                f"{decision.threshold})",
                first=first(source.load(i)),
            )
        maps = (0.0, 0.0) if decision.map is None else _map_difference(decision.map, found["map"][0])
        rows.append((decision.score, score, *maps))
        if progress is not None:
            progress("compare", i + 1, total)
    calibration = detector.calibration_
    ours, theirs, apart, heights = np.array(rows).T
    largest = max(float(np.abs(ours).max()), 0.0 if calibration is None else float(np.abs(calibration.scores).max()))
    # Of the largest over all images: where an image was learned, its own may be nothing but rounding.
    scores, maps = np.abs(ours - theirs) / max(largest, _TINY), apart / max(float(heights.max()), _TINY)
    worst = int(np.maximum(scores, maps).argmax())  # NaN, which differs from everything, counts as the largest
    if not max(scores[worst], maps[worst]) <= TOLERANCE:
        raise _refusal(
            path,
            f"scores differ by {scores.max():.1e}, maps by {maps.max():.1e} of their largest values, above the "
            f"{TOLERANCE:g} that rounding explains",
            first=first(source.load(worst)),
        )
    threshold = None if calibration is None else calibration.threshold
    nearest = None if threshold is None else float(np.abs(ours - threshold).min() / max(abs(threshold), _TINY))
    return Parity(len(rows), float(scores.max()), float(maps.max()) if has_map else None, nearest, images is None)


def check_first(images: ImageSource) -> None:
    """Refuse, before a graph is built, images of which not even the first one can be compared.

    Raises `ArgumentError`, and `ImageError`.
    """
    if not len(images):
        raise ArgumentError.about("images", expected="at least 1 to compare on", got="none")
    pixels_of(images.load(0), images.names[0])


def pixels_of(picture: Picture, name: str) -> NDArray[np.uint8]:
    """`(1, height, width, 3)` of a decoded picture. Raises `ArgumentError` for one of more than 8 bits."""
    if not isinstance(picture, Image.Image) or picture.mode != "RGB":
        raise ArgumentError.about("images", expected="pictures of 8 bits, as an exported file takes", got=name)
    return np.asarray(picture)[None]


def drawn(detector: Judge) -> ImageSource:
    """Eight pictures of clouds, as large as the network's input, larger, smaller and wider."""
    height, width = detector.preprocessing.size
    region = None if detector.region_ is None else detector.region_.mask
    scales = ((1, 1), (1, 1), (2, 2), (1.37, 1.61), (0.7, 0.6), (1.5, 0.8), (0.9, 1.3), (3.1, 2.9))
    sizes = [(max(1, round(height * down)), max(1, round(width * across))) for down, across in scales]
    if region is not None:
        sizes = [(region.shape[0], region.shape[1])] * len(scales)
    return from_arrays(list(clouds(sizes)))


def _map_difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float]:
    """The largest difference of a value, and the largest value."""
    if ours.shape != theirs.shape or (np.isnan(ours) != np.isnan(theirs)).any():
        return np.inf, 0.0
    return float(np.nanmax(np.abs(ours - theirs))), float(np.nanmax(np.abs(ours)))


def _refusal(path: str, difference: str, *, first: str) -> ExportError:
    return ExportError(
        f"{path}: not written, because {difference}. The first that differs: {first}. "
        "Report it with the versions of torch and of the runtime; until then, predict with blemish itself."
    )


def _first_difference(detector: Judge, layers: Layers, run: Run, picture: Picture) -> str:
    """The first layer, from the picture on, at which both ways part."""
    pixels = detector.preprocessing.pixels(picture)[None]
    ours = {name: value.numpy() for name, value in ({"network.input": pixels} | layers(pixels)).items()}
    theirs = run.inside(pixels_of(picture, "image"), ours)
    for name, mine in ours.items():
        largest = float(np.abs(mine).max()) or 1.0
        if name not in theirs or not np.abs(mine - theirs[name]).max() <= TOLERANCE * largest:
            return name
    return "what is made of the layers"
