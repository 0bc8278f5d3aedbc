"""What methods share that learn patches wherever they lie, so also from turned images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..ops.turns import turned
from ..parameters import parameter


@dataclass(kw_only=True)
class TurnedMethod:
    """A method that learns each normal image in several directions; it stands before a class of `_base.py`.

    Parameters
    ----------
    turns: directions in which each normal image is learned, turned by equal angles, mirrored beyond its edge; 1: as it
        is. For few images of parts that turn.
    """

    turns: int = parameter(1, at_least=1, at_most=360)

    def _turns(self) -> int | None:
        return self.turns

    def _turned(self, pixels: Tensor) -> Iterable[Tensor] | None:
        return (turned(pixels, 360 * i / self.turns) for i in range(1, self.turns))
