"""What people said of pictures goes back into a model.

What was flagged though it is fine is learned. It was selected by its score, so it never sets a threshold: that would
rise without end, and no promise would be left. What sets one is a sample that is complete, or drawn at random.
"""

from __future__ import annotations

from .detector import Detector
from .errors import ArgumentError
from .images.source import ImageSource
from .progress import Progress


def take_feedback(
    detector: Detector, *, fine: ImageSource, sample: ImageSource, progress: Progress | None = None
) -> tuple[str, ...]:
    """Learn `fine` pictures that were flagged, and calibrate on a `sample` of good ones, flagged or not.

    A picture in both calibrates and is not learned. Without a sample there is no threshold afterwards. The detector
    changes; gives the names of what it learned. Raises what `Detector.update` and
    `Detector.recalibrate` raise, and `ArgumentError` for nothing at all.
    """
    known = set(sample.names)
    learned = fine.subset([i for i, name in enumerate(fine.names) if name not in known])
    if len(learned):
        detector.update(learned, held_out=sample if len(sample) else None, progress=progress)
    elif len(sample):
        detector.recalibrate(images=sample, progress=progress)
    else:
        raise ArgumentError.about("fine", expected="pictures to learn, or a sample", got="neither")
    return learned.names
