"""THE REGISTRY of methods: one import and one entry each. The command line, the tests and the docs read it."""

from __future__ import annotations

from ._base import FeatureMethod as FeatureMethod
from ._base import Incremental as Incremental
from ._base import Method as Method
from .cflow import CFlow as CFlow
from .deep_svdd import DeepSVDD as DeepSVDD
from .gaussian import GaussianAD as GaussianAD
from .gaussian_finetune import GaussianFinetune as GaussianFinetune
from .joint import Joint as Joint
from .knn import KNN as KNN
from .mean_shifted import MeanShifted as MeanShifted
from .ocsvm import OneClassSVM as OneClassSVM
from .padim import PaDiM as PaDiM
from .panda import PANDA as PANDA
from .patchcore import PatchCore as PatchCore
from .spade import SPADE as SPADE
from .students import Students as Students
from .svdd import SVDD as SVDD

_ALL: tuple[type[Method], ...] = (
    PaDiM, PatchCore, SPADE, CFlow, Students,  # with maps
    KNN, GaussianAD, GaussianFinetune, OneClassSVM, SVDD, DeepSVDD, Joint, PANDA, MeanShifted,
)  # fmt: skip
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
