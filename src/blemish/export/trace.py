"""A detector's own arithmetic as a graph: from the network's input to score and map.

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
_LEAST_FOR_PROGRAMS = (2, 9)
"""Whose exporter can write a program for pictures of any size; those of 2.7 and 2.8 want one size."""


def require_onnx() -> None:
    """Refuse, before any work, to go on without what writes and runs ONNX files."""
    require_packages(("onnx", "onnxruntime", "onnxscript"), of="export", extra="onnx")
    _require_torch(_LEAST_TORCH, of="export")


def require_programs() -> None:
    """Refuse, before any work, a torch whose exporter cannot write a whole detector as a program."""
    _require_torch(_LEAST_FOR_PROGRAMS, of="export --format torch")


def _require_torch(least: tuple[int, int], *, of: str) -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < least:
        wanted = ".".join(map(str, least))
        raise MissingPackageError(f"{of}: torch {torch.__version__} is too old. Run: pip install 'torch>={wanted}'.")


def watch(detector: Detector) -> Watched:
    """A detector's network and method, looked at once. Raises `ArgumentError` where it cannot be, and says why."""
    watched = Watched(detector)
    with watched.refusing(), torch.no_grad():
        watched(watched.blank)
    return watched


def trace(watched: Watched) -> Any:
    """The graph, an `onnx.ModelProto`: input `network.input`, outputs those of `watched.outputs`.

    Raises `ArgumentError` where the method cannot be exported, and says why.
    """
    with watched.refusing():
        model = record(watched, watched.blank)
    return named(model, watched.outputs, of="method")


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
            what, expected="operations that a graph can hold", got=f"{got} ({reason.strip()[:200]})",
            instead="docs/export.md says what can be exported.",
        ) from error  # fmt: skip


def named(model: Any, outputs: Sequence[str], *, of: str) -> Any:
    """A recorded graph with these names of its outputs, from `network.input`; refused where it is too large."""
    check_size(model.ByteSize(), of=of)
    made = [value.name for value in model.graph.output]
    _rename(model.graph, dict(zip(made, outputs, strict=True)) | {model.graph.input[0].name: "network.input"})
    return model


def check_size(found: int, *, of: str) -> None:
    """Refuse a graph of more bytes than a file can have. Raises `ArgumentError`."""
    if found > _MOST_BYTES:
        raise ArgumentError.about(
            of, expected="a model below 2 GB, the format's limit", got=spell_bytes(found),
            instead="Keep fewer vectors or dimensions.",
        )  # fmt: skip


def layers_of(detector: Detector, pixels: Tensor) -> dict[str, Tensor]:
    """The outputs of the tapped layers for `(1, 3, height, width)` pixels, named as in its graph."""
    watched = Watched(detector)
    with torch.inference_mode():
        values = watched(pixels)
    found = dict(zip(watched.outputs, values, strict=True))
    return {name: value for name, value in found.items() if name.startswith("layer.")}


class Watched(nn.Module):
    """A detector from the network's input to score and map, whose tapped layers can be looked at as well."""

    inside: Tensor | None = None
    """The region of interest at the network's input, `(1, height, width)`."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self._detector, preprocess, region = detector, detector.preprocessing, detector.region_
        if region is not None and region.mask is not None:
            self.inside = torch.from_numpy(preprocess.mask(region.mask))[None]
        self.blank = torch.full((1, 3, *preprocess.size), 0.5)
        self.outputs: list[str] = []
        """Of the last call: `network.score`, perhaps `network.map`, and those of the tapped layers, `layer.NAME`."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        size = (pixels.shape[2], pixels.shape[3])
        batch = ImageBatch(pixels, ("traced",), (size,), inside=self.inside)
        with _taps_of(self._detector) as found:
            scores = self._detector.measure(batch)
        maps = () if scores.maps is None else (scores.maps,)
        self.outputs = ["network.score", *["network.map"] * len(maps), *(f"layer.{name}" for name in found)]
        return scores.images, *maps, *(tensor.float() for tensor in found.values())

    def refusing(self) -> contextlib.AbstractContextManager[None]:
        """Say of what cannot be recorded why the method cannot be exported."""
        return refusing("method", f"{self._detector.method_.name} with its parameters")


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
