"""A backbone's network with gradients: pixels in [0, 1] become one vector an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, WeightsError
from ..features.backbones import Backbone
from ..features.extract import build_extractor, of_this_version
from ..features.layout import Reached, as_map, main_output, read_layout, watching
from ..features.patches import pool
from ..features.weights import StateDict


class Network(nn.Module):
    """A row's network up to one module: pixels in [0, 1] become the mean of that module's map over its positions."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, row: Backbone, *, tap: str, channels: int, missing: tuple[str, ...]) -> None:
        super().__init__()
        self.body, self._row, self._tap, self.channels = body, row, tap, channels
        self.missing = missing
        """Names of the parameters that the weights did not bring."""
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """From `(batch, 3, height, width)` to `(batch, channels)`."""
        return self._run(pixels, to_the_end=False)[0]

    def classify(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the logits of the whole network, `(batch, classes)`; refuses weights that end before that."""
        if self.missing:
            raise WeightsError(
                f"weights of {self._row.name}: {len(self.missing)} parameters of the classifier are missing: "
                f"{', '.join(self.missing[:4])} ... Give the weights of the whole network."
            )
        vectors, logits = self._run(pixels, to_the_end=True)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ArgumentError.about("backbone", expected="a classifier, with logits at its end", got=self._row.name)
        return vectors, logits

    @torch.no_grad()
    def vectors(self, parts: Iterable[Tensor]) -> Tensor:
        """What it makes of images now, a few at a time: `(n, channels)`."""
        return torch.cat([self(pixels) for pixels in parts])

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that a fit changes."""
        return {name: p for name, p in self.body.named_parameters() if p.requires_grad}

    def _run(self, pixels: Tensor, *, to_the_end: bool) -> tuple[Tensor, Any]:
        pixels = pixels.to(self.mean.device)
        given = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []

        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            reached: Tensor = main_output(output)
            found.append(reached.clone() if to_the_end else reached)  # the next layer may write to it
            if not to_the_end:
                raise Reached

        handle, end = self.body.get_submodule(self._tap).register_forward_hook(catch), None
        with watching([handle]):
            end = self.body(given)
        layout = read_layout(found[0], image_size=(given.shape[2], given.shape[3]), channels=self.channels)
        return pool(as_map(found[0], tap=self._tap, pixels=given, layout=layout)), end


@torch.no_grad()
def settle_norms(network: Network, parts: Iterable[Tensor]) -> None:
    """Give BatchNorm the statistics of these images, as plain means over the parts; leaves eval mode behind.

    A new one passes images through as if they had variance 1, and a short training leaves it on its way.
    """
    norms = [layer for layer in network.body.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
    network.body.train()
    for pixels in parts:
        network(pixels)
    network.body.eval()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def build_network(
    row: Backbone,
    weights: StateDict | None,
    *,
    tap: str,
    trained: tuple[str, ...] | None,
    seed: int,
    device: torch.device,
) -> Network:
    """The network as it is before the training, in eval mode: BatchNorm keeps the statistics that it has.

    `trained` are the names of the modules to train; None: the last two stages up to the tap. The seed is for what the
    weights leave open: the layers behind the tap, or all where there are none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = row.build().eval()
        # The extractor tells what is missing up to the tap.
        first = build_extractor(row, weights=weights, taps=(tap,), device=device)
    channels = first(torch.zeros(1, 3, row.trace_size, row.trace_size)).maps[0].shape[1]
    missing: tuple[str, ...] = ()
    if weights is not None:
        own = body.state_dict()
        fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        body.load_state_dict(of_this_version(body, fitting), strict=False)
        missing = tuple(n for n in own if n not in fitting and not n.endswith("num_batches_tracked"))
    body.requires_grad_(False)
    for name in trained_parameters(row, body, tap=tap, trained=trained):
        body.get_parameter(name).requires_grad_(True)
    body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(body, row, tap=tap, channels=channels, missing=missing).to(device)


def trained_parameters(row: Backbone, body: nn.Module, *, tap: str, trained: tuple[str, ...] | None) -> list[str]:
    """Names of the parameters in these modules; None: in the last two stages up to the tap."""
    names = [name for name, _ in body.named_parameters()]
    if trained is not None:
        chosen = [name for name in names if name.startswith(tuple(f"{part}." for part in trained))]
        if not chosen:
            top = ", ".join(name for name, _ in body.named_children())
            raise ArgumentError.about(
                "trained", expected=f"modules with parameters ({top}, or below)", got=", ".join(trained)
            )
        return chosen
    stages = [*row.taps, *([row.deepest] if row.deepest else [])]
    at = stages.index(tap) if tap in stages else 0
    chosen = names[_behind(names, stages[at - 2]) if at >= 2 else 0 : _behind(names, tap)]
    if not chosen:
        raise ArgumentError.about("backbone", expected="a network with parameters to train", got=row.name)
    return chosen


def _behind(names: list[str], module: str) -> int:
    """Position after the last of these parameters that lies in the module, or before it where it has none."""
    return max((i + 1 for i, name in enumerate(names) if name.startswith(f"{module}.")), default=0)
