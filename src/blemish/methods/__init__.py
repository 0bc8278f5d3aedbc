"""Methods, one file each. The names of the registry load when they are asked for: one method needs no other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._base import FeatureMethod as FeatureMethod
from ._base import Forgetful as Forgetful
from ._base import FrozenMethod as FrozenMethod
from ._base import Incremental as Incremental
from ._base import KeepsReserve as KeepsReserve
from ._base import LeavesOut as LeavesOut
from ._base import Method as Method
from ._base import ScoresBeside as ScoresBeside

if TYPE_CHECKING:
    from .registry import *  # noqa: F403


def __getattr__(name: str) -> object:
    return getattr(import_module(f"{__name__}.registry"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *vars(import_module(f"{__name__}.registry"))})
