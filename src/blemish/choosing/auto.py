"""`auto`: the method of a detector that is chosen by its own normal images, when it is fitted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..features.backbones import Backbone
from ..features.memory import FeatureMemory
from ..images.groups import join_groups
from ..images.preprocess import Preprocess
from ..images.source import Batches
from ..memory import MOST_GB
from ..methods import FeatureMethod, Method
from ..methods.patchcore import PatchCore
from ..parameters import Parameterised, check_parameters, parameter
from ..progress import Progress
from .candidates import Candidate, candidates
from .choose import FEWEST, compare

MOST = 120
"""Images on which the candidates are compared at most; what more there are come to the one that is picked."""


@dataclass(kw_only=True)
class Auto(Parameterised):
    """Takes the method that tells small drawn changes best on these images; PatchCore where they are too few.

    Parameters
    ----------
    backbone: of all candidates: name of a row (`blemish list backbones`), `timm:NAME`, or a `Backbone`.
    weights: file of pretrained weights; None looks in `$BLEMISH_WEIGHTS`, then in the hub; `random` draws them by the
        seed.
    seed: for everything random.
    device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ...
    memory_gb: what the whole program may hold on a CPU, in 10^9 bytes; None: nine tenths of what is there.
    """

    name: ClassVar[str] = "auto"
    paper: ClassVar[dict[str, object]] = {}

    backbone: str | Backbone = parameter("compact", option=True)
    weights: str | Path | None = parameter(None, role="place", option=True)
    seed: int = parameter(0, option=True)
    device: str = parameter("auto", role="place", option=True)
    memory_gb: float | None = parameter(None, above=0, at_most=MOST_GB, role="place", option=True)

    def choose(
        self, batches: Batches, groups: Sequence[int], *, comparable: bool, seed: int, progress: Progress | None
    ) -> tuple[FeatureMethod, str, FeatureMemory | None]:
        """Give a method to be fitted, the reason in one line, and the images' feature maps where all were read.

        `comparable`: whether the images come as they are, and not in tiles or as features of one network.
        """
        check_parameters(self)
        if not comparable or len(set(groups)) < FEWEST:
            why = f"fewer than {FEWEST} images to choose by" if comparable else "tiles and given features do not choose"
            return *self.fixed(why, seed=seed), None
        some, numbers = batches.source, list(groups)
        if len(some) > MOST:
            drawn = sorted(random.Random(seed).sample(range(len(some)), MOST))
            some, numbers = some.subset(drawn), join_groups([groups[i] for i in drawn])
        rows = self.candidates(batches.preprocess, seed=seed)
        choice, features = compare(
            replace(batches, source=some, skipped=[]), rows, groups=numbers, seed=seed, progress=progress
        )
        return choice.picked.method, choice.reason, features if len(some) == len(batches.source) else None

    def fixed(self, why: str, *, seed: int) -> tuple[FeatureMethod, str]:
        """The method that no image has chosen, and `why` in one line."""
        return PatchCore(**self._of_all(seed)), f"patchcore: {why}"

    def candidates(self, preprocess: Preprocess, *, seed: int) -> list[Candidate]:
        """Those of the table."""
        return candidates(**self._of_all(seed), preprocess=preprocess)

    def _of_all(self, seed: int) -> dict[str, Any]:
        return self.get_params(deep=False) | {"seed": seed}


def spell_chosen(methods: Sequence[Method]) -> str:
    """Which methods were chosen for the models of several folds, and how often, in one line.

    >>> spell_chosen([PatchCore(), PatchCore(ratio=0.1), PatchCore()])
    'patchcore in 2 of 3 folds, patchcore, ratio=0.1 in 1: each by the images that its model learns'
    """
    counts = Counter(Candidate(method).name if isinstance(method, FeatureMethod) else method.name for method in methods)
    (first, most), *others = counts.most_common()
    listed = [f"{first} in {most} of {len(methods)} folds", *(f"{name} in {count}" for name, count in others)]
    return f"{', '.join(listed)}: each by the images that its model learns"
