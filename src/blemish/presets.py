"""Presets: what goes together, a line each. `Detector.preset(NAME)` and `blemish fit --preset NAME` read this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .choosing.auto import Auto
from .errors import ArgumentError
from .images.preprocess import Preprocess
from .methods import Method
from .methods.registry import find_method
from .parameters import as_plain
from .types import Size

_OWN_ASPECT = Preprocess("auto")


@dataclass(frozen=True)
class Preset:
    """A method with its parameters, how images are prepared for it, and whether some are held out for a threshold."""

    use: str
    method: str = "patchcore"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those of `method` that differ from its defaults."""
    preprocess: Preprocess = _OWN_ASPECT
    calibration: Literal["none"] | None = None
    """None: by the number of images."""
    is_paper: bool = False
    """Whether a method takes the parameters of its paper; then, as without any, it may be another one than `method`."""

    def choose(self, method: str | None = None) -> tuple[type[Method] | type[Auto], dict[str, Any]]:
        """The class of a method, or of the preset's own, and the parameters that the preset gives it."""
        name = self.method if method is None else method
        kind = Auto if name == Auto.name else find_method(name)
        if self.parameters and kind.name != self.method:
            raise ArgumentError.about("method", expected=f"{self.method} with this preset", got=kind.name)
        return kind, dict(kind.paper if self.is_paper else self.parameters)

    def resized(self, resize: int | Size | str | None) -> Preprocess:
        """How images are prepared for another input size, where one is given; a crop keeps its share of the side."""
        if resize is None:
            return self.preprocess
        if self.preprocess.crop is None:
            return Preprocess(resize)
        if not isinstance(resize, int):
            raise ArgumentError.about("resize", expected="one SIDE with a preset that crops", got=resize)
        return Preprocess(resize, resize * 7 // 8)  # 224 of 256

    def as_row(self, name: str) -> dict[str, object]:
        """For `blemish list presets`."""
        pixels = self.preprocess
        return {
            "name": name,
            "use": self.use,
            "method": "any" if self.is_paper else self.method,
            "parameters": "the paper's"
            if self.is_paper
            else {key: as_plain(value) for key, value in self.parameters.items()},
            "input": pixels.resize,
            "crop": pixels.crop,
            "calibration": self.calibration,
        }


_DINO = {
    "backbone": "timm:vit_small_patch14_dinov2", "taps": ("norm",), "patches": "single", "normalise": True,
    "squared": True, "ratio": 1.0, "top_share": 0.01, "turns": 8,
}  # fmt: skip

PRESETS = {
    "default": Preset("production: every pixel, in the images' own aspect ratio"),
    "paper": Preset(
        "comparison with published tables", "padim", {}, Preprocess(256, 224), calibration="none", is_paper=True
    ),
    "fast": Preset("the least time an image", "padim", {"taps": ("stage16",)}, Preprocess("auto:192")),
    "accurate": Preset("the best maps, for more time", preprocess=Preprocess("auto:320")),
    "few": Preset("1 to 16 normal images", "subspace", {"turns": 8}, calibration="none"),
    "dino": Preset("the recipe of AnomalyDINO, few images", "patchcore", _DINO, Preprocess("auto:448"), "none"),
}


def find_preset(name: str, *, of: str = "preset") -> Preset:
    """Look a preset up by name; `of` says which parameter it is.

    >>> find_preset("paper").preprocess.size
    (224, 224)
    """
    if name not in PRESETS:
        raise ArgumentError.about(of, expected=f"one of {', '.join(PRESETS)}", got=name)
    return PRESETS[name]
