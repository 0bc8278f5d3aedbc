"""Which calls of which layers account for a network's use of its parameters: read off a few forward passes.

Trusting a list of layer types would leave out, silently, what a network does with its parameters beside calling
those layers. So each edge of autograd's graph that leads to a parameter must belong to a call of its layer.

Nor is it taken for granted where the samples of a batch lie in a layer's input: folds of windows or time steps put
several rows of a sample behind one another, or between those of others. Changing one of two samples shows it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import ArgumentError
from .layer_gradients import Rule, accepts, any_axis, rules_of

WHOLE = ""
"""Path of the network itself among its modules."""

Edge: TypeAlias = tuple[Any, int]
"""Of autograd's graph: the node and the number of the edge that leaves it."""


@dataclass(frozen=True)
class Fold:
    """Where samples lie in a tensor: `rows` consecutive entries of `axis` belong to each."""

    axis: int
    rows: int

    def shape(self, one: torch.Size, batch: int) -> torch.Size:
        """Of the tensor for `batch` samples, from its shape for one."""
        return torch.Size([*one[: self.axis], batch * self.rows, *one[self.axis + 1 :]])

    def split(self, tensor: Tensor, batch: int) -> Tensor:
        """`(batch, *shape for one sample)`."""
        if batch == 1:
            return tensor[None]
        front = tensor.movedim(self.axis, 0)
        return front.reshape(batch, self.rows, *front.shape[1:]).movedim(1, self.axis + 1)

    def join(self, samples: Tensor) -> Tensor:
        """The reverse of `split`."""
        if len(samples) == 1:
            return samples[0]
        return samples.movedim(self.axis + 1, 1).flatten(0, 1).movedim(0, self.axis)


@dataclass
class Place:
    """A tensor in which samples are to be told apart."""

    one: torch.Size = field(default_factory=lambda: torch.Size(()))
    """Its shape for one sample."""
    fold: Fold | None = None
    """None where samples do not lie apart."""

    def of(self, shape: torch.Size, batch: int) -> Fold | None:
        """The fold of such a tensor for `batch` samples; None also for an unexpected shape."""
        if len(shape) != len(self.one):
            return None
        if batch == 1:
            return Fold(0, shape[0] if shape else 1)
        return self.fold if self.fold is not None and self.fold.shape(self.one, batch) == shape else None


@dataclass
class Call:
    """One call of a layer."""

    owner: str
    """Path of the layer."""
    is_plain: bool
    """Whether one tensor went in, was left as it was, and one came out."""
    input: Place = field(default_factory=Place)
    output: Place = field(default_factory=Place)
    is_overwritten: bool = False
    """Whether the input is changed in place later on, so that it must be copied."""


@dataclass
class Reading:
    """What a few forward passes showed."""

    owners: dict[str, list[tuple[str, str]]]
    """By parameter, the layers that own it (tied parameters have several) and its name in each."""
    calls: list[Call]
    """In the order of the forward pass."""
    outputs: list[Place]
    """The floating-point tensors of the network's output."""
    rules: dict[str, Rule]
    """By parameter, where one rule covers all of its uses."""
    alone: dict[str, str]
    """By parameter that no rule covers, the layer whose only call accounts for all of its uses."""
    functions: Counter[str]
    """How many functions of torch took each parameter."""
    saved_bytes: int
    """What autograd saves for one sample."""

    def beyond_rules(self, misread: set[str]) -> dict[str, list[str]]:
        """Parameters for the fallback, by the smallest module that it has to run; `misread` layers do not count."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, places in self.owners.items():
            lost = any(owner in misread for owner, _ in places)
            if lost or name not in self.rules:
                found[WHOLE if lost else self.alone.get(name, WHOLE)].append(name)
        return found


def read(model: nn.Module, one: Tensor, beside: Sequence[Tensor], names: Iterable[str]) -> Reading:
    """Run one sample, `(1, ...)`, then two samples, it and each of those `beside` it: itself and another one, or none.

    Gradients are to be switched on for the parameters `names` and off for all others.
    """
    owners = _owners(model, names)
    layers = {path: model.get_submodule(path) for places in owners.values() for path, _ in places}
    rules = {path: rules_of(layer) for path, layer in layers.items()}
    looks = [_Look(model, torch.cat([one, *more]), layers) for more in ((), *((other,) for other in beside))]
    _check_steady(looks)
    first = looks[0]
    graph = leaf_edges(first.outputs)
    _check_differentiable(first, graph)
    calls = _placed(looks, {path for path in layers if not rules[path] or any_axis(layers[path])})
    outputs = [_place(*tensors) for tensors in zip(*(look.outputs for look in looks), strict=True)]
    reading = Reading(owners, calls, outputs, {}, {}, first.functions, first.saved_bytes)
    for name, places in owners.items():
        rule, alone = _accounted(places, first.calls, layers, rules, graph=graph)
        if rule is not None:
            reading.rules[name] = rule
        elif alone is not None:
            reading.alone[name] = alone
    return reading


def _accounted(
    places: Sequence[tuple[str, str]],
    calls: Sequence[_Seen],
    layers: Mapping[str, nn.Module],
    rules: Mapping[str, Mapping[str, Rule]],
    *,
    graph: Iterable[tuple[Edge, Tensor]],
) -> tuple[Rule | None, str | None]:
    """The rule that covers all uses of a parameter, else the layer whose only call accounts for them, else neither."""
    first, local = places[0]
    own = [seen for seen in calls if any(seen.call.owner == path for path, _ in places)]
    uses = _uses(layers[first]._parameters[local], own, graph)
    if uses is None:
        return None, None
    rule, *others = {rules[path].get(local) for path, local in places}
    if rule is not None and not others:
        accepted = (accepts(layers[seen.call.owner], seen.call.input.one) for seen in own)
        fits = all(count == 1 and is_accepted for count, is_accepted in zip(uses, accepted, strict=True))
        return (rule if fits else None), None
    stands_alone = len(places) == 1 and len(own) == 1 and own[0].stands_alone(layers[own[0].call.owner])
    return None, own[0].call.owner if stands_alone else None


def _owners(model: nn.Module, names: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """The layers that have each parameter, by their paths, and what they call it."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    owners: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for path, layer in model.named_modules():
        for local, parameter in layer._parameters.items():
            if parameter is not None and name_of[id(parameter)] in owners:
                owners[name_of[id(parameter)]].append((path, local))
    return owners


def _uses(parameter: Tensor | None, calls: Sequence[_Seen], graph: Iterable[tuple[Edge, Tensor]]) -> list[int] | None:
    """How often each call uses a parameter; None where something beside them does, or a call is not plain."""
    claimed = [[edge for edge, leaf in seen.edges if leaf is parameter] for seen in calls]
    elsewhere = {edge for edge, leaf in graph if leaf is parameter}.difference(*claimed)
    return None if elsewhere or not all(seen.call.is_plain for seen in calls) else [len(edges) for edges in claimed]


@dataclass
class _Seen:
    """One call of a layer, in one forward pass."""

    call: Call
    tensors: tuple[Tensor, ...] = ()
    """What went in and came out, where it may change later a copy of it."""
    edges: list[tuple[Edge, Tensor]] = field(default_factory=list)
    """Those that lead to leaves from within the layer, and these."""

    def stands_alone(self, layer: nn.Module) -> bool:
        """Whether the layer can be run again by itself: the same input, nothing from elsewhere."""
        own = {id(parameter) for parameter in layer.parameters()}
        return not layer._forward_pre_hooks and all(id(leaf) in own for _, leaf in self.edges)


class _Look:
    """One forward pass of a few samples."""

    def __init__(self, model: nn.Module, x: Tensor, layers: Mapping[str, nn.Module]) -> None:
        """`x` may be changed in place."""
        self.calls: list[_Seen] = []
        self.without_gradients: set[str] = set()
        """Layers that were called with gradients switched off."""
        self._before: list[int] = []
        self._versions: list[tuple[Call, Tensor, int]] = []
        self.saved_bytes = 0
        functions, counting = Functions(model), torch.autograd.graph.saved_tensors_hooks(self._on_save, lambda t: t)
        with watched(model, layers, self._on_call, self._before_call), counting, functions:
            output = model(x)
        for call, tensor, version in self._versions:
            call.is_overwritten = version_of(tensor) != version
        self.outputs = tensors(output)
        self.functions, self.indexed = functions.uses, functions.indexed

    def _on_save(self, tensor: Tensor) -> Tensor:
        """Count what autograd saves."""
        self.saved_bytes += tensor.nbytes
        return tensor

    def _before_call(self, inputs: tuple[Any, ...]) -> None:
        self._before.append(version_of(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], Tensor) else -1)

    def _on_call(self, owner: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        before = self._before.pop()
        if not torch.is_grad_enabled():
            self.without_gradients.add(owner)
            return
        is_plain = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        if not is_plain or before != version_of(inputs[0]):
            self.calls.append(_Seen(Call(owner, False)))
            return
        call = Call(owner, True)
        copies = tuple(tensor.detach().clone() for tensor in (inputs[0], output))
        edges = leaf_edges([output], inputs[0])
        self.calls.append(_Seen(call, copies, edges))
        self._versions.append((call, inputs[0], version_of(inputs[0])))


def _check_steady(looks: Sequence[_Look]) -> None:
    owners = [[seen.call.owner for seen in look.calls] for look in looks]
    if owners[1:] != owners[:-1] or len({len(look.outputs) for look in looks}) > 1:
        raise changing("other ones for another sample")


def _check_differentiable(look: _Look, graph: Sequence[tuple[Edge, Tensor]]) -> None:
    if not look.outputs:
        raise ArgumentError.about(
            "model", expected="floating-point tensors, or tuples, lists or dicts of them, as output", got="none"
        )
    if not any(output.requires_grad for output in look.outputs):
        raise ArgumentError.about(
            "model",
            expected="an output that depends, for autograd, on the parameters",
            got="one that does not",
            instead="Leave torch.no_grad out of its forward.",
        )
    if look.without_gradients and any(isinstance(node, BackwardCFunction) for node in _nodes(look.outputs)):
        raise ArgumentError.about(
            "model",
            expected="layers that autograd can see",
            got=f"{', '.join(sorted(look.without_gradients))}, perhaps inside a torch.autograd.Function",
            instead="Write checkpoint(..., use_reentrant=False), or leave the parameters of these layers out.",
        )


def _placed(looks: Sequence[_Look], free: set[str]) -> list[Call]:
    """The calls of the first look, with places; samples may lie along any axis in the layers `free`."""
    # What picks entries from among all samples, such as tokens for experts, may pick others in another batch.
    is_routed = any(look.indexed != looks[0].indexed for look in looks)
    calls = []
    for seen in zip(*(look.calls for look in looks), strict=True):
        call = seen[0].call
        call.is_plain = all(one.call.is_plain for one in seen)
        call.is_overwritten = any(one.call.is_overwritten for one in seen)
        if call.is_plain:
            call.input, call.output = (_place(*tensors) for tensors in zip(*(one.tensors for one in seen), strict=True))
            fold = call.input.fold
            if is_routed or (fold is not None and fold.axis and call.owner not in free):
                call.input.fold = None
        calls.append(call)
    return calls


def _place(one: Tensor, *beside: Tensor) -> Place:
    """Tell samples apart, from the tensor for one sample, for it beside itself, and for it beside another one."""
    place = Place(one.shape)
    if not beside:
        return place
    same, changed = beside
    grown = [i for i, (n, m) in enumerate(zip(one.shape, same.shape, strict=False)) if n != m]
    if len(grown) != 1 or not one.numel() or same.shape != changed.shape:
        return place
    fold = Fold(grown[0], one.shape[grown[0]])
    if same.shape != fold.shape(one.shape, 2):
        return place
    difference = (changed.detach().double() - same.detach().double()).abs().nan_to_num(0).movedim(fold.axis, 0)
    by_row = difference.reshape(2 * fold.rows, -1).amax(1)
    touched = (by_row > 1e-4 * by_row.max()).view(2, fold.rows)  # less may be rounding
    if not touched[0].any() and not any(_could_be(touched, inner) for inner in range(1, fold.rows)):
        place.fold = fold
    return place


def _could_be(touched: Tensor, inner: int) -> bool:
    """Whether rows may also lie as `(rows / inner, samples, inner)`."""
    rows = touched.shape[1]
    return rows % inner == 0 and not bool(touched.reshape(rows // inner, 2, inner)[:, 0].any())


def another(x: Tensor) -> Tensor | None:
    """A sample `(1, ...)` unlike the first one of `x`, of values that occur; None if there is none to be found.

    The first sample's values in another order, or another sample of the batch, or the first one and noise.
    """
    one, generator = x[:1], torch.Generator().manual_seed(0)
    order = torch.randperm(one.numel(), generator=generator).to(x.device)
    candidates = [one.flatten()[order].view(one.shape), *(x[i : i + 1] for i in range(1, len(x)))]
    if x.is_floating_point():
        candidates.append(one + torch.rand(one.shape, generator=generator).to(x))
    return next((candidate for candidate in candidates if not torch.equal(candidate, one)), None)


def _nodes(outputs: Iterable[Tensor], stop: Any = None) -> Iterator[Any]:
    """Nodes of autograd's graph, back from `outputs` up to `stop`."""
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn not in (None, stop)]
    seen = set(waiting)
    while waiting:
        node: Any = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following not in seen and following not in (None, stop):
                seen.add(following)
                waiting.append(following)


def leaf_edges(outputs: Sequence[Tensor], source: Tensor | None = None) -> list[tuple[Edge, Tensor]]:
    """Edges that lead to leaves, between `outputs` and `source`."""
    found: list[tuple[Edge, Tensor]] = [
        ((None, i), output) for i, output in enumerate(outputs) if output.requires_grad and output.grad_fn is None
    ]
    for node in _nodes(outputs, None if source is None else source.grad_fn):
        for i, (following, _) in enumerate(node.next_functions):
            leaf = getattr(following, "variable", None)
            if isinstance(leaf, Tensor):
                found.append(((node, i), leaf))
    return found


def version_of(tensor: Tensor) -> int:
    """Changes with each change in place."""
    return 0 if tensor.is_inference() else tensor._version


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output, whatever holds them."""
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@contextmanager
def watched(
    model: nn.Module,
    paths: Iterable[str],
    after: Callable[..., Any],
    before: Callable[[tuple[Any, ...]], None] | None = None,
) -> Iterator[None]:
    """Call `after(path, layer, inputs, output)` after each call; what it returns, if anything, replaces the output.

    `before(inputs)` is called before each.
    """

    def hook_of(path: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            with torch._C.DisableTorchFunction():  # what is done here is no use of a parameter
                return after(path, layer, (*args, *kwargs.values()), output)

        return hook

    def first(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert before is not None
        before((*args, *kwargs.values()))

    with ExitStack() as stack:
        for path in paths:
            layer = model.get_submodule(path)
            stack.callback(layer.register_forward_hook(hook_of(path), with_kwargs=True).remove)
            if before is not None:
                stack.callback(layer.register_forward_pre_hook(first, with_kwargs=True).remove)
        yield


class Functions(TorchFunctionMode):
    """Watches the functions of torch that a network calls.

    Autograd's graph is read once. A network that takes another way for another batch is noticed by the number of
    functions that take each parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: Counter[str] = Counter()
        self.indexed: list[tuple[int, ...]] = []
        """Sizes of the axes from which entries were picked."""
        self._name_of = {id(parameter): name for name, parameter in model.named_parameters()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = [self._name_of[id(value)] for value in _flat((args, *kwargs.values())) if id(value) in self._name_of]
        if names and any(isinstance(value, Tensor) for value in _flat((result,))):
            self.uses.update(names)
        picked = _picked(getattr(func, "__name__", ""), args, kwargs)
        if picked:
            self.indexed.append(picked)
        return result


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def _picked(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes of the axes from which a function picks entries whose places are given by a tensor."""
    if function == "masked_select":
        return tuple(args[0].shape)
    if function in ("index_select", "gather", "take_along_dim"):
        dim = kwargs.get("dim", next((arg for arg in args if isinstance(arg, int)), None))
        return tuple(args[0].shape) if dim is None else (args[0].shape[dim],)
    if function != "__getitem__":
        return ()
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    sizes: list[int] = []
    axis = 0
    for i, part in enumerate(index):
        if part is Ellipsis:
            axis = args[0].ndim - sum(_consumed(later) for later in index[i + 1 :])
            continue
        if isinstance(part, (Tensor, list)):
            sizes += args[0].shape[axis : axis + _consumed(part)]
        axis += _consumed(part)
    return tuple(sizes)


def _consumed(index: Any) -> int:
    """Number of axes that a part of an index takes."""
    if index is None or index is Ellipsis:
        return 0
    return index.ndim if isinstance(index, Tensor) and index.dtype == torch.bool else 1


def check_functions(expected: Counter[str], found: Counter[str]) -> None:
    """Raise where parameters enter other functions than before."""
    differing = sorted(name for name in expected | found if expected[name] != found[name])
    if differing:
        raise changing(f"another use of {', '.join(differing)}")


def changing(what: str) -> ArgumentError:
    """The error about a network that does not do the same for every batch."""
    return ArgumentError.about(
        "model",
        expected="a network that calls the same layers for every batch",
        got=what,
        instead="Give per_sample_grad_norms one sample at a time, or use a model without data-dependent branches.",
    )
