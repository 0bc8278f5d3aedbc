"""What records torch operations as an ONNX graph: a network here, a whole detector in `export/`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingPackageError

OPSET = 18
"""Of ONNX: the first whose reductions take their axes as inputs."""


def require_packages(names: tuple[str, ...], *, of: str, extra: str) -> None:
    """Refuse, before any work, to go on without these packages, which an extra of ours brings."""
    for name in names:
        if find_spec(name) is None:
            raise MissingPackageError(
                f"{of}: the package {name} is not installed. Install blemish[{extra}], which brings it."
            )


def record(module: nn.Module, pixels: Tensor, *, any_batch: bool = False) -> Any:
    """What a module does with `(batch, 3, height, width)` pixels, an `onnx.ModelProto`.

    `any_batch`: the graph takes any number of images. Raises whatever the exporters raise.
    """
    shapes = ({0: torch.export.Dim("batch", min=1, max=1 << 16)},) if any_batch else None
    with torch.inference_mode(False), torch.no_grad(), quiet():
        program = torch.export.export(module, (pixels,), dynamic_shapes=shapes, strict=False)
        # The exporter's optimiser takes numbers such as 1e-8 for 0; the runtimes have their own, which do not.
        written: Any = torch.onnx.export(program, (), dynamo=True, verbose=False, opset_version=OPSET, optimize=False)
    return _without_origins(written.model_proto)


def _without_origins(model: Any) -> Any:
    """Take out what the exporter says of where each node came from: paths of this machine."""
    for part in (model.graph, *model.functions):
        for item in (*part.node, *part.value_info, *getattr(part, "initializer", ()), part):
            del item.metadata_props[:]
            item.doc_string = ""
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter speaks of its own affairs, on every way there is, also in tracebacks: what is wrong, it raises."""
    names = (
        "torch.onnx",
        "torch.export",
        "torch._subclasses",
        "torch._subclasses.fake_tensor",
        "onnxscript",
        "onnx_ir",
        "root",
    )
    loud = [logging.getLogger(name) for name in names]
    levels = [log.level for log in loud]
    for log in loud:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loud, levels, strict=True):
            log.setLevel(level)
