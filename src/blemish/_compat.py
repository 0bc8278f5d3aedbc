"""Makes torchvision importable beside a torch build for which its compiled extension was not made."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # the declarations live only as long as the library object that made them


def import_torchvision() -> ModuleType:
    """Import torchvision, also where a CPU build of torch meets a CUDA build of torchvision.

    Importing torchvision registers shape functions for operators of its extension. Where that extension cannot
    load, the operators do not exist and the import fails; blemish needs none of them, so declaring them is enough.
    """
    import torch

    if not _declared and not _extension_loads(torch):
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _MISSING_OPERATORS:
            library.define(schema)
        _declared.append(library)
    import torchvision

    module: ModuleType = torchvision
    return module


def _extension_loads(torch: ModuleType) -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return True  # nothing to declare: the import itself will say that torchvision is missing
    for library in Path(package.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False
