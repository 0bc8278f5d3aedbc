"""Classifiers and images that do not belong: every detector of an evaluation reads the same forward pass.

In-distribution images are "normal", out-of-distribution ones "anomalous", as in `metrics/`. Only scores are kept, so
memory does not grow with the images but for a few numbers each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .. import metrics
from ..datasets.labelled import LabelledImages, LabelledInput, open_labelled
from ..errors import ArgumentError, DatasetError, log
from ..files import make_folder, whole_file
from ..images.settle import warn_of_dark
from ..images.source import Batches, OnError
from ..ood import Classifier, OODDetector, Outputs
from ..persist import digest
from ..progress import Progress
from ..types import Floats, ImageBatch

TRIVIAL = ("brightness", "contrast", "sharpness", "file size")
"""Detectors that know nothing: where one of them separates two sets of images, the comparison measures the pipeline."""
SUSPICIOUS = 0.9
"""AUROC, in either direction, from which a trivial detector is reported."""


@dataclass(frozen=True)
class Reader:
    """How images are read."""

    batch_size: int = 16
    workers: int = 2
    on_error: OnError = "raise"
    progress: Progress | None = None

    def batches(self, classifier: Classifier, images: LabelledImages, stage: str) -> Iterator[ImageBatch]:
        """Preprocessed batches, with progress; skipped files are logged."""
        if classifier.preprocess.white_level is None:
            warn_of_dark(images.source)
        batches = Batches(images.source, classifier.preprocess, self.batch_size, self.workers, self.on_error)
        done = 0
        for batch in batches:
            yield batch
            done += len(batch)
            if self.progress is not None:
                self.progress(stage, done + len(batches.skipped), len(images))
        for name, reason in batches.skipped:
            log.warning("skipped: %s", reason if name in reason else f"{name}: {reason}")
        if batches.skipped:
            log.warning("%d files skipped.", len(batches.skipped))
        if not done:
            raise ArgumentError.about(stage, expected="at least one readable image", got=f"{len(images)} listed")


@dataclass(frozen=True)
class ScoredImages:
    """What is kept of a set of images."""

    name: str
    names: tuple[str, ...]
    scores: dict[str, Floats]
    """`(n,)` by detector, larger = more anomalous."""
    trivial: dict[str, Floats]
    """`(n,)` by trivial detector."""
    predicted: NDArray[np.int64]
    """`(n,)` classes of the largest logits."""
    labels: NDArray[np.int64] | None
    digests: tuple[str, ...]
    """Of the preprocessed pixels of each image, to find one that is in two sets."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by detector beyond the shared forward pass, which is `forward`."""

    def __len__(self) -> int:
        return len(self.names)

    def without(self, digests: frozenset[str]) -> ScoredImages:
        """The images whose digest is not among these."""
        kept = np.array([digest not in digests for digest in self.digests])
        if kept.all():
            return self
        return replace(
            self,
            names=tuple(name for name, keep in zip(self.names, kept, strict=True) if keep),
            scores={name: values[kept] for name, values in self.scores.items()},
            trivial={name: values[kept] for name, values in self.trivial.items()},
            predicted=self.predicted[kept],
            labels=None if self.labels is None else self.labels[kept],
            digests=tuple(digest for digest in self.digests if digest not in digests),
        )

    @property
    def wrong(self) -> NDArray[np.bool_] | None:
        """Which predictions are wrong; None without labels."""
        return None if self.labels is None else self.predicted != self.labels

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions; None without labels."""
        return None if self.wrong is None else float(1 - self.wrong.mean())


Score = Callable[[Outputs], "Floats"]


def score_batches(
    classifier: Classifier, images: LabelledImages, scores: Mapping[str, Score], *, reading: Reader, stage: str = ""
) -> Iterator[ScoredImages]:
    """Score batch by batch with every detector, `scores` by name, on one shared forward pass a batch."""
    for batch in reading.batches(classifier, images, stage or f"scoring {images.name}"):
        start = perf_counter()
        outputs = classifier.outputs(batch.pixels)
        seconds = {"forward": perf_counter() - start}
        found: dict[str, Floats] = {}
        for name, score in scores.items():
            start = perf_counter()
            found[name] = score(outputs)
            seconds[name] = perf_counter() - start
        facts = _trivial(batch)
        yield ScoredImages(
            images.name,
            batch.names,
            found,
            {name: facts[:, i] for i, name in enumerate(TRIVIAL)},
            outputs.logits.argmax(1).astype(np.int64),
            images.of(batch.names),
            tuple(_digests(batch.pixels)),
            seconds,
        )


def score_images(
    classifier: Classifier, images: LabelledImages, scores: Mapping[str, Score], *, reading: Reader, stage: str = ""
) -> ScoredImages:
    """`score_batches`, joined; trivial detectors that do not apply to every image are left out."""
    parts = list(score_batches(classifier, images, scores, reading=reading, stage=stage))
    trivial = {name: np.concatenate([part.trivial[name] for part in parts]) for name in TRIVIAL}
    names = tuple(name for part in parts for name in part.names)
    return ScoredImages(
        images.name,
        names,
        {name: np.concatenate([part.scores[name] for part in parts]) for name in scores},
        {name: values for name, values in trivial.items() if np.isfinite(values).all()},
        np.concatenate([part.predicted for part in parts]),
        images.of(names),
        tuple(digest for part in parts for digest in part.digests),
        {name: sum(part.seconds[name] for part in parts) for name in ("forward", *scores)},
    )


@dataclass(frozen=True)
class ScoreStore:
    """Scores of finished sets in a folder, one `.npz` file each; nothing is kept where `folder` is None."""

    folder: Path | None
    situation: str
    """Everything that the scores depend on beside the images."""

    def get(
        self, classifier: Classifier, images: LabelledImages, scores: Mapping[str, Score], *, reading: Reader
    ) -> ScoredImages:
        """`score_images`, or what it gave the last time."""
        if self.folder is None:
            return score_images(classifier, images, scores, reading=reading)
        text = "\n".join([self.situation, images.name, *_contents(images)])
        name = "".join(letter if letter.isalnum() else "-" for letter in images.name)
        path = self.folder / f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.npz"
        if os.path.isfile(path):
            log.info("%s: scores from %s", images.name, path)
            try:
                return _read_scored(path, images)
            except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
                raise DatasetError(f"{path}: kept scores that cannot be read ({error}). Delete the file.") from error
        found = score_images(classifier, images, scores, reading=reading)
        make_folder(self.folder)
        _write_scored(path, found)
        return found


def _contents(images: LabelledImages) -> Iterator[str]:
    """What tells each image from another of the same name: size and time of a file, else the pixels."""
    for i, name in enumerate(images.source.names):
        path = Path(name)
        if path.is_file():
            facts = path.stat()
            yield f"{name} {facts.st_size} {facts.st_mtime_ns}"
        else:
            pixels = np.asarray(images.source.load(i))
            yield f"{name} {hashlib.sha256(pixels.tobytes()).hexdigest()}"


def _situation(classifier: Classifier, detectors: Mapping[str, OODDetector], learned: ScoredImages | None) -> str:
    parts = [repr(classifier.preprocess)]
    for network in (classifier, *classifier.members):
        parts += [digest(network.model.state_dict()), f"{network.mean} {network.std}"]
    parts += [f"{name}: {detector!r}" for name, detector in detectors.items()]
    return "\n".join([*parts, *(sorted(learned.digests) if learned else ())])


def _write_scored(path: Path, found: ScoredImages) -> None:
    arrays: dict[str, NDArray[np.generic]] = {f"score {name}": values for name, values in found.scores.items()}
    arrays |= {f"trivial {name}": values for name, values in found.trivial.items()}
    arrays |= {f"seconds {name}": np.array(value) for name, value in found.seconds.items()}
    arrays |= {"names": np.array(found.names), "predicted": found.predicted, "digests": np.array(found.digests)}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _read_scored(path: Path, images: LabelledImages) -> ScoredImages:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        names = tuple(str(name) for name in file["names"])

        def part(prefix: str) -> dict[str, Floats]:
            return {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}

        return ScoredImages(
            images.name,
            names,
            part("score "),
            part("trivial "),
            file["predicted"],
            images.of(names),
            tuple(str(digest) for digest in file["digests"]),
            {name: float(value) for name, value in part("seconds ").items()},
        )


def collect(classifier: Classifier, images: LabelledImages, *, reading: Reader) -> tuple[Outputs, ScoredImages]:
    """Outputs for all images at once, without pixels, for detectors that learn."""
    logits, features = [], []
    head = None

    def keep(outputs: Outputs) -> Floats:
        nonlocal head
        logits.append(outputs.logits)
        features.append(outputs.features)
        head = outputs.head
        return np.zeros(len(outputs))

    seen = score_images(classifier, images, {"": keep}, reading=reading, stage="learning from")
    stacked = None if any(part is None for part in features) else np.concatenate([f for f in features if f is not None])
    return Outputs(np.concatenate(logits), stacked, head), seen


def fit_detectors(
    classifier: Classifier,
    detectors: Mapping[str, OODDetector],
    images: LabelledImages | None,
    *,
    reading: Reader,
) -> tuple[dict[str, OODDetector], dict[str, str], ScoredImages | None]:
    """Fit the detectors that learn; returns the usable ones, the others with the reason, and the images seen."""
    probe = classifier.outputs(classifier.probe())
    left_out = {name: f"needs {reason}" for name, d in detectors.items() if (reason := d.missing(probe))}
    learning = [name for name, detector in detectors.items() if detector.learns and name not in left_out]
    outputs, seen = None, None
    if learning and images is None:
        left_out |= dict.fromkeys(learning, "needs in-distribution images to learn from")
    elif learning and images is not None:
        outputs, seen = collect(classifier, images, reading=reading)
    for name in [name for name in detectors if name not in left_out]:
        detector = detectors[name]
        try:  # such as too few images, or features of the wrong kind
            if outputs is not None and detector.learns:
                detector.fit(outputs, seen.labels if seen else None)
            detector.score(probe)
        except ArgumentError as error:
            left_out[name] = f"cannot run: {str(error).removesuffix('.')}"  # a part of other sentences
    return {name: d for name, d in detectors.items() if name not in left_out}, left_out, seen


@dataclass(frozen=True)
class Figure:
    """One figure, with the mean and standard deviation of its bootstrap over images."""

    value: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class OODComparison:
    """One detector on one set of out-of-distribution images against the in-distribution ones."""

    outliers: str
    detector: str
    auroc: Figure
    fpr_at_95_tpr: Figure
    """Share of in-distribution images flagged where 95 % of the outliers are found (positive: outlier)."""
    fpr_at_95_tpr_normal: Figure
    """Share of outliers that pass where 95 % of the in-distribution images do (positive: in-distribution)."""
    average_precision: Figure
    """Positive: outlier; chance level n_outliers / n."""
    average_precision_normal: Figure
    """Positive: in-distribution; chance level n_inliers / n."""
    auroc_interval: tuple[float, float]
    """95 %, DeLong."""
    tie_share: float
    n_inliers: int
    n_outliers: int


@dataclass(frozen=True)
class OODEvaluation:
    """What `evaluate_ood` returns."""

    classifier: str
    inliers: ScoredImages
    outliers: tuple[ScoredImages, ...]
    comparisons: tuple[OODComparison, ...]
    trivial: dict[str, dict[str, float]]
    """AUROC of each trivial detector by set of outliers."""
    warnings: tuple[str, ...]
    left_out: dict[str, str]
    """Detectors that could not run, with the reason."""
    accuracy: float | None
    """Of the classifier on the in-distribution images, where labels are known."""
    facts: dict[str, str]
    """Parameters of each detector, by name."""


def evaluate_ood(  # noqa: PLR0913 (keyword-only but for the data)
    classifier: Classifier,
    inliers: LabelledInput,
    outliers: Mapping[str, LabelledInput],
    *,
    detectors: Mapping[str, OODDetector],
    learn_from: LabelledInput | None = None,
    tuned_on: frozenset[str] = frozenset(),
    exclude_tuned: bool = False,
    repetitions: int = 100,
    seed: int = 0,
    reading: Reader | None = None,
    keep: str | Path | None = None,
) -> OODEvaluation:
    """Compare detectors on in-distribution images and one or more sets of outliers.

    detectors: by name; those that learn do so from `learn_from`, in-distribution images that are not in `inliers`.
    tuned_on: digests of the images that parameters were tuned on. One of them among the test images is an error, or,
        with `exclude_tuned`, left out of the test.
    repetitions: of the bootstrap over images behind each figure's deviation, which says nothing about other networks.
    keep: a folder for the scores of finished sets; a run that was stopped goes on behind them.
    """
    reading = reading or Reader()
    if not outliers:
        raise ArgumentError.about("outliers", expected="at least one set of images", got="none")
    normal = open_labelled(inliers)
    to_learn = None if learn_from is None else open_labelled(learn_from)
    usable, left_out, learned = fit_detectors(classifier, detectors, to_learn, reading=reading)
    if not usable:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise ArgumentError.about("detectors", expected="at least one that can run", got=reasons)
    scores = {name: detector.score for name, detector in usable.items()}
    store = ScoreStore(None if keep is None else Path(keep), _situation(classifier, usable, learned))
    seen: dict[str, Collection[str]] = {
        "images tuned on": tuned_on,
        "images to learn from": learned.digests if learned else (),
    }
    require_disjoint(seen)

    excluded = tuned_on if exclude_tuned else frozenset[str]()

    def scored(images: LabelledImages, role: str) -> ScoredImages:
        found = store.get(classifier, images, scores, reading=reading).without(excluded)
        if not len(found):
            raise ArgumentError.about(images.name, expected="images that were not tuned on", got="none")
        seen[role] = found.digests
        require_disjoint(seen)  # before the next set is scored
        return found

    inside = scored(normal, "in-distribution test images")
    opened = {name: LabelledImages(open_labelled(images).source, None, name) for name, images in outliers.items()}
    sets = [scored(images, f"outliers {name}") for name, images in opened.items()]
    trivial = {s.name: _trivial_aurocs(inside, s) for s in sets}
    comparisons = [compare_sets(inside, s, name, repetitions, seed=seed) for s in sets for name in scores]
    return OODEvaluation(
        classifier=classifier.name,
        inliers=inside,
        outliers=tuple(sets),
        comparisons=tuple(comparisons),
        trivial=trivial,
        warnings=tuple(_warnings(trivial, sets)),
        left_out=left_out,
        accuracy=inside.accuracy,
        facts={name: repr(detector) for name, detector in usable.items()},
    )


def compare_sets(
    inliers: ScoredImages, outliers: ScoredImages, detector: str, repetitions: int, *, seed: int
) -> OODComparison:
    """All figures of one detector on one pair of sets."""
    scores, anomalous = joined(inliers.scores[detector], outliers.scores[detector])
    values = {
        "auroc": metrics.auroc(scores, anomalous),
        "average_precision": metrics.average_precision(scores, anomalous),
        "average_precision_normal": metrics.average_precision_normal(scores, anomalous),
        "fpr_at_95_tpr": metrics.fpr_at_tpr(scores, anomalous),
        "fpr_at_95_tpr_normal": metrics.fpr_at_tpr(scores, anomalous, positive="normal"),
    }
    bootstrap = metrics.bootstrap_ranking(scores, anomalous, repetitions=repetitions, seed=seed)
    means, deviations = bootstrap.means(), bootstrap.standard_errors()
    interval = metrics.delong_interval(scores, anomalous)
    return OODComparison(
        outliers=outliers.name,
        detector=detector,
        auroc_interval=(interval.low, interval.high),
        tie_share=metrics.tie_share(scores),
        n_inliers=len(inliers),
        n_outliers=len(outliers),
        **{name: Figure(value, means[name], deviations[name]) for name, value in values.items()},
    )


def joined(inliers: Floats, outliers: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores of both sets, and which are of outliers."""
    return np.concatenate([inliers, outliers]), np.repeat([False, True], [len(inliers), len(outliers)])


def require_disjoint(sets: Mapping[str, Collection[str]]) -> None:
    """Raise where two sets hold the same image: then a figure would judge what it was chosen or learned on."""
    items = [(name, frozenset(digests)) for name, digests in sets.items()]
    for i, (name, digests) in enumerate(items):
        for other, others in items[i + 1 :]:
            common = len(digests & others)
            if common:
                raise ArgumentError.about(
                    name, expected=f"no image that is also among the {other}", got=f"{common} equal images",
                    instead="Split the images before tuning, learning and testing.",
                )  # fmt: skip


def _trivial(batch: ImageBatch) -> Floats:
    """`(batch, 4)`: the trivial detectors in the order of `TRIVIAL`; file size is NaN for images without a file."""
    grey = batch.pixels.mean(1)
    steps = (grey[:, 1:, :-1] - grey[:, :-1, :-1]).abs() + (grey[:, :-1, 1:] - grey[:, :-1, :-1]).abs()
    of_pixels = [grey.mean((1, 2)), grey.std((1, 2)), steps.mean((1, 2))]
    sizes = np.array([_file_size(name) for name in batch.names])
    return np.column_stack([*(value.double().numpy() for value in of_pixels), sizes])


def _file_size(name: str) -> float:
    path = Path(name)
    return float(os.path.getsize(path)) if path.is_file() else np.nan


def _trivial_aurocs(inliers: ScoredImages, outliers: ScoredImages) -> dict[str, float]:
    common = [name for name in inliers.trivial if name in outliers.trivial]
    return {name: metrics.auroc(*joined(inliers.trivial[name], outliers.trivial[name])) for name in common}


def _warnings(trivial: Mapping[str, Mapping[str, float]], sets: Sequence[ScoredImages]) -> Iterator[str]:
    for outliers, aurocs in trivial.items():
        for name, value in aurocs.items():
            if max(value, 1 - value) >= SUSPICIOUS:
                yield (
                    f"{outliers}: {name} alone separates it from the in-distribution images (AUROC "
                    f"{max(value, 1 - value):.3f}). Figures on it may measure how the images were made."
                )
    for outliers_set in sets:
        if len(outliers_set) < 20:
            yield f"{outliers_set.name}: fewer than 20 outliers, so 95 % found means all of them."


def _digests(pixels: Tensor) -> list[str]:
    levels = (pixels * 255).round().byte().cpu().numpy()
    return [hashlib.sha256(image.tobytes()).hexdigest()[:32] for image in levels]
