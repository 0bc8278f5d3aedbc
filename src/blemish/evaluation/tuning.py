"""Temperature and step of ODIN and of the gradient method: a grid with shared passes, and what each part is worth.

Tuning, learning, calibration and test images are different arguments, and `require_disjoint` compares them.
A result says what it was tuned on; what is tuned on outliers has seen outliers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from .. import metrics
from ..datasets.labelled import LabelledImages, LabelledInput, open_labelled
from ..errors import ArgumentError, DatasetError
from ..files import parse_json, read_text, write_whole
from ..ood import ODIN, Classifier, Gradient, Outputs
from ..ood.perturbation import directions, step_length
from ..ood.synthetic import synthetic_outliers
from ..parameters import check_parameters, parameter
from ..types import Floats
from .classifiers import Reader, Score, ScoredImages, joined, require_disjoint, score_images


@dataclass(frozen=True)
class Grid:
    """The combinations to try; by default the published ones."""

    temperatures: tuple[float, ...] = parameter(
        (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0), above=0, least=1
    )
    eps: tuple[float, ...] = parameter(tuple(round(0.0002 * i, 4) for i in range(21)), at_least=0, at_most=10, least=1)

    def __post_init__(self) -> None:
        check_parameters(self)

    def cells(self) -> list[tuple[float, float]]:
        """`(temperature, eps)`, temperature by temperature."""
        return [(temperature, eps) for temperature in self.temperatures for eps in self.eps]


TuningObjective = Literal["outliers", "synthetic", "inliers"]
"""AUROC against real outliers; AUROC against outliers made from the in-distribution images; or the mean log-confidence
of in-distribution images after the step, at a fixed temperature (Hsu et al., "Generalized ODIN", 2020, section 3.2)."""
Tunable = ODIN | Gradient


@dataclass(frozen=True)
class Tuning:
    """A grid of one detector, the choice, and what it was made on."""

    classifier: str
    detector: str
    objective: TuningObjective
    tuned_on: str
    """The sets of images, in words."""
    n_inliers: int
    n_outliers: int
    grid: Grid
    values: list[list[float]]
    """The objective by temperature and eps of the grid; larger is better."""
    temperature: float
    """The choice; of equal values the one with the smallest eps, then the smallest temperature."""
    chosen_eps: float
    digests: list[str]
    """Of the images, so that a test on one of them is noticed."""

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `Tuning.load` and `blemish ood evaluate --tuned` read."""
        write_whole(path, json.dumps(asdict(self)) + "\n")

    @staticmethod
    def load(path: str | Path) -> Tuning:
        """Read a file written by `save`; raises `DatasetError`."""
        text = read_text(
            path, expected="a tuning", instead=f"`blemish ood tune --out {path}` makes one.", error=DatasetError
        )
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DatasetError(f"{path}: damaged, no JSON ({error}). Copy it again, or tune again.") from error
        try:
            content["grid"] = Grid(**{name: tuple(values) for name, values in content["grid"].items()})
            tuning = Tuning(**content)
            check_parameters(tuning)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path}: not a file written by `blemish ood tune` ({error}). Tune again.") from error
        return tuning

    def apply(self, detector: Tunable) -> Tunable:
        """The detector with the chosen parameters; it must be of the kind that was tuned."""
        if type(detector).__name__ != self.detector:
            raise ArgumentError.about("detector", expected=f"{self.detector}, as tuned", got=type(detector).__name__)
        return replace(detector, temperature=self.temperature, eps=self.chosen_eps)

    def alone(self) -> tuple[float | None, float | None]:
        """The temperature that is best without a step, and the step that is best at T = 1; the smaller of equals.

        None where the grid has no step of 0, or no temperature of 1.
        """
        by_cell = dict(zip(self.grid.cells(), (value for row in self.values for value in row), strict=True))
        temperatures = sorted(t for t in self.grid.temperatures if (t, 0.0) in by_cell)
        steps = sorted(eps for eps in self.grid.eps if (1.0, eps) in by_cell)
        return (
            max(temperatures, key=lambda t: by_cell[t, 0.0], default=None),
            max(steps, key=lambda eps: by_cell[1.0, eps], default=None),
        )


def tune_ood(
    classifier: Classifier,
    detector: Tunable,
    inliers: LabelledInput,
    outliers: LabelledInput | None = None,
    *,
    objective: TuningObjective | None = None,
    grid: Grid = Grid(),
    limit: int | None = 500,
    seed: int = 0,
    reading: Reader | None = None,
) -> Tuning:
    """Score every combination of temperature and eps on a part of the images and choose the best.

    objective: "outliers" (the default where outliers are given), else "synthetic"; "inliers" keeps the detector's
        temperature and tunes eps only.
    limit: images of each set, drawn by `seed`; test on the others.
    """
    reading = reading or Reader()
    objective = objective or ("outliers" if outliers is not None else "synthetic")
    _check(objective, outliers)
    if objective == "inliers":
        grid = replace(grid, temperatures=(detector.temperature,))
    passes = _Passes(classifier, detector, grid, confidence=objective == "inliers")
    normal = open_labelled(inliers).sample(limit, seed=seed)
    inside = score_images(classifier, normal, passes.scores(), reading=reading, stage="grid on in-distribution images")
    outside = None
    if outliers is not None:
        opened = open_labelled(outliers).sample(limit, seed=seed)
        outside = score_images(classifier, opened, passes.scores(), reading=reading, stage="grid on outliers")
        require_disjoint({"in-distribution images": inside.digests, "outliers": outside.digests})
    elif objective == "synthetic":
        outside = _score_synthetic(normal, passes, seed=seed, reading=reading)
    names = [_name(*cell) for cell in grid.cells()]
    if outside is None:
        values = [float(inside.scores[name].mean()) for name in names]
    else:
        values = [metrics.auroc(*joined(inside.scores[name], outside.scores[name])) for name in names]
    best = min(range(len(values)), key=lambda i: (-values[i], grid.cells()[i][1], grid.cells()[i][0]))
    against = "" if outside is None else f" against {outside.name} ({len(outside)})"
    return Tuning(
        classifier=classifier.name,
        detector=type(detector).__name__,
        objective=objective,
        tuned_on=f"{normal.name} ({len(inside)}){against}",
        n_inliers=len(inside),
        n_outliers=0 if outside is None else len(outside),
        grid=grid,
        values=[values[i : i + len(grid.eps)] for i in range(0, len(values), len(grid.eps))],
        temperature=grid.cells()[best][0],
        chosen_eps=grid.cells()[best][1],
        digests=[*inside.digests, *(outside.digests if outside else ())],
    )


class _Passes:
    """Scores of one batch for every combination: one forward pass, a backward pass a temperature, then the steps."""

    def __init__(self, classifier: Classifier, detector: Tunable, grid: Grid, *, confidence: bool) -> None:
        self.classifier, self._detector, self._grid, self._confidence = classifier, detector, grid, confidence
        self._outputs: Outputs | None = None
        self._signs: list[torch.Tensor] = []

    def scores(self) -> dict[str, Score]:
        """One score function a combination, for `score_images`."""
        return {_name(t, eps): partial(self.score, temperature=t, eps=eps) for t, eps in self._grid.cells()}

    def score(self, outputs: Outputs, temperature: float, eps: float) -> Floats:
        assert outputs.pixels is not None
        if outputs is not self._outputs:  # the first combination of a batch
            self._outputs = outputs
            self._signs = directions(self.classifier, outputs.pixels, self._grid.temperatures)
        signs = self._signs[self._grid.temperatures.index(temperature)]
        pixels = outputs.pixels.to(signs.device)
        detector = replace(self._detector, temperature=temperature, eps=eps)
        if self._confidence:
            with torch.inference_mode():
                logits = self.classifier.logits(pixels + step_length(self.classifier, eps, detector.unit) * signs)
            return torch.log_softmax(logits.double() / temperature, 1).amax(1).cpu().numpy()
        if isinstance(detector, ODIN):
            return detector.of_step(self.classifier, pixels, signs)
        labels = torch.from_numpy(outputs.logits.argmax(1)) if detector.label == "original" else None
        return detector.of_step(self.classifier, pixels, signs, labels)


def _name(temperature: float, eps: float) -> str:
    return f"T={temperature:g},eps={eps:g}"


def _score_synthetic(normal: LabelledImages, passes: _Passes, *, seed: int, reading: Reader) -> ScoredImages:
    cells = passes.scores()
    kept: dict[str, list[Floats]] = {name: [] for name in cells}
    names: list[str] = []
    for batch in reading.batches(passes.classifier, normal, "grid on synthetic outliers"):
        outputs = passes.classifier.outputs(synthetic_outliers(batch.pixels, first=len(names), seed=seed))
        for name, cell in cells.items():
            kept[name].append(cell(outputs))
        names += batch.names
    scores = {name: np.concatenate(parts) for name, parts in kept.items()}
    predicted = np.zeros(len(names), dtype=np.int64)
    return ScoredImages("synthetic outliers", tuple(names), scores, {}, predicted, None, ())


def _check(objective: str, outliers: LabelledInput | None) -> None:
    if objective not in get_args(TuningObjective):
        raise ArgumentError.about("objective", expected=" or ".join(get_args(TuningObjective)), got=objective)
    if (objective == "outliers") != (outliers is not None):
        got = "none" if outliers is None else "some"
        raise ArgumentError.about("outliers", expected="images for objective 'outliers', none for others", got=got)


@dataclass(frozen=True)
class AblationRow:
    """One variant against the outliers."""

    part: Literal["preprocessing", "blocks"]
    variant: str
    auroc: float
    interval: tuple[float, float]
    """95 %, DeLong."""


def ablate_ood(
    classifier: Classifier,
    detector: Tunable,
    inliers: LabelledInput,
    outliers: LabelledInput,
    *,
    tuned_on: frozenset[str] = frozenset(),
    tuning: Tuning | None = None,
    reading: Reader | None = None,
) -> tuple[AblationRow, ...]:
    """What temperature and step are worth, and, for the gradient method, what each block of the network adds.

    Images with a digest in `tuned_on` are left out.

    Preprocessing: none (T = 1, eps = 0), a temperature only, a step only, and the detector's both. Alone, each is the
    best by the grid of `tuning`, which need not be that of both together; without a tuning, the detector's. Blocks: the
    norm over the first block, the first two ..., from the input on; all of them in one backward pass.
    """
    alone = (detector.temperature, detector.eps) if tuning is None else tuning.alone()
    reading = reading or Reader()
    names, scored = list[str](), []
    for images in (inliers, outliers):
        found, names = _score_variants(classifier, detector, open_labelled(images), alone=alone, reading=reading)
        scored.append(found.without(tuned_on))
        if not len(scored[-1]):
            raise ArgumentError.about(found.name, expected="images that were not tuned on", got="none")
    require_disjoint({"in-distribution images": scored[0].digests, "outliers": scored[1].digests})
    rows = [_ablation_row("preprocessing", name, scored) for name in scored[0].scores if name not in names]
    return (*rows, *(_ablation_row("blocks", name, scored) for name in names))


def _score_variants(
    classifier: Classifier,
    detector: Tunable,
    images: LabelledImages,
    *,
    alone: tuple[float | None, float | None],
    reading: Reader,
) -> tuple[ScoredImages, list[str]]:
    """Scores of all variants, and the names of those that are blocks."""
    temperature, eps = alone
    variants: dict[str, Tunable] = {"none": replace(detector, temperature=1.0, eps=0.0)}
    if temperature is not None:
        variants[f"T = {temperature:g}"] = replace(detector, temperature=temperature, eps=0.0)
    if eps is not None:
        variants[f"eps = {eps:g}"] = replace(detector, temperature=1.0, eps=eps)
    scores: dict[str, Score] = {name: variant.score for name, variant in variants.items()}
    if isinstance(detector, ODIN):
        return score_images(classifier, images, scores | {"both": detector.score}, reading=reading), []
    blocks = _Blocks(detector)
    found = score_images(classifier, images, scores | {"both": blocks.score}, reading=reading)
    cumulative = blocks.cumulative()
    return replace(found, scores=found.scores | cumulative), list(cumulative)


class _Blocks:
    """The gradient method's score, which keeps the norms by block."""

    def __init__(self, detector: Gradient) -> None:
        self._detector, self._power = detector, 2 if detector.norm == "l2" else 1
        self._kept: list[dict[str, Floats]] = []

    def score(self, outputs: Outputs) -> Floats:
        self._kept.append(self._detector.blocks(outputs))
        total: Floats = np.sum([norm**self._power for norm in self._kept[-1].values()], axis=0) ** (1 / self._power)
        return total

    def cumulative(self) -> dict[str, Floats]:
        """Norm over the first block, over the first two, ..., over all."""
        names = list(self._kept[0])
        norms = np.array([np.concatenate([batch[name] for batch in self._kept]) for name in names])
        sums = np.cumsum(norms**self._power, axis=0) ** (1 / self._power)
        return {name if i == 0 else f"{names[0]} to {name}": sums[i] for i, name in enumerate(names)}


def _ablation_row(
    part: Literal["preprocessing", "blocks"], variant: str, scored: Sequence[ScoredImages]
) -> AblationRow:
    scores, anomalous = joined(scored[0].scores[variant], scored[1].scores[variant])
    interval = metrics.delong_interval(scores, anomalous)
    return AblationRow(part, variant, metrics.auroc(scores, anomalous), (interval.low, interval.high))


@dataclass(frozen=True)
class SelectiveFigures:
    """How well one detector's score tells right predictions from wrong ones, on labelled in-distribution images."""

    detector: str
    aurc: float
    e_aurc: float
    augrc: float
    risk_at_80_coverage: float
    coverage_at_5_risk: float
    curve: metrics.Reliability
    scores: NDArray[np.float64]
    wrong: NDArray[np.bool_]


def reliability_ood(evaluation_inliers: ScoredImages, *, bin_size: int = 500) -> tuple[SelectiveFigures, ...]:
    """Selective prediction with each detector's score as uncertainty; needs labels."""
    wrong = evaluation_inliers.wrong
    if wrong is None:
        raise ArgumentError.about(
            "inliers", expected="images with class labels", got="none",
            instead="Give class folders (--labels folders), an .npz with labels, or a .csv file.",
        )  # fmt: skip
    return tuple(
        SelectiveFigures(
            name,
            metrics.aurc(scores, wrong),
            metrics.e_aurc(scores, wrong),
            metrics.augrc(scores, wrong),
            metrics.risk_at_coverage(scores, wrong, 0.8),
            metrics.coverage_at_risk(scores, wrong, 0.05),
            metrics.reliability(scores, wrong, bin_size=min(bin_size, len(scores))),
            scores,
            wrong,
        )
        for name, scores in evaluation_inliers.scores.items()
    )
