"""Parts of labelled test images: a part with an anomalous image is anomalous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .. import metrics
from ..datasets.layouts import Dataset
from ..detector import Detector
from ..types import Decision, PartDecision
from .rates import MissRate, RealisedRate, exact, realised, realised_json


@dataclass(frozen=True)
class PartFigures:
    """How well parts are told apart, and how often a verdict on one is wrong."""

    decisions: tuple[PartDecision, ...]
    anomalous: tuple[bool, ...]
    """Of each part."""
    auroc: float | None
    """Of the parts' scores; None where all are of one kind."""
    realised: RealisedRate | None
    """None without normal parts."""
    missed: MissRate | None
    """None without anomalous parts."""

    def lines(self) -> list[str]:
        """In sentences."""
        auroc = "" if self.auroc is None else f", AUROC {100 * self.auroc:.1f} %"
        first = f"{len(self.decisions)} parts, {sum(self.anomalous)} of them anomalous{auroc}."
        return [first, *(str(rate) for rate in (self.missed, self.realised) if rate is not None)]

    def as_json(self) -> dict[str, object]:
        return {
            "parts": len(self.decisions),
            "anomalous": sum(self.anomalous),
            "auroc": self.auroc,
            "realised": realised_json(self.realised),
            "missed": None if self.missed is None else asdict(self.missed),
        }


def judge_parts(detector: Detector, dataset: Dataset, decisions: Sequence[Decision]) -> PartFigures | None:
    """The figures of the parts of test images that were judged; None where the detector judges none."""
    if detector.parts_ is None:
        return None
    source = dataset.test_images(max_pixels=detector.max_pixels)
    paths = dict(zip(source.names, source.paths(), strict=True))
    is_anomalous = {str(sample.path): sample.anomalous for sample in dataset.test}
    found = detector.judge_parts(decisions, [paths[decision.name] for decision in decisions])
    anomalous = np.array([any(is_anomalous[name] for name in part.images) for part in found])
    flagged = np.array([part.is_anomalous for part in found])
    alarms, normal = int(flagged[~anomalous].sum()), int((~anomalous).sum())
    misses, odd = int((~flagged[anomalous]).sum()), int(anomalous.sum())
    scores = np.array([part.score for part in found])
    return PartFigures(
        decisions=tuple(found),
        anomalous=tuple(anomalous.tolist()),
        auroc=metrics.auroc(scores, anomalous) if normal and odd else None,
        realised=realised(detector.parts_.calibration, alarms, normal, units="parts") if normal else None,
        missed=MissRate(misses, odd, exact(misses, odd), "parts") if odd else None,
    )
