"""The whole decision as one program of `torch.export`: our nodes by torch's operations, and the core as it is.

Shapes stay whole numbers of Python, alone or in lists, so that the program takes pictures of any size.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import SymInt, Tensor, nn
from torch.nn import functional as F

from ..features.onnx_graph import quiet
from .trace import watch
from .whole import CARD, Whole, surround

if TYPE_CHECKING:
    from ..detector import Detector

_MOST = 1 << 16
"""Pixels a side."""


def build_program(detector: Detector) -> torch.export.ExportedProgram:
    """The whole decision; its inputs and outputs are those of `surround`, the outputs as a dict.

    Raises `ArgumentError` where the method cannot be exported, and says why.
    """
    core = watch(detector)
    with core.refusing():
        return record_program(core, core.outputs, surround(core, detector))


def record_program(core: nn.Module, outputs: list[str], whole: Whole) -> torch.export.ExportedProgram:
    """The program of our nodes around a core with these outputs. Raises whatever the exporter raises."""
    height, width = whole.size or (67, 131)  # any, where all are taken
    pixels = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    sides = {1: torch.export.Dim("height", min=1, max=_MOST), 2: torch.export.Dim("width", min=1, max=_MOST)}
    with torch.inference_mode(False), torch.no_grad(), quiet():
        program = torch.export.export(
            _Decision(core, outputs, whole), (pixels,), dynamic_shapes=None if whole.size else (sides,), strict=False
        )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def saved(program: torch.export.ExportedProgram, card: str) -> bytes:
    """The content of a `.pt2` file, with the card in it."""
    made = io.BytesIO()
    with quiet():
        torch.export.save(program, made, extra_files={CARD: card})
    return made.getvalue()


class _Decision(nn.Module):
    """Our nodes before the core, the core, and our nodes behind it."""

    def __init__(self, core: nn.Module, outputs: list[str], whole: Whole) -> None:
        super().__init__()
        self._core, self._outputs, self._whole = core, outputs, whole
        self._constants = {name: _constant(array) for name, array in whole.graph.constants.items()}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        whole, values = self._whole, self._constants | {"": None, "pixels": pixels}

        def run(first: int, last: int | None) -> None:
            for node in whole.graph.nodes[first:last]:
                terms = (values[name] for name in node.inputs)
                values[node.outputs[0]] = _OPERATIONS[node.kind](*terms, **node.attributes)

        run(0, whole.before)
        values.update(zip(self._outputs, self._core(values["network.input"]), strict=True))
        run(whole.before, None)
        return {name: values[name] for name in whole.kinds}


def _constant(array: np.ndarray[Any, Any]) -> Any:
    """A tensor; whole numbers, alone or in a row, stay numbers of Python."""
    return array.tolist() if array.dtype == np.int64 and array.ndim < 2 else torch.tensor(array)


def _is_number(term: Any) -> bool:
    return isinstance(term, int | SymInt)


def _cast(term: Any, to: np.dtype[Any]) -> Any:
    if _is_number(term):
        return torch.scalar_tensor(term, dtype=_dtype(to))
    return term.to(_dtype(to))


def _dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return getattr(torch, dtype.name)  # type: ignore[no-any-return]  # no tensor, which would be recorded


def _div(a: Any, b: Any) -> Any:
    if _is_number(a):
        return a // b  # no shape is negative
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _max(a: Any, b: Any) -> Any:
    if _is_number(a):
        return torch.sym_max(a, b)  # type: ignore[no-untyped-call]
    return a.clamp(min=b)


def _min(a: Any, b: Any) -> Any:
    if _is_number(a):
        return torch.sym_min(a, b)  # type: ignore[no-untyped-call]
    return a.clamp(max=b)


def _transpose(term: Tensor, perm: tuple[int, ...]) -> Tensor:
    # A copy at once: torch would look at strides, and a file refuse the sizes whose strides differ from the example's.
    return term.permute(perm).clone(memory_format=torch.contiguous_format)


def _pad(maps: Tensor, sides: list[Any], **_edge: str) -> Tensor:
    _, _, top, left, _, _, bottom, right = sides
    return F.pad(maps, (left, right, top, bottom), "replicate")


def _concat(*terms: Any, axis: int) -> Any:
    if isinstance(terms[0], Tensor):
        return torch.cat(terms, axis)
    return [number for numbers in terms for number in numbers]


def _slice(term: Tensor, starts: list[int], ends: list[int], axes: Sequence[int] = (0,)) -> Tensor:
    return term.narrow(axes[0], starts[0], ends[0] - starts[0])


def _resize(maps: Tensor, _roi: None, _scales: None, sizes: list[Any], **_linear: str) -> Tensor:
    return F.interpolate(maps, sizes[2:], mode="bilinear", align_corners=False)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": operator.add, "And": operator.and_, "Cast": _cast,
    "Concat": _concat, "Div": _div, "Floor": torch.floor, "Gather": lambda term, index, axis=0: term[index],
    "Greater": operator.gt, "GreaterOrEqual": operator.ge, "Identity": torch.clone, "Less": operator.lt,
    "MatMul": operator.matmul, "Max": _max, "Min": _min, "Mul": operator.mul, "Pad": _pad, "Range": torch.arange,
    "ReduceSum": lambda term, axes, keepdims=1: term.sum(axes, keepdim=bool(keepdims)),
    "Reshape": lambda term, shape: [term] if _is_number(term) else term.reshape(shape),
    "Resize": _resize, "Shape": lambda term: list(term.shape),
    "Slice": _slice, "Squeeze": lambda term, axes: term.squeeze(*axes),
    "Sub": operator.sub, "Transpose": _transpose, "Unsqueeze": lambda term, axes: term.unsqueeze(*axes),
    "Where": torch.where,
}  # fmt: skip
"""Of ONNX, as far as our nodes use it: what a node does."""
