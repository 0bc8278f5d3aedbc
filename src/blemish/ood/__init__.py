"""Out-of-distribution detection for classifiers: the contract, the classifier as detectors see it, and all detectors.

A detector, the registry and what reads it load on first use, so that one detector's module does not load the others.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ._base import OODDetector as OODDetector
from .classifier import Classifier as Classifier
from .classifier import Head as Head
from .classifier import Outputs as Outputs
from .open import open_classifier as open_classifier

if TYPE_CHECKING:
    from .distances import Mahalanobis as Mahalanobis
    from .distances import NearestNeighbours as NearestNeighbours
    from .distances import RelativeMahalanobis as RelativeMahalanobis
    from .distances import ViM as ViM
    from .ensemble import Ensemble as Ensemble
    from .gradient import Gradient as Gradient
    from .last_layer import ExGrad as ExGrad
    from .last_layer import GradNorm as GradNorm
    from .last_layer import LastLayerGradient as LastLayerGradient
    from .logits import MSP as MSP
    from .logits import Energy as Energy
    from .logits import Entropy as Entropy
    from .logits import GeneralisedEntropy as GeneralisedEntropy
    from .logits import MaxLogit as MaxLogit
    from .odin import ODIN as ODIN
    from .rectified import ASH as ASH
    from .rectified import SCALE as SCALE
    from .rectified import ReAct as ReAct
    from .registry import DETECTORS as DETECTORS
    from .registry import load_detector as load_detector


def __getattr__(name: str) -> object:
    if name.startswith("__") or name not in _registry().__all__:
        raise AttributeError(f"module 'blemish.ood' has no attribute {name!r}")
    return getattr(_registry(), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_registry().__all__})


def _registry() -> ModuleType:
    return importlib.import_module("blemish.ood.registry")
