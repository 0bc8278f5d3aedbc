"""What a detector takes: its parameters, what of them goes together, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import running
from .calibrator import Calibrator, require_able
from .choosing.auto import Auto
from .datasets.region import Region
from .errors import ArgumentError, NotFittedError
from .features.memory import FeatureMemory
from .features.runtime import RuntimeChoice, require_runtime
from .images.decode import MAX_PIXELS
from .images.groups import GroupBy, read_pattern
from .images.preprocess import Preprocess
from .images.source import OnError
from .images.tiling import Tiling
from .localise import Localiser
from .methods import Method
from .methods.registry import find_method
from .parameters import Parameterised, check_parameters, parameter, parameters_of
from .presets import find_preset
from .types import Size

_MOST_PIXELS = 1 << 28
"""Of one batch: 3.2 GB in float32. A parameter, perhaps out of a file, must not be able to ask for any memory."""


@dataclass(kw_only=True)
class DetectorSettings(Parameterised):
    """The settings of a `Detector`.

    Parameters
    ----------
    method: the normality model, or its name (`blemish list methods`), which takes its defaults and `seed`; `auto`, or
        an `Auto`: the one that these normal images choose (docs/choose.md).
    preprocess: `Preprocess`, or the name of a preset, for its own: `default` (the images' own aspect ratio at the area
        of 256 x 256, nothing cropped), `paper` (256, crop 224).
    tile: side, or (height, width), in pixels of the tiles in which a large preprocessed image is learned and scored;
        None: in one piece. The image's score is that of its most anomalous tile.
    overlap: pixels by which tiles overlap at least; None: a quarter of a tile's shorter side.
    calibration: what p-values and verdicts rest on (docs/decisions.md). `split` holds out a seeded share of the normal
        images; `loo` learns all of them, and scores each by the model without it; `cross` keeps a model for each of
        several folds, which it has not learned; `full` compares a new image with the learned ones as one of them;
        `none` gives raw scores only; None: `split`, or with few images `loo` or `cross`.
    folds: with `cross`, in how many; in more where else too few images would be left out (19 images in 10 folds of
        one: 10). Scoring takes as many times as long.
    held_out: the share to hold out; None: a fifth, or as many as `false_alarm_rate` needs where a fifth is too few and
        at least as many remain to learn from.
    group_by: what says which images belong together, such as a burst, a part or a recording: a regular expression on
        the path below the data set's folder, whose first group is the key, or a function from that path to the key.
        Groups are held out whole, and the promised rate counts groups: it is that of one image of a new group.
        Copies of one picture always are a group.
    part_by: for several images of one part: a regular expression on the path whose first group names the part, and the
        second, where there is one, the view. Parts are held out whole and judged as one (docs/parts.md), with `split`.
    false_alarm_rate: the share of normal images that may be called anomalous.
    certain: the probability with which that rate holds for the held-out images at hand; None: it holds on average over
        draws of them. A higher threshold from more held-out images (59 for 5 % at 0.95), with `split` alone.
    min_area: regions of fewer pixels of the original image are not reported. Part of the calibration of regions: a
        larger one lets fainter regions be reported, at the same rate of false ones.
    seed: chooses the held-out images; None: the method's seed, so that it is given once.
    batch_size: images a forward pass.
    workers: decoding threads.
    on_error: at an unreadable file, `raise` an error, or `skip` it and count it.
    roi: where to look: a file of a mask (white is looked at), a JSON file of polygons, a folder with a mask for each
        picture, or an array. What is outside is neither learned nor scored, and no pixel of it reaches a score.
    max_pixels: a file that claims more is refused, as a guard against decompression bombs.
    runtime: what runs the frozen network: `torch`; `onnxruntime` or `openvino`, whose packages are extras; `auto`: the
        fastest one by a short measurement at fit. The one that calibrated is part of a model file (docs/runtimes.md).
    features: feature maps of all images that will come, made with the method's backbone and weights: they are read
        instead of the images. Not part of a model file.
    """

    method: Method | Auto | str = "patchcore"
    preprocess: Preprocess | str = "default"
    tile: int | tuple[int, int] | None = parameter(None, at_least=1)
    overlap: int | None = parameter(None, at_least=0)
    calibration: Literal["split", "cross", "loo", "full", "none"] | None = None
    folds: int = parameter(10, at_least=2)
    held_out: float | None = parameter(None, above=0, below=1)
    false_alarm_rate: float = parameter(0.05, above=0, below=1)
    certain: float | None = parameter(None, above=0, below=1)
    min_area: int = parameter(1, at_least=1)
    part_by: str | None = None
    seed: int | None = None
    batch_size: int = parameter(8, at_least=1)
    workers: int = parameter(2, at_least=1, role="place")
    on_error: OnError = parameter("raise", role="place")
    group_by: GroupBy | None = parameter(None, role="place")
    roi: Region | str | Path | np.ndarray[Any, Any] | None = parameter(None, role="place")
    max_pixels: int = parameter(MAX_PIXELS, at_least=1, role="place")
    runtime: RuntimeChoice = parameter("torch", role="place")
    features: FeatureMemory | None = field(default=None, repr=False, metadata={"role": "place"})

    _named: Method | None = field(default=None, init=False, repr=False, compare=False)
    _settled: Preprocess | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def method_(self) -> Method:
        """The method as an object: `method` itself, what its name stands for, or what `fit` has chosen."""
        if isinstance(self.method, Method):
            return self.method
        if self._named is None:
            if self._auto is not None:
                raise NotFittedError("A detector with method='auto' has no method before it is fitted. Call fit first.")
            assert isinstance(self.method, str)
            kind = find_method(self.method)
            self._named = kind(**{} if self.seed is None or "seed" not in parameters_of(kind) else {"seed": self.seed})
        return self._named

    def check_settings(self, *, recorded: bool) -> None:
        """Refuse wrong ones; `recorded`: the runtime's networks are at hand. Raises `ArgumentError`."""
        check_parameters(self)
        require_runtime(self.runtime, recorded=recorded)
        if self._auto is None:
            running.require_runnable(self.method_, self.runtime)
        if self._is_reduced and self.calibration not in (None, "split"):
            raise ArgumentError.about(
                "calibration", expected=f"split with precision {getattr(self.method_, 'precision', '')}, whose loss is "
                "measured on held-out images", got=self.calibration,
            )  # fmt: skip
        if isinstance(self.group_by, str):
            read_pattern(self.group_by)
        if self.part_by is not None:
            self._check_parts(self.part_by)
        if self.roi is not None and self.features is not None:
            raise ArgumentError.about("roi", expected="None with the features of whole images", got=self.roi)
        if self.certain is not None and self.calibration not in (None, "split"):
            raise ArgumentError.about(
                "certain", expected=f"None with calibration {self.calibration}", got=self.certain,
                instead="Take calibration='split'.",
            )  # fmt: skip
        if self.calibration in ("cross", "loo", "full"):
            self._check_left_out(self.calibration)
        if self.overlap is not None and self.tile is None:
            raise ArgumentError.about("overlap", expected="None without tiles", got=self.overlap, instead="Give tile.")
        if not isinstance(self.preprocessing.resize, str):
            self._check_size()

    def _check_parts(self, part_by: str) -> None:
        read_pattern(part_by, of="part_by")
        if self.group_by is not None:
            raise ArgumentError.about("group_by", expected="None with part_by: parts are the groups", got=self.group_by)
        if self.calibration not in (None, "split"):
            raise ArgumentError.about("part_by", expected=f"None with calibration {self.calibration}", got=part_by)

    def _check_left_out(self, kind: str) -> None:
        """Refuse what leaving images out does not go with."""
        if self.held_out is not None:
            raise ArgumentError.about("held_out", expected=f"None with calibration {kind}", got=self.held_out)
        if self._auto is not None and kind != "cross":
            raise ArgumentError.about(
                "calibration", expected="split or cross with method auto, as images that choose cannot calibrate",
                got=kind, instead="Take cross, which chooses again without each fold, or name a method.",
            )  # fmt: skip
        if kind != "cross" and self.tile is not None:
            raise ArgumentError.about("tile", expected=f"None with calibration {kind}", got=self.tile)
        if self._auto is None:
            require_able(self.method_, kind)

    def _check_size(self) -> None:
        """Refuse an input that is too small for the tiles, or too large for a batch."""
        height, width = self._input_size()
        if self.tile is not None and (height > self.preprocessing.size[0] or width > self.preprocessing.size[1]):
            pixels = " x ".join(map(str, dict.fromkeys(self.preprocessing.size)))
            raise ArgumentError.about(
                "tile", expected=f"at most the preprocessed image's {pixels} pixels", got=self.tile
            )
        whole, batch = prod(self.preprocessing.size), self.batch_size * height * width
        if max(whole, batch) > _MOST_PIXELS:
            raise ArgumentError.about(
                "batch_size", expected=f"batches of at most {_MOST_PIXELS} pixels",
                got=f"{self.batch_size} images of {height} x {width}", instead="Give smaller images, or tiles.",
            )  # fmt: skip

    @property
    def _auto(self) -> Auto | None:
        return Auto() if self.method == "auto" else self.method if isinstance(self.method, Auto) else None

    @property
    def localiser(self) -> Localiser:
        return Localiser(self.preprocessing, self.min_area)

    @property
    def preprocessing(self) -> Preprocess:
        """How images are prepared: `preprocess`, with a preset's name looked up, and what `fit` found in its images."""
        preset = self._preset
        return self._settled if preset.is_open and self._settled is not None else preset

    @property
    def _preset(self) -> Preprocess:
        if isinstance(self.preprocess, Preprocess):
            return self.preprocess
        return find_preset(self.preprocess, of="preprocess").preprocess

    def _input_size(self) -> Size:
        """`(height, width)` of what the method sees: of a tile, or of the whole image."""
        if self.tile is None:
            return self.preprocessing.size
        return self.tile if isinstance(self.tile, tuple) else (self.tile, self.tile)

    @property
    def _tiling(self) -> Tiling | None:
        if self.tile is None:
            return None
        size = self._input_size()
        return Tiling(size, min(size) // 4 if self.overlap is None else self.overlap)

    @property
    def _seed(self) -> int:
        return int(getattr(self._auto or self.method_, "seed", 0)) if self.seed is None else self.seed

    @property
    def _calibrator(self) -> Calibrator:
        return Calibrator(
            false_alarm_rate=self.false_alarm_rate, certain=self.certain, localiser=self.localiser,
            in_groups=self.group_by is not None or self.part_by is not None,
        )  # fmt: skip

    def _read_roi(self) -> Region | None:
        return None if self.roi is None else Region.read(self.roi, max_pixels=self.max_pixels)

    @property
    def _is_reduced(self) -> bool:
        return self._auto is None and running.is_reduced(self.method_, self.runtime)
