"""NumPy arrays that remember how they came about: a function of arrays runs once, and is a graph afterwards.

Each holds its value, so that whatever looks at values still works, and the node that makes it from the graph's inputs.
What only asks for a number (a check) leaves no node; an operation that is not known here is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..features.onnx_graph import record
from ..ood import Traced
from .nodes import Made, Node, Nodes


class Recorded(Traced):
    """A value, and the node that makes it."""

    made: Made | None = None

    @classmethod
    def of(cls, value: Any, made: Made) -> Recorded:
        """Join both."""
        found = np.asarray(value).view(cls)
        found.made = made
        return found

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (None,), where: Any = True, **more: Any
    ) -> Any:
        plain = [np.asarray(one) if isinstance(one, Recorded) else one for one in inputs]
        if method == "reduce" and ufunc in _REDUCED:
            return _reduced(ufunc, inputs[0], more.get("axis"), bool(more.get("keepdims", False)))
        if method != "__call__" or ufunc not in _OPERATIONS:
            raise _unknown(f"{ufunc.__name__}.{method}")
        with np.errstate(all="ignore"):
            value, common = ufunc(*plain), np.result_type(*plain)
        graph = next(_made(one).graph for one in inputs if isinstance(one, Recorded))
        made = _OPERATIONS[ufunc](*(_term(graph, one, common) for one in inputs))
        if where is True:
            return Recorded.of(value, made)
        (other,) = out
        return Recorded.of(
            np.where(np.asarray(where), value, np.asarray(other)),
            graph.make("Where", _term(graph, where), made, _term(graph, other, common)),
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in _FUNCTIONS:
            raise _unknown(function.__name__)
        return _FUNCTIONS[function](*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        made, axis, keys = _made(self), 0, key if isinstance(key, tuple) else (key,)
        given = sum(one is not None and one is not Ellipsis for one in keys)
        whole = (slice(None),) * (self.ndim - given)
        at = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
        shape = self.shape
        for one in (*keys[:at], *whole, *keys[at + 1 :]):
            if one is None:
                made = made.graph.make("Unsqueeze", made, np.array([axis]))
                axis, shape = axis + 1, (*shape[:axis], 1, *shape[axis:])
            elif isinstance(one, slice):
                first, last, step = one.indices(shape[axis])
                if (first, last, step) != (0, shape[axis], 1):
                    ends = (np.array([number]) for number in (first, last, axis, step))
                    made = made.graph.make("Slice", made, *ends)
                axis += 1
            else:
                made, shape = made.graph.make("Gather", made, int(one), axis=axis), shape[:axis] + shape[axis + 1 :]
        return Recorded.of(np.asarray(self)[key], made)

    def astype(self, dtype: Any, **_: Any) -> Recorded:  # type: ignore[override]
        """Another type of numbers."""
        return Recorded.of(np.asarray(self).astype(dtype), _made(self).to(dtype))

    def copy(self, order: Any = "C") -> Recorded:
        """Another array, from the same node."""
        return Recorded.of(np.asarray(self).copy(order), _made(self))

    def through(self, function: Callable[[Tensor], Tensor]) -> Recorded:
        """What a function of tensors makes of it, recorded as a network is."""
        given, made = torch.from_numpy(np.asarray(self)), _made(self)
        return Recorded.of(function(given).numpy(), made.graph.include(record(_Function(function), given), made))

    def mean(self, axis: Any = None, keepdims: bool = False, **_: Any) -> Any:  # type: ignore[override]
        """Along one axis."""
        return self.sum(axis=axis, keepdims=keepdims) / self.shape[axis]

    def argmax(self, axis: Any = None, *, keepdims: bool = False) -> Any:  # type: ignore[override]
        """Along one axis; the first of several."""
        return self._at("ArgMax", np.argmax, axis, keepdims)

    def argmin(self, axis: Any = None, *, keepdims: bool = False) -> Any:  # type: ignore[override]
        """Along one axis; the first of several."""
        return self._at("ArgMin", np.argmin, axis, keepdims)

    def _at(self, kind: str, function: Any, axis: int, keepdims: bool) -> Recorded:
        value = function(np.asarray(self), axis=axis, keepdims=keepdims)
        made = _made(self)
        return Recorded.of(value, made.graph.make(kind, made, axis=axis % self.ndim, keepdims=int(keepdims)))


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, given: Tensor) -> Tensor:
        return self._function(given)


def _made(array: Any) -> Made:
    if array.made is None:
        raise _unknown("a view")
    return array.made  # type: ignore[no-any-return]


def _unknown(what: str) -> TypeError:
    return TypeError(f"{what}, which no graph is made of")


def _term(graph: Nodes, one: Any, dtype: Any = None) -> Made:
    """A term as a value of the graph, in the type that NumPy computes in."""
    if not isinstance(one, Recorded):
        return graph.value(np.asarray(one, dtype))
    made = _made(one)
    return made if dtype is None or one.dtype == dtype else made.to(dtype)


def _reduced(ufunc: np.ufunc, array: Recorded, axis: Any, keepdims: bool) -> Any:
    value = ufunc.reduce(np.asarray(array), axis=axis, keepdims=keepdims)
    if axis is None or axis == tuple(range(array.ndim)):
        return value  # somebody looks at it
    made = _term(_made(array).graph, array, value.dtype)  # truths are counted
    return Recorded.of(
        value, made.graph.make(_REDUCED[ufunc], made, np.array([axis % array.ndim]), keepdims=int(keepdims))
    )


def _log1p(x: Made) -> Made:
    """log(1 + x) with all digits (Kahan): log(u) x / (u - 1), u = 1 + x as it is rounded."""
    u = x + 1.0
    return x.graph.make("Where", x.graph.make("Equal", u, 1.0), x, x.graph.make("Log", u) * x / (u - 1.0))


def _expm1(x: Made) -> Made:
    """exp(x) - 1 with all digits (Kahan): (u - 1) x / log(u), u = exp(x) as it is rounded."""
    graph, u = x.graph, x.graph.make("Exp", x)
    whole = u - 1.0
    rounded = graph.make("Where", graph.make("Equal", whole, -1.0), whole, whole * x / graph.make("Log", u))
    return graph.make("Where", graph.make("Equal", u, 1.0), x, rounded)


def _logaddexp(a: Made, b: Made) -> Made:
    graph = a.graph
    away = graph.make("Neg", graph.make("Abs", a - b))
    return a.at_least(b) + _log1p(graph.make("Exp", away))


def _one(kind: str) -> Callable[..., Made]:
    return lambda *terms: terms[0].graph.make(kind, *terms)


_OPERATIONS: dict[Any, Callable[..., Made]] = {
    np.add: _one("Add"), np.subtract: _one("Sub"), np.multiply: _one("Mul"), np.divide: _one("Div"),
    np.matmul: _one("MatMul"), np.maximum: _one("Max"), np.minimum: _one("Min"), np.negative: _one("Neg"),
    np.absolute: _one("Abs"), np.exp: _one("Exp"), np.log: _one("Log"), np.sqrt: _one("Sqrt"),
    np.square: lambda x: x * x, np.log1p: _log1p, np.expm1: _expm1, np.logaddexp: _logaddexp,
    np.greater: _one("Greater"), np.greater_equal: _one("GreaterOrEqual"),
    np.less: _one("Less"), np.less_equal: _one("LessOrEqual"),
}  # fmt: skip
_REDUCED: dict[Any, str] = {np.add: "ReduceSum", np.maximum: "ReduceMax", np.minimum: "ReduceMin"}


def _put_along_axis(array: Recorded, indices: Any, values: Any, axis: int) -> None:
    np.put_along_axis(np.asarray(array), np.asarray(indices), np.asarray(values), axis)
    graph = _made(array).graph
    if not isinstance(values, Recorded):
        values = np.broadcast_to(np.asarray(values, array.dtype), indices.shape)
    terms = (_term(graph, array), _term(graph, indices), _term(graph, values, array.dtype))
    array.made = graph.make("ScatterElements", *terms, axis=axis % array.ndim)


def _take_along_axis(array: Any, indices: Recorded, axis: int) -> Recorded:
    value = np.take_along_axis(np.asarray(array), np.asarray(indices), axis)
    graph = _made(indices).graph
    at = graph.make("Expand", _made(indices), np.array(value.shape))
    return Recorded.of(value, graph.make("GatherElements", _term(graph, array), at, axis=axis % value.ndim))


def _sorted(array: Recorded, axis: int) -> tuple[Made, Made]:
    """Values and indices in ascending order, which every partition allows."""
    graph, made = _made(array).graph, _made(array)
    name = f"{graph.prefix}.{len(graph.nodes)}"
    inputs = (made.name, graph.value(np.array([array.shape[axis]])).name)
    outputs = (f"{name}.values", f"{name}.indices")
    graph.nodes.append(Node("TopK", inputs, outputs, {"axis": axis % array.ndim, "largest": 0}))
    return Made(graph, outputs[0]), Made(graph, outputs[1])


def _where(condition: Any, a: Any, b: Any) -> Recorded:
    graph = next(_made(one).graph for one in (condition, a, b) if isinstance(one, Recorded))
    value = np.where(np.asarray(condition), np.asarray(a), np.asarray(b))
    terms = (_term(graph, a, value.dtype), _term(graph, b, value.dtype))
    return Recorded.of(value, graph.make("Where", _term(graph, condition), *terms))


def _stack(arrays: Any) -> Recorded:
    parts = [_made(array[None]) for array in arrays]
    return Recorded.of(np.stack([np.asarray(array) for array in arrays]), parts[0].graph.make("Concat", *parts, axis=0))


def _concatenate(arrays: Any) -> Recorded:
    (array,) = arrays  # rows are cut where there are many, and here are few
    return array  # type: ignore[no-any-return]


def _norm(array: Recorded, axis: int, keepdims: bool = False) -> Any:
    return np.sqrt(np.square(array).sum(axis=axis, keepdims=keepdims))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.put_along_axis: _put_along_axis, np.take_along_axis: _take_along_axis, np.where: _where, np.stack: _stack,
    np.concatenate: _concatenate, np.linalg.norm: _norm,
    np.zeros_like: lambda array: np.zeros(array.shape, array.dtype),
    np.partition: lambda a, kth, axis: Recorded.of(np.sort(np.asarray(a), axis=axis), _sorted(a, axis)[0]),
    np.argpartition: lambda a, kth, axis: Recorded.of(
        np.argsort(np.asarray(a), axis=axis, kind="stable"), _sorted(a, axis)[1]
    ),
}  # fmt: skip
