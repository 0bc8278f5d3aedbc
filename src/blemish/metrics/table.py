"""The table of figures: everything that is computed of one detector on one labelled test set, one row each.

The evaluation, its JSON, the columns of studies, the comparison of configurations, the reports and the command line all
walk this table and keep no list of their own: a new figure is a function and a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..types import Floats
from .ranking import auroc, average_precision, average_precision_normal, f1_at, f1_max_oracle, fpr_at_tpr
from .regions import FoundRegions, PixelCurve, au_pro, defects_hit, pixel_auroc, seg_f1

Requirement = Literal["normal", "anomalous", "threshold", "verdicts", "masks", "regions", "marked regions"]
"""Test images of a class, a threshold in score units, a calibrated detector, masks of the defects with maps to compare
them with, regions that the detector reports, or both."""
Topic = Literal["ranking", "verdicts", "localisation", "oracle", "facts"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a detector made of one labelled test set."""

    scores: Floats
    """`(n,)`, larger = more anomalous."""
    anomalous: NDArray[np.bool_]
    """`(n,)`."""
    threshold: float | None
    """In score units, fixed without these images; None where there is none."""
    curve: PixelCurve | None
    """None without maps or masks."""
    found: FoundRegions | None = None
    """None where the detector reports no regions."""
    flagged: NDArray[np.bool_] | None = None
    """`(n,)`, the verdicts; None for an uncalibrated detector."""

    def has(self, requirement: Requirement) -> bool:
        """Whether a figure with this requirement can be computed."""
        return {
            "normal": not self.anomalous.all(),
            "anomalous": bool(self.anomalous.any()),
            "threshold": self.threshold is not None,
            "verdicts": self.flagged is not None,
            "masks": self.curve is not None,
            "regions": self.found is not None,
            "marked regions": self.found is not None and self.found.pixels is not None,
        }[requirement]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row."""

    function: Callable[..., Any]
    """Takes the curve if it needs masks, what was found if it needs marked regions; else scores and labels, and then
    the threshold, the verdicts or what was found if it needs that."""
    needs: tuple[Requirement, ...] = ()
    topic: Topic = "facts"
    """`facts` are what the figures rest on; the others are shares in [0, 1]."""
    better: Literal["larger", "smaller"] | None = None
    has_interval: bool = False
    """By the bootstrap."""
    share_of: Literal["normal", "anomalous"] | None = None
    """The test images of which it is the share: its interval is exact, and no bootstrap's."""
    label: str = field(kw_only=True)
    abbreviation: str = ""
    explanation: str = ""
    """For a reader of the report; `{normal}` and `{anomalous}` stand for the shares of the classes."""
    in_studies: Literal["no", "listed", "compared"] = "no"
    """Whether the report on a study has it for each cell, and also ranks configurations by it."""
    place: int = 0
    """In the report, within its topic; equal ones in the order of the table."""
    is_count: bool = False

    @property
    def short(self) -> str:
        """The label where room is scarce."""
        return self.abbreviation or self.label

    def merit(self, value: float) -> float:
        """The value, or its opposite where smaller is better: larger is better."""
        return -value if self.better == "smaller" else value

    def of(self, outcome: Outcome) -> Any:
        """Compute it; None where something that it needs is missing."""
        if not all(map(outcome.has, self.needs)):
            return None
        if "masks" in self.needs:
            return self.function(outcome.curve)
        if "marked regions" in self.needs:
            return self.function(outcome.found)
        more = {"threshold": outcome.threshold, "verdicts": outcome.flagged, "regions": outcome.found}
        return self.function(outcome.scores, outcome.anomalous, *(more[need] for need in self.needs if need in more))


def row(metric: Metric) -> Any:
    """Make a field of `Figures` out of a row."""
    return field(default=None, metadata={"row": metric})


_BOTH: tuple[Requirement, ...] = ("normal", "anomalous")


# fmt: off
@dataclass(frozen=True)
class Figures:
    """Figures over the test images; None where a figure cannot be computed. AUROC and shares are in [0, 1]."""

    image_auroc: float | None = row(Metric(
        auroc, _BOTH, "ranking", "larger", has_interval=True,
        label="Image AUROC", abbreviation="image AUROC", in_studies="compared",
        explanation="Chance that an anomalous image scores higher than a normal one; 50 % is guessing",
    ))
    pixel_auroc: float | None = row(Metric(
        pixel_auroc, ("masks",), "localisation", "larger", has_interval=True,
        label="Pixel AUROC", abbreviation="pixel AUROC", in_studies="compared", place=1,
        explanation="The image AUROC's question asked of pixels. Normal pixels abound, so high values come easily",
    ))
    au_pro_30: float | None = row(Metric(
        lambda curve: au_pro(curve, limit=0.3), ("masks",), "localisation", "larger", has_interval=True,
        label="AU-PRO up to 30 %", abbreviation="AU-PRO 30 %", in_studies="compared",
        explanation="Share of each defect region that is covered, small defects counting as much as large ones, "
        "averaged over thresholds that flag up to 30 % of normal pixels",
    ))
    """Area under the per-region overlap up to 30 % false-positive pixels."""
    au_pro_05: float | None = row(Metric(
        lambda curve: au_pro(curve, limit=0.05), ("masks",), "localisation", "larger", has_interval=True,
        label="AU-PRO up to 5 %", abbreviation="AU-PRO 5 %", in_studies="listed",
        explanation="The same, but stricter: up to 5 % of normal pixels",
    ))
    average_precision: float | None = row(Metric(
        average_precision, _BOTH, "ranking", "larger", has_interval=True,
        label="Average precision, anomalous",
        explanation="How pure the top of the ranking is; guessing gives {anomalous}",
    ))
    """Positive class anomalous; chance level `n_anomalous / (n_normal + n_anomalous)`."""
    average_precision_normal: float | None = row(Metric(
        average_precision_normal, _BOTH, "ranking", "larger", has_interval=True,
        label="Average precision, normal",
        explanation="The same from the other end, for finding sound images; guessing gives {normal}",
    ))
    """Positive class normal; chance level `n_normal / (n_normal + n_anomalous)`."""
    fpr_at_95_tpr: float | None = row(Metric(
        fpr_at_tpr, _BOTH, "ranking", "smaller", has_interval=True,
        label="False alarms at 95 % found",
        explanation="Share of normal images that one must accept to find 95 % of the anomalous ones",
    ))
    f1: float | None = row(Metric(
        lambda _scores, anomalous, flagged: f1_at(flagged.astype(float), anomalous, 0.5), ("verdicts", *_BOTH),
        "verdicts", "larger", has_interval=True,
        label="F1", abbreviation="F1 at the threshold", in_studies="listed", place=2,
        explanation="Balance of found anomalies and right alarms",
    ))
    """Of the verdicts, which were fixed from normal images alone."""
    f1_max_oracle: float | None = row(Metric(
        lambda scores, anomalous: f1_max_oracle(scores, anomalous).f1, _BOTH, "oracle", "larger", has_interval=True,
        label="F1 of an oracle",
        explanation="At the best threshold that exists, chosen with the test labels in view. No detector can know it",
    ))
    """At the best threshold that test labels can find: an upper bound, not a result."""
    threshold: float | None = row(Metric(
        lambda _scores, _anomalous, threshold: threshold, ("threshold",), label="Threshold",
    ))
    false_alarms: float | None = row(Metric(
        lambda _scores, anomalous, flagged: float(np.mean(flagged[~anomalous])),
        ("verdicts", "normal"), "verdicts", "smaller", share_of="normal",
        label="False alarms", explanation="Share of normal images that are flagged", place=1,
    ))
    """Share of the normal test images that are flagged."""
    misses: float | None = row(Metric(
        lambda _scores, anomalous, flagged: float(np.mean(~flagged[anomalous])),
        ("verdicts", "anomalous"), "verdicts", "smaller", share_of="anomalous",
        label="Misses", explanation="Share of anomalous images that pass as normal",
    ))
    """Share of the anomalous test images that are not flagged."""
    false_regions: float | None = row(Metric(
        lambda _scores, anomalous, found: float(np.mean(found.reported[~anomalous] > 0)),
        ("regions", "normal"), "verdicts", "smaller", share_of="normal",
        label="Normal images with a region", explanation="Share of normal images in which any region is reported",
        place=3,
    ))
    """What the promise of regions bounds."""
    defects_hit: float | None = row(Metric(
        defects_hit, ("marked regions", "anomalous"), "localisation", "larger", has_interval=True,
        label="Defects hit", place=2,
        explanation="Share of the marked defects, each one counted, that a reported region touches",
    ))
    seg_f1: float | None = row(Metric(
        seg_f1, ("marked regions", "anomalous"), "localisation", "larger", has_interval=True,
        label="SegF1", abbreviation="SegF1", in_studies="listed", place=2,
        explanation="How well the reported regions cover the marked pixels, and no others, over all images at once",
    ))
    """F1 of pixels at the threshold of regions, which held-out normal images fixed."""
    n_normal: int = row(Metric(
        lambda _scores, anomalous: int(np.sum(~anomalous)), label="Normal test images", is_count=True,
    ))
    n_anomalous: int = row(Metric(
        lambda _scores, anomalous: int(np.sum(anomalous)), label="Anomalous test images", is_count=True,
    ))

    @property
    def has_verdicts(self) -> bool:
        """Whether the detector was calibrated."""
        return any(figure is not None for figure in (self.threshold, self.false_alarms, self.misses))
# fmt: on


TABLE: dict[str, Metric] = {figure.name: figure.metadata["row"] for figure in fields(Figures)}
"""Each row by the name of its figure, which is its field of `Figures`, its key in JSON and its column in studies."""
