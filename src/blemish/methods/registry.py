"""THE REGISTRY of methods: one line each. Command line, studies, `blemish.*`, tests and docs read it."""

from __future__ import annotations

from ..errors import ArgumentError
from ._base import Method
from .cflow import CFlow as CFlow
from .deep_svdd import DeepSVDD as DeepSVDD
from .gaussian import GaussianAD as GaussianAD
from .gaussian_finetune import GaussianFinetune as GaussianFinetune
from .geom import Geom as Geom
from .joint import Joint as Joint
from .knn import KNN as KNN
from .mean_shifted import MeanShifted as MeanShifted
from .ocsvm import OneClassSVM as OneClassSVM
from .padim import PaDiM as PaDiM
from .panda import PANDA as PANDA
from .patchcore import PatchCore as PatchCore
from .spade import SPADE as SPADE
from .students import Students as Students
from .subspace import Subspace as Subspace
from .svdd import SVDD as SVDD

METHODS: dict[str, type[Method]] = {
    found.name: found
    for found in list(vars().values())
    if isinstance(found, type) and issubclass(found, Method) and found is not Method
}
"""By name."""


def require_kind(method: Method, kind: type, can: str, *, instead: str) -> None:
    """Refuse a method that is not of a kind, such as `Incremental`; the `ArgumentError` names those that are."""
    if not isinstance(method, kind):
        able = ", ".join(name for name, each in METHODS.items() if issubclass(each, kind))
        raise ArgumentError.about("method", expected=f"one that can {can} ({able})", got=method.name, instead=instead)


def find_method(name: str) -> type[Method]:
    """Look a method up by name; raises `ArgumentError`."""
    if name not in METHODS:
        raise ArgumentError.about(
            "method",
            expected=f"one of {', '.join(METHODS)}",
            got=name,
            instead="`blemish list methods` says what they are.",
        )
    return METHODS[name]
