"""What runs an exported file before it is written, and looks into it where it differs."""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..features.onnx_graph import quiet
from ..features.runtime import import_onnxruntime, import_openvino

Values = dict[str, NDArray[Any]]
"""By name."""


class Run(Protocol):
    """A file on a runtime."""

    def __call__(self, pixels: NDArray[np.uint8]) -> Values:
        """The outputs, of `(1, height, width, 3)` pixels."""

    def inside(self, pixels: NDArray[np.uint8], ours: Values) -> Values:
        """Values between picture and score, under the names of ours; what is not found is left out."""


class OnOnnxruntime:
    """An `onnx.ModelProto`."""

    def __init__(self, model: Any) -> None:
        self._model, self._session = model, _open(model)
        self._names = [output.name for output in model.graph.output]

    def __call__(self, pixels: NDArray[np.uint8]) -> Values:
        """The outputs, of `(1, height, width, 3)` pixels."""
        return dict(zip(self._names, self._session.run(None, {"pixels": pixels}), strict=True))

    def inside(self, pixels: NDArray[np.uint8], ours: Values) -> Values:
        """The values of these names."""
        import onnx

        opened = onnx.ModelProto()
        opened.CopyFrom(self._model)
        del opened.graph.output[:]
        opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ours)
        return dict(zip(ours, _open(opened).run(None, {"pixels": pixels}), strict=True))


class OnOpenvino:
    """An `openvino.Model` that was read from an ONNX graph, whose names it keeps."""

    def __init__(self, model: Any) -> None:
        self._model, self._compiled = model, _compile(model)

    def __call__(self, pixels: NDArray[np.uint8]) -> Values:
        """The outputs, of `(1, height, width, 3)` pixels."""
        found = self._compiled([pixels])
        return {name: value for output, value in found.items() for name in output.get_names()}

    def inside(self, pixels: NDArray[np.uint8], ours: Values) -> Values:
        """The values of these names."""
        opened = self._model.clone()
        opened.add_outputs(list(ours))
        found = _compile(opened)([pixels])
        return {name: found[name] for name in ours}


class OnTorch:
    """The content of a file with a program of `torch.export`."""

    def __init__(self, content: bytes) -> None:
        with quiet():
            self._program = torch.export.load(io.BytesIO(content)).module()

    def __call__(self, pixels: NDArray[np.uint8]) -> Values:
        """The outputs, of `(1, height, width, 3)` pixels."""
        with torch.no_grad():
            return {name: value.numpy() for name, value in self._program(torch.tensor(pixels)).items()}

    def inside(self, pixels: NDArray[np.uint8], ours: Values) -> Values:
        """Of each of ours the value nearest to it that any node makes: nodes of a program have no names of layers."""
        watching = _Watching(self._program, ours)
        with torch.no_grad():
            watching.run(torch.tensor(pixels))
        return watching.nearest


class _Watching(torch.fx.Interpreter):
    """Runs a program node by node."""

    def __init__(self, program: Any, ours: Values) -> None:
        super().__init__(program)
        self._ours = {name: torch.from_numpy(value) for name, value in ours.items()}
        self._away = dict.fromkeys(ours, torch.inf)
        self.nearest: Values = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """What a node makes, as always."""
        made = super().run_node(n)
        for name, mine in self._ours.items():
            if isinstance(made, Tensor) and made.dtype == mine.dtype and made.shape == mine.shape:
                away = float((made - mine).abs().max())
                if away < self._away[name]:
                    self._away[name], self.nearest[name] = away, made.detach().numpy().copy()
        return made


def _open(model: Any) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _compile(model: Any) -> Any:
    return import_openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
