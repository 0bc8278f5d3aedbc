"""Two fitted detectors on the same labelled images: differences of all figures, paired by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..datasets.layouts import Dataset
from ..detector import Detector
from ..errors import ArgumentError, DatasetError, log
from ..images.groups import GroupBy, find_groups
from ..metrics.paired import FigureDifference, Statistic, paired_differences, ranks
from ..metrics.regions import FoundRegions, PixelCurve
from ..metrics.table import TABLE, Outcome
from ..progress import Progress
from .detector import Evaluation, PixelSpace, curves, evaluate
from .masks import Masks


@dataclass(frozen=True)
class PairEvaluation:
    """What `evaluate_pair` returns."""

    a: Evaluation
    b: Evaluation
    differences: dict[str, FigureDifference]
    """a - b by figure, those that both detectors have and that are better one way."""
    groups: int
    """What is drawn and swapped: images, or groups of them."""
    repetitions: int
    pixel_repetitions: int

    @property
    def images(self) -> int:
        """Test images that both judged."""
        return len(self.a.records)

    def as_json(self) -> dict[str, object]:
        """Differences, counts, and the figures of both."""
        rows = {name: asdict(found) | {"difference": found.difference} for name, found in self.differences.items()}
        of_both = {name: asdict(one.figures) for name, one in (("a", self.a), ("b", self.b))}
        counts = {"images": self.images, "groups": self.groups}
        return counts | {"differences": rows, **of_both, "overlap": len(self.a.overlap) + len(self.b.overlap)}


def evaluate_pair(
    a: Detector,
    b: Detector,
    dataset: Dataset,
    *,
    group_by: GroupBy | None = None,
    pixels: PixelSpace | None = None,
    repetitions: int = 1000,
    pixel_repetitions: int = 100,
    allow_overlap: bool = False,
    progress: Progress | None = None,
) -> PairEvaluation:
    """Compare two detectors by every figure of the table on the test images of a data set.

    `group_by` says which images belong together, as a `Detector`'s does; copies of one picture always do. Figures of
    pixels take `pixel_repetitions` times their own time, and are left out with 0; their p-values come from the
    bootstrap. The rest is that of `evaluate` and `paired_differences`. Raises `DatasetError` where a class is missing.
    """
    source = dataset.test_images(max_pixels=a.max_pixels)
    number = dict(zip(source.names, find_groups(source, source.paths(), group_by), strict=True))
    masks = Masks(max_pixels=a.max_pixels)
    left, right = (
        evaluate(one, dataset, pixels=pixels, masks=masks, allow_overlap=allow_overlap, progress=progress)
        for one in (a, b)
    )
    names = [[str(record.sample.path) for record in one.records] for one in (left, right)]
    if names[0] != names[1]:
        raise DatasetError(f"{dataset.root}: one of the models could not read all images. Mend or remove these files.")
    if not (left.figures.n_normal and left.figures.n_anomalous):
        raise DatasetError(f"{dataset.root}: a comparison takes normal and anomalous test images, one kind is missing.")
    groups = np.array([number[name] for name in names[0]])

    def compare(rows: list[str], statistic: Statistic, repetitions: int, *, swaps: bool) -> dict[str, FigureDifference]:
        found = paired_differences(
            statistic, left.outcome.anomalous, groups=groups, swaps=swaps, repetitions=repetitions
        )
        return dict(zip(rows, found, strict=True))

    both = left.figures, right.figures
    rows = [name for name, row in TABLE.items() if row.better and None not in [getattr(f, name) for f in both]]
    of_pixels = [name for name in rows if "masks" in TABLE[name].needs]
    of_images = [name for name in rows if name not in of_pixels]
    differences = compare(of_images, _of_images(left.outcome, right.outcome, of_images), repetitions, swaps=True)
    if of_pixels and pixel_repetitions:
        statistic = _of_pixels(curves(left, masks), curves(right, masks), of_pixels)
        try:
            differences |= compare(of_pixels, statistic, pixel_repetitions, swaps=False)
        except ArgumentError as error:  # few images have marked pixels, and one draw has none of them
            log.warning("no differences of pixel figures: %s", error)
    return PairEvaluation(
        left, right, {name: differences[name] for name in rows if name in differences},
        len(set(number.values())), repetitions, pixel_repetitions,
    )  # fmt: skip


def _of_images(a: Outcome, b: Outcome, names: list[str]) -> Statistic:
    """Figures of ranks, verdicts and counts of regions, which two detectors can swap."""
    ranked = [ranks(one.scores) for one in (a, b)]

    def statistic(images: NDArray[np.intp], swapped: NDArray[np.bool_]) -> NDArray[np.float64]:
        labels, found = a.anomalous[images], []
        for i, j in ((0, 1), (1, 0)):
            own, other = (a, b)[i], (a, b)[j]
            scores = np.where(swapped, ranked[j][images], ranked[i][images])
            flagged = None
            if own.flagged is not None and other.flagged is not None:
                flagged = np.where(swapped, other.flagged[images], own.flagged[images])
            regions = _regions(own.found, other.found, images, swapped)
            outcome = Outcome(scores, labels, None, None, regions, flagged)
            found.append([TABLE[name].of(outcome) for name in names])
        return np.array(found)

    return statistic


def _regions(
    own: FoundRegions | None, other: FoundRegions | None, images: NDArray[np.intp], swapped: NDArray[np.bool_]
) -> FoundRegions | None:
    """What regions hit and miss in images, that of the other detector where they swap."""
    if own is None or other is None:
        return None

    def mixed(name: str) -> NDArray[np.intp] | None:
        x, y = getattr(own, name), getattr(other, name)
        if x is None or y is None:
            return None
        found: NDArray[np.intp] = np.where(swapped.reshape(-1, *[1] * (x.ndim - 1)), y[images], x[images])
        return found

    reported = mixed("reported")
    assert reported is not None
    return FoundRegions(reported, *(mixed(name) for name in ("hit", "defects", "pixels")))


def _of_pixels(
    a: Callable[[NDArray[np.intp]], PixelCurve], b: Callable[[NDArray[np.intp]], PixelCurve], names: list[str]
) -> Statistic:
    def statistic(images: NDArray[np.intp], _swapped: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.array([[TABLE[name].function(curve) for name in names] for curve in (a(images), b(images))])

    return statistic
