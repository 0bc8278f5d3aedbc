"""blemish finds what does not belong in images.

The public names below load on first use, so that `import blemish` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibrate import Calibration as Calibration
    from .choosing.choose import choose as choose
    from .datasets.layouts import open_dataset as open_dataset
    from .detector import Detector as Detector
    from .errors import BlemishError as BlemishError
    from .evaluation.detector import evaluate as evaluate
    from .features.backbones import Backbone as Backbone
    from .features.backbones import custom_backbone as custom_backbone
    from .images.preprocess import Preprocess as Preprocess
    from .images.source import Batches as Batches
    from .images.source import ImageSource as ImageSource
    from .images.source import from_arrays as from_arrays
    from .images.source import from_folder as from_folder
    from .images.source import from_manifest as from_manifest
    from .images.source import from_paths as from_paths
    from .methods.registry import *  # noqa: F403
    from .ood.registry import *  # noqa: F403
    from .report.evaluation import write_report as write_report
    from .types import Decision as Decision
    from .types import ImageBatch as ImageBatch
    from .types import Scores as Scores

__version__ = "0.4.0.dev0"

_HOMES = {
    "Backbone": "features.backbones",
    "Batches": "images.source",
    "BlemishError": "errors",
    "Calibration": "calibrate",
    "Decision": "types",
    "Detector": "detector",
    "ImageBatch": "types",
    "ImageSource": "images.source",
    "Preprocess": "images.preprocess",
    "Scores": "types",
    "choose": "choosing.choose",
    "custom_backbone": "features.backbones",
    "evaluate": "evaluation.detector",
    "from_arrays": "images.source",
    "from_folder": "images.source",
    "from_manifest": "images.source",
    "from_paths": "images.source",
    "open_dataset": "datasets.layouts",
    "write_report": "report.evaluation",
}
_REGISTRIES = {"METHODS": "methods.registry", "DETECTORS": "ood.registry"}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return __dir__()
    if name in _HOMES or name in _REGISTRIES:
        return getattr(importlib.import_module(f"blemish.{(_HOMES | _REGISTRIES)[name]}"), name)
    if name[:1].isupper():  # a class; rooms are asked for here too, before they are loaded
        for table, home in _REGISTRIES.items():
            for found in getattr(importlib.import_module(f"blemish.{home}"), table).values():
                if found.__name__ == name:
                    return found
    raise AttributeError(f"module 'blemish' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names: those above, and all methods and detectors."""
    tables = [getattr(importlib.import_module(f"blemish.{home}"), table) for table, home in _REGISTRIES.items()]
    registered = [found.__name__ for table in tables for found in table.values()]
    return sorted([*_HOMES, *_REGISTRIES, *registered])
