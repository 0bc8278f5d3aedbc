"""Patch descriptor networks: p x p pixels to 128 numbers, of a patch or at every position of an image (Bergmann,
Fauser, Sattlegger, Steger, "Uninformed Students", CVPR 2020, tables of the appendix).

The tables' poolings drop a last odd row and column, so the networks for p = 33 and 65 read only the first 32 and 60
rows and columns of a patch (`field`). The map's value at a pixel is that of the field around it, not of the patch, so
that maps are not shifted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, max_pool2d, pad

from .. import persist
from ..errors import ArgumentError, WeightsError
from ..types import Size
from .backbones import IMAGENET_MEAN, IMAGENET_STD

# Kernel, channels, and whether a 2 x 2 pooling with stride 2 follows. The paper prints a first kernel of 5 for p = 17
# and a last one of 3 for p = 65, which do not give one descriptor a patch.
_LAYERS = {
    17: ((6, 128, False), (5, 256, False), (5, 256, False), (4, 128, False)),
    33: ((5, 128, True), (5, 256, True), (2, 256, False), (4, 128, False)),
    65: ((5, 128, True), (5, 128, True), (5, 128, True), (4, 256, False), (1, 128, False)),
}
PATCHES = tuple(_LAYERS)
"""Sides p of a patch in pixels."""
DIMENSION = 128
_SLOPE = 5e-3
_MEMORY = 256 << 20
_BUILTIN = Path(__file__).parent / "builtin"


class PatchDescriptor(nn.Module):
    """One of the three networks; pixels are in [0, 1].

    Parameters
    ----------
    patch: side p of a patch.
    width: factor of the inner layers' channels, which become multiples of 8; 1 is the paper's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, patch: int, *, width: float = 1.0) -> None:
        super().__init__()
        if patch not in _LAYERS:
            raise ArgumentError.about("patch", expected=" or ".join(map(str, PATCHES)), got=patch)
        if not 0 < width <= 4:
            raise ArgumentError.about("width", expected="a factor in (0, 4]", got=width)
        self.patch, self.width = patch, width
        self.pooled = tuple(pooled for _, _, pooled in _LAYERS[patch])
        self.layers = nn.ModuleList()
        channels = 3
        for number, (kernel, wanted, _) in enumerate(_LAYERS[patch], start=1):
            last = number == len(_LAYERS[patch])
            out = DIMENSION if last else max(8, 8 * round(wanted * width / 8))
            self.layers.append(nn.Conv2d(channels, out, kernel))
            channels = out
        self.field = 1
        """Rows and columns of a patch that are read, from its top left corner on."""
        self.stride = 2 ** sum(self.pooled)
        """Pixels from one field to the next where pooling keeps its stride of 2."""
        for kernel, _, pooled in reversed(_LAYERS[patch]):
            self.field = (2 * self.field if pooled else self.field) + kernel - 1
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Describe `(batch, 3, p, p)` patches: `(batch, 128)`."""
        side = self.patch
        if patches.ndim != 4 or patches.shape[1:] != (3, side, side):
            raise ArgumentError.about("patches", expected=f"shape (batch, 3, {side}, {side})", got=patches)
        return self._run(patches, dense=False).flatten(1)

    def dense(self, pixels: Tensor) -> Tensor:
        """Describe the field around every pixel of `(batch, 3, height, width)`: `(batch, 128, height, width)`.

        The same descriptors as those of patches, with shared work: pooling moves by one pixel, and what lies behind it
        is dilated. Pixels within half a field of the border see the image mirrored there.
        """
        return self._run(self.padded(pixels), dense=True)

    def inside(self, pixels: Tensor, *, dense: bool = True) -> Tensor:
        """Describe the fields that lie inside `(batch, 3, height, width)`, nothing mirrored: `(batch, 128, h, w)`.

        All of them, with `dense`; else every `stride`-th, as poolings with stride 2 give them, for less work.
        """
        return self._run(pixels, dense=dense)

    def strips(
        self, pixels: Tensor, *, dense: bool = True, memory: int = _MEMORY
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Cut mirrored images into strips, of each of which `inside` makes some rows of the map, in `memory` bytes.

        Yields (images, rows of the map, strip). A map that is not dense has a row for each `stride` pixels, as near as
        rounding allows, described by the field around the middle of these.
        """
        stride = 1 if dense else self.stride
        first_row = (stride - 1) // 2  # a field of an even number of rows has its middle half a pixel below its pixel
        padded = self.padded(pixels)[:, :, first_row:, first_row:]
        height, _ = self.grid((pixels.shape[2], pixels.shape[3]), dense=dense)
        # The most numbers that a layer holds a position: what it reads, what it gives, and a copy of that.
        row = 4 * padded.shape[3] * max(layer.in_channels + 2 * layer.out_channels for layer in self._convolutions())
        images = max(1, memory // (row * padded.shape[2]))
        rows = min(height, max(1, (memory // row - self.field) // stride + 1))
        for first in range(0, len(pixels), images):
            for top in range(0, height, rows):
                bottom = stride * (min(top + rows, height) - 1) + self.field
                strip = padded[first : first + images, :, stride * top : bottom]
                yield slice(first, first + images), slice(top, top + rows), strip

    def grid(self, size: Size, *, dense: bool = False) -> Size:
        """Rows and columns of the map of an image of this size; that of `strips`."""
        stride = 1 if dense else self.stride
        height, width = ((side - 1 - (stride - 1) // 2) // stride + 1 for side in size)
        return height, width

    def padded(self, pixels: Tensor) -> Tensor:
        """Mirror `(batch, channels, height, width)` at its borders, so that each pixel has a whole field around it."""
        before = (self.field - 1) // 2
        after = self.field - 1 - before
        if pixels.ndim != 4 or pixels.shape[1] < 3 or min(pixels.shape[2:]) <= after:
            raise ArgumentError.about(
                "pixels", expected=f"shape (batch, 3, height, width) with sides of at least {after + 1}", got=pixels,
                instead=f"Enlarge the images, or take a smaller patch than {self.patch}.",
            )  # fmt: skip
        return pad(pixels, (before, after, before, after), mode="reflect")

    @torch.no_grad()
    def rescale(self, crops: Sequence[Tensor]) -> None:
        """Rescale new weights so that what goes into each activation has mean 0 and deviation 1 on these crops.

        Each `(batch, 3, h, w)`. PyTorch's own random weights leave 0.4 of a signal's deviation in each layer, and a
        training first has to undo that (Salimans, Kingma, "Weight Normalization", NeurIPS 2016, section 3).
        """
        inputs = [self._normalised(crop) for crop in crops]
        for number, layer in enumerate(self._convolutions()):
            outputs = [self._layer(number, x) for x in inputs]
            rows = torch.cat([output.movedim(1, -1).flatten(0, -2) for output in outputs])
            mean, deviation = rows.mean(dim=0), rows.std(dim=0)
            factor = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 1)
            layer.weight.mul_(factor[:, None, None, None])
            layer.bias.sub_(mean).mul_(factor)  # type: ignore[union-attr]
            inputs = [leaky_relu((y - mean[:, None, None]) * factor[:, None, None], _SLOPE) for y in outputs]

    def _run(self, pixels: Tensor, *, dense: bool) -> Tensor:
        x, dilation = self._normalised(pixels), 1
        for number, pooled in enumerate(self.pooled):
            x = self._layer(number, x, dense=dense, dilation=dilation)
            dilation *= 2 if dense and pooled else 1
            if number < len(self.pooled) - 1:
                x = leaky_relu(x, _SLOPE)
        return x

    def _normalised(self, pixels: Tensor) -> Tensor:
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _layer(self, number: int, x: Tensor, *, dense: bool = False, dilation: int = 1) -> Tensor:
        """One layer before its activation; pooling keeps the order of numbers, so it may come first, for less work."""
        layer = self._convolutions()[number]
        x = conv2d(x, layer.weight, layer.bias, dilation=dilation)
        return max_pool2d(x, 2, stride=1 if dense else 2, dilation=dilation) if self.pooled[number] else x

    def operations(self, size: Size) -> int:
        """Multiplications with addition of a dense map of an image of this `(height, width)`."""
        return size[0] * size[1] * sum(layer.weight.numel() for layer in self._convolutions())

    def _convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]


def write_descriptor(network: PatchDescriptor, path: str | Path) -> None:
    """Write the weights in half precision, as a safetensors file that tells which of the networks it is."""
    halved = {name: tensor.detach().half() for name, tensor in network.state_dict().items()}
    persist.save(path, halved, {"descriptor": {"patch": network.patch, "width": network.width}})


def read_descriptor(path: str | Path) -> PatchDescriptor:
    """Read what `write_descriptor` wrote, as a network in float32 and eval mode."""
    if not os.path.isfile(path):
        raise WeightsError(
            f"weights {path}: the file does not exist. `blemish distil descriptor IMAGES --out {path}` makes one."
        )
    tensors, manifest = persist.load(path)
    made = manifest.get("descriptor")
    if made is None:
        raise WeightsError(f"weights {path}: not of a patch descriptor network. `blemish distil descriptor` makes one.")
    network = PatchDescriptor(made["patch"], width=made["width"])
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.eval()


def find_descriptor(patch: int, weights: str | Path | None = None) -> PatchDescriptor:
    """Read the network for this patch: from a file, from `descriptor{patch}.safetensors` in a folder, or the built-in.

    Raises `WeightsError` where there is none.
    """
    folder = _BUILTIN if weights is None else Path(weights)
    path = folder / f"descriptor{patch}.safetensors" if os.path.isdir(folder) else folder
    if weights is None and not os.path.isfile(path):
        made = f"descriptor{patch}.safetensors"
        raise WeightsError(
            f"weights: no descriptor network for patches of {patch} ships with this version. "
            f"`blemish distil descriptor IMAGES --patch {patch} --out {made}` makes one from any images; "
            "give that file, or its folder, as weights."
        )
    network = read_descriptor(path)
    if network.patch != patch:
        raise WeightsError(f"weights {path}: of a descriptor for patches of {network.patch}, not of {patch}.")
    return network
