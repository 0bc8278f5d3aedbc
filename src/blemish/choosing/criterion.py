"""How well scores tell changed images from untouched ones, with intervals over the held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError
from ..types import Floats

REPETITIONS = 1000


@dataclass(frozen=True)
class Trial:
    """Which images were scored: every held-out image as it is, and some of them with a change."""

    names: tuple[str, ...]
    """Of the held-out images."""
    of: tuple[int, ...]
    """Of each changed image, the number of the held-out image that it was made from."""
    families: tuple[str, ...]
    """Of each changed image, the name of the change."""

    @property
    def images(self) -> int:
        """How many held-out images."""
        return len(self.names)

    @property
    def family_names(self) -> list[str]:
        """The families, in order of appearance."""
        return list(dict.fromkeys(self.families))

    def weights(self, *, seed: int, repetitions: int = REPETITIONS) -> Floats:
        """How often each held-out image counts: once in the first row, as often as it was drawn in the others."""
        drawn = np.random.default_rng(seed).multinomial(self.images, np.full(self.images, 1 / self.images), repetitions)
        return np.concatenate([np.ones((1, self.images)), drawn.astype(np.float64)])

    def separation(self, untouched: Floats, changed: Floats, weights: Floats) -> Floats:
        """AUROC of changed against other untouched images, `(len(weights), families)`; ties count half.

        A changed image is not compared with itself, which nearly every score tells apart: a real defect lies on another
        part. An image that is drawn twice counts twice, untouched and changed. NaN where nothing of a family was drawn.
        """
        if len(untouched) != self.images or len(changed) != len(self.of):
            raise ArgumentError.about(
                "scores", expected=f"{self.images} and {len(self.of)}", got=f"{len(untouched)} and {len(changed)}"
            )
        made_from, found = np.array(self.of), []
        for family in self.family_names:
            own = np.flatnonzero([name == family for name in self.families])
            others = made_from[own, None] != np.arange(self.images)
            above = (changed[own, None] > untouched) + 0.5 * (changed[own, None] == untouched)
            drawn = weights[:, made_from[own]]
            wins, pairs = (((drawn @ count) * weights).sum(axis=1) for count in (above * others, others.astype(float)))
            with np.errstate(invalid="ignore"):
                found.append(wins / pairs)
        return np.stack(found, axis=1)


def mean_separation(separation: Floats) -> Floats:
    """The criterion: the mean over the families of which something was drawn; NaN where that is none."""
    there = np.isfinite(separation)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(there, separation, 0).sum(axis=1) / there.sum(axis=1)
    return found


def interval(drawn: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Percentiles of what was drawn again, without the first value, which is the estimate."""
    low, high = np.nanquantile(drawn[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
