"""THE REGISTRY of methods: one import and one entry each. The command line, the tests and the docs read it."""

from __future__ import annotations

from ._base import FeatureMethod as FeatureMethod
from ._base import Incremental as Incremental
from ._base import Method as Method
from .padim import PaDiM as PaDiM

METHODS: dict[str, type[Method]] = {method.name: method for method in (PaDiM,)}
