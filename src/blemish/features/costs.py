"""What a row of THE TABLE costs: parameters and multiply-adds, measured without weights and without a computation.

The figures of the table's rows are in `costs.csv`, because building 100 networks to list them would take half a minute;
`python -m blemish.features.costs` writes it again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .backbones import BACKBONES
from .layout import Reached, main_output, watching

_FILE = Path(__file__).with_name("costs.csv")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one 224 x 224 image, up to the deepest tap."""

    parameters: int
    """In the modules that run."""
    multiply_adds: int
    """Of convolutions and matrix products; what is done for each element, such as activations, is not counted."""


@cache
def table_costs() -> dict[str, Cost]:
    """Read the costs of the table's rows by name."""
    with _FILE.open(newline="", encoding="utf-8") as file:
        return {
            line.pop("name"): Cost(**{key: int(value) for key, value in line.items()}) for line in csv.DictReader(file)
        }


def measure(module: nn.Module, taps: Collection[str]) -> Cost:
    """Measure a hollow network."""
    with FlopCounterMode(display=False) as counter:
        started, _ = trace(module, taps, side=224)
    parameters = {id(p): p.numel() for part in started for p in part.parameters(recurse=False)}
    return Cost(parameters=sum(parameters.values()), multiply_adds=counter.get_total_flops() // 2)


def hollow(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device, which takes no memory and draws no random numbers.

    `torch.device("meta")` would do the same to the numbers that some networks compute their widths from.
    """
    with _EmptyOnMeta():
        module = build()
    return module.to("meta").eval().requires_grad_(False)


class _EmptyOnMeta(TorchFunctionMode):
    """Uninitialised memory is what a layer makes its parameters from."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **(kwargs or {}) | where)


def trace(module: nn.Module, taps: Collection[str], *, side: int) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """Run an empty image of this side until all taps are reached: the modules that ran, and the taps' outputs."""
    started: list[nn.Module] = []
    outputs: dict[str, Tensor] = {}

    def catch(tap: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[tap] = main_output(output)
            if len(outputs) == len(taps):
                raise Reached

        return hook

    handles: list[Any] = [module.get_submodule(tap).register_forward_hook(catch(tap)) for tap in taps]
    handles += [part.register_forward_pre_hook(lambda part, _: started.append(part)) for part in module.modules()]
    with watching(handles), torch.no_grad():
        module(torch.empty(1, 3, side, side, device="meta"))
    return started, outputs


def _write() -> None:
    with _FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *(field.name for field in fields(Cost))])
        writer.writerows(
            [name, *astuple(measure(hollow(row.build), row.taps))] for name, row in sorted(BACKBONES.items())
        )


if __name__ == "__main__":
    _write()
