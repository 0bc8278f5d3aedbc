"""All labelled test images, or parts, as one batch whose alarms are chosen together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..detector import Detector
from ..discoveries import BatchAlarms
from ..types import Decision
from .parts import PartFigures
from .rates import Units


@dataclass(frozen=True)
class BatchFigures:
    """Which alarms a batch raises, and which of them are false."""

    chosen: BatchAlarms
    anomalous: tuple[bool, ...]
    """Of each image or part."""
    units: Units

    @property
    def false(self) -> int:
        """Alarms of normal ones."""
        return sum(a and not b for a, b in zip(self.chosen.alarms, self.anomalous, strict=True))

    @property
    def found(self) -> int:
        """Alarms of anomalous ones."""
        return sum(self.chosen.alarms) - self.false

    def lines(self) -> list[str]:
        """In sentences."""
        of = f"{self.found} of the {sum(self.anomalous)} anomalous {self.units} are among the alarms"
        return [f"Together: {self.chosen.said(self.units)} Here {self.false} are; {of}."]

    def as_json(self) -> dict[str, object]:
        """With the fields of the line of a batch (docs/parts.md), counts in place of names."""
        return {
            "batch": len(self.anomalous),
            "false_discovery_rate": self.chosen.level,
            "rule": self.chosen.rule,
            "needed": self.chosen.needed,
            "alarms": sum(self.chosen.alarms),
            "false_alarms": self.false,
            "found": self.found,
        }


def judge_batch(
    detector: Detector,
    level: float,
    decisions: Sequence[Decision],
    *,
    anomalous: Sequence[bool],
    parts: PartFigures | None,
) -> BatchFigures:
    """Choose the alarms of these images together, or of their parts where the detector judges some."""
    if parts is None:
        return BatchFigures(detector.choose_alarms(decisions, level), tuple(anomalous), "images")
    return BatchFigures(detector.choose_alarms(parts.decisions, level), parts.anomalous, "parts")
