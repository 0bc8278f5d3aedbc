"""Where the time of a prediction goes: reading, the network, the score, regions, writing, each by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from ..detector import Detector
from ..errors import ArgumentError
from ..images.source import Batches, ImageSource
from ..methods import FrozenMethod
from ..types import Decision

STAGES = ("decode", "forward", "score", "regions", "write")
"""Of an image, in their order."""


@dataclass(frozen=True)
class StageTimes:
    """ms an image of each stage, one after the other, and images a second of all together."""

    runtime: str
    batch: int
    decode: float
    """Reading, decoding and resizing, with one thread."""
    forward: float
    """The network; 0 where a method does not part from it, or sees tiles: then it is in `score`."""
    score: float
    regions: float
    """Regions, and the map on the picture's own pixels."""
    write: float
    images_per_second: float
    """Of `predict`, whose decoding threads work beside the network."""


def time_stages(
    detector: Detector,
    images: ImageSource,
    write: Callable[[Decision], object],
    *,
    batch_size: int,
    workers: int = 2,
    maps: bool = True,
) -> StageTimes:
    """Judge images stage by stage, and then as `predict` does; `write` takes each decision. A batch comes before both.

    Raises `ArgumentError` where there are none.
    """
    if not len(images):
        raise ArgumentError.about("images", expected="at least one image", got="none")
    whole = copy.copy(detector)
    whole.batch_size, whole.workers, whole.on_error = batch_size, workers, "raise"
    for decision in whole.predict(images.subset(list(range(min(batch_size, len(images))))), maps=maps):
        write(decision)
    seconds = _time_each(whole, images, write, maps=maps)
    start = perf_counter()
    for decision in whole.predict(images, maps=maps):
        write(decision)
    took = perf_counter() - start
    ms = {stage: 1e3 * seconds[stage] / len(images) for stage in STAGES}
    return StageTimes(whole.runtime_, batch_size, **ms, images_per_second=len(images) / took)


def _time_each(
    detector: Detector, images: ImageSource, write: Callable[[Decision], object], *, maps: bool
) -> dict[str, float]:
    """Seconds of each stage, none beside another."""
    seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def counted(stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        seconds[stage] += perf_counter() - start

    method = detector.method_ if detector.tile is None else None
    at_once = 1 if detector.tile is not None else detector.batch_size
    for first in range(0, len(images), at_once):
        some = images.subset(list(range(first, min(first + at_once, len(images)))))
        with counted("decode"):
            (batch,) = Batches(some, detector.preprocessing, at_once, 1, region=detector.region_)
        with counted("forward"):
            if isinstance(method, FrozenMethod):
                batch = method.with_maps(batch)
        with counted("score"):
            scores = detector.score_batch(batch)
        with counted("regions"):
            decisions = list(detector.decisions(batch, scores, maps=maps))
        with counted("write"):
            for decision in decisions:
                write(decision)
    return seconds
