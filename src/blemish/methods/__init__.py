"""THE REGISTRY of methods: one import and one entry each. The command line, the tests and the docs read it."""

from __future__ import annotations

from ._base import FeatureMethod as FeatureMethod
from ._base import Incremental as Incremental
from ._base import Method as Method
from .gaussian import GaussianAD as GaussianAD
from .knn import KNN as KNN
from .ocsvm import OneClassSVM as OneClassSVM
from .padim import PaDiM as PaDiM
from .patchcore import PatchCore as PatchCore
from .spade import SPADE as SPADE
from .svdd import SVDD as SVDD

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (PaDiM, PatchCore, SPADE, KNN, GaussianAD, OneClassSVM, SVDD)
}
