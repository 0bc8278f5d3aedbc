"""Thresholds by simulation: what `split` and `--certain` promise, against what happens to exchangeable scores.

    python benchmarks/decisions.py

Each repetition draws n held-out scores and new ones from one gamma distribution, without images. The intervals are
exact at 99.9 %, so that all rows together fail by chance in few of a hundred runs; a promise outside ends in `FAILS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gamma

from blemish.calibrate import Calibration, calibrate
from blemish.evaluation.rates import realised as held_against
from blemish.metrics import binomial_interval
from blemish.promises import images_needed

REPETITIONS, SHAPE, CERTAIN, TEST_IMAGES = 2000, 2.0, 0.95, 60
COUNTS, RATES = (19, 20, 50, 100), (0.05, 0.1, 0.2)

Draw = Callable[[Calibration], bool]


def cells(certain: float | None) -> Iterator[tuple[int, float]]:
    """The numbers of held-out images and the rates that they can support."""
    return ((n, rate) for rate in RATES for n in COUNTS if n >= images_needed(rate, certain=certain))


def calibrations(n: int, rate: float, certain: float | None, random: np.random.Generator) -> list[Calibration]:
    """One for each repetition."""
    drawn = (random.gamma(SHAPE, size=n) for _ in range(REPETITIONS))
    return [calibrate(scores, false_alarm_rate=rate, certain=certain) for scores in drawn]


def share(happened: NDArray[np.bool_] | list[bool], *, least: float = 0.0, most: float = 1.0) -> str:
    """A share in percent with its exact interval, and whether it can lie in the promised range."""
    count = int(np.sum(happened))
    found = binomial_interval(count, len(happened), confidence=0.999)
    verdict = " FAILS" if found.low > most or found.high < least else ""
    return f"{count / len(happened):.1%} ({found.low:.1%} to {found.high:.1%}){verdict}"


def rates_row(n: int, rate: float, certain: float | None, random: np.random.Generator) -> list[str]:
    """One new image a repetition, and the exact rate of each threshold."""
    made = calibrations(n, rate, certain, random)
    thresholds = np.array([calibration.threshold for calibration in made])
    promise = made[0].promise  # the same for all
    own = gamma.sf(thresholds, SHAPE)
    assert promise.plausible is not None
    low, high = promise.plausible
    kept = share(own <= rate, least=0.0 if certain is None else certain)
    return [
        str(n), f"{rate:.0%}", f"{promise.guaranteed_rate:.2%}",
        share(random.gamma(SHAPE, size=REPETITIONS) > thresholds, most=promise.guaranteed_rate),
        f"{low:.1%} to {high:.1%}", share((low <= own) & (own <= high), least=0.9, most=0.9), kept,
    ]  # fmt: skip


def warnings_row(n: int, rate: float, factor: float, random: np.random.Generator) -> list[str]:
    """How often `evaluate` would warn, with test scores that are `factor` times as large as the held-out ones."""
    warned, below = [], []
    for calibration in calibrations(n, rate, None, random):
        alarms = int((factor * random.gamma(SHAPE, size=TEST_IMAGES) > calibration.threshold).sum())
        realised = held_against(calibration, alarms, TEST_IMAGES)
        warned.append(realised.speaks_against_premise)
        below.append(realised.is_below)
    return [str(n), f"{rate:.0%}", f"{factor:g}", share(below), share(warned, most=0.05 if factor == 1 else 1.0)]


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """In Markdown."""
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def main() -> None:
    """Print three tables."""
    random = np.random.default_rng(0)
    for certain in (None, CERTAIN):
        print_table(
            [
                "held out",
                "asked for",
                "guaranteed",
                "realised",
                "plausible range",
                "thresholds in it",
                "at most asked for",
            ],
            [rates_row(n, rate, certain, random) for n, rate in cells(certain)],
        )
    print_table(
        ["held out", "asked for", "scores times", "promise below the interval", "warned"],
        [warnings_row(n, 0.05, factor, random) for factor in (1.0, 1.3) for n in COUNTS],
    )


if __name__ == "__main__":
    main()
