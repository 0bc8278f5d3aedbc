"""THE TABLE of candidates among which `choose` looks: one row each, method and parameters."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..features.backbones import Backbone, find_backbone
from ..images.preprocess import Preprocess
from ..methods import FeatureMethod
from ..methods.gaussian import GaussianAD
from ..methods.knn import KNN
from ..methods.padim import PaDiM
from ..methods.patchcore import PatchCore
from ..parameters import as_plain, parameters_of

_OWN_ASPECT = Preprocess("auto")


@dataclass(frozen=True)
class Candidate:
    """A method, not fitted, and how images are prepared for it."""

    method: FeatureMethod
    preprocess: Preprocess = _OWN_ASPECT

    @property
    def name(self) -> str:
        """The method and what is not its default, as `padim, taps=stage16`."""
        return ", ".join([self.method.name, *(f"{key}={_spelled(value)}" for key, value in self._settings().items())])

    @property
    def size(self) -> str:
        """Of the network's input, as `--resize` takes it."""
        resize = self.preprocess.resize
        return "x".join(map(str, resize)) if isinstance(resize, tuple) else str(resize)

    @property
    def options(self) -> str:
        """The same as options of `blemish fit`, for a shell."""
        known, found = parameters_of(type(self.method)), [f"--method {self.method.name}"]
        for key, value in self._settings().items():
            if known[key].option:
                text = ",".join(value) if isinstance(value, tuple) else _spelled(value)
                found.append(f"--{key.split('_')[0]} {shlex.quote(text)}")
            else:
                found.append(f"--set {shlex.quote(f'{key}={_spelled(value)}')}")
        if self.preprocess.resize != "auto":
            found.append(f"--resize {self.size}")
        return " ".join(found)

    def _settings(self) -> dict[str, Any]:
        return {
            name: getattr(self.method, name)
            for name, known in parameters_of(type(self.method)).items()
            if getattr(self.method, name) != known.default and name not in _UNSAID
        }


_UNSAID = ("device", "memory_gb", "seed")
"""Where a fit runs, and what the detector says."""


def _spelled(value: Any) -> str:
    plain = as_plain(value)
    if isinstance(plain, list):
        return "+".join(map(str, plain))
    return f"{plain:g}" if isinstance(plain, float) else str(plain).lower() if isinstance(plain, bool) else str(plain)


@dataclass(frozen=True)
class Row:
    """A row of the table: the class, the layers that it reads of a backbone where not its own choice, the rest."""

    kind: type[FeatureMethod]
    layers: Callable[[Backbone], tuple[str, ...]] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    Row(PaDiM),
    Row(PaDiM, lambda row: (row.narrow or row.taps)[-2:]),
    Row(PaDiM, lambda row: (row.narrow or row.taps)[-1:]),
    Row(PatchCore),
    Row(PatchCore, lambda row: row.taps[-2:-1]),
    Row(KNN, parameters={"normalise": True}),
    Row(GaussianAD),
)
"""Which rows are in was decided on sets that report no figure: docs/experiments/choose.md."""


def candidates(
    backbone: str | Backbone = "compact",
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    memory_gb: float | None = None,
    preprocess: Preprocess = _OWN_ASPECT,
) -> list[Candidate]:
    """Make the candidates of the table for a backbone."""
    known = find_backbone(backbone)
    return [
        Candidate(
            row.kind(
                backbone=backbone,
                weights=weights,
                taps=None if row.layers is None else row.layers(known),
                seed=seed,
                device=device,
                memory_gb=memory_gb,
                **row.parameters,
            ),
            preprocess,
        )
        for row in ROWS
    ]
