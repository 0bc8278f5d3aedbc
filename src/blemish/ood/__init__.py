"""Out-of-distribution detection for classifiers: the contract, the classifier as detectors see it, and all detectors.

A detector, the registry and what reads it load on first use, so that one detector's module does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._base import OODDetector as OODDetector
from ._base import Traced as Traced
from .classifier import Classifier as Classifier
from .classifier import Head as Head
from .classifier import Outputs as Outputs
from .open import open_classifier as open_classifier

if TYPE_CHECKING:
    from .registry import *  # noqa: F403


def __getattr__(name: str) -> object:
    return getattr(import_module(f"{__name__}.registry"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *vars(import_module(f"{__name__}.registry"))})
