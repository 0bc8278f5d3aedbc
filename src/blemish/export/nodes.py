"""Graphs of ONNX's operators written as expressions: `a + b` is a node, and the name of what it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Node:
    """One operator of ONNX."""

    kind: str
    inputs: tuple[str, ...]
    """Names of values; an empty one is left out."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Nodes:
    """Nodes and constants, in the order in which they are needed; `prefix` keeps their names apart from others."""

    prefix: str
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def make(self, kind: str, *terms: Made | int | float | NDArray[Any] | None, **attributes: Any) -> Made:
        """A node of one output; numbers become constants, whole ones int64, others float64, and None is left out."""
        name = f"{self.prefix}.{len(self.nodes)}"
        inputs = ("" if term is None else self.value(term).name for term in terms)
        self.nodes.append(Node(kind, tuple(inputs), (name,), attributes))
        return Made(self, name)

    def value(self, term: Made | int | float | NDArray[Any]) -> Made:
        """A term as a value of this graph."""
        if isinstance(term, Made):
            return term
        name, array = f"{self.prefix}.constant.{len(self.constants)}", np.asarray(term)
        whole = array.dtype.kind == "i"  # of 32 bits on some systems
        self.constants[name] = array.astype(np.int64) if whole else array
        return Made(self, name)

    def stack(self, *terms: Made | int) -> Made:
        """Whole numbers as one list, such as a shape."""
        one_each = [self.make("Reshape", self.value(term), np.array([1])) for term in terms]
        return self.make("Concat", *one_each, axis=0)

    def rename(self, value: Made, name: str) -> None:
        """Give a value the name of an output."""
        self.nodes.append(Node("Identity", (value.name,), (name,)))

    def include(self, model: Any, given: Made) -> Made:
        """What an `onnx.ModelProto` of one input and one output makes of a value: its nodes become ours."""
        from onnx import numpy_helper

        prefix = f"{self.prefix}.{len(self.nodes)}"
        names = {"": "", model.graph.input[0].name: given.name}
        for tensor in model.graph.initializer:
            names[tensor.name] = f"{prefix}.{tensor.name}"
            self.constants[names[tensor.name]] = numpy_helper.to_array(tensor)
        for node in model.graph.node:
            names |= {name: f"{prefix}.{name}" for name in node.output if name}
            inputs, outputs = (tuple(names[name] for name in values) for values in (node.input, node.output))
            self.nodes.append(Node(node.op_type, inputs, outputs, {one.name: one for one in node.attribute}))
        return Made(self, names[model.graph.output[0].name])

    def as_onnx(self) -> tuple[list[Any], list[Any]]:
        """The nodes and the constants in ONNX's own classes."""
        from onnx import AttributeProto, helper, numpy_helper

        def attribute(name: str, value: Any) -> Any:
            if isinstance(value, AttributeProto):
                return value
            plain = helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
            return helper.make_attribute(name, plain)

        nodes = [helper.make_node(node.kind, node.inputs, node.outputs, name=node.outputs[0]) for node in self.nodes]
        for node, made in zip(self.nodes, nodes, strict=True):
            made.attribute.extend(attribute(*one) for one in node.attributes.items())
        return nodes, [numpy_helper.from_array(array, name) for name, array in self.constants.items()]


@dataclass(frozen=True)
class Made:
    """What a node makes, or a constant, or an input."""

    graph: Nodes
    name: str

    def __add__(self, other: Made | float | NDArray[Any]) -> Made:
        return self.graph.make("Add", self, other)

    def __sub__(self, other: Made | float | NDArray[Any]) -> Made:
        return self.graph.make("Sub", self, other)

    def __mul__(self, other: Made | float | NDArray[Any]) -> Made:
        return self.graph.make("Mul", self, other)

    def __truediv__(self, other: Made | float | NDArray[Any]) -> Made:
        """Of whole numbers, the quotient without its fraction."""
        return self.graph.make("Div", self, other)

    def __matmul__(self, other: Made) -> Made:
        return self.graph.make("MatMul", self, other)

    def is_below(self, other: Made | float | NDArray[Any]) -> Made:
        """Where it is less."""
        return self.graph.make("Less", self, other)

    def is_above(self, other: Made | float | NDArray[Any]) -> Made:
        """Where it is more."""
        return self.graph.make("Greater", self, other)

    def is_at_least(self, other: Made | float | NDArray[Any]) -> Made:
        """Where it is as much or more."""
        return self.graph.make("GreaterOrEqual", self, other)

    def __and__(self, other: Made) -> Made:
        return self.graph.make("And", self, other)

    def __getitem__(self, index: int) -> Made:
        """One entry of the first axis, which goes."""
        return self.graph.make("Gather", self, index)

    def at_least(self, other: Made | float) -> Made:
        """The larger of both."""
        return self.graph.make("Max", self, other)

    def at_most(self, other: Made | float) -> Made:
        """The smaller of both."""
        return self.graph.make("Min", self, other)

    def floor(self) -> Made:
        """The next whole number below."""
        return self.graph.make("Floor", self)

    def to(self, dtype: Any) -> Made:
        """Another type of numbers."""
        return self.graph.make("Cast", self, to=np.dtype(dtype))

    def shaped(self, *sides: Made | int) -> Made:
        """Another shape; -1 is what is left."""
        return self.graph.make("Reshape", self, self.graph.stack(*sides))

    def turned(self, *axes: int) -> Made:
        """The axes in another order."""
        return self.graph.make("Transpose", self, perm=axes)
