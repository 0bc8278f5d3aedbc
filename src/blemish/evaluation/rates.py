"""What happened among labelled test images, or parts, against what was promised of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from .. import metrics
from ..calibrate import Calibration
from ..types import Promise

_Ends = tuple[float, float]
Units = Literal["images", "parts"]


@dataclass(frozen=True)
class RealisedRate:
    """The false alarms among the normal test images, held against the promise of the threshold."""

    promise: Promise
    alarms: int
    images: int
    """Normal test images, or parts."""
    interval: _Ends
    """Exact 95 % interval of the rate of this threshold."""
    what: Literal["are flagged", "show a region"]
    chance: float | None
    """Of so many false alarms or more, were the test images like those at hand; None where groups leave it open."""
    units: Units = "images"

    @property
    def promised(self) -> float:
        """The rate that is proven: with `certain` for this threshold, else on average over draws of normal images.

        Where nothing is proven, the one that was asked for.
        """
        proven = self.promise.guaranteed_rate
        return self.promise.false_alarm_rate if self.promise.certain is not None or proven is None else proven

    @property
    def is_below(self) -> bool:
        """Whether the promise lies below the interval."""
        return self.promised < self.interval[0]

    @property
    def speaks_against_premise(self) -> bool:
        """Whether no luck with the held-out images explains it: the test images may not be like them."""
        return self.is_below and (self.chance is None or self.chance <= 0.05)

    def __str__(self) -> str:
        low, high = (f"{100 * end:.1f}" for end in self.interval)
        word = "promised" if self.promise.guaranteed_rate is not None else "wanted, but not guaranteed,"
        is_split = self.promise.calibration == "split"
        images = f"held-out {self.units}" if is_split else f"normal {self.units} of the fit"
        line = (
            f"{self.alarms} of {self.images} normal test {self.units} {self.what}: the rate of this threshold is {low} "
            f"to {high} % (exact 95 % interval)"
        )
        if not self.is_below:
            return f"{line}, which does not speak against the {word} {100 * self.promised:.3g} %."
        line += f". The {word} {100 * self.promised:.3g} % lies below it."
        if self.chance is not None:
            line += (
                f" Were the test {self.units} like the {images}, there would be so many or more with a probability of "
                f"{100 * self.chance:.2g} %."
            )
        if self.speaks_against_premise:
            return f"{line} The premise may not hold: another lighting, another batch, or images that belong together."
        return f"{line} An unlucky draw of the {self.promise.held_out} {images} may explain it."


@dataclass(frozen=True)
class MissRate:
    """How many of the defects at hand the threshold misses, and what that says of others like them."""

    misses: int
    images: int
    """Anomalous test images, or parts."""
    interval: _Ends
    """Exact 95 % interval of the rate."""
    units: Units = "images"

    def __str__(self) -> str:
        low, high = (f"{100 * end:.1f}" for end in self.interval)
        return (
            f"{self.misses} of {self.images} anomalous test {self.units} are missed: the miss rate of this threshold, "
            f"on defects like these, is {low} to {high} % (exact 95 % interval)."
        )


def realised(
    calibration: Calibration,
    alarms: int,
    images: int,
    *,
    what: Literal["are flagged", "show a region"] = "are flagged",
    units: Units = "images",
) -> RealisedRate:
    """So many false alarms among so many normal ones."""
    chance = calibration.chance(alarms, images)
    return RealisedRate(calibration.promise, alarms, images, exact(alarms, images), what, chance, units)


def exact(count: int, images: int) -> _Ends:
    """Exact 95 % interval of a share."""
    interval = metrics.binomial_interval(count, images)
    return interval.low, interval.high


def realised_json(realised: RealisedRate | None) -> dict[str, object] | None:
    if realised is None:
        return None
    derived = {name: getattr(realised, name) for name in ("promised", "is_below", "speaks_against_premise")}
    return asdict(realised) | derived
