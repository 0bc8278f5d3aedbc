"""Several pictures of one part in one request: one verdict for the part, beside those of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..detector import Detector
from ..errors import ArgumentError
from ..parts import Parts, View, views_of
from ..types import Decision, PartDecision


def judge_together(
    detector: Detector, pictures: Sequence[tuple[str, Decision]], *, part: str | None
) -> list[PartDecision | None]:
    """The part's verdict for each picture of a request, given with the name that the caller gave it.

    A model that was fitted with `part_by` finds parts and views in the names; `part`, where it is given, says that all
    are of one part. Any other model takes the least p-value times the number of pictures (Bonferroni), where `part` is
    given. None where there is no part, or no calibration.
    """
    if detector.calibration_ is None or not pictures:
        return [None] * len(pictures)
    views = [_view(detector, str(number), name, part) for number, (name, _) in enumerate(pictures)]
    if any(view is None for view in views):
        return [None] * len(pictures)
    parts = detector.parts_ or Parts({}, {}, detector.calibration_)
    scores = [decision.score for _, decision in pictures]
    p_values = [1.0 if decision.p_value is None else decision.p_value for _, decision in pictures]
    found: list[PartDecision | None] = [None] * len(pictures)
    for judged in parts.judge([view for view in views if view is not None], scores, p_values):
        numbers = [int(number) for number in judged.images]
        named = replace(
            judged, images=tuple(pictures[i][0] for i in numbers), worst=pictures[int(judged.worst)][0]
        )  # fmt: skip
        for i in numbers:
            found[i] = named
    return found


def _view(detector: Detector, key: str, name: str, part: str | None) -> View | None:
    """Part and view of a picture; None where nobody says which part it shows."""
    if detector.parts_ is not None and detector.part_by is not None:
        try:
            (view,) = views_of([key], [name], detector.part_by)
        except ArgumentError:  # not in this name: then it is of no view that the model knows
            pass
        else:
            return view if part is None else replace(view, part=part)
    return None if part is None else View(key, part, "?")
