"""Parts: several images of one part, its views, and one verdict with one promise.

The score of a part is the largest over its images, each scaled by what the learned images of the same view score on
average, and by their spread: otherwise the view with the largest scores would decide alone. Held-out *parts* set the
threshold: they and a new normal part are exchangeable, whatever their images have in common. Fewer images than those
parts have make a part's score no larger, so the promise holds for them too. A part with further views, or more images
of a view, has had more chances; its p-value is the least of its images', times their number (Bonferroni).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

from .calibrate import Calibration, calibrate, with_margin
from .images.groups import find_key, grouped, read_pattern
from .types import PartDecision, Promise

Views = Mapping[str, tuple[float, float]]
"""Mean and spread of the scores of learned images, by view."""


@dataclass(frozen=True, slots=True)
class View:
    """One image of a part."""

    name: str
    part: str
    view: str
    """Empty where the pattern names no views."""


@dataclass(frozen=True)
class Parts:
    """What held-out parts promise of new ones."""

    views: Views
    most: Mapping[str, int]
    """How many images of each view a held-out part has at most."""
    calibration: Calibration
    """Of the parts' scores."""

    @classmethod
    def of(
        cls,
        images: Sequence[View],
        scores: Sequence[float],
        groups: Sequence[int],
        *,
        views: Views,
        false_alarm_rate: float,
        certain: float | None,
    ) -> Parts:
        """Those of held-out images; `groups` says of each in which group of exchangeable parts it is."""
        by_part = grouped(range(len(images)), lambda i: images[i].part)
        found = [max(_scaled(images[i].view, scores[i], views) for i in members) for members in by_part.values()]
        counts = [Counter(images[i].view for i in members) for members in by_part.values()]
        most = {view: max(count[view] for count in counts) for view in {one.view for one in images}}
        calibration = calibrate(
            with_margin(found), false_alarm_rate=false_alarm_rate,
            groups=[groups[members[0]] for members in by_part.values()], certain=certain,
        )  # fmt: skip
        return cls(views, most, calibration)

    def at(self, false_alarm_rate: float, *, certain: float | None = None) -> Parts:
        """The same parts for another rate. Raises `CalibrationError` where they cannot support it."""
        return replace(self, calibration=self.calibration.at(false_alarm_rate, certain=certain))

    def judge(
        self, images: Sequence[View], scores: Sequence[float], p_values: Sequence[float]
    ) -> Iterator[PartDecision]:
        """One decision a part, in the order of their first images; scores and p-values are those of the images."""
        for part, members in grouped(range(len(images)), lambda i: images[i].part).items():
            scaled = [_scaled(images[i].view, scores[i], self.views) for i in members]
            counts = Counter(images[i].view for i in members)
            is_known = all(count <= self.most.get(view, 0) for view, count in counts.items())
            p_value = self.calibration.p_value(max(scaled)) if is_known else _least(p_values[i] for i in members)
            yield PartDecision(
                name=part,
                images=tuple(images[i].name for i in members),
                worst=images[members[scaled.index(max(scaled))]].name,
                score=max(scaled),
                p_value=p_value,
                threshold=self.calibration.threshold if is_known else None,
                promise=self.calibration.promise if is_known else self._promise_of(len(members)),
            )

    def _promise_of(self, images: int) -> Promise:
        """What Bonferroni's bound over so many images promises, on average: each has that share of the rate."""
        known = self.calibration
        share = known.false_alarm_rate * (known.n_groups + 1) / images
        rate = None if known.unproven else min(1.0, max(0.0, images * known.proven(share)))
        return replace(known.promise, guaranteed_rate=rate, certain=None, plausible=None)


def views_of(names: Iterable[str], paths: Iterable[str], part_by: str) -> list[View]:
    """The part and the view of each image: first and second group of the pattern in its path."""
    pattern = read_pattern(part_by, of="part_by")
    return [_view(pattern, name, path) for name, path in zip(names, paths, strict=True)]


def learned_views(images: Sequence[View], scores: Sequence[float]) -> Views:
    """Mean and spread of the scores of each view; 1 where all are the same."""
    by_view: dict[str, list[float]] = {}
    for one, score in zip(images, scores, strict=True):
        by_view.setdefault(one.view, []).append(score)
    return {view: (fmean(found), pstdev(found) or 1.0) for view, found in by_view.items()}


def _least(p_values: Iterable[float]) -> float:
    """The least of them, times their number."""
    found = list(p_values)
    return min(1.0, len(found) * min(found))


def _scaled(view: str, score: float, views: Views) -> float:
    """A score in spreads from the mean of its view; of a view that nobody learned, of all views."""
    if not views:
        return score
    mean, spread = views.get(view) or tuple(map(fmean, zip(*views.values(), strict=True)))
    return (score - mean) / spread


def _view(pattern: re.Pattern[str], name: str, path: str) -> View:
    found = find_key(pattern, path, of="part_by")
    return View(name, found[1], (found[2] or "") if pattern.groups > 1 else "")
