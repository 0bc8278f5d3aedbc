"""The compact backbone: a small residual network for CPUs, made to give the feature maps of a larger one.

Its parameters come from `blemish distil backbone`; those that ship with the package lie beside this file, and
`compact.json` says what they were taught by and on, and what they score.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class CompactNetwork(nn.Module):
    """Residual blocks at strides 4, 8 and 16; `stride4`, `stride8` and `stride16` are the feature maps, in that order.

    3 x 3 convolutions alone, because a CPU is good at them and bad at depthwise ones. Each map is one more 1 x 1
    convolution with as many outputs as the teacher has channels, cut at 0 as the teacher's are.
    """

    def __init__(
        self,
        *,
        stem: int = 16,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 2, 2),
        outputs: Sequence[int] = (64, 128, 256),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, stem, 2), _convolution(stem, widths[0], 2))
        self.stage4 = nn.Sequential(*(_Block(widths[0]) for _ in range(blocks[0])))
        self.stage8 = nn.Sequential(
            _convolution(widths[0], widths[1], 2), *(_Block(widths[1]) for _ in range(blocks[1]))
        )
        self.stage16 = nn.Sequential(
            _convolution(widths[1], widths[2], 2), *(_Block(widths[2]) for _ in range(blocks[2]))
        )
        self.stride4, self.stride8, self.stride16 = (
            nn.Sequential(nn.Conv2d(width, count, 1), nn.ReLU(inplace=True))
            for width, count in zip(widths, outputs, strict=True)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From normalised pixels `(batch, 3, height, width)` to the three maps `(batch, channels, h, w)`."""
        # Each map before the next stage, so that nothing runs behind the deepest one that is read.
        shallow = self.stage4(self.stem(pixels))
        map4 = self.stride4(shallow)
        middle = self.stage8(shallow)
        map8 = self.stride8(middle)
        return map4, map8, self.stride16(self.stage16(middle))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 1)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, maps: Tensor) -> Tensor:
        added: Tensor = self.second(self.first(maps))
        return added.add_(maps).relu_()


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
