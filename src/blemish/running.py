"""On which runtime a detector's networks run, what of that its file keeps, and what another runtime would change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibrate import MARGIN, Calibration
from .calibrator import FreshScore
from .device import find_device
from .errors import ArgumentError, ModelFileError, log
from .features.extract import RunPrecision
from .features.runtime import TOLERANCE, Runner, RuntimeChoice, RuntimeName, require_precision, runtime_version
from .images.drawn import clouds
from .methods import FeatureMethod, FrozenMethod, Method
from .parameters import parameter, read_plain
from .scorer import Scorer
from .tensors import check_tensors
from .types import ImageBatch, Size

MOST_LOSS = 0.5
"""Of the spread of held-out scores: by no more may a precision move them at random. The spread then grows by 12 %."""
_CHECKS = 8
_GRAPH = re.compile(r"runtime\.[0-9a-f]{16}\.\d{1,5}x\d{1,5}(\.int8|\.vnni)?")


@dataclass(frozen=True)
class KeptRuntime:
    """The runtime that made a calibration, where that was not torch, as a model file keeps it."""

    name: RuntimeName
    version: str
    checks: tuple[float, ...]
    """What drawn images score by it."""
    graphs: Mapping[str, bytes] = field(repr=False)
    """The networks that it runs, as `Runner.graphs` has them."""
    loss: float | None = None
    """What its precision does to held-out scores, as `precision_loss` says; None with float32."""

    def tensors(self) -> dict[str, Tensor]:
        """For a model file."""
        return {
            f"runtime.{key}": torch.from_numpy(np.frombuffer(graph, np.uint8).copy())
            for key, graph in self.graphs.items()
        }

    def section(self) -> dict[str, Any]:
        """Of the manifest."""
        found = {"name": self.name, "version": self.version, "checks": list(self.checks)}
        return {"runtime": found if self.loss is None else found | {"loss": self.loss}}


@dataclass(kw_only=True)
class _Section:
    """The section `runtime` of a manifest.

    Parameters
    ----------
    name: of the runtime.
    version: of its package, when the calibration was made.
    checks: what drawn images scored by it.
    loss: what its precision did to held-out scores.
    """

    name: RuntimeName
    version: str
    checks: tuple[float, ...] = parameter(least=1)
    loss: float | None = parameter(None, at_least=0)


def read_runtime(tensors: Mapping[str, Tensor], section: Mapping[str, Any] | None) -> KeptRuntime | None:
    """What a file keeps of a runtime; `tensors` are those whose names begin with `runtime.`, and None: torch."""
    if section is None:
        if tensors:
            raise ModelFileError("tensors runtime.*: not expected without the section runtime.")
        return None
    known = _Section(**read_plain(_Section, section, of="runtime"))
    for name in tensors:
        if not _GRAPH.fullmatch(name):
            raise ModelFileError(f"tensor {name[:60]}: not the name of a network and its input's size.")
    check_tensors(tensors, {name: "uint8 b" if i == 0 else f"uint8 b{i}" for i, name in enumerate(tensors)})
    graphs = {name.removeprefix("runtime."): bytes(tensor.numpy()) for name, tensor in tensors.items()}
    return KeptRuntime(known.name, known.version, known.checks, graphs, known.loss)


@dataclass(frozen=True)
class Running:
    """What runs a detector's networks now, and what its file keeps of that."""

    runner: Runner | None = None
    """None: torch."""
    kept: KeptRuntime | None = None
    """The runtime of the latest fit, or of what came after it that learned or calibrated; None: torch."""
    loss: float | None = None
    """What a reduced precision did to held-out scores."""

    @staticmethod
    def start(choice: RuntimeChoice, method: Method | None) -> Running:
        """For a fit; `method` is None where `auto` has not chosen yet. Raises `MissingPackageError`."""
        return Running(_runner(choice, method, None))

    @staticmethod
    def of_file(kept: KeptRuntime | None, method: Method, *, wanted: RuntimeChoice | None, on_cpu: bool) -> Running:
        """While a file is read: what it names, unless another one is wanted that may differ by rounding."""
        if kept is None or not (is_reduced(method, kept.name) or (on_cpu and wanted in (None, kept.name))):
            return Running(None, kept, None if kept is None else kept.loss)
        found = Running(_runner(kept.name, method, kept), kept, kept.loss)
        run_on([method], found.runner)
        return found

    @property
    def choice(self) -> RuntimeChoice:
        """What was asked for."""
        return "torch" if self.runner is None else self.runner.choice

    @property
    def name(self) -> RuntimeName:
        """What runs the networks; with `auto`, once that is known, the one that was chosen."""
        return "torch" if self.runner is None else self.runner.name or "torch"

    def moved_to(self, choice: RuntimeChoice, scorer: Scorer, size: Size, calibration: Calibration | None) -> Running:
        """Go over to another runtime, where drawn images score the same on it; else nothing has changed."""
        if _precision_of(scorer.method) != "float32":
            raise _only_that_of_the_fit(choice)
        run_on(scorer.methods, None)
        try:
            before = check_scores(scorer, size) if self.kept is None else self.kept.checks
            moved = replace(self, runner=_runner(choice, scorer.method, self.kept))
            run_on(scorer.methods, moved.runner)
            after = check_scores(scorer, size)
            report_change(choice if moved.runner is None else moved.runner.name or choice, before, after, calibration)
        except BaseException:
            run_on(scorer.methods, self.runner)
            raise
        return moved

    def keeping(self, scorer: Scorer, size: Size) -> Running:
        """After a fit or a calibration: what ran is what a file names."""
        return replace(self, kept=_kept(self.runner, scorer, size, self.loss))


def require_that_of_the_fit(kept: KeptRuntime | None, method: Method, wanted: RuntimeChoice | None) -> None:
    """Refuse another runtime for less than float32, before a graph of the file is read."""
    if kept is not None and wanted not in (None, kept.name) and is_reduced(method, kept.name):
        raise _only_that_of_the_fit(wanted)


def _only_that_of_the_fit(choice: str) -> ArgumentError:
    return ArgumentError.about(
        "runtime", expected="the one of the fit with less than float32", got=choice, instead="Fit again."
    )


def _runner(choice: RuntimeChoice, method: Method | None, kept: KeptRuntime | None) -> Runner | None:
    if choice == "torch":
        return None
    graphs = kept.graphs if kept is not None and kept.graphs else None
    return Runner(choice, precision=_precision_of(method), graphs=graphs)


def is_reduced(method: Method | None, choice: RuntimeChoice) -> bool:
    """Whether another runtime than torch computes in less than float32."""
    return choice != "torch" and _precision_of(method) != "float32"


def _precision_of(method: Method | None) -> RunPrecision:
    return method.precision if isinstance(method, FeatureMethod) else "float32"


def run_on(methods: Iterable[Method], runner: Runner | None) -> None:
    """Let the networks of these methods run on it. Raises `ArgumentError` where they cannot."""
    for method in methods:
        require_runnable(method, "torch" if runner is None else runner.choice)
        if isinstance(method, FeatureMethod):
            method.run_on(runner)


def require_runnable(method: Method, choice: RuntimeChoice) -> None:
    """Refuse a runtime that does not go with device, precision and training of a method's networks. `ArgumentError`."""
    if isinstance(method, FeatureMethod):
        require_precision(choice, method.precision)
    if choice in ("auto", "torch"):
        return
    if not isinstance(method, FeatureMethod):
        raise ArgumentError.about(
            "runtime", expected=f"torch with {method.name}, whose networks are its own", got=choice
        )
    device = find_device(method.device).type
    if device != "cpu":
        raise ArgumentError.about("device", expected=f"cpu with runtime {choice}", got=device)
    if method.precision != "float32" and not isinstance(method, FrozenMethod):
        raise ArgumentError.about(
            "precision", expected=f"float32 with runtime {choice}, as the network is trained", got=method.precision
        )


def _kept(runner: Runner | None, scorer: Scorer, size: Size, loss: float | None) -> KeptRuntime | None:
    if runner is None or runner.name in (None, "torch"):
        return None
    checks = check_scores(scorer, size)
    assert runner.name is not None
    return KeptRuntime(runner.name, runtime_version(runner.name), checks, dict(runner.graphs), loss)


def precision_loss(scorer: Scorer, batches: Iterable[ImageBatch], judged: Sequence[FreshScore]) -> float:
    """By how much scores of normal images differ from those of the same model on a network in float32.

    It is the standard deviation of the differences over that of the scores: what all of them share does no harm, as the
    calibration is made anew. Raises `ArgumentError` above `MOST_LOSS`.
    """
    method = scorer.method
    assert isinstance(method, FeatureMethod)
    with method.on_torch():
        exact = {name: score for batch in batches for name, score in _scores(scorer, batch)}
    ours = np.array([one.score for one in judged])
    theirs = np.array([exact[one.name] for one in judged])
    spread = float(theirs.std())
    loss = float((ours - theirs).std()) / spread if spread > 0 else math.inf
    log.info("precision %s: held-out scores differ by %.2g of their spread", method.precision, loss)
    if not loss <= MOST_LOSS:
        raise ArgumentError.about(
            "precision", expected=f"one that moves held-out scores by at most {MOST_LOSS:g} of their spread",
            got=f"{method.precision}, which moves them by {loss:.2g}", instead="Take float32.",
        )  # fmt: skip
    return loss


def _scores(scorer: Scorer, batch: ImageBatch) -> Iterable[tuple[str, float]]:
    return zip(batch.names, scorer.score(batch).images.tolist(), strict=True)


def check_scores(scorer: Scorer, size: Size) -> tuple[float, ...]:
    """What drawn images of the network's input size score."""
    pixels = torch.stack([torch.from_numpy(drawn).permute(2, 0, 1) / 255 for drawn in clouds([size] * _CHECKS)])
    names = tuple(f"drawn {number}" for number in range(_CHECKS))
    return tuple(scorer.score(ImageBatch(pixels, names, (size,) * _CHECKS)).images.tolist())


def report_change(name: str, before: Sequence[float], after: Sequence[float], calibration: Calibration | None) -> None:
    """Say by how much scores differ on this runtime, and which verdicts may move; refuse it above the tolerance."""
    largest = max(map(abs, before)) or 1.0
    change = max(abs(a - b) for a, b in zip(before, after, strict=True)) / largest
    if not change <= TOLERANCE:  # NaN is not
        raise ArgumentError.about(
            "runtime", expected=f"scores within {TOLERANCE:g} of those by the runtime that calibrated",
            got=f"{change:.1e} by {name}", instead="Predict on that one, or calibrate anew.",
        )  # fmt: skip
    line = f"runtime {name}: drawn images score within {change:.1e} of the runtime that calibrated"
    if calibration is None or calibration.threshold is None:
        log.info("%s", line)
        return
    near = may_move(calibration.scores, calibration.threshold, change)
    which = "" if not near else f": those that score {', '.join(f'{score:.6g}' for score in near[:5])}"
    log.info("%s; of %d held-out verdicts, %d may move%s", line, len(calibration.scores), len(near), which)


def may_move(held_out: Sequence[float] | np.ndarray[Any, Any], threshold: float, change: float) -> list[float]:
    """Held-out scores whose verdict may change where scores do by this share of the largest; they come with margin.

    >>> may_move([1.0, 2.0, 4.0], 4.0, 1e-6), may_move([1.0, 2.0, 4.0], 4.0, 2e-5)
    ([], [3.99996])
    """
    if not math.isfinite(threshold):
        return []
    raised = np.asarray(held_out, dtype=np.float64)
    largest = float(np.abs(raised).max())
    raw = raised - MARGIN * largest
    return [float(score) for score in raw[np.abs(raw - threshold) <= change * largest]]
