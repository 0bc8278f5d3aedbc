"""What methods share that train on a part of the normal images and watch the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..training.loop import TrainingProgress

_log = logging.getLogger("blemish")
_SECONDS = 10.0
"""Between two lines of progress."""
_COUNTS = ("steps", "epochs", "batch", "patience", "positions", "blocks")


def split_off(count: int, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split `count` normal images by a seeded draw into (rest, held out), sorted indices, at least one image each."""
    if count < 2:
        raise ArgumentError.about("images", expected="at least 2 normal images", got=count)
    held = min(count - 1, max(1, round(share * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


def check_training(method: Any) -> None:
    """Refuse wrong values of the parameters that these methods share."""
    rate, validation, sigma, limit = method.rate, method.validation, method.sigma, method.time_limit
    for name in _COUNTS:
        value = getattr(method, name, 1)
        if type(value) is not int or value < 1:
            raise ArgumentError.about(name, expected="a whole number of at least 1", got=value)
    for name, expected, right in (
        ("rate", "a number above 0", 0 < rate < math.inf),
        ("validation", "a share between 0 and 1", 0 < validation < 1),
        ("sigma", "a number of pixels, 0 for no smoothing", sigma >= 0),
        ("time_limit", "None or a number of seconds above 0", limit is None or limit > 0),
    ):
        if not right:
            raise ArgumentError.about(name, expected=expected, got=getattr(method, name))


def log_progress(name: str) -> Callable[[TrainingProgress], None]:
    """Report a run in the log now and then, which the command line shows: steps, loss, and the time that is left."""
    last = monotonic()

    def report(progress: TrainingProgress) -> None:
        nonlocal last
        if monotonic() - last < _SECONDS and progress.step < progress.steps:
            return
        last = monotonic()
        _log.info(
            "%s: step %d of %d, loss %.4g, about %.0f s left",
            name, progress.step, progress.steps, progress.loss, progress.seconds_left,
        )  # fmt: skip

    return report
