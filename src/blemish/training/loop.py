"""The one training loop: everything that trains goes through `optimise`.

A step is a function of (seed, step) alone: both set torch's random state before it, and the objective draws its batch
from them (`batch_of`, `generator`). So a run that was killed and goes on from its checkpoint ends with the same
weights, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import persist
from ..errors import ArgumentError, ModelFileError, TrainingError
from ..features.layout import watching
from ..tensors import below, check_tensors

Objective = Callable[[int], "Tensor | Mapping[str, Tensor]"]
"""From a step to the loss, a scalar, or to named terms whose sum is the loss."""
Schedule = Callable[[int], float]
"""From a step to a factor of the learning rate; its `repr` must tell it from others, as a frozen dataclass's does."""
_AUTOCAST = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_GOOD = "Nothing was written of this state: the last checkpoint, if there is one, is good."


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam; `decoupled` weight decay makes it AdamW."""

    rate: float = 1e-4
    weight_decay: float = 0.0
    decoupled: bool = False

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser."""
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return kind(parameters, lr=self.rate, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent."""

    rate: float = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser."""
        return torch.optim.SGD(parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """From `start` linearly to 1 in `warmup` steps, then along half a cosine to `end` at `steps`."""

    steps: int
    end: float = 0.0
    warmup: int = 0
    start: float = 0.1

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        share = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class Drops:
    """Multiplied by `factor` at each of the steps `at`."""

    at: tuple[int, ...]
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        return float(self.factor ** sum(step >= drop for drop in self.at))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How gradients change parameters."""

    optimiser: Adam | SGD = field(default_factory=Adam)
    schedule: Schedule | None = None
    """None: the rate is constant."""
    clip_norm: float | None = None
    """Gradients whose joint Euclidean norm is above this are scaled down to it."""
    clip_each: bool = False
    """Take that norm over each child of the module alone, so that parts without a common parameter stay independent."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the objective's forward pass, by autocast; float16 with a scaled loss, for GPUs that lack bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Looks at the weights before the first step and after every `every` steps."""

    criterion: Callable[[int], float | None]
    """From the steps done to a figure, smaller = better, or None to stop; computed without gradients. It may write to
    buffers of the module, which checkpoints hold."""
    every: int
    patience: int | None = None
    """Stop after this many looks in a row without a new best."""
    keep_best: bool = True
    """Leave the module with the weights and buffers of the best look, else with the last ones."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where to write the state of a run, and to go on from where it exists."""

    path: Path
    every: int = 1000
    identity: Mapping[str, str | int | float | None] = field(default_factory=dict)
    """What makes this run another than others, such as a digest of its images; the recipe, the seed, the watch and the
    weights it begins with are added. A checkpoint of another run is refused."""


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run after a step."""

    step: int
    """Steps done."""
    steps: int
    terms: Mapping[str, float]
    """Of the last step."""
    seconds_left: float
    """Until the last step or the time limit, at the pace so far."""

    @property
    def loss(self) -> float:
        """The sum of the terms."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class Course:
    """What happened in a run, with what happened before it was interrupted."""

    steps: int
    """Steps done."""
    ended: Literal["steps", "watch", "time"]
    """All steps done; stopped by the watch; out of time."""
    seconds: float
    terms: tuple[str, ...]
    losses: Tensor
    """`(steps, terms)` float64."""
    looks: tuple[tuple[int, float], ...]
    """Steps done and criterion, of every look of the watch."""

    @property
    def best(self) -> tuple[int, float] | None:
        """The first look with the smallest criterion."""
        return min(self.looks, key=lambda look: look[1], default=None)


def generator(seed: int, step: int, use: str = "") -> torch.Generator:
    """Random numbers for one step; another one for each `use` within it."""
    return torch.Generator().manual_seed(_mixed(seed, step, use))


def batch_of(count: int, size: int, *, seed: int, step: int) -> Tensor:
    """`(size,)` int64 indices below `count`: each once a round, in a new order each round; a batch may span rounds."""
    start, end = step * size, (step + 1) * size
    rounds = range(start // count, -(-end // count))
    orders = [torch.randperm(count, generator=generator(seed, number, "order")) for number in rounds]
    return torch.cat(orders)[start - rounds[0] * count :][:size]


def optimise(
    objective: Objective,
    module: nn.Module,
    *,
    steps: int,
    recipe: Recipe | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    checkpoint: Checkpoint | None = None,
    time_limit: float | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Course:
    """Minimise `objective` over the parameters of `module` that require gradients, in place.

    Train or eval mode is the caller's matter. With a checkpoint the run goes on where the file ends, also to more steps
    than were planned. After `time_limit` seconds it ends with what is there. Raises `TrainingError` that names the
    cause as soon as a loss term, gradient, parameter or criterion is NaN or infinite; the last checkpoint stays.
    """
    run = _Run(objective, module, recipe or Recipe(), seed=seed, watch=watch)
    if checkpoint is not None:
        run.resume(checkpoint, steps)
    start, first = monotonic(), run.step
    earlier = run.seconds
    limit = math.inf if time_limit is None else time_limit
    with _reproducible(run.device):
        if watch is not None and not run.looks:
            run.look(watch)
        while run.step < steps and not run.stopped and monotonic() - start < limit:
            run.advance()
            if watch is not None and run.step % watch.every == 0:
                run.look(watch)
            run.seconds = earlier + monotonic() - start
            if checkpoint is not None and run.step % checkpoint.every == 0:
                run.save(checkpoint)
            if progress is not None:
                spent = monotonic() - start
                left = min((steps - run.step) * spent / (run.step - first), max(0.0, limit - spent))
                progress(TrainingProgress(run.step, steps, dict(zip(run.terms, run.losses[-1], strict=True)), left))
        run.check_parameters()
        if checkpoint is not None:
            run.save(checkpoint)
    if watch is not None and watch.keep_best:
        run.restore(run.best)
    return run.course(steps)


class _Run:
    """The state of a run: what changes, and what a checkpoint holds."""

    def __init__(
        self, objective: Objective, module: nn.Module, recipe: Recipe, *, seed: int, watch: Watch | None
    ) -> None:
        self.objective, self.module, self.recipe, self.seed, self.watch = objective, module, recipe, seed, watch
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ArgumentError.about("module", expected="parameters that require gradients", got="none")
        if recipe.precision not in _AUTOCAST:
            raise ArgumentError.about("precision", expected=" or ".join(_AUTOCAST), got=recipe.precision)
        self.clipped: dict[str, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            self.clipped.setdefault(name.partition(".")[0] if recipe.clip_each else "", []).append(parameter)
        self.device = next(iter(self.parameters.values())).device
        self.optimiser = recipe.optimiser.build(list(self.parameters.values()))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.step, self.seconds, self.stopped = 0, 0.0, False
        self.terms: list[str] = []
        self.losses: list[list[float]] = []
        self.looks: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    def advance(self) -> None:
        """Do one step."""
        for group in self.optimiser.param_groups:
            schedule = self.recipe.schedule
            group["lr"] = self.recipe.optimiser.rate * (1.0 if schedule is None else schedule(self.step))
        self.optimiser.zero_grad()
        terms = self._terms()
        values = torch.stack([term.detach() for term in terms.values()]).tolist()
        if not all(map(math.isfinite, values)):
            raise self._broken_loss(dict(zip(terms, values, strict=True)))
        self.scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimiser)
        limit = self.recipe.clip_norm or math.inf
        norm = torch.stack([nn.utils.clip_grad_norm_(part, limit) for part in self.clipped.values()]).sum()
        # The scaler skips a step whose gradients overflow in float16 and tries a smaller scale at the next.
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
            raise self._broken_gradients()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.losses.append(values)
        self.step += 1

    def look(self, watch: Watch) -> None:
        """Ask the watch, and keep the state if it is the best so far."""
        torch.manual_seed(_mixed(self.seed, self.step, "watch"))
        with torch.no_grad():
            figure = watch.criterion(self.step)
        if figure is None:
            self.stopped = True
            return
        if not math.isfinite(figure):
            raise TrainingError(f"step {self.step}: the criterion is {figure}. {_GOOD}")
        if not self.looks or figure < min(value for _, value in self.looks):
            self.best = {name: tensor.detach().clone() for name, tensor in self._state().items()}
        self.looks.append((self.step, float(figure)))
        values = [value for _, value in self.looks]
        if watch.patience is not None and len(values) - 1 - values.index(min(values)) >= watch.patience:
            self.stopped = True

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Write weights and buffers back into the module."""
        own = self._state()
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)

    def course(self, steps: int) -> Course:
        """Say what happened."""
        ended: Literal["steps", "watch", "time"] = "steps" if self.step >= steps else "time"
        losses = torch.tensor(self.losses, dtype=torch.float64).reshape(len(self.losses), len(self.terms))
        looks = tuple(self.looks)
        return Course(self.step, "watch" if self.stopped else ended, self.seconds, tuple(self.terms), losses, looks)

    def check_parameters(self) -> None:
        """Raise where a parameter is not finite: no checkpoint is written of such a state."""
        broken = _not_finite(self.parameters)
        if broken:
            raise TrainingError(
                f"step {self.step}: the parameters {broken} are not finite after it, though loss and gradients were. "
                f"Lower the learning rate. {_GOOD}"
            )

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint in one step, so that a crash never leaves half a file."""
        self.check_parameters()
        tensors = {f"module.{name}": tensor.detach() for name, tensor in self._state().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items() if value is not None}
        tensors |= {"step": torch.tensor(self.step), "losses": torch.tensor(self.losses, dtype=torch.float64)}
        tensors |= {"looks": torch.tensor(self.looks, dtype=torch.float64)}
        kept = {"settings": self._settings, "terms": self.terms, "seconds": self.seconds, "stopped": self.stopped}
        persist.save(checkpoint.path, tensors, {"run": kept | {"scaler": self.scaler.state_dict()}})

    def resume(self, checkpoint: Checkpoint, steps: int) -> None:
        """Take up the state of a checkpoint, where there is one."""
        start = dict(self.module.named_parameters()) | self._state()
        loop = {"seed": self.seed, "recipe": repr(self.recipe), "initial weights": persist.digest(start)}
        if self.watch is not None:
            loop |= {"watch": f"every {self.watch.every}, patience {self.watch.patience}"}
        self._settings = {**checkpoint.identity, **loop}
        if not _is_there(checkpoint.path):
            return
        tensors, kept = _read(checkpoint.path)
        try:
            self._check_kept(kept, tensors)
        except ModelFileError as error:
            raise ModelFileError(f"{checkpoint.path}: {error} Delete it, and train again.") from None
        _check_same(checkpoint.path, kept["settings"], self._settings)
        self.step, self.seconds, self.stopped = int(tensors["step"]), kept["seconds"], kept["stopped"]
        if self.step > steps:
            raise ModelFileError.about(
                f"{checkpoint.path}", expected=f"at most {steps} steps done", got=self.step,
                instead="Ask for more steps, or delete the checkpoint.",
            )  # fmt: skip
        self.terms, self.losses = kept["terms"], tensors["losses"].tolist()
        self.looks = [(int(step), value) for step, value in tensors["looks"].tolist()]
        self.restore(below(tensors, "module."))
        self.best = {name: tensor.to(self.device) for name, tensor in below(tensors, "best.").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in below(tensors, "optimiser.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.scaler.load_state_dict(kept["scaler"])

    def _check_kept(self, kept: Any, tensors: Mapping[str, Tensor]) -> None:
        """Refuse what no `save` writes, but for what belongs to another run. Raises `ModelFileError`."""
        kinds = {"settings": dict, "terms": list, "seconds": float, "stopped": bool, "scaler": dict}
        scaler = self.scaler.state_dict()
        if not isinstance(kept, dict) or not all(isinstance(kept.get(name), kind) for name, kind in kinds.items()):
            raise ModelFileError.about("run", expected=f"an object with {', '.join(kinds)}", got=kept)
        if not all(isinstance(term, str) for term in kept["terms"]) or kept["scaler"].keys() != scaler.keys():
            raise ModelFileError.about("run", expected="terms that are texts, and a scaler's state", got=kept)
        if not all(isinstance(value, type(scaler[name])) for name, value in kept["scaler"].items()):
            raise ModelFileError.about("run, scaler", expected=f"{scaler}", got=kept["scaler"])
        if kept["settings"] != self._settings:
            return  # another run has other shapes, and is told by its settings
        check_tensors(tensors, self._patterns(tensors, len(kept["terms"])))
        if len(tensors["losses"]) != int(tensors["step"]):
            raise ModelFileError.about("tensor losses", expected=f"{int(tensors['step'])} steps", got=tensors["losses"])

    def _patterns(self, tensors: Mapping[str, Tensor], terms: int) -> dict[str, str]:
        """Types and sizes of what a checkpoint of this run holds; `tensors` are those that it has."""
        patterns = {"step": "int64"}
        for name, columns in (("losses", terms), ("looks", 2)):
            is_empty = tensors.get(name, torch.zeros(0)).ndim == 1
            patterns[name] = "float64 0" if is_empty else f"float64 {name} {columns}"
        for name, own in self._state().items():
            patterns[f"module.{name}"] = patterns[f"best.{name}{_optional(tensors, 'best.')}"] = _pattern(own)
        is_sgd = isinstance(self.optimiser, torch.optim.SGD)
        for number, own in enumerate(self.parameters.values()):
            prefix = f"optimiser.{number}."
            for key in ("momentum_buffer",) if is_sgd else ("step", "exp_avg", "exp_avg_sq"):
                name = f"{prefix}{key}{_optional(tensors, prefix)}"
                patterns[name] = "float32" if key == "step" else _pattern(own)
        return patterns

    def _state(self) -> dict[str, Tensor]:
        return {**self.parameters, **dict(self.module.named_buffers())}

    def _terms(self) -> dict[str, Tensor]:
        torch.manual_seed(_mixed(self.seed, self.step, "step"))
        dtype = _AUTOCAST[self.recipe.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            found = self.objective(self.step)
        terms = {"loss": found} if isinstance(found, Tensor) else dict(found)
        self.terms = self.terms or list(terms)
        if list(terms) != self.terms:
            raise ArgumentError.about("objective", expected=f"the terms {self.terms} at each step", got=list(terms))
        for name, term in terms.items():
            if term.ndim:
                raise ArgumentError.about(f"objective, {name}", expected="a scalar", got=term, instead="Take its mean.")
        if not any(term.requires_grad for term in terms.values()):
            raise ArgumentError.about(
                "objective", expected="a loss that depends on parameters of the module", got="one without gradients"
            )
        return {name: term.double() for name, term in terms.items()}

    # The cause of an abort is looked for by doing the step again: the random state is the same, and so is the step.

    def _broken_loss(self, values: Mapping[str, float]) -> TrainingError:
        named = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        broken = _not_finite(self.parameters)
        if broken:
            return TrainingError(
                f"step {self.step}: {named}. The parameters {broken} were not finite before it. Lower the rate or "
                f"clip the gradients (clip_norm). {_GOOD}"
            )
        return TrainingError(f"step {self.step}: {named}. {self._first_broken()} {_GOOD}")

    def _first_broken(self) -> str:
        """Run the step again and watch what goes into and comes out of each layer."""
        found = ["All layers that ran took and gave finite numbers: look at the loss's own formula and its inputs."]
        ran: list[str] = []

        def watch(name: str) -> Any:
            def hook(_layer: nn.Module, inputs: Any, output: Any) -> None:
                if len(found) == 1 and _is_broken(inputs):
                    found.append(
                        f"The input of {name} was not finite" + (", after finite layers." if ran else " already.")
                    )
                elif len(found) == 1 and _is_broken(output):
                    found.append(f"The output of {name} was not finite, though its input was.")
                ran.append(name)

            return hook

        layers = [(name, part) for name, part in self.module.named_modules() if not list(part.children())]
        handles = [part.register_forward_hook(watch(name or "the module")) for name, part in layers]
        with watching(handles):
            self._terms()
        return found[-1]

    def _broken_gradients(self) -> TrainingError:
        """Take the gradient of one term after the other."""
        for name in self.terms:
            term = self._terms()[name]
            if not term.requires_grad:
                continue
            gradients = torch.autograd.grad(term, list(self.parameters.values()), allow_unused=True)
            given = {p: g for p, g in zip(self.parameters, gradients, strict=True) if g is not None}
            if _not_finite(given):
                break
        else:
            name, given = "the loss", {key: p.grad for key, p in self.parameters.items() if p.grad is not None}
        return TrainingError(
            f"step {self.step}: the gradient of {name} is not finite at {_not_finite(given) or 'their norm'}, though "
            f"the loss and the parameters are. Look for a square root or logarithm of 0 in it. {_GOOD}"
        )


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels, gradients on, and the caller's random state left alone."""
    before = torch.backends.cudnn.deterministic
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        torch.backends.cudnn.deterministic = True
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = before


def _pattern(tensor: Tensor) -> str:
    """Its type and shape, for `check_tensors`."""
    return " ".join([str(tensor.dtype).removeprefix("torch."), *map(str, tensor.shape)])


def _optional(tensors: Mapping[str, Tensor], prefix: str) -> str:
    """What stands behind names with this prefix for `check_tensors`: all of them are there, or none."""
    return "" if any(name.startswith(prefix) for name in tensors) else "?"


def _mixed(seed: int, step: int, use: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {use}".encode()).digest()[:8], "little")


def _is_broken(value: Any) -> bool:
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name up to three that hold a NaN or an infinity; empty where none does."""
    names = [name for name, tensor in tensors.items() if _is_broken(tensor)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_identity(path: Path, identity: Mapping[str, object]) -> None:
    """Refuse a checkpoint of a run with another identity, as far as it is known yet. Raises `ModelFileError`."""
    if not _is_there(path):
        return
    _, kept = _read(path)
    settings = kept.get("settings") if isinstance(kept, dict) else None
    if isinstance(settings, dict):  # what no run has written is refused when the run begins
        _check_same(path, {name: settings.get(name) for name in identity}, identity)


def _is_there(path: Path) -> bool:
    if not path.resolve().parent.is_dir():
        raise ArgumentError.about("checkpoint", expected="a file in an existing folder", got=str(path))
    return path.exists()


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    tensors, manifest = persist.load(path)
    if manifest.get("run") is None:
        raise ModelFileError(f"{path}: not a checkpoint of a training run. Choose another file.")
    return tensors, manifest["run"]


def _check_same(path: Path, theirs: Mapping[str, object], ours: Mapping[str, object]) -> None:
    differing = [
        f"{name} ({theirs.get(name)} there, {ours.get(name)} here)"
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise ModelFileError(
            f"{path}: a checkpoint of another run, which differs in {'; '.join(differing)}. "
            "Go on with the settings of that run, or choose another file."
        )
