"""From a detector's scores of normal images that a model has not learned to its calibrations, for each kind of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .calibrate import Calibration, calibrate, require_differences, with_margin
from .errors import ArgumentError, log
from .images.look import looks_of
from .localise import Localiser
from .methods import LeavesOut, Method, ScoresBeside
from .methods.registry import require_kind
from .promises import images_needed, require_images, share_to_hold_out
from .types import CalibrationKind, ImageBatch, Look, Scores


class FreshScore(NamedTuple):
    """A normal image by a model that has not learned it."""

    name: str
    score: float
    peak: float | None
    """Of its map, where there is one."""
    look: Look | None = None


class Calibrated(NamedTuple):
    """What verdicts on images and on regions rest on."""

    scores: Calibration
    peaks: Calibration | None
    """None without maps, and for `full`."""


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """The rate that is asked for, and how images are counted for it."""

    false_alarm_rate: float
    certain: float | None
    localiser: Localiser
    in_groups: bool
    """Whether somebody said which images belong together; copies of a picture always do."""

    @property
    def by_pixel(self) -> Calibrator:
        """The same, where a peak is the largest value of a map whatever the least area, as `cross` needs it."""
        return replace(self, localiser=replace(self.localiser, min_area=1))

    @property
    def needed(self) -> int:
        """How many groups must be judged by what has not learned them."""
        return images_needed(self.false_alarm_rate, certain=self.certain)

    def require(
        self, groups: Sequence[int], *, total: int | None = None, fewest: int | None = None, may_be_off: bool = True
    ) -> None:
        """Refuse too few groups, which are images where none belong together."""
        count = len(set(groups))
        alone = count == len(groups) and not self.in_groups
        of = "normal images" if alone else "groups of normal images"
        require_images(
            count, self.false_alarm_rate, certain=self.certain, of=of, total=total, fewest=fewest, may_be_off=may_be_off
        )

    def share_to_hold_out(self, groups: Sequence[int]) -> float:
        """A fifth, or as many as the rate needs where a fifth is too few and as many remain to learn from."""
        return share_to_hold_out(max(groups) + 1, self.needed)

    def judge(self, scored: Iterable[tuple[ImageBatch, Scores]]) -> list[FreshScore]:
        """Score and peak of each image."""
        found = []
        for batch, scores in scored:
            peaks: Sequence[float | None] = self.localiser.peaks(batch, scores) or [None] * len(batch)
            columns = batch.names, scores.images.tolist(), peaks, looks_of(batch.pixels)
            found += [FreshScore(*one) for one in zip(*columns, strict=True)]
        return found

    def calibrate(
        self,
        found: Sequence[FreshScore],
        groups: Sequence[int],
        kind: CalibrationKind,
        *,
        folds: Sequence[int] | None = None,
        unproven: str = "",
    ) -> Calibrated:
        """The calibrations of these images. Raises `CalibrationError` where they cannot support the rate."""
        self.require(groups)
        scores = [judged.score for judged in found]
        require_differences(scores)

        def calibrated(values: list[float], looks: list[Look] | None = None) -> Calibration:
            return calibrate(
                with_margin(values), false_alarm_rate=self.false_alarm_rate, groups=groups, certain=self.certain,
                kind=kind, folds=folds, unproven=unproven, looks=looks,
            )  # fmt: skip

        peaks = [judged.peak for judged in found if judged.peak is not None]
        has_peaks = len(peaks) == len(found) and kind != "full"
        looks = [judged.look for judged in found if judged.look is not None]
        has_looks = len(looks) == len(found) and kind == "split"
        return Calibrated(calibrated(scores, looks if has_looks else None), calibrated(peaks) if has_peaks else None)

    def calibrate_folds(
        self,
        by_fold: Sequence[Sequence[FreshScore]],
        group_of: Mapping[str, int],
        fold_of: Mapping[str, int],
        *,
        scales: Sequence[float],
        unproven: str,
    ) -> Calibrated:
        """The calibrations of images by the model of their fold; `group_of` and `fold_of` are by name.

        Scores and peaks of each fold are divided by its number of `scales`, where there are any (`folds.scales_of`). A
        group that is in several folds was learned by the models of all of them, and does not count.
        """
        flat = sum(1 for of_fold in by_fold if of_fold and of_fold[0].peak is None)
        if 0 < flat < len(by_fold):
            log.info("No regions: what was chosen in %d of %d folds has no maps.", flat, len(by_fold))
        folds_of: dict[int, set[int]] = {}
        for name, group in group_of.items():
            folds_of.setdefault(group, set()).add(fold_of[name])
        found = [
            judged._replace(score=judged.score / scale, peak=None if judged.peak is None else judged.peak / scale)
            for judged_of_fold, scale in zip(by_fold, scales or [1.0] * len(by_fold), strict=True)
            for judged in judged_of_fold
        ]
        alone = [judged for judged in found if len(folds_of[group_of[judged.name]]) == 1]
        if len(alone) < len(found):
            log.warning("%d pictures are in several folds, as files of other kinds: they do not count.",
                         len(found) - len(alone))  # fmt: skip
        return self.calibrate(
            alone, [group_of[judged.name] for judged in alone], "cross",
            folds=[fold_of[judged.name] for judged in alone], unproven=unproven,
        )  # fmt: skip


def require_able(method: Method, kind: str) -> None:
    """Refuse, by its class, a method that cannot be calibrated in this way. Raises `ArgumentError`."""
    if kind not in ("loo", "full"):
        return
    needed = LeavesOut if kind == "loo" else ScoresBeside
    require_kind(method, needed, f"be calibrated by {kind}", instead="Take calibration split or cross.")


def require_left_out(method: Method, kind: str, groups: Sequence[int]) -> None:
    """Refuse images of these groups that a method cannot leave out, with its parameters. Raises `ArgumentError`."""
    reason = ""
    if kind == "full" and isinstance(method, ScoresBeside):
        reason = method.cannot_score_beside(groups)
    elif kind == "loo" and isinstance(method, LeavesOut):
        reason = method.cannot_leave_out(groups)
    if reason:
        raise ArgumentError.about(
            "calibration", expected="split or cross here", got=kind, instead=f"{method.name} cannot leave out {reason}."
        )
