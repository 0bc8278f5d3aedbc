"""Parts of several views: what is promised against what happens.

    python benchmarks/parts.py

2 000 repetitions a row, without images. A part's views share half of the variance of their scores, and have the scales
1, 5 and 50. The premise holds; a promise fails where it lies below the exact 99.9 % interval of a realised rate.
"""

from __future__ import annotations

import numpy as np
from decisions import REPETITIONS, print_table, share
from numpy.typing import NDArray

from blemish.calibrate import calibrate
from blemish.parts import Parts, View, learned_views

SCALES = np.array([1.0, 5.0, 50.0])


def drawn(parts: int, views: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Scores `(parts, views)`; a fourth view is like the first."""
    scores = random.gamma(2, size=(parts, 1)) + random.gamma(2, size=(parts, views))
    return scores * SCALES[np.arange(views) % 3]


def views(parts: int, count: int) -> list[View]:
    """The images of so many parts, part by part."""
    return [View(f"{p}-{v}", str(p), str(v)) for p in range(parts) for v in range(count)]


def parts_row(n: int, rate: float, random: np.random.Generator) -> list[str]:
    """Rates of alarms for new normal parts, and the share of defects found in the view of the smallest scale."""
    held_out, learned = views(n, 3), views(40, 3)
    alarms: dict[str, list[bool]] = {name: [] for name in ("same", "fewer", "other", "any", "found", "unscaled")}
    for _ in range(REPETITIONS):
        stats = learned_views(learned, drawn(40, 3, random).ravel().tolist())
        known = drawn(n, 3, random)
        scores, groups = known.ravel().tolist(), np.repeat(np.arange(n), 3).tolist()
        parts = Parts.of(held_out, scores, groups, views=stats, false_alarm_rate=rate, certain=None)
        images = calibrate(scores, false_alarm_rate=rate, groups=groups)
        new = drawn(1, 4, random)[0]

        def judged(values, parts=parts, images=images):
            (found,) = parts.judge(views(1, len(values)), values.tolist(), images.p_values(values).tolist())
            return found.is_anomalous

        defect = new[:3] + np.array([8.0, 0, 0])
        alarms["same"].append(judged(new[:3]))
        alarms["fewer"].append(judged(new[:2]))
        alarms["other"].append(judged(new))
        alarms["any"].append(bool((images.p_values(new[:3]) <= rate * (1 + 1e-12)).any()))
        alarms["found"].append(judged(defect))
        largest = calibrate(known.max(axis=1), false_alarm_rate=rate)
        alarms["unscaled"].append(bool(defect.max() > largest.threshold))
    guaranteed = parts.calibration.promise.guaranteed_rate
    return [
        str(n), f"{rate:.0%}", f"{guaranteed:.2%}", share(alarms["same"], most=guaranteed),
        share(alarms["fewer"], most=guaranteed), share(alarms["other"], most=rate), share(alarms["any"]),
        share(alarms["found"]), share(alarms["unscaled"]),
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    random = np.random.default_rng(0)
    heads = [
        "held-out parts", "asked for", "guaranteed", "normal parts flagged", "a view missing", "a view more",
        "any image flagged, no parts", "defects found", "found without scaling",
    ]  # fmt: skip
    print_table(heads, [parts_row(n, rate, random) for n, rate in ((20, 0.05), (50, 0.05), (50, 0.1), (20, 0.2))])


if __name__ == "__main__":
    main()
