"""One fitted detector on one labelled test set: every figure, and every image's record.

Labels and masks of the test images reach the metrics here and nothing else: the threshold was fixed before, from
normal images alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .. import metrics
from ..datasets.layouts import Dataset, Sample
from ..detector import Detector
from ..errors import ArgumentError, DatasetError
from ..images.preprocess import Preprocess
from ..images.source import Skipped
from ..progress import Progress
from ..types import Decision, Size
from .masks import Masks as Masks
from .masks import look_at_masks, require_shape

_log = logging.getLogger(__name__)

Pixels = Literal["original", "network"]
_Interval = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """Figures over the test images; None where a figure cannot be computed. AUROC and shares are in [0, 1]."""

    image_auroc: float | None
    pixel_auroc: float | None
    au_pro_30: float | None
    """Area under the per-region overlap up to 30 % false-positive pixels."""
    au_pro_05: float | None
    average_precision: float | None
    """Positive class anomalous; chance level `n_anomalous / (n_normal + n_anomalous)`."""
    average_precision_normal: float | None
    """Positive class normal; chance level `n_normal / (n_normal + n_anomalous)`."""
    fpr_at_95_tpr: float | None
    f1: float | None
    """At the threshold fixed from held-out normal images."""
    f1_max_oracle: float | None
    """At the best threshold that test labels can find: an upper bound, not a result."""
    threshold: float | None
    false_alarms: float | None
    """Share of the normal test images above the threshold."""
    misses: float | None
    """Share of the anomalous test images not above the threshold."""
    n_normal: int
    n_anomalous: int


@dataclass(frozen=True)
class Record:
    """One test image with its verdict."""

    sample: Sample
    decision: Decision
    """Without a map; `Evaluation.map` gives it."""
    size: Size


@dataclass(frozen=True)
class KindFigures:
    """One kind of test images against the normal ones."""

    kind: str
    images: int
    image_auroc: float | None
    """None for the normal kind itself."""
    flagged: float | None
    """Share above the threshold: a false-alarm rate for the normal kind, a detection rate for the others."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns."""

    figures: Figures
    kinds: tuple[KindFigures, ...]
    intervals: dict[str, _Interval]
    """95 % bootstrap intervals by figure name; empty unless asked for."""
    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]
    pixels: Pixels
    """Whether pixel figures are on the original pixels, or on the network's input as in the papers."""
    seconds: float
    """Wall time of decoding, scoring and placing; metrics not counted."""
    preprocess: Preprocess
    notes: tuple[str, ...]
    """What is suspicious about the masks."""
    maps: NDArray[np.float32] | None
    """`(records, height, width)` at the size of the network's input; None for image-level methods."""

    def map(self, index: int) -> NDArray[np.float32] | None:
        """The anomaly map of one record on its original pixels, `(height, width)`; None for image-level methods."""
        if self.maps is None:
            return None
        return self.preprocess.to_original(torch.from_numpy(self.maps[index]), self.records[index].size)


def evaluate(
    detector: Detector,
    dataset: Dataset,
    *,
    pixels: Pixels | None = None,
    intervals: bool = False,
    repetitions: int = 100,
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the test images of a data set and compute all figures.

    `pixels` chooses where maps and masks meet: on the `original` pixels (the default without a crop), or on the
    `network`'s input (the default with one, as the papers do: what the crop cut away is not judged).
    `intervals` adds bootstrap intervals over images; those of pixel figures take `repetitions` times the metric's time,
    and are left out with 0. `masks` may be shared with other evaluations.
    """
    if not dataset.test:
        raise DatasetError(f"{dataset.root}: no test images ({dataset.layout} layout). `predict` needs no labels.")
    masks = Masks() if masks is None else masks
    notes = look_at_masks(dataset.test, masks)
    for note in notes:
        _log.warning("%s", note)
    records, maps, seconds = _score(detector, dataset, progress)
    preprocess = detector.preprocessing
    where: Pixels = pixels or ("original" if preprocess.crop is None else "network")
    pairs = None
    if maps is not None and any(record.sample.mask for record in records):
        _require_masks(records)
        pairs = _Pairs(records, maps, preprocess, where, masks)
    table = _table(records, detector)
    return Evaluation(
        figures=_figures(table, pairs),
        kinds=_kinds(records, table),
        intervals=_intervals(table, pairs, repetitions) if intervals else {},
        records=records,
        skipped=tuple(detector.skipped_),
        pixels=where,
        seconds=seconds,
        preprocess=preprocess,
        notes=notes,
        maps=maps,
    )


def _require_masks(records: Sequence[Record]) -> None:
    for record in records:
        if record.sample.anomalous and record.sample.mask is None:
            raise DatasetError(
                f"{record.sample.path}: anomalous, but without a mask, while other images have one. Its defect would "
                "count as normal pixels. Add the mask, or remove all masks to evaluate whole images only."
            )


@dataclass(frozen=True)
class _Table:
    scores: NDArray[np.float64]
    anomalous: NDArray[np.bool_]
    threshold: float | None


def _table(records: Sequence[Record], detector: Detector) -> _Table:
    threshold = detector.calibration_.threshold if detector.calibration_ else None
    scores = np.array([record.decision.score for record in records], dtype=np.float64)
    return _Table(scores, np.array([record.sample.anomalous for record in records], dtype=bool), threshold)


def _score(
    detector: Detector, dataset: Dataset, progress: Progress | None
) -> tuple[tuple[Record, ...], NDArray[np.float32] | None, float]:
    by_name = {str(sample.path): sample for sample in dataset.test}
    records: list[Record] = []
    maps: list[NDArray[np.float32]] = []
    start = time.perf_counter()
    for batch, scores in detector.score(dataset.test_images(), progress=progress):
        for name, size, score in zip(batch.names, batch.sizes, scores.images.tolist(), strict=True):
            records.append(Record(by_name[name], detector.decide(name, score), size))
        if scores.maps is not None:
            maps.append(scores.maps.cpu().numpy())
    seconds = time.perf_counter() - start
    return tuple(records), np.concatenate(maps) if maps else None, seconds


class _Pairs:
    """Re-iterable (map, mask) pairs; original-size maps are made anew on each pass, so memory stays small."""

    def __init__(  # noqa: PLR0917
        self,
        records: Sequence[Record],
        maps: NDArray[np.float32],
        preprocess: Preprocess,
        where: Pixels,
        masks: Masks,
    ) -> None:
        self._records, self._maps, self._preprocess = records, maps, preprocess
        self._where, self._masks = where, masks

    def __iter__(self) -> Iterator[metrics.Pair]:
        for record, map in zip(self._records, self._maps, strict=True):
            mask = None if record.sample.mask is None else self._masks[record.sample.mask]
            if mask is not None:
                require_shape(record.sample, record.size, (mask.shape[0], mask.shape[1]))
            if self._where == "network":
                yield map, None if mask is None else self._placed(record, mask)
                continue
            placed = self._preprocess.to_original(torch.from_numpy(map), record.size)
            yield placed[self._seen(record.size)], None if mask is None else self._placed(record, mask)

    def have_both_kinds(self) -> bool:
        """Whether the crop left normal and marked pixels; no figure of pixels can be computed without."""
        normal = marked = False
        for record in self._records:
            mask = None if record.sample.mask is None else self._placed(record, self._masks[record.sample.mask])
            normal |= mask is None or not mask.all()
            marked |= mask is not None and bool(mask.any())
            if normal and marked:
                return True
        return False

    def _placed(self, record: Record, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if self._where == "network":
            return self._preprocess.mask(mask)
        return _at_size(mask, record.size)[self._seen(record.size)]

    def subset(self, indices: NDArray[np.intp]) -> _Pairs:
        records = [self._records[i] for i in indices]
        return _Pairs(records, self._maps[indices], self._preprocess, self._where, self._masks)

    def _seen(self, size: Size) -> tuple[slice, slice]:
        """The rectangle of original pixels that the crop looked at."""
        visible = self._preprocess.visible(size)
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _at_size(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Bring a mask to its image's size, nearest neighbour: each image counts with its own pixels."""
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(bool)


def _figures(table: _Table, pairs: _Pairs | None) -> Figures:
    scores, anomalous, threshold = table.scores, table.anomalous, table.threshold
    both = bool(anomalous.any() and not anomalous.all())
    curve = metrics.pixel_curve(pairs) if pairs is not None and pairs.have_both_kinds() else None
    decided = threshold is not None
    flagged = scores > threshold if threshold is not None else None
    return Figures(
        image_auroc=metrics.auroc(scores, anomalous) if both else None,
        pixel_auroc=metrics.pixel_auroc(curve) if curve else None,
        au_pro_30=metrics.au_pro(curve, limit=0.3) if curve else None,
        au_pro_05=metrics.au_pro(curve, limit=0.05) if curve else None,
        average_precision=metrics.average_precision(scores, anomalous) if both else None,
        average_precision_normal=metrics.average_precision_normal(scores, anomalous) if both else None,
        fpr_at_95_tpr=metrics.fpr_at_tpr(scores, anomalous, tpr=0.95) if both else None,
        f1=metrics.f1_at(scores, anomalous, threshold) if both and threshold is not None else None,
        f1_max_oracle=metrics.f1_max_oracle(scores, anomalous).f1 if both else None,
        threshold=threshold,
        false_alarms=_share(flagged[~anomalous]) if decided and flagged is not None else None,
        misses=_share(~flagged[anomalous]) if decided and flagged is not None else None,
        n_normal=int((~anomalous).sum()),
        n_anomalous=int(anomalous.sum()),
    )


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if values.size else None


def _kinds(records: Sequence[Record], table: _Table) -> tuple[KindFigures, ...]:
    kinds = np.array([record.sample.kind for record in records])
    rows = []
    for kind in sorted(set(kinds.tolist()), key=lambda k: (bool(table.anomalous[kinds == k].any()), k)):
        chosen = kinds == kind
        compared = chosen | ~table.anomalous
        abnormal = bool(table.anomalous[chosen].any()) and not table.anomalous[compared].all()
        rows.append(
            KindFigures(
                kind,
                int(chosen.sum()),
                metrics.auroc(table.scores[compared], table.anomalous[compared]) if abnormal else None,
                None if table.threshold is None else _share(table.scores[chosen] > table.threshold),
            )
        )
    return tuple(rows)


def _intervals(table: _Table, pairs: _Pairs | None, repetitions: int) -> dict[str, _Interval]:
    if table.anomalous.all() or not table.anomalous.any():
        return {}

    def of_images(statistic: Callable[[NDArray[np.float64], NDArray[np.bool_]], float], n: int = 1000) -> _Interval:
        interval = metrics.bootstrap_interval(
            lambda drawn: statistic(table.scores[drawn], table.anomalous[drawn]), table.anomalous, repetitions=n
        )
        return interval.low, interval.high

    found = {
        "image_auroc": of_images(metrics.auroc),
        "average_precision": of_images(metrics.average_precision),
        "average_precision_normal": of_images(metrics.average_precision_normal),
        "fpr_at_95_tpr": of_images(metrics.fpr_at_tpr),
        "f1_max_oracle": of_images(lambda s, a: metrics.f1_max_oracle(s, a).f1),
    }
    threshold = table.threshold
    if threshold is not None:
        found["f1"] = of_images(lambda s, a: metrics.f1_at(s, a, threshold))
    if pairs is not None and repetitions:
        try:
            found |= _pixel_intervals(table, pairs, repetitions)
        except ArgumentError as error:  # few images have marked pixels, and one draw has none of them
            _log.warning("no intervals of pixel figures: %s", error)
    return found


def _pixel_intervals(table: _Table, pairs: _Pairs, repetitions: int) -> dict[str, _Interval]:
    """One curve a repetition serves all three figures: the draws are the same for the same seed."""
    curves: dict[bytes, tuple[float, float, float]] = {}

    def statistic(position: int) -> Callable[[NDArray[np.intp]], float]:
        def value(drawn: NDArray[np.intp]) -> float:
            key = drawn.tobytes()
            if key not in curves:
                curve = metrics.pixel_curve(pairs.subset(drawn))
                curves[key] = (
                    metrics.pixel_auroc(curve), metrics.au_pro(curve, limit=0.3), metrics.au_pro(curve, limit=0.05),
                )  # fmt: skip
            return curves[key][position]

        return value

    found = {}
    for position, name in enumerate(("pixel_auroc", "au_pro_30", "au_pro_05")):
        interval = metrics.bootstrap_interval(statistic(position), table.anomalous, repetitions=repetitions)
        found[name] = (interval.low, interval.high)
    return found


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """The figures as one flat object, with `kinds`, `intervals` and the number of skipped files beside them."""
    return {
        **asdict(evaluation.figures),
        "kinds": [asdict(kind) for kind in evaluation.kinds],
        "intervals": evaluation.intervals,
        "pixels": evaluation.pixels,
        "skipped": len(evaluation.skipped),
        "notes": list(evaluation.notes),
    }
