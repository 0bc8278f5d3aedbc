"""Comparisons in words: names that fit a study, numbers as text, and the reasons of the picks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from ..images.groups import grouped
from ..study.compare import (
    GUESSING,
    KEPT,
    Comparison,
    Configuration,
    Ends,
    Measured,
    Picks,
    StudyRow,
    decoding,
    overlap,
    pareto_front,
    pick,
    reference_ms,
)
from .page import EN_DASH, NOTHING, counted
from .parts import Pick

NAMED = 5
"""Most configurations, or data sets, that a sentence names."""
DISTURBED = 1.5
"""Ratio of two times of the same work from which a reader is warned."""
_SETTINGS = {
    "resize": "input",
    "crop": "crop",
    "held_out": "held out",
    "false_alarm_rate": "false-alarm rate",
    "white_level": "white level",
}


class Names:
    """Names as short as a study allows: what is the same in all its rows is left out."""

    def __init__(self, rows: Iterable[StudyRow]) -> None:
        rows = list(rows)
        self.datasets = _short({row["dataset"]: None for row in rows})
        choices = {Configuration.of(row) for row in rows}
        self._varying = [name for name in _SETTINGS if len({getattr(c, name) for c in choices}) > 1]

    def settings(self, choice: Configuration) -> str:
        """The settings in which configurations of this study differ; mostly none."""
        return ", ".join(f"{_SETTINGS[name]} {getattr(choice, name)}" for name in self._varying)

    def __call__(self, choice: Configuration) -> str:
        """The whole configuration."""
        layers = "default layers" if choice.taps == "default" else f"layers {choice.taps}"
        weights = [] if choice.weights in ("pretrained", "built-in") else [f"weights {weights_name(choice.weights)}"]
        settings = [self.settings(choice)] if self._varying else []
        return ", ".join([f"{choice.spec} on {choice.backbone}", layers, *weights, *settings])


def _short(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each path; more parts where two would be called the same."""
    paths = list(paths)
    for count in (1, 2, 3):
        short = {path: "/".join(PurePath(path).parts[-count:]) for path in paths}
        if max(Counter(short.values()).values(), default=0) < 2:
            return short
    return {path: path for path in paths}


def weights_name(weights: str) -> str:
    """A file by its name."""
    return weights if weights in ("pretrained", "random", "built-in") else PurePath(weights).name


# Numbers as text


def figure(value: float | None, digits: int = 3) -> str:
    """A figure in [0, 1]; a dash for none."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def between(interval: Ends | None, digits: int = 3) -> str:
    """An interval of figures; empty for none."""
    return "" if interval is None else f"{interval[0]:.{digits}f} {EN_DASH} {interval[1]:.{digits}f}"


def short(value: float | None) -> str:
    """Three significant digits, and all digits before the point."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def megabytes(value: float | None) -> str:
    """10^6 bytes, without the unit."""
    return short(None if value is None else value / 1e6)


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


# Picks


RULES = (
    "Quality: the highest mean image AUROC; of equal ones the fastest.",
    f"Speed: the fastest (decode, forward and score) of those that keep at least {100 * KEPT:g} % of the best one's "
    f"distance from guessing, which has {GUESSING}.",
    "Balance: of the Pareto front of quality against that time, between those two, the point farthest above the "
    "straight line that joins them, time on a logarithmic axis; the best where none lies above it.",
)
INTERVALS = (
    "An interval (95 %, bootstrap of the test images) of a mean over data sets is put together from theirs; seeds of "
    "one data set share its images, so their intervals are averaged and not narrowed. All configurations see the "
    "same images: a difference may be surer than overlapping intervals suggest."
)


def picked(comparison: Comparison, names: Names) -> tuple[Pick, ...]:
    """Put the picks of a comparison by image AUROC into words; none where nothing is compared."""
    if not comparison.measured:
        return ()
    picks = pick(comparison.measured)
    reasons = (_quality_reason(picks, names), _speed_reason(picks), _balance_reason(picks, comparison))
    return tuple(
        Pick(goal, names(one.choice), _figures(one), reason)
        for (goal, one), reason in zip(_by_goal(picks).items(), reasons, strict=True)
    )


def _by_goal(picks: Picks) -> dict[str, Measured]:
    return {"quality": picks.quality, "speed": picks.speed, "balance": picks.balance}


def _figures(one: Measured) -> str:
    return f"{figure(one.quality)} image AUROC, {short(one.total_ms)} ms an image"


def _quality_reason(picks: Picks, names: Names) -> str:
    best = picks.quality
    if best.interval is None:
        return "the highest mean. The study has no intervals, so nothing says how much of that is chance."
    text = f"the highest mean, 95 % interval {between(best.interval)}."
    others = [names(m.choice) for m in picks.overlapping]
    if not others:
        return f"{text} No other configuration's interval overlaps it."
    more = len(others) - NAMED
    listed = "; ".join(others[:NAMED]) + (f"; and {more} more" if more > 0 else "")
    verb = "overlaps it" if len(others) == 1 else "overlap it"
    return f"{text} The intervals of {counted(len(others), 'other')} {verb}: {listed}."


def _speed_reason(picks: Picks) -> str:
    if picks.speed is picks.quality:
        return f"the best is also the fastest of those with at least {figure(picks.bar)}."
    return f"{_against_best(picks.speed, picks.quality)} The fastest of those with at least {figure(picks.bar)}."


def _balance_reason(picks: Picks, comparison: Comparison) -> str:
    between_ = [m for m in pareto_front(comparison.measured, "total_ms") if m.quality >= picks.bar]
    if picks.balance is picks.quality:
        if picks.speed is picks.quality:
            return "the same as for quality and speed."
        return "the same as for quality: no other configuration on the front lies above the line to the pick for speed."
    words = _against_best(picks.balance, picks.quality)
    if picks.balance is picks.speed:
        return f"{words} The same as for speed."
    return f"{words} The knee of the {len(between_)} configurations on the front between speed and quality."


def _against_best(one: Measured, best: Measured) -> str:
    points = 100 * (best.quality - one.quality)
    text = f"within {points:.1f} points of the best at {times(best.total_ms / one.total_ms)} times its speed."
    if best.interval is None or one.interval is None:
        return text
    inside = "inside" if one.quality >= best.interval[0] else "outside"
    apart = "overlap" if overlap(one.interval, best.interval) else "do not overlap"
    return f"{text} The difference is {inside} the best one's 95 % interval; the two intervals {apart}."


def optimism(comparison: Comparison) -> str:
    """What every reader of a choice by test figures has to know."""
    return (
        f"Chosen among {counted(len(comparison.measured), 'configuration')} by the very test images whose figures are "
        "shown, so the figures of what was chosen are too good: the more configurations, the more so. Measure a "
        "choice again on images that had no part in it."
    )


def picks_json(picks: Sequence[Pick], comparison: Comparison, names: Names) -> dict[str, Any]:
    """The picks as plain values, by goal."""
    if not picks:
        return {}
    name, reference = reference_ms(comparison.measured)
    chosen = _by_goal(pick(comparison.measured))
    return {
        one.goal: {
            "method": found.choice.spec,
            "backbone": found.choice.backbone,
            "weights": found.choice.weights,
            "taps": found.choice.taps,
            "image_auroc": found.quality,
            "interval": found.interval,
            "total_ms": found.total_ms,
            "ratio": found.total_ms / reference,
            "ratio_to": name,
            "by_dataset": {names.datasets[path]: value for path, value in found.by_dataset.items()},
            "words": one.words,
        }
        for one, found in zip(picks, chosen.values(), strict=True)
    }


# What to doubt


def left_out(comparison: Comparison) -> str:
    """Say how many configurations are not compared; empty for none."""
    if not comparison.left_out:
        return ""
    return f" {counted(comparison.left_out, 'configuration')} without a figure on each of them: not compared."


def warnings(rows: Sequence[StudyRow], names: Names) -> Iterator[str]:
    """Say what is missing, and why figures or times of this study may not compare."""
    finished = [row for row in rows if row["status"] == "finished"]
    yield from _missing(rows, finished, names)
    yield from _incomparable(finished, names)


def _missing(rows: Sequence[StudyRow], finished: Sequence[StudyRow], names: Names) -> Iterator[str]:
    status = Counter(row["status"] for row in rows)
    if status["waiting"]:
        yield (
            f"{counted(status['waiting'], 'cell')} of {len(rows)} {'waits' if status['waiting'] == 1 else 'wait'}: the "
            "study is not finished, and the same command goes on with it."
        )
    if status["failed"]:
        yield f"{counted(status['failed'], 'cell')} of {len(rows)} failed; the reasons stand at the end."
    without = [name for path, name in names.datasets.items() if path not in {row["dataset"] for row in finished}]
    if finished and without:
        yield f"No finished cell, and so no part in any mean: {', '.join(without)}."


def _incomparable(finished: Sequence[StudyRow], names: Names) -> Iterator[str]:
    contents = grouped(finished, lambda row: row["dataset"])
    changed = [
        names.datasets[path] for path, found in contents.items() if len({row["dataset_digest"] for row in found}) > 1
    ]
    if changed:
        yield f"The files of {', '.join(changed)} changed during the study: its figures do not compare."
    if len({(row["threads"], row["device"]) for row in finished}) > 1:
        yield "Cells ran with different devices or numbers of threads: their times do not compare."
    slower = max((_slower(some) for some in grouped(finished, decoding).values()), default=1.0)
    if slower >= DISTURBED:
        yield (
            f"The same images took up to {times(slower)} times as long to decode in one part of the study as in "
            "another: the machine had other work, and times compare roughly at best."
        )


def _slower(rows: Sequence[StudyRow]) -> float:
    found = [row["decode_ms"] for row in rows]
    return max(found) / min(found) if min(found) > 0 else 1.0
