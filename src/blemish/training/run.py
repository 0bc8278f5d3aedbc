"""The training of one fit, which a method owns: where it goes on from, how long it may take, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from torch import nn

from ..errors import log
from ..parameters import as_plain, parameters_of
from ..progress import Throttle
from .loop import Checkpoint, Course, Objective, Recipe, TrainingProgress, Watch, check_identity, optimise


class Training:
    """Runs the loop for a method, or another dataclass of parameters with a `seed`; the time limit counts from now.

    A checkpoint belongs to the name, all parameters that say what a model is (role `model`), and the content that is
    learned from; `optimise` adds recipe, watch and initial weights. One of another run is refused.

    Parameters
    ----------
    owner: the dataclass.
    name: of the run, in the log and in the checkpoint.
    checkpoint: file to go on from, and to write to; None: none.
    time_limit: seconds; None: no limit.
    progress: is told of every step; None: a line in the log now and then.
    """

    def __init__(
        self,
        owner: Any,
        *,
        name: str,
        checkpoint: str | Path | None,
        time_limit: float | None,
        progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        self._name, self._seed, self._limit, self._progress = name, owner.seed, time_limit, progress
        self._path = None if checkpoint is None else Path(checkpoint)
        self._identity = {"name": name} | _identity(owner)
        self._start = monotonic()

    @classmethod
    def of(cls, method: Any, *, share: float = 1.0) -> Training:
        """The training of a method, as its own `checkpoint` and `time_limit` say, of which it has this share."""
        limit = None if method.time_limit is None else share * method.time_limit
        return cls(method, name=method.name, checkpoint=method.checkpoint, time_limit=limit)

    def run(
        self,
        objective: Objective,
        module: nn.Module,
        *,
        steps: int,
        recipe: Recipe,
        content: Mapping[str, Callable[[], str]],
        every: int,
        watch: Watch | None = None,
        stage: str = "",
    ) -> Course:
        """Optimise, with a checkpoint at `every` so many steps; `content`: digests of what is learned from, by name.

        A further `stage` of a fit has its checkpoint beside that of the last.
        """
        checkpoint = None
        if self._path is not None:
            identity = self._identity | {name: digest() for name, digest in content.items()}
            checkpoint = Checkpoint(path=Path(f"{self._path}{stage}"), every=every, identity=identity)
        return optimise(
            objective,
            module,
            steps=steps,
            recipe=recipe,
            seed=self._seed,
            watch=watch,
            checkpoint=checkpoint,
            time_limit=None if self._limit is None else max(0.0, self._limit - (monotonic() - self._start)),
            progress=self._progress or log_progress(self._name + stage),
        )


def check_checkpoint(path: str | Path | None, owner: Any) -> None:
    """Refuse a checkpoint of other parameters, or in no folder, before anything is read for the run.

    Raises `ModelFileError`, `ArgumentError`.
    """
    if path is not None:
        check_identity(Path(path), _identity(owner) | {"seed": owner.seed})  # which the loop adds as a number


def _identity(owner: Any) -> dict[str, str]:
    model = [key for key, known in parameters_of(type(owner)).items() if known.role == "model"]
    return {key: str(as_plain(getattr(owner, key))) for key in model}


def log_progress(name: str) -> Callable[[TrainingProgress], None]:
    """Report a run in the log now and then, which the command line shows: steps, loss, and the time that is left."""
    throttle = Throttle()

    def report(progress: TrainingProgress) -> None:
        if throttle.is_due(in_any_case=progress.step >= progress.steps):
            log.info(
                "%s: step %d of %d, loss %.4g, about %.0f s left",
                name, progress.step, progress.steps, progress.loss, progress.seconds_left,
            )  # fmt: skip

    return report
