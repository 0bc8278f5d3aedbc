"""blemish finds what does not belong in images.

The public names below load on first use, so that `import blemish` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibrate import Calibration as Calibration
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
    from .methods import KNN as KNN
    from .methods import METHODS as METHODS
    from .methods import SPADE as SPADE
    from .methods import GaussianAD as GaussianAD
    from .methods import PaDiM as PaDiM
    from .methods import PatchCore as PatchCore
    from .report.evaluation import write_report as write_report
    from .types import Decision as Decision
    from .types import ImageBatch as ImageBatch
    from .types import Scores as Scores

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "features.backbones",
    "Batches": "images.source",
    "BlemishError": "errors",
    "Calibration": "calibrate",
    "Decision": "types",
    "Detector": "detector",
    "GaussianAD": "methods",
    "ImageBatch": "types",
    "ImageSource": "images.source",
    "KNN": "methods",
    "METHODS": "methods",
    "PaDiM": "methods",
    "PatchCore": "methods",
    "Preprocess": "images.preprocess",
    "SPADE": "methods",
    "Scores": "types",
    "custom_backbone": "features.backbones",
    "evaluate": "evaluation.detector",
    "from_arrays": "images.source",
    "from_folder": "images.source",
    "from_manifest": "images.source",
    "from_paths": "images.source",
    "open_dataset": "datasets.layouts",
    "write_report": "report.evaluation",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (strings, from the table above)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'blemish' has no attribute {name!r}")
    return getattr(importlib.import_module(f"blemish.{_HOMES[name]}"), name)
