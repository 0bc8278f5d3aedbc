"""One fitted detector on one labelled test set: every figure, and every image's record.

Labels and masks of the test images reach the metrics here and nothing else: the threshold was fixed before, from
normal images alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import repeat
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .. import metrics
from ..calibrate import Calibration
from ..datasets.layouts import Dataset, Sample
from ..detector import Detector
from ..errors import ArgumentError, DatasetError, log
from ..images.digest import with_digests
from ..images.preprocess import Preprocess
from ..images.source import Skipped
from ..images.upright import at_size
from ..localise import Localiser
from ..metrics.table import TABLE, Figures, Metric, Outcome
from ..progress import Progress
from ..types import Decision, Size
from .batch import BatchFigures, judge_batch
from .masks import Masks as Masks
from .masks import look_at_masks
from .parts import PartFigures, judge_parts
from .rates import MissRate, RealisedRate, exact, realised, realised_json

PixelSpace = Literal["original", "network"]
_Ends = tuple[float, float]


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
    intervals: dict[str, _Ends]
    """95 % intervals by figure name, exact ones of shares of images, else by the bootstrap; empty unless asked for."""
    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]
    pixels: PixelSpace
    """Whether pixel figures are on the original pixels, or on the network's input as in the papers."""
    seconds: float
    """Wall time of decoding, scoring and placing; metrics not counted."""
    preprocess: Preprocess
    notes: tuple[str, ...]
    """What is suspicious about the masks."""
    maps: NDArray[np.float32] | None
    """`(records, height, width)` at the size of the network's input; None for image-level methods."""
    outcome: Outcome
    """What the figures are computed of, but for the curve of pixels."""
    inside: NDArray[np.bool_] | None = None
    """`(records, height, width)` at that size: the region of interest; None: all of it."""
    overlap: tuple[str, ...] = ()
    """Names of test images that the model had seen when it was fitted: no figure holds that counts them."""
    realised: RealisedRate | None = None
    """None without a threshold, and without normal test images."""
    realised_regions: RealisedRate | None = None
    """The same of normal test images with any region; None also where the detector reports no regions."""

    missed: MissRate | None = None
    """None without a threshold, and without anomalous test images."""
    parts: PartFigures | None = None
    """Of parts, where the detector judges some."""
    batch: BatchFigures | None = None
    """Of all images, or parts, together; None unless asked for."""

    def map(self, index: int) -> NDArray[np.float32] | None:
        """The anomaly map of one record on its original pixels, `(height, width)`; None for image-level methods."""
        if self.maps is None:
            return None
        return self.place(index, self.records[index].size)

    def place(self, index: int, size: Size) -> NDArray[np.float32]:
        """The map of one record at any size; NaN where nobody looked."""
        assert self.maps is not None
        region = None if self.inside is None else torch.from_numpy(self.inside[index])
        return self.preprocess.to_original(torch.from_numpy(self.maps[index]), size, region)


def evaluate(
    detector: Detector,
    dataset: Dataset,
    *,
    pixels: PixelSpace | None = None,
    intervals: bool = False,
    repetitions: int = 100,
    masks: Masks | None = None,
    allow_overlap: bool = False,
    fdr: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the test images of a data set and compute all figures.

    `pixels` chooses where maps and masks meet: on the `original` pixels (the default without a crop), or on the
    `network`'s input (the default with one, as the papers do: what the crop cut away is not judged).
    `intervals` adds bootstrap intervals over images; those of pixel figures take `repetitions` times the metric's time,
    and are left out with 0. `masks` may be shared with other evaluations. Raises `DatasetError` at a test image that
    the model learned from, or that set its threshold; `allow_overlap` goes on, and `Evaluation.overlap` names them.
    `fdr` also chooses alarms among all of them together, as `Detector.choose_alarms` does, and raises what that raises.
    """
    if fdr is not None:
        detector.choose_alarms([], fdr)  # refuses, before the work, what cannot be promised
    if not dataset.test:
        raise DatasetError(f"{dataset.root}: no test images ({dataset.layout} layout). `predict` needs no labels.")
    masks = Masks(max_pixels=detector.max_pixels) if masks is None else masks
    notes = look_at_masks(dataset.test, masks)
    for note in notes:
        log.warning("%s", note)
    start = time.perf_counter()
    records, maps, inside, overlap = _score(detector, dataset, allow_overlap, progress)
    seconds = time.perf_counter() - start
    preprocess = detector.preprocessing
    where: PixelSpace = pixels or ("original" if preprocess.crop is None else "network")
    pairs = None
    if maps is not None and _have_masks(records):
        pairs = _Pairs(records, maps, inside, preprocess, where, masks)
    outcome = _outcome(detector, records, pairs)
    decisions = [record.decision for record in records]
    parts = judge_parts(detector, dataset, decisions)
    batch = None
    if fdr is not None:
        batch = judge_batch(detector, fdr, decisions, anomalous=outcome.anomalous.tolist(), parts=parts)
    return Evaluation(
        figures=Figures(**{name: row.of(outcome) for name, row in TABLE.items()}),
        kinds=tuple(_kinds(records, outcome)),
        intervals=_intervals(outcome, pairs, repetitions) if intervals else {},
        records=records,
        skipped=tuple(detector.skipped_),
        pixels=where,
        seconds=seconds,
        preprocess=preprocess,
        notes=notes,
        maps=maps,
        inside=inside,
        overlap=overlap,
        realised=_realised(detector.calibration_, outcome, "are flagged"),
        realised_regions=_realised(detector.peaks_, outcome, "show a region"),
        outcome=replace(outcome, curve=None),
        missed=_missed(outcome),
        parts=parts,
        batch=batch,
    )


def _outcome(detector: Detector, records: Sequence[Record], pairs: _Pairs | None) -> Outcome:
    """What all figures are computed of."""
    calibration, decisions = detector.calibration_, [record.decision for record in records]
    verdicts = None if calibration is None else np.array([one.is_anomalous for one in decisions], dtype=bool)
    return Outcome(
        scores=np.array([one.score for one in decisions], dtype=np.float64),
        anomalous=np.array([record.sample.anomalous for record in records], dtype=bool),
        threshold=None if calibration is None else calibration.threshold,
        curve=metrics.pixel_curve(pairs) if pairs is not None and pairs.have_both_kinds() else None,
        found=_found(detector, records, pairs),
        flagged=verdicts,
    )


def curves(evaluation: Evaluation, masks: Masks) -> Callable[[NDArray[np.intp]], metrics.PixelCurve]:
    """What gives the curve of pixel figures of any records, by their positions, with repeats."""
    assert evaluation.maps is not None
    pairs = _Pairs(
        evaluation.records, evaluation.maps, evaluation.inside, evaluation.preprocess, evaluation.pixels, masks
    )
    return lambda images: metrics.pixel_curve(pairs.subset(images))


def _realised(
    calibration: Calibration | None, outcome: Outcome, what: Literal["are flagged", "show a region"]
) -> RealisedRate | None:
    if calibration is None or not outcome.has("normal"):
        return None
    flagged = outcome.flagged
    if what == "show a region":
        assert outcome.found is not None
        flagged = outcome.found.reported > 0
    assert flagged is not None
    normal = ~outcome.anomalous
    return realised(calibration, int(flagged[normal].sum()), int(normal.sum()), what=what)


def _missed(outcome: Outcome) -> MissRate | None:
    share, images = TABLE["misses"].of(outcome), int(outcome.anomalous.sum())
    return None if share is None else MissRate(round(share * images), images, exact(round(share * images), images))


def _found(detector: Detector, records: Sequence[Record], pairs: _Pairs | None) -> metrics.FoundRegions | None:
    """What the regions of the detector hit and miss; None where it reports none."""
    if detector.peaks_ is None:
        return None
    reported = np.array([len(record.decision.regions or ()) for record in records], dtype=np.intp)
    threshold = detector.peaks_.threshold
    if pairs is None or threshold is None:  # with `cross`, a region is no level of the mean map
        return metrics.FoundRegions(reported)
    return metrics.FoundRegions(reported, *metrics.count_found(pairs.cut(detector.localiser, threshold), threshold))


def _have_masks(records: Sequence[Record]) -> bool:
    """Whether the defects are marked; all of them must be, or none."""
    if not any(record.sample.mask for record in records):
        return False
    for record in records:
        if record.sample.anomalous and record.sample.mask is None:
            raise DatasetError(
                f"{record.sample.path}: anomalous, but without a mask, while other images have one. Its defect would "
                "count as normal pixels. Add the mask, or remove all masks to evaluate whole images only."
            )
    return True


def _score(
    detector: Detector, dataset: Dataset, allow_overlap: bool, progress: Progress | None
) -> tuple[tuple[Record, ...], NDArray[np.float32] | None, NDArray[np.bool_] | None, tuple[str, ...]]:
    """Records, maps, regions of interest, and the names of images that the model has seen before."""
    by_name = {str(sample.path): sample for sample in dataset.test}
    records: list[Record] = []
    maps: list[NDArray[np.float32]] = []
    inside: list[NDArray[np.bool_]] = []
    seen = detector.learned_ | detector.calibrated_on_
    source, digests = with_digests(dataset.test_images(max_pixels=detector.max_pixels))
    overlap: list[str] = []
    for batch, scores in detector.score(source, progress=progress):
        overlap += [name for name in batch.names if digests.get(name) in seen]
        if overlap and not allow_overlap:
            raise DatasetError(
                f"{overlap[0]}: the model learned from this picture, or has its threshold from it, so a figure that "
                "counts it would say nothing. Test on other images (`blemish inspect DATA` names all copies), or "
                "allow the overlap (--allow-overlap)."
            )
        p_values = detector.p_values(scores)
        for i, found in enumerate(detector.regions(batch, scores)):
            decision = detector.decide(batch.names[i], float(scores.images[i]), p_value=p_values[i])
            records.append(Record(by_name[decision.name], replace(decision, regions=found), batch.sizes[i]))
        if scores.maps is not None:
            maps.append(scores.maps.cpu().numpy())
        if batch.inside is not None:
            inside.append(batch.inside.numpy())
    looked_at = np.concatenate(inside) if inside else None
    return tuple(records), np.concatenate(maps) if maps else None, looked_at, tuple(overlap)


@dataclass(frozen=True)
class _Pairs:
    """Re-iterable (map, mask) pairs; original-size maps are made anew on each pass, so memory stays small."""

    records: Sequence[Record]
    maps: NDArray[np.float32]
    inside: NDArray[np.bool_] | None
    preprocess: Preprocess
    where: PixelSpace
    masks: Masks

    def __iter__(self) -> Iterator[metrics.Pair]:
        for index, (record, map) in enumerate(zip(self.records, self.maps, strict=True)):
            placed = map
            if self.where == "original":
                placed = self.preprocess.to_original(torch.from_numpy(map), record.size)[self._seen(record.size)]
            outside = self._outside(index)
            yield placed if outside is None else np.ma.MaskedArray(placed, outside), self._mask(record)

    def have_both_kinds(self) -> bool:
        """Whether crop and region left normal and marked pixels; no figure of pixels can be computed without."""
        normal = marked = False
        for index, record in enumerate(self.records):
            mask, outside = self._mask(record), self._outside(index)
            kept = mask if mask is None or outside is None else mask[~outside]
            normal |= kept is None or not kept.all()
            marked |= kept is not None and bool(kept.any())
            if normal and marked:
                return True
        return False

    def cut(self, localiser: Localiser, threshold: float) -> _Pairs:
        """The same, with what is above the threshold, but too small to be reported, cut down to it."""
        if localiser.min_area == 1:
            return self
        inside = repeat(None) if self.inside is None else self.inside
        parts = zip(self.maps, inside, self.records)  # noqa: B905
        maps = [localiser.reported(map, seen, threshold, record.size) for map, seen, record in parts]
        return replace(self, maps=np.array(maps))

    def subset(self, indices: NDArray[np.intp]) -> _Pairs:
        inside = None if self.inside is None else self.inside[indices]
        return replace(self, records=[self.records[i] for i in indices], maps=self.maps[indices], inside=inside)

    def _mask(self, record: Record) -> NDArray[np.bool_] | None:
        mask = self.masks.of(record.sample, record.size)
        if mask is None:
            return None
        if self.where == "network":
            return self.preprocess.mask(mask)
        return at_size(mask, record.size)[self._seen(record.size)]

    def _outside(self, index: int) -> NDArray[np.bool_] | None:
        """What is not in the region of interest, where the pairs meet."""
        if self.inside is None:
            return None
        inside: NDArray[np.bool_] = self.inside[index]
        if self.where == "original":
            size = self.records[index].size
            inside = self.preprocess.inside(torch.from_numpy(inside), size)[self._seen(size)]
        return ~inside

    def _seen(self, size: Size) -> tuple[slice, slice]:
        """The rectangle of original pixels that the crop looked at."""
        visible = self.preprocess.visible(size)
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _kinds(records: Sequence[Record], outcome: Outcome) -> Iterator[KindFigures]:
    kinds = np.array([record.sample.kind for record in records])
    for kind in sorted(set(kinds.tolist()), key=lambda k: (bool(outcome.anomalous[kinds == k].any()), k)):
        chosen = kinds == kind
        compared = _drawn(outcome, chosen | ~outcome.anomalous)
        abnormal = outcome.anomalous[chosen].any() and compared.has("normal")
        yield KindFigures(
            kind,
            int(chosen.sum()),
            metrics.auroc(compared.scores, compared.anomalous) if abnormal else None,
            None if outcome.flagged is None else float(np.mean(outcome.flagged[chosen])),
        )


def _drawn(outcome: Outcome, images: NDArray[np.intp] | NDArray[np.bool_]) -> Outcome:
    """The same of some images alone."""
    found = None if outcome.found is None else outcome.found.of(images)
    flagged = None if outcome.flagged is None else outcome.flagged[images]
    return replace(
        outcome, scores=outcome.scores[images], anomalous=outcome.anomalous[images], curve=None, found=found,
        flagged=flagged,
    )  # fmt: skip


def _intervals(outcome: Outcome, pairs: _Pairs | None, repetitions: int) -> dict[str, _Ends]:
    if not (outcome.has("normal") and outcome.has("anomalous")):
        return {}
    rows = {name: row for name, row in TABLE.items() if row.has_interval and all(map(outcome.has, row.needs))}
    of_pixels = [name for name in rows if "masks" in rows[name].needs]
    found = {name: _image_interval(outcome, row) for name, row in rows.items() if name not in of_pixels}
    found |= _exact_intervals(outcome)
    if pairs is None or not repetitions:
        return found

    @cache  # one curve a repetition serves all figures: the draws are the same for the same seed
    def drawn_figures(drawn: bytes) -> dict[str, float]:
        curve = metrics.pixel_curve(pairs.subset(np.frombuffer(drawn, dtype=np.intp)))
        return {name: rows[name].of(replace(outcome, curve=curve)) for name in of_pixels}

    def interval(name: str) -> _Ends:
        return _interval(lambda drawn: drawn_figures(drawn.tobytes())[name], outcome, repetitions)

    try:
        return found | {name: interval(name) for name in of_pixels}
    except ArgumentError as error:  # few images have marked pixels, and one draw has none of them
        log.warning("no intervals of pixel figures: %s", error)
        return found


def _exact_intervals(outcome: Outcome) -> dict[str, _Ends]:
    """Those of shares of images."""
    counts = {"normal": int((~outcome.anomalous).sum()), "anomalous": int(outcome.anomalous.sum())}
    found = {}
    for name, row in TABLE.items():
        if row.share_of is not None and (share := row.of(outcome)) is not None:
            found[name] = exact(round(share * counts[row.share_of]), counts[row.share_of])
    return found


def _image_interval(outcome: Outcome, row: Metric) -> _Ends:
    return _interval(lambda drawn: row.of(_drawn(outcome, drawn)), outcome, 1000)


def _interval(statistic: Callable[[NDArray[np.intp]], float], outcome: Outcome, repetitions: int) -> _Ends:
    interval = metrics.bootstrap_interval(statistic, outcome.anomalous, repetitions=repetitions)
    return interval.low, interval.high


def evaluation_json(evaluation: Evaluation) -> dict[str, object]:
    """The figures as one flat object, with `kinds`, `intervals`, `realised` and counts beside them."""
    return {
        **asdict(evaluation.figures),
        "kinds": [asdict(kind) for kind in evaluation.kinds],
        "intervals": evaluation.intervals,
        "pixels": evaluation.pixels,
        "skipped": len(evaluation.skipped),
        "notes": list(evaluation.notes),
        "overlap": len(evaluation.overlap),
        "realised": realised_json(evaluation.realised),
        "realised_regions": realised_json(evaluation.realised_regions),
        "missed": None if evaluation.missed is None else asdict(evaluation.missed),
        "parts": None if evaluation.parts is None else evaluation.parts.as_json(),
        "batch": None if evaluation.batch is None else evaluation.batch.as_json(),
    }
