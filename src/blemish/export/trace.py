"""A detector's own arithmetic as an ONNX graph: from the network's input to score and map.

Nothing is written a second time: the detector runs once on a blank input while every operation is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, BlemishError, MissingPackageError
from ..features.layout import main_output
from ..features.onnx_graph import record, require_packages
from ..memory import spell_bytes
from ..types import ImageBatch

if TYPE_CHECKING:
    from ..detector import Detector
    from ..features.extract import Extractor

_MOST_BYTES = (1 << 31) - (1 << 24)
"""Of one file: the format's own limit, less some room for the nodes."""


_LEAST_TORCH = (2, 7)
"""Whose exporter can write a whole detector; that of 2.6 cannot."""


def require_onnx() -> None:
    """Refuse, before any work, to go on without the packages that write and run ONNX files."""
    require_packages(("onnx", "onnxruntime", "onnxscript"), of="export", extra="onnx")
    least = ".".join(map(str, _LEAST_TORCH))
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _LEAST_TORCH:
        raise MissingPackageError(f"export: torch {torch.__version__} is too old. Run: pip install 'torch>={least}'.")


def trace_detector(detector: Detector, inside: Tensor | None) -> Any:
    """The graph, an `onnx.ModelProto`: input `network.input`, outputs `network.score` and perhaps `network.map`.

    Behind them come the outputs of the tapped layers, named `layer.NAME`. `inside` is the region of interest at the
    network's input, `(1, height, width)`. Raises `ArgumentError` where the method cannot be exported, and says why.
    """
    require_onnx()
    watched, pixels = _Watched(detector, inside), torch.full((1, 3, *detector.preprocessing.size), 0.5)
    with refusing("method", f"{detector.method_.name} with its parameters"):
        with torch.no_grad():
            watched(pixels)  # says what there is; the exporter forgets what it sees
        model = record(watched, pixels)
    outputs = ["network.score", *["network.map"] * watched.has_map, *(f"layer.{name}" for name in watched.layers)]
    return named(model, outputs, of="method")


@contextlib.contextmanager
def refusing(what: str, got: str) -> Iterator[None]:
    """Say of what cannot be recorded that it cannot be exported, and why."""
    try:
        yield
    except BlemishError:
        raise
    except Exception as error:  # the exporters raise almost anything
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ArgumentError.about(
            what, expected="operations that an ONNX graph can hold", got=f"{got} ({reason.strip()[:200]})",
            instead="docs/export.md says what can be exported.",
        ) from error  # fmt: skip


def named(model: Any, outputs: Sequence[str], *, of: str) -> Any:
    """A recorded graph with these names of its outputs, from `network.input`; refused where it is too large."""
    if model.ByteSize() > _MOST_BYTES:
        raise ArgumentError.about(
            of, expected="a model below 2 GB, the format's limit", got=spell_bytes(model.ByteSize()),
            instead="Keep fewer vectors or dimensions.",
        )  # fmt: skip
    made = [value.name for value in model.graph.output]
    _rename(model.graph, dict(zip(made, outputs, strict=True)) | {model.graph.input[0].name: "network.input"})
    return model


def layers_of(detector: Detector, pixels: Tensor) -> dict[str, Tensor]:
    """The outputs of the tapped layers for `(1, 3, height, width)` pixels, named as in its graph."""
    watched = _Watched(detector, None)
    with torch.inference_mode():
        outputs = watched(pixels)
    return dict(zip((f"layer.{name}" for name in watched.layers), outputs[-len(watched.layers) :], strict=False))


class _Watched(nn.Module):
    """A detector whose tapped layers can be looked at as well."""

    def __init__(self, detector: Detector, inside: Tensor | None) -> None:
        super().__init__()
        self._detector, self._inside = detector, inside
        self.has_map = False
        self.layers: list[str] = []

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        size = (pixels.shape[2], pixels.shape[3])
        batch = ImageBatch(pixels, ("traced",), (size,), inside=self._inside)
        with _taps_of(self._detector) as found:
            scores = self._detector.measure(batch)
        self.has_map, self.layers = scores.maps is not None, list(found)
        maps = () if scores.maps is None else (scores.maps,)
        return scores.images, *maps, *(tensor.float() for tensor in found.values())


@contextlib.contextmanager
def _taps_of(detector: Detector) -> Iterator[dict[str, Tensor]]:
    """The outputs of the network's tapped modules, by name, in the order in which they come."""
    found: dict[str, Tensor] = {}
    extractor: Extractor | None = getattr(detector.method_, "extractor_", None)

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.setdefault(name, main_output(output))

        return hook

    layers = {} if extractor is None else {tap: extractor.module.get_submodule(tap) for tap in extractor.taps}
    hooks = [layer.register_forward_hook(keep(tap)) for tap, layer in layers.items()]
    try:
        with contextlib.nullcontext() if extractor is None else extractor.on_torch():
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Give values these names wherever they are made or used, and all others a prefix, apart from names of our own."""

    def found(name: str) -> str:
        return names.get(name, f"core.{name}" if name else "")

    for node in graph.node:
        for kept in (node.input, node.output):
            kept[:] = [found(name) for name in kept]
        node.name = f"core.{node.name}"
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.name = found(value.name)
    del graph.value_info[:]
