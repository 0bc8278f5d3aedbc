"""The card that lies beside trained weights: what made them, in JSON types."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from .. import persist
from ..augment.crops import ImageCache
from ..training.loop import Course


def in_half(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers in half precision, as a file holds them; counters are left out."""
    tensors = network.state_dict().items()
    return {name: tensor.half().contiguous() for name, tensor in tensors if tensor.is_floating_point()}


@torch.no_grad()
def round_to_half(network: nn.Module) -> None:
    """Round what was trained to what the file will hold."""
    for tensor in network.requires_grad_(False).eval().state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def make_card(kind: str, recipe: Any, *, images: ImageCache, network: nn.Module, course: Course) -> dict[str, Any]:
    """How a network was taught, and what the training came to."""
    return {
        "kind": kind,
        "recipe": asdict(recipe),
        "images": len(images),
        "images_digest": images.digest,
        "versions": {name: version(name) for name in ("blemish", "torch")},
        "digest": persist.digest(in_half(network)),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": course.steps,
        "ended": course.ended,
        "seconds": round(course.seconds, 1),
        "terms": list(course.terms),
        "last_losses": [round(value, 6) for value in course.losses[-100:].mean(dim=0).tolist()],
        "curve": thinned(course, points=100),
    }


def thinned(course: Course, *, points: int) -> list[list[float]]:
    """Cut a course into at most this many stretches: the steps done after each, and its mean of each term."""
    if not course.steps:
        return []
    length = -(-course.steps // points)
    ends = [min(start + length, course.steps) for start in range(0, course.steps, length)]
    means = [part.mean(dim=0).tolist() for part in course.losses.split(length)]  # type: ignore[no-untyped-call]
    return [[end, *(round(value, 6) for value in mean)] for end, mean in zip(ends, means, strict=True)]
