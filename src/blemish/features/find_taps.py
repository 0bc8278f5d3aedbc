"""Where to read a network that has no row: its levels, advertised by the network or found with a dummy image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from .layout import as_map, main_output, watching


@dataclass(frozen=True)
class Level:
    """A module whose output is a feature map."""

    module: str
    channels: int
    stride: int


def choose_levels(
    network: nn.Module, advertised: Iterable[Mapping[str, Any]], *, side: int
) -> tuple[list[Level], Level | None]:
    """Choose modules to read, shallow to deep, and the deepest of all; `advertised` is timm's `feature_info`.

    What is advertised is wrong for a few networks, so it is taken only where a dummy image finds it too.
    """
    found = {level.module: level for level in _find_levels(network, side)}
    named = [Level(level["module"], level["num_chs"], level["reduction"]) for level in advertised]
    chosen = _spread(named)
    if chosen and all(_is_among(found, level) for level in chosen):
        return chosen, named[-1] if _is_among(found, named[-1]) else chosen[-1]
    # A module that holds others gives the last one's map; of a Sequential that is the only thing that it does.
    modules = dict(network.named_modules())
    blocks = [name for name in found if not isinstance(modules[name], nn.Sequential)]
    outer = [found[name] for name in blocks if not name.startswith(tuple(f"{other}." for other in blocks))]
    return _spread(outer), outer[-1] if outer else None


def _is_among(found: Mapping[str, Level], level: Level) -> bool:
    return level.module in found and found[level.module].channels == level.channels


def _spread(levels: list[Level]) -> list[Level]:
    """Take the ends of strides 4, 8 and 16, as PaDiM and its successors do, where there is a pyramid.

    A plain transformer has one stride and no levels. Three blocks at 1/4, 1/2 and 3/4 of its depth go from texture to
    parts; the last ones know the class rather than the place.
    """
    ends = {level.stride: level for level in levels}
    if len(ends) > 1 and ends.keys() & {4, 8, 16}:
        return [ends[stride] for stride in (4, 8, 16) if stride in ends]
    return [levels[i] for i in sorted({max(len(levels) * quarter // 4 - 1, 0) for quarter in (1, 2, 3)}) if levels]


def _find_levels(network: nn.Module, side: int) -> list[Level]:
    """Run a dummy image and note every module that returns a feature map, in the order in which they finish."""
    found: dict[str, Level] = {}
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            try:
                shape = as_map(main_output(output), tap=name, pixels=pixels).shape
            except ArgumentError:
                return
            found[name] = Level(name, shape[1], round(side / shape[2]))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if name]
    training = network.training
    try:
        with watching(handles), torch.no_grad():
            network.eval()(pixels)
    finally:
        network.train(training)
    return list(found.values())
