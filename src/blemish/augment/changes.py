"""Small drawn changes of one image, by which detectors are compared where no defect may be seen.

Each takes an image, another normal image and a generator, and gives the image with one change. Lengths are shares of
the image's shorter side. Sizes and strengths are drawn on a logarithmic scale, from hardly visible to plain: one size
alone is found by every detector, or by none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .defects import Family, augmix, cut_out, cut_paste, drawn, scar, uniform

VISIBLE = 4 / 255
"""Change of a pixel's value from which on it counts as changed."""
_LEAST = 12
"""Pixels that a change alters at least; a piece of an even background that was moved is drawn again."""
_TRIES = 8

Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""From an image and another normal one, each `(3, height, width)` in [0, 1], to the changed image."""


def scratch(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A thin curve, lighter or darker."""
    side = _side(image)
    y, x = _axes(image)
    angle, length = uniform(generator, 0, 2 * math.pi), side * drawn(generator, 0.04, 0.3)
    bend = uniform(generator, -0.3, 0.3) * length
    at = torch.linspace(-0.5, 0.5, 48)[:, None, None]
    (cy, cx), bow = _place(image, generator), bend * (1 - 4 * at**2)
    curve_y = cy + at * length * math.sin(angle) + bow * math.cos(angle)
    curve_x = cx + at * length * math.cos(angle) - bow * math.sin(angle)
    distance = ((y - curve_y) ** 2 + (x - curve_x) ** 2).amin(dim=0).sqrt()
    half = side * drawn(generator, 0.001, 0.008)
    return _shaded(image, (half + 1 - distance).clamp(0, 1), drawn(generator, 0.08, 0.6), generator)


def spot(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A stain with a sharp edge."""
    inside = _disc(image, drawn(generator, 0.008, 0.05), 0.2, generator)
    return _shaded(image, inside, drawn(generator, 0.08, 0.6), generator)


def tint(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A larger place of another brightness or colour, with a soft edge."""
    inside = _disc(image, drawn(generator, 0.03, 0.15), 0.8, generator)
    return _shaded(image, inside, drawn(generator, 0.04, 0.25), generator)


def blend(image: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """A piece of another normal image."""
    return _pasted(image, other, generator)


def moved(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A piece of the same image from another place."""
    return _pasted(image, image, generator)


def turned(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A round piece is turned where it is: the same colours, another arrangement."""
    _, height, width = image.shape
    cy, cx = _place(image, generator)
    radius = _side(image) * drawn(generator, 0.02, 0.1)
    y, x = _axes(image)
    inside = ((radius + 1 - ((y - cy) ** 2 + (x - cx) ** 2).sqrt()) / 2).clamp(0, 1)
    angle = uniform(generator, math.pi / 9, 2 * math.pi - math.pi / 9)
    from_y = cy + (y - cy) * math.cos(angle) + (x - cx) * math.sin(angle)
    from_x = cx - (y - cy) * math.sin(angle) + (x - cx) * math.cos(angle)
    points = torch.stack([from_x * 2 / width - 1, from_y * 2 / height - 1], dim=2)
    found = functional.grid_sample(image[None], points[None], padding_mode="reflection", align_corners=False)[0]
    return image.lerp(found, inside)


def blur(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A place without its fine structure."""
    inside = _disc(image, drawn(generator, 0.02, 0.1), 0.4, generator)
    return image.lerp(_smoothed(image, _side(image) * drawn(generator, 0.006, 0.03)), inside)


def missing(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A piece is gone: what is around it fills its place."""
    radius = drawn(generator, 0.012, 0.07)
    inside = _disc(image, radius, 0.2, generator)
    outside, sigma = 1 - inside, 0.7 * radius * _side(image)
    around = _smoothed(image * outside, sigma) / _smoothed(outside[None], sigma).clamp_min(1e-6)
    return image.lerp(around, inside)


def grain(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
    """A rough place."""
    _, height, width = image.shape
    cell = max(1.0, _side(image) * drawn(generator, 0.004, 0.02))
    noise = torch.randn(1, 1, math.ceil(height / cell), math.ceil(width / cell), generator=generator)
    rough = functional.interpolate(noise, (height, width), mode="bilinear", align_corners=False)[0]
    inside = _disc(image, drawn(generator, 0.015, 0.08), 0.4, generator)
    return (image + drawn(generator, 0.05, 0.3) * inside * rough).clamp(0, 1)


def _of(family: Family) -> Change:
    """A family of `defects`, which takes a batch."""

    def change(image: Tensor, _other: Tensor, generator: torch.Generator) -> Tensor:
        return family(image[None], generator)[0]

    return change


CHANGES: dict[str, Change] = {
    "scratch": scratch, "spot": spot, "tint": tint, "blend": blend, "moved": moved, "turned": turned, "blur": blur,
    "missing": missing, "grain": grain, "scar": _of(scar), "cutout": _of(cut_out), "cutpaste": _of(cut_paste),
    "augmix": _of(augmix),
}  # fmt: skip
"""Name of a change, and the function that makes it."""


def draw_change(
    name: str, image: Tensor, other: Tensor, generator: torch.Generator, *, inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The changed image, and the pixels that the change altered, `(height, width)` bool; all of them `inside`."""
    for _ in range(_TRIES if inside is None else _TRIES * math.ceil(inside.numel() / max(1, int(inside.sum())))):
        changed = CHANGES[name](image, other, generator)
        if inside is not None:
            changed = torch.where(inside, changed, image)
        mask = (changed - image).abs().amax(dim=0) > VISIBLE
        if int(mask.sum()) >= _LEAST:
            break
    return changed, mask


def _shaded(image: Tensor, inside: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Lighter or darker by so much, each colour a little differently."""
    sign = 1.0 if uniform(generator, 0, 1) < 0.5 else -1.0
    colour = sign + 0.5 * (torch.rand(3, 1, 1, generator=generator) - 0.5)
    return (image + strength * colour * inside).clamp(0, 1)


def _pasted(image: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    inside = _disc(image, drawn(generator, 0.015, 0.08), 0.2, generator)
    _, height, width = image.shape
    shift = int(uniform(generator, 0.1, 0.9) * height), int(uniform(generator, 0.1, 0.9) * width)
    return image.lerp(source.roll(shift, dims=(1, 2)), inside * uniform(generator, 0.5, 1.0))


def _disc(image: Tensor, radius: float, soft: float, generator: torch.Generator) -> Tensor:
    """1 inside a turned ellipse around a random place, falling to 0 over the share `soft` of its radius."""
    y, x = _axes(image)
    cy, cx = _place(image, generator)
    angle, stretch = uniform(generator, 0, math.pi), drawn(generator, 0.6, 1 / 0.6)
    v = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) * stretch
    u = ((y - cy) * math.sin(angle) + (x - cx) * math.cos(angle)) / stretch
    pixels = max(1.5, radius * _side(image))
    return ((1 - (u**2 + v**2).sqrt() / pixels) / soft + 0.5).clamp(0, 1)


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 0.3)) ** 2)
    kernel = (kernel / kernel.sum()).expand(len(maps), 1, 1, -1)
    for padding, turned_kernel in (((reach, reach, 0, 0), kernel), ((0, 0, reach, reach), kernel.transpose(2, 3))):
        padded = functional.pad(maps[None], padding, mode="replicate")
        maps = functional.conv2d(padded, turned_kernel, groups=len(maps))[0]
    return maps


def _axes(image: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(image.shape[1])[:, None] + 0.5, torch.arange(image.shape[2]) + 0.5


def _place(image: Tensor, generator: torch.Generator) -> tuple[float, float]:
    return uniform(generator, 0.1, 0.9) * image.shape[1], uniform(generator, 0.1, 0.9) * image.shape[2]


def _side(image: Tensor) -> int:
    return min(image.shape[1], image.shape[2])
