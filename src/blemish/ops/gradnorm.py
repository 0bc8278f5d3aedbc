"""Exact norms of per-sample gradients of any network and any per-sample loss, in one batched backward pass.

Autograd adds the gradients of a batch before anyone can see them. Here the backward pass computes gradients of layer
inputs only; each layer's input and output gradient then give the norms of all samples by the rules of
`layer_gradients.py`, at once and layer by layer, so that no per-sample gradient of the whole network ever exists.

What no rule covers (raw parameters, functional use of weights, unknown layers) is found by `layer_calls.py` and goes
through `torch.func.vmap(grad)`, over the smallest module that will do, or is refused. Nothing is left out silently.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointError

from ..errors import ArgumentError
from .layer_calls import (
    WHOLE,
    Fold,
    Functions,
    Place,
    Reading,
    another,
    changing,
    check_functions,
    leaf_edges,
    read,
    tensors,
    version_of,
    watched,
)
from .layer_gradients import Form, Use, in_range, power_of_two, power_sum, rules_of

Loss = Callable[[Any], Tensor]
"""From the network's output (its floats in float64) to one loss a sample, `(batch,)`."""
By = Literal["total", "parameter", "block"]
Norm = Literal["l2", "l1"]
Uncovered = Literal["vmap", "loop", "raise"]

_CHUNK_BYTES = 1 << 28
"""What vmap may hold at once."""


@overload
def per_sample_grad_norms(
    model: nn.Module,
    x: Tensor,
    loss: Loss,
    *,
    parameters: Iterable[str] | None = ...,
    by: Literal["total"] = ...,
    norm: Norm = ...,
    form: Form = ...,
    uncovered: Uncovered = ...,
) -> Tensor: ...


@overload
def per_sample_grad_norms(
    model: nn.Module,
    x: Tensor,
    loss: Loss,
    *,
    parameters: Iterable[str] | None = ...,
    by: Literal["parameter", "block"],
    norm: Norm = ...,
    form: Form = ...,
    uncovered: Uncovered = ...,
) -> dict[str, Tensor]: ...


def per_sample_grad_norms(
    model: nn.Module,
    x: Tensor,
    loss: Loss,
    *,
    parameters: Iterable[str] | None = None,
    by: By = "total",
    norm: Norm = "l2",
    form: Form = "auto",
    uncovered: Uncovered = "vmap",
) -> Tensor | dict[str, Tensor]:
    """Norm of the gradient of each sample's loss with respect to the parameters.

    model: any network; it runs in eval mode. Its gradients, flags, mode and the random state stay as they are.
    x: `(batch, ...)`, what the network takes.
    loss: from the network's output to `(batch,)`, such as `cross_entropy(labels)`; it sees the output in float64.
    parameters: full names as in `model.named_parameters()`; None: all that require gradients.
    by: "total": one `(batch,)` norm. "parameter" or "block": a dict of `(batch,)` norms by name; see `blocks`.
    norm: "l2" or "l1".
    form: of squared norms of weights: "auto" takes the smaller one.
    uncovered: parameters beyond all rules go through vmap, through a loop over samples, or raise `ArgumentError`.

    Returns float64, on the device of `x`. To score many batches, keep a `GradNorms`, which reads the network once.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> norms = per_sample_grad_norms(model, torch.tensor([[3.0, 4.0]]), lambda output: output[:, 0])
    >>> norms.item()
    5.0
    """
    engine = GradNorms(model, parameters=parameters, norm=norm, form=form, uncovered=uncovered)
    return engine.norms(x, loss, by=by)


def cross_entropy(labels: Tensor | None = None, *, temperature: float = 1.0) -> Loss:
    """-log softmax(logits / temperature)[label]; without labels, of the class with the largest logit.

    Its gradient p - e_y keeps its digits where p_y rounds to 1: the entry of y is minus the sum of the others.
    """

    def loss(logits: Tensor) -> Tensor:
        chosen = logits.argmax(1) if labels is None else labels.to(logits.device)
        negative_log_likelihood: Tensor = _CrossEntropy.apply(logits / temperature, chosen)  # type: ignore[no-untyped-call]
        return negative_log_likelihood

    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, 1)
        ctx.save_for_backward(log_p, labels)
        return -log_p.gather(1, labels[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_p, labels = ctx.saved_tensors
        others = log_p.exp().scatter(1, labels[:, None], 0)
        difference = others.scatter(1, labels[:, None], -others.sum(1, keepdim=True))
        return difference * gradients[0][:, None], None


def blocks(model: nn.Module) -> dict[str, str]:
    """Name of the block of each parameter, blocks in the order of the network's definition.

    A block is a child of the network; a child that holds over four fifths of all layers is itself opened.
    """
    prefix = _opened(model, "")
    names = {}
    for name, _ in model.named_parameters():
        inside = name.startswith(prefix)
        rest = name.removeprefix(prefix) if inside else name
        names[name] = (prefix if inside and "." in rest else "") + rest.split(".")[0]
    return names


def _opened(module: nn.Module, prefix: str) -> str:
    def layers(part: nn.Module) -> int:
        return sum(1 for layer in part.modules() if layer._parameters)

    for name, child in module.named_children():
        if layers(child) > 0.8 * layers(module) and len(list(child.children())) > 1:
            return _opened(child, f"{prefix}{name}.")
    return prefix


class GradNorms:
    """Norms of per-sample gradients of one network, batch after batch; parameters as in `per_sample_grad_norms`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        parameters: Iterable[str] | None = None,
        norm: Norm = "l2",
        form: Form = "auto",
        uncovered: Uncovered = "vmap",
    ) -> None:
        _check_model(model)
        for name, value, choices in (
            ("norm", norm, ("l2", "l1")),
            ("form", form, ("auto", "ghost", "instantiate")),
            ("uncovered", uncovered, ("vmap", "loop", "raise")),
        ):
            if value not in choices:
                raise ArgumentError.about(name, expected=f"one of {', '.join(choices)}", got=value)
        self._model, self._power, self._form, self._uncovered = model, 2 if norm == "l2" else 1, form, uncovered
        self._names = _selected(model, parameters)
        self._blocks = blocks(model)
        self._readings: dict[Any, Reading] = {}

    @overload
    def norms(self, x: Tensor, loss: Loss, *, by: Literal["total"] = ...) -> Tensor: ...

    @overload
    def norms(self, x: Tensor, loss: Loss, *, by: Literal["parameter", "block"]) -> dict[str, Tensor]: ...

    def norms(self, x: Tensor, loss: Loss, *, by: By = "total") -> Tensor | dict[str, Tensor]:
        """`(batch,)` float64 norms for by="total", else a dict of them by name."""
        if by not in ("total", "parameter", "block"):
            raise ArgumentError.about("by", expected="total, parameter or block", got=by)
        if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
            raise ArgumentError.about("x", expected="a tensor of shape (batch, ...), batch >= 1", got=x)
        sums, scale = self._power_sums(x, loss)
        totals: dict[str, Tensor] = {}
        for name in self._names:
            group = "total" if by == "total" else name if by == "parameter" else self._blocks[name]
            of_name = sums[name].double()
            totals[group] = totals[group] + of_name if group in totals else of_name
        found = {group: (total.sqrt() if self._power == 2 else total) * scale for group, total in totals.items()}
        return found["total"] if by == "total" else found

    def _power_sums(self, x: Tensor, loss: Loss) -> tuple[dict[str, Tensor], Tensor]:
        """Sum of |gradient|^p by parameter, of losses divided by the second, `scale`."""
        with _ready(self._model), torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x.detach()
            run = _Run(self._reading(x), len(x), self._power, self._form)
            self._require_gradients(())  # so that autograd computes gradients of layer outputs only
            output = run.forward(self._model, x)
            self._require_gradients(self._names)  # so that a loss that takes parameters is noticed
            seeds, scale = run.output_gradients(output, loss)
            self._require_gradients(())
            run.backward(output, seeds)
            for piece in run.left_over(self._model, x, seeds):
                run.sums |= self._of_piece(piece)
        return run.sums, scale

    def _reading(self, x: Tensor) -> Reading:
        is_single = len(x) == 1
        key = (is_single, x.shape[1:], x.dtype, x.device)
        if key in self._readings:
            return self._readings[key]
        self._require_gradients(self._names)
        other = None if is_single else another(x)
        reading = read(self._model, x[:1], [] if is_single else [x[:1], x[:1] if other is None else other], self._names)
        if is_single or other is not None:  # or nothing was learnt about where samples lie
            self._readings[key] = reading
        return reading

    def _require_gradients(self, names: Collection[str]) -> None:
        chosen = frozenset(names)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in chosen)

    def _of_piece(self, piece: _Piece) -> dict[str, Tensor]:
        """Sum of |gradient|^p by differentiating one module for each sample."""
        if self._uncovered == "raise":
            raise ArgumentError.about(
                "parameters",
                expected="only those that a rule covers, with uncovered='raise'",
                got=", ".join(piece.names),
                instead="Leave them out, or write uncovered='vmap'.",
            )
        chosen, sums = piece.sums_of_one(self._power)
        if self._uncovered == "loop":
            rows = [sums(one, *seeds) for one, *seeds in zip(piece.inputs, *piece.seeds, strict=True)]
            return {name: torch.stack([row[name] for row in rows]) for name in chosen}
        chunk = _CHUNK_BYTES // (piece.bytes_each + sum(value.nbytes for value in chosen.values()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            try:
                found: dict[str, Tensor] = torch.func.vmap(sums, chunk_size=max(1, chunk))(piece.inputs, *piece.seeds)
            except RuntimeError as error:
                raise ArgumentError.about(
                    "model",
                    expected="a network that torch.func.vmap can run, for the parameters that no rule covers",
                    got=str(error).partition("\n")[0],
                    instead=f"Write uncovered='loop', or leave these out: {', '.join(chosen)}.",
                ) from error
        return found


@dataclass(frozen=True)
class _Piece:
    """A module to be differentiated for each sample."""

    module: nn.Module
    names: dict[str, str]
    """Parameters, full name to name within the module."""
    inputs: Tensor
    """`(batch, ...)`: what goes in for each sample."""
    seeds: list[Tensor]
    """Gradients of what comes out, each `(batch, ...)`."""
    bytes_each: int
    """What autograd holds for one sample, about."""

    def sums_of_one(self, power: int) -> tuple[dict[str, Tensor], Callable[..., dict[str, Tensor]]]:
        """The parameters, and what makes the sums of |gradient|^p of one sample's input and seeds."""
        own = {name: parameter.detach() for name, parameter in self.module.named_parameters()}
        state = own | {name: buffer.detach() for name, buffer in self.module.named_buffers()}
        chosen = {name: own[local] for name, local in self.names.items()}

        def objective(values: dict[str, Tensor], one: Tensor, *seeds: Tensor) -> Tensor:
            values = {self.names[name]: value for name, value in values.items()}
            output = tensors(torch.func.functional_call(self.module, {**state, **values}, (one.clone(),)))
            if [o.shape for o in output] != [s.shape for s in seeds]:
                raise changing(f"{type(self.module).__name__} with other outputs for a sample by itself")
            return torch.stack([(o * s).sum() for o, s in zip(output, seeds, strict=True)]).sum()

        gradient = torch.func.grad(objective)

        def sums(one: Tensor, *seeds: Tensor) -> dict[str, Tensor]:
            gradients: dict[str, Tensor] = gradient(chosen, one, *seeds)
            return {name: power_sum(value[None].double(), power)[0] for name, value in gradients.items()}

        return chosen, sums


@dataclass
class _Alone:
    """A call of a layer that goes to the fallback on its own."""

    layer: nn.Module
    input: Tensor
    fold: Fold
    output_fold: Fold
    gradient: Tensor | None = None
    """Of the output; None where it did not influence the loss."""


class _Run:
    """One forward and one backward pass of a batch, and what the layers hand over in between."""

    def __init__(self, reading: Reading, batch: int, power: int, form: Form) -> None:
        self._reading, self._batch, self._power, self._form = reading, batch, power, form
        self.sums: dict[str, Tensor] = {}
        """By parameter, of those that a rule covers."""
        self.folds: list[Fold | None] = []
        """Of the floating-point tensors of the network's output."""
        self._called = 0
        self._misread: set[str] = set()
        """Layers in whose input the samples do not lie where they are expected."""
        self._alone: dict[str, _Alone] = {}
        """By layer."""
        self._uses: dict[str, list[Use]] = defaultdict(list)
        """By parameter."""
        self._awaited: dict[str, int] = defaultdict(int)
        """Gradients that have not come yet, by parameter."""
        self._parameters: dict[str, list[str]] = defaultdict(list)
        """By layer."""
        for name in reading.rules:
            for owner, _ in reading.owners[name]:
                self._parameters[owner].append(name)

    def forward(self, model: nn.Module, x: Tensor) -> Any:
        self._check_layers(model)
        functions = Functions(model)
        with watched(model, {call.owner for call in self._reading.calls}, self._on_call), functions:
            output = model(x.clone())
        check_functions(self._reading.functions, functions.uses)
        found = tensors(output)
        if self._called != len(self._reading.calls) or len(found) != len(self._reading.outputs):
            raise changing(f"{self._called} calls instead of {len(self._reading.calls)}")
        self.folds = [
            place.of(part.shape, self._batch) for place, part in zip(self._reading.outputs, found, strict=True)
        ]
        return output

    def _check_layers(self, model: nn.Module) -> None:
        """Raise where a layer is no longer what it was when the network was read, such as for a new hook."""
        rules = {owner: rules_of(model.get_submodule(owner)) for owner in self._parameters}
        for name, rule in self._reading.rules.items():
            if any(rules[owner].get(local) is not rule for owner, local in self._reading.owners[name]):
                raise changing(f"another layer for {name}")
        for owner in self._reading.alone.values():
            if model.get_submodule(owner)._forward_pre_hooks:
                raise changing(f"a new hook of {owner}")

    def output_gradients(self, output: Any, loss: Loss) -> tuple[list[Tensor], Tensor]:
        """Gradient of each sample's loss by the output, divided by a power of two a sample, and these `(batch,)`.

        One `(batch, ...)` for each tensor; the loss sees them in float64, and the scale keeps tiny gradients of
        confident samples from underflowing. Gradients are linear in their seed, so a power of two changes no digit.
        """
        leaves, spec = pytree.tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        given = [leaves[i] for i in places]
        seen = [tensor.detach().double().requires_grad_() for tensor in given]
        for i, tensor in zip(places, seen, strict=True):
            leaves[i] = tensor
        losses = loss(pytree.tree_unflatten(leaves, spec))
        _check_losses(losses, seen, self._batch)
        gradients = torch.autograd.grad(losses.sum(), seen, allow_unused=True)
        of_each = zip(seen, gradients, self.folds, self._reading.outputs, strict=True)
        seeds = [self._seed(*one) for one in of_each]
        scale = power_of_two(torch.stack([seed.abs().reshape(self._batch, -1).amax(1) for seed in seeds]).amax(0))
        scaled = [seed / scale.view(-1, *(1,) * (seed.ndim - 1)) for seed in seeds]
        return [seed.to(tensor.dtype) for seed, tensor in zip(scaled, given, strict=True)], scale

    def _seed(self, tensor: Tensor, gradient: Tensor | None, fold: Fold | None, place: Place) -> Tensor:
        """The gradient of one tensor of the output, `(batch, ...)`."""
        if gradient is not None and not gradient.isfinite().all():
            raise ArgumentError.about("loss", expected="finite gradients", got="NaN or infinity")
        if gradient is not None and fold is None and gradient.any():
            raise ArgumentError.about(
                "model",
                expected="outputs that hold the samples along one axis, one behind the other, without influence on "
                "each other",
                got=tensor.detach(),
                instead="Leave that output out of the loss, or score one sample at a time.",
            )
        if gradient is None or fold is None:
            return tensor.new_zeros(self._batch, *place.one)
        return fold.split(gradient, self._batch)

    def backward(self, output: Any, seeds: Sequence[Tensor]) -> None:
        pairs = [
            (part, fold.join(seed))
            for part, fold, seed in zip(tensors(output), self.folds, seeds, strict=True)
            if part.requires_grad and fold is not None
        ]
        try:
            torch.autograd.backward([part for part, _ in pairs], [seed for _, seed in pairs])
        except CheckpointError as error:
            raise ArgumentError.about(
                "model",
                expected="checkpoints behind the first layer only",
                got=str(error).partition("\n")[0],
                instead="Call the first layer, or all, without torch.utils.checkpoint.",
            ) from error
        for name in list(self._uses):  # of layers whose output did not influence the loss
            self._reduce(name)
        for name in self._reading.rules:
            self.sums.setdefault(name, torch.zeros(self._batch, device=seeds[0].device))

    def left_over(self, model: nn.Module, x: Tensor, seeds: list[Tensor]) -> Iterator[_Piece]:
        """What no rule covers, as modules to be differentiated."""
        for owner, names in self._reading.beyond_rules(self._misread).items():
            if owner == WHOLE:
                yield _Piece(model, {name: name for name in names}, x[:, None], seeds, self._reading.saved_bytes)
                continue
            use = self._alone[owner]
            if use.gradient is None:
                self.sums |= {name: torch.zeros(self._batch, device=x.device) for name in names}
                continue
            inputs = use.fold.split(use.input, self._batch)
            seed = use.output_fold.split(use.gradient, self._batch)
            local = {name: name.removeprefix(f"{owner}.") for name in names}
            yield _Piece(use.layer, local, inputs, [seed], 8 * inputs[0].nbytes)

    def _on_call(self, owner: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing in there can influence a gradient
            return None
        calls = self._reading.calls
        if self._called >= len(calls) or calls[self._called].owner != owner:
            raise changing(f"a call of {owner} that was not there before")
        call = calls[self._called]
        self._called += 1
        is_alone = owner in self._reading.alone.values()
        if not is_alone and not self._parameters[owner]:
            return None
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise changing(f"other arguments or outputs of {owner}")
        fold = call.input.of(inputs[0].shape, self._batch)
        output_fold = call.output.of(output.shape, self._batch) if is_alone else fold
        if fold is None or output_fold is None:
            self._misread.add(owner)
            return None
        if not output.requires_grad:  # no layer before: the backward pass ends here
            output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        a = inputs[0].detach()
        a = a.clone() if call.is_overwritten else a
        if is_alone:
            self._alone[owner] = _Alone(layer, a, fold, output_fold)
        self._await(owner, Use(layer, a.movedim(fold.axis, 0) if a.ndim else a, fold.rows), output, fold.axis)
        return output

    def _await(self, owner: str, use: Use, output: Tensor, axis: int) -> None:
        """Take the gradient of a layer's output when the backward pass comes by."""
        version, names, waiting = version_of(use.input), self._parameters[owner], [use]
        for name in names:
            self._uses[name].append(use)
            self._awaited[name] += 1

        def on_gradient(gradient: Tensor) -> None:
            use = waiting.pop()  # autograd keeps this function; it is not to keep the layer's input, too
            if version_of(use.input) != version:
                raise changing(f"a change in place of the input of {owner}")
            if owner in self._alone:
                self._alone[owner].gradient = gradient.detach()
            use.gradient = gradient.detach().movedim(axis, 0) if names else None
            for name in names:
                self._awaited[name] -= 1
                if not self._awaited[name]:
                    self._reduce(name)

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _reduce(self, name: str) -> None:
        uses = [use for use in self._uses.pop(name) if use.gradient is not None]
        if not uses:
            return
        with torch.no_grad(), torch.autocast(uses[0].input.device.type, enabled=False):
            rule = self._reading.rules[name]
            sums = rule(uses, self._batch, self._power, self._form)
            # A sum in the middle of the range has lost nothing that matters; looking at the gradients first would cost
            # a pass over each of them.
            low = torch.finfo(sums.dtype).tiny ** 0.5
            if not bool(((sums > low) & (sums < 1 / low)).all()):
                scaled, scale = in_range(uses, self._batch)
                sums = rule(scaled, self._batch, self._power, self._form).double() * scale**self._power
            self.sums[name] = sums


def _check_losses(losses: Any, seen: Sequence[Tensor], batch: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (batch,):
        raise ArgumentError.about(
            "loss", expected=f"one number a sample, a tensor of shape ({batch},)", got=losses, instead="Do not average."
        )
    if not losses.requires_grad:
        raise ArgumentError.about(
            "loss", expected="a function of the output that autograd can differentiate", got="numbers without history"
        )
    if any(not any(leaf is tensor for tensor in seen) for _, leaf in leaf_edges([losses])):
        raise ArgumentError.about(
            "loss",
            expected="a function of the network's output alone",
            got="one that takes parameters or tensors from inside the network, too",
            instead="Let the network return what the loss needs, and detach everything else.",
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; each module's own is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:  # not model.eval(): some layers merge or cache weights there, and exported ones refuse it
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Eval mode, no fused attention (it bypasses layers); these and the parameters' flags are put back afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _selected(model: nn.Module, parameters: Iterable[str] | None) -> tuple[str, ...]:
    known = dict(model.named_parameters())
    if parameters is None:
        names = tuple(name for name, parameter in known.items() if parameter.requires_grad)
        hint = "Name them, such as [name for name, _ in model.named_parameters()]."
        if not names:
            raise ArgumentError.about("parameters", expected="some that require gradients", got="none", instead=hint)
        return names
    names = tuple(dict.fromkeys(parameters))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ArgumentError.about(
            "parameters", expected="names from model.named_parameters()", got=", ".join(unknown) or "none"
        )
    return tuple(name for name in known if name in names)


def _check_model(model: nn.Module) -> None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    for name, module in model.named_modules():
        is_compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if is_compiled or isinstance(module, wrappers):
            raise ArgumentError.about(
                "model",
                expected="a plain module, whose layers can be watched",
                got=f"{name} {'compiled' if is_compiled else type(module).__name__}".strip(),
                instead="Pass the module that was compiled or wrapped (model._orig_mod, model.module).",
            )
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(module).__name__
        if is_batch_norm and getattr(module, "running_mean", 0) is None:
            raise ArgumentError.about(
                "model",
                expected="BatchNorm with running statistics",
                got=f"{name} without",
                instead="Such a layer mixes the samples of a batch, which then have no gradient of their own.",
            )
