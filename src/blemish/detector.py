"""The front door: preprocessing + method + calibration, with `fit`, `predict`, `save` and `load`."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from . import persist
from .calibrate import Calibration, calibrate, require_images, with_margin
from .datasets.layouts import OneClass, open_dataset
from .errors import ArgumentError, DatasetError, ModelFileError, NotFittedError
from .features.backbones import Backbone, find_backbone
from .features.memory import FeatureMemory
from .features.weights import is_random
from .images.decode import MAX_PIXELS
from .images.preprocess import PRESETS, Preprocess
from .images.source import (
    Batches,
    ImageInput,
    ImageSource,
    InMemory,
    OnError,
    Skipped,
    as_source,
    find_highest_level,
    sources,
)  # fmt: skip
from .images.tiling import Tiling
from .methods import FeatureMethod, Incremental, Method
from .methods.registry import METHODS, find_method
from .ops.neighbours import Exact, IndexFactory
from .parameters import Parameterised, check_parameters, parameter, parameters_of, plain_parameters, read_plain
from .progress import Progress
from .types import Decision, ImageBatch, Scores, Size

_log = logging.getLogger("blemish")


@dataclass(kw_only=True)
class Detector(Parameterised):
    """Finds anomalous images after seeing normal ones.

    Parameters
    ----------
    method: the normality model, or its name (`blemish list methods`), which takes its defaults and `seed`.
    preprocess: `Preprocess`, or the name of a preset: `default` (256 x 256, nothing cropped), `paper` (256, crop 224).
    tile: side, or (height, width), in pixels of the tiles in which a large preprocessed image is learned and scored;
        None: in one piece. The image's score is that of its most anomalous tile.
    overlap: pixels by which tiles overlap at least; None: a quarter of a tile's shorter side.
    calibration: `split` holds out a seeded share of the normal images and gives p-values and a threshold;
        `none` fits on all of them and gives raw scores only.
    held_out: the share to hold out.
    false_alarm_rate: the share of normal images that may be called anomalous.
    seed: chooses the held-out images; None: the method's seed, so that it is given once.
    batch_size: images a forward pass.
    workers: decoding threads.
    on_error: at an unreadable file, `raise` an error, or `skip` it and count it.
    max_pixels: a file that claims more is refused, as a guard against decompression bombs.
    features: feature maps of all images that will come, made with the method's backbone and weights: they are read
        instead of the images. Not part of a model file.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    >>> detector = Detector(method="padim", preprocess=Preprocess(64), false_alarm_rate=0.2)
    >>> decision = next(detector.fit(images).predict(images[:1]))
    >>> decision.map.shape, decision.is_anomalous
    ((64, 64), False)
    """

    method: Method | str = "padim"
    preprocess: Preprocess | Literal["default", "paper"] = "default"
    tile: int | tuple[int, int] | None = parameter(None, at_least=1)
    overlap: int | None = parameter(None, at_least=0)
    calibration: Literal["split", "none"] = "split"
    held_out: float = parameter(0.2, above=0, below=1)
    false_alarm_rate: float = parameter(0.05, above=0, below=1)
    seed: int | None = None
    batch_size: int = parameter(8, at_least=1)
    workers: int = parameter(2, at_least=1, role="place")
    on_error: OnError = parameter("raise", role="place")
    max_pixels: int = parameter(MAX_PIXELS, at_least=1, role="place")
    features: FeatureMemory | None = field(default=None, repr=False, metadata={"role": "place"})

    calibration_: Calibration | None = field(default=None, init=False, repr=False)
    images_: int = field(default=0, init=False, repr=False)
    """Normal images that the method learned from; the held-out ones come on top."""
    skipped_: list[Skipped] = field(default_factory=list, init=False, repr=False)
    """Files that the latest `fit` or `predict` left out."""
    _white_level: float | None = field(default=None, init=False, repr=False, compare=False)
    _named: Method | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def method_(self) -> Method:
        """The method as an object: `method` itself, or what its name stands for."""
        if not isinstance(self.method, str):
            return self.method
        if self._named is None:
            kind = find_method(self.method)
            self._named = kind(**{} if self.seed is None or "seed" not in parameters_of(kind) else {"seed": self.seed})
        return self._named

    def check(self) -> None:
        """Refuse wrong parameters; `fit` does so before the work. Raises `ArgumentError`."""
        check_parameters(self)
        if self.overlap is not None and self.tile is None:
            raise ArgumentError.about("overlap", expected="None without tiles", got=self.overlap, instead="Give tile.")

    def fit(self, images: ImageInput, *, progress: Progress | None = None) -> Detector:
        """Learn from normal images: a folder, or what `as_source` takes; forgets earlier fits.

        Raises `ArgumentError` for wrong parameters or images, `DatasetError` for a folder that is not understood,
        `CalibrationError` where the held-out images cannot support the false-alarm rate, `ImageError` for an unreadable
        file (unless `on_error="skip"`), `WeightsError`, `NotEnoughMemoryError` before the work begins, and
        `TrainingError` from methods that train.
        """
        self.check()
        self.calibration_, self.images_, self._named, self._white_level = None, 0, None, None
        train, held_out = self._split(self._normal_images(images))
        self._look_at_levels(train)
        if held_out is not None and self.on_error == "skip":
            self._require_readable(held_out)
        batches = self._batches(train, learn=True)
        self.method_.fit(self._tiled(_Reporting(batches, "fit", progress)))
        self.images_ = len(train) - len(batches.skipped)
        self.skipped_ = list(batches.skipped)
        if held_out is not None:
            self._calibrate(held_out, progress)
        return self

    def recalibrate(self, false_alarm_rate: float) -> Detector:
        """Choose another false-alarm rate; the held-out scores are at hand, so nothing is fitted again.

        Raises `NotFittedError` without a calibration, and `CalibrationError` where its images cannot support the rate.
        """
        if self.calibration_ is None:
            raise NotFittedError("Detector.recalibrate needs a calibrated detector. Fit with calibration='split'.")
        self.calibration_ = calibrate(self.calibration_.scores, false_alarm_rate=false_alarm_rate)
        self.false_alarm_rate = false_alarm_rate
        return self

    def update(
        self, images: ImageInput, *, held_out: ImageInput | None = None, progress: Progress | None = None
    ) -> Detector:
        """Learn from further normal images without a refit, for methods that can.

        The old calibration belongs to the old model and is dropped; `held_out` normal images make a new one. Raises
        `ArgumentError` where the method cannot be updated, and what `fit` raises.
        """
        self.check()
        method = self.method_
        if not isinstance(method, Incremental):
            able = ", ".join(name for name, method in METHODS.items() if issubclass(method, Incremental))
            raise ArgumentError.about(
                "method", expected=f"one that can be updated ({able})", got=method.name, instead="Fit again."
            )
        if held_out is not None:
            require_images(len(self._normal_images(held_out)), self.false_alarm_rate)
        batches = self._batches(_not_empty(self._normal_images(images)), learn=True)
        method.partial_fit(self._tiled(_Reporting(batches, "update", progress)))
        self.images_ += len(batches) - len(batches.skipped)
        self.skipped_ = list(batches.skipped)
        self.calibration_ = None
        if held_out is not None:
            self._calibrate(self._normal_images(held_out), progress)
        return self

    def predict(
        self, images: ImageInput | Iterable[str | Path | InMemory], *, progress: Progress | None = None
    ) -> Iterator[Decision]:
        """Judge images: a generator of one `Decision` each, in order and as they are done; nothing runs before `next`.

        An iterator, such as one over a camera, is read `batch_size` images at a time and may never end.

        Raises `NotFittedError`, `ArgumentError` for images or weights that give no finite score, and `ImageError` for
        an unreadable file (unless `on_error="skip"`: then `skipped_` names it).
        """
        preprocess = self.preprocessing
        for batch, scores in self.score(images, progress=progress):
            maps = None if scores.maps is None else scores.maps.cpu()
            p_values = [None] * len(batch) if scores.p_values is None else scores.p_values.tolist()
            for i, (name, size, score) in enumerate(zip(batch.names, batch.sizes, scores.images.tolist(), strict=True)):
                map = None if maps is None else preprocess.to_original(maps[i], size)
                yield self.decide(name, score, map, p_values[i])

    def score(
        self, images: ImageInput | Iterable[str | Path | InMemory], *, progress: Progress | None = None
    ) -> Iterator[tuple[ImageBatch, Scores]]:
        """Give raw scores batch by batch, with maps at the size of the network's input; a generator like `predict`."""
        self.skipped_, found = [], 0
        for source in sources(images, at_once=self.batch_size, max_pixels=self.max_pixels):
            found += len(source)
            batches, before = self._batches(source), self.skipped_
            for pair in self._score_all(batches, progress):
                self.skipped_ = before + batches.skipped
                yield pair
            self.skipped_ = before + batches.skipped
        if not found:
            raise _nothing()

    def _score_all(self, batches: Batches, progress: Progress | None) -> Iterator[tuple[ImageBatch, Scores]]:
        for batch in _Reporting(batches, "predict", progress):
            scores = self._score(batch)
            if not torch.isfinite(scores.images).all():
                bad = [
                    name
                    for name, score in zip(batch.names, scores.images.tolist(), strict=True)
                    if not math.isfinite(score)
                ]
                raise ArgumentError.about(
                    "method",
                    expected="finite scores",
                    got=f"NaN or infinity for {', '.join(bad)}",
                    instead="Check the backbone's weights.",
                )
            yield batch, scores

    def decide(self, name: str, score: float, map: Any = None, model_p_value: float | None = None) -> Decision:
        """Turn a raw score into a decision."""
        c = self.calibration_
        if c is None:
            return Decision(name, score, map, None, None, model_p_value)
        return Decision(name, score, map, c.p_value(score), c.threshold, model_p_value)

    def save(self, path: str | Path) -> None:
        """Write everything, the backbone's parameters included, into one safetensors file.

        Raises `NotFittedError`, and `OutputError` where the file cannot be written.
        """
        if not self.images_:
            raise NotFittedError("Detector.save needs a fitted detector. Call fit(normal_images) first.")
        tensors = {f"method.{name}": tensor for name, tensor in self.method_.state().items()}
        if self.calibration_ is not None:
            tensors["calibration.scores"] = torch.from_numpy(self.calibration_.scores)
        persist.save(path, tensors, self.manifest())

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        backbone: Backbone | None = None,
        make_index: Callable[[str], IndexFactory] | None = None,
    ) -> Detector:
        """Read a detector; it scores exactly as the saved one.

        A custom `backbone` must be given again. `make_index` makes the index that the file names, where it is not
        the built-in one: `blemish.edges.faiss.index_from_name`. Raises `ModelFileError`.
        """
        tensors, manifest = persist.load(path)
        try:
            method = _read_method(path, manifest, device=device, backbone=backbone, make_index=make_index)
            settings = dict(manifest["detector"])
            resize, crop = (settings["preprocess"][name] for name in ("resize", "crop"))
            white = settings["preprocess"].get("white_level")
            settings["preprocess"] = Preprocess(tuple(resize) if isinstance(resize, list) else resize, crop, white)
            detector = cls(**read_plain(cls, {**settings, "method": method}, of="detector"))
            detector.images_ = manifest["images"]
        except (KeyError, TypeError, ArgumentError) as error:
            raise ModelFileError(f"{path}: not a model of this version of blemish ({error!r}). Fit again.") from error
        try:
            method.restore({k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")})
        except KeyError as error:
            raise ModelFileError(f"{path}: not a model of this version of blemish ({error!r}). Fit again.") from error
        if "calibration.scores" in tensors:
            scores = tensors["calibration.scores"].numpy()
            detector.calibration_ = calibrate(scores, false_alarm_rate=detector.false_alarm_rate)
        return detector

    def _split(self, source: ImageSource) -> tuple[ImageSource, ImageSource | None]:
        if not len(source):
            raise DatasetError.about("images", expected="normal images to fit on", got="none")
        if self.calibration == "none":
            return source, None
        train, held_out = source.split(self.held_out, seed=self._seed)
        require_images(len(held_out), self.false_alarm_rate)
        return train, held_out

    def _calibrate(self, held_out: ImageSource, progress: Progress | None) -> None:
        batches = self._batches(held_out, learn=True)
        scores: list[float] = []
        for batch in _Reporting(batches, "calibrate", progress):
            scores += self._score(batch).images.tolist()
        self.skipped_ += batches.skipped
        self.calibration_ = calibrate(with_margin(scores), false_alarm_rate=self.false_alarm_rate)

    def _look_at_levels(self, train: ImageSource) -> None:
        """Find the white level where it shall be found, and warn where it is likely not the file's own."""
        wanted = self._preset.white_level
        found = None if self.features is not None or wanted not in (None, "auto") else find_highest_level(train)
        if found is None:
            return
        highest, full = found
        bits = max(8, highest.bit_length())
        if wanted == "auto":
            self._white_level = min(full, 2**bits - 1)
            _log.warning("White level %d: the first images have levels up to %d.", self._white_level, highest)
        elif highest < full / 4:
            _log.warning(
                "The first images have levels up to %d of %d, so all look dark. If the camera has %d bits, say "
                "white_level=%d (--white-level %d).",
                *(highest, full, bits, 2**bits - 1, 2**bits - 1),
            )

    def _require_readable(self, held_out: ImageSource) -> None:
        """Find out before the fit, not after it, that too few held-out files can be read."""
        batches = self._batches(held_out, learn=True)
        require_images(sum(len(batch) for batch in batches), self.false_alarm_rate)

    def _normal_images(self, images: ImageInput) -> ImageSource:
        """A folder in a known layout gives its normal training images, never its test images or masks."""
        if isinstance(images, str | Path) and (Path(images).is_dir() or OneClass.spelled(images)):
            return open_dataset(images).train_images(max_pixels=self.max_pixels)
        return as_source(images, max_pixels=self.max_pixels)

    def _batches(self, source: ImageSource, *, learn: bool = False) -> Batches:
        batch_size = self.batch_size if self.tile is None else 1  # a large image is a batch of tiles by itself
        if self.features is not None:
            self._require_own(self.features)
        return Batches(
            source,
            self.preprocessing,
            batch_size,
            self.workers,
            self.on_error,
            features=self.features,
            refuse_constant=learn,
        )

    def _require_own(self, features: FeatureMemory) -> None:
        """Refuse the features of another network: no shape would tell."""
        if self.tile is not None:
            raise ArgumentError.about("tile", expected="None with the features of whole images", got=self.tile)
        method = self.method_
        if not isinstance(method, FeatureMethod):
            raise ArgumentError.about("method", expected="one that reads features", got=method.name)
        own = find_backbone(method.backbone).name, method.precision
        if own != (features.backbone, features.precision):
            raise ArgumentError.about(
                "features", expected=f"those of {' in '.join(own)}", got=f"{features.backbone} in {features.precision}"
            )

    @property
    def _seed(self) -> int:
        return int(getattr(self.method_, "seed", 0)) if self.seed is None else self.seed

    @property
    def _tiling(self) -> Tiling | None:
        if self.tile is None:
            return None
        height, width = self.tile if isinstance(self.tile, tuple) else (self.tile, self.tile)
        return Tiling((height, width), min(height, width) // 4 if self.overlap is None else self.overlap)

    def _tiled(self, batches: _Reporting) -> _Reporting | _Tiles:
        tiling = self._tiling
        return batches if tiling is None else _Tiles(batches, tiling, self.preprocessing.size, self.batch_size)

    def _score(self, batch: ImageBatch) -> Scores:
        tiling = self._tiling
        if tiling is None:
            return self.method_.score(batch)
        size = (batch.pixels.shape[2], batch.pixels.shape[3])
        return tiling.join([self.method_.score(tiles) for tiles in tiling.cut(batch, at_once=self.batch_size)], size)

    @property
    def preprocessing(self) -> Preprocess:
        """How images are prepared: `preprocess`, with a preset's name looked up, and the white level that was found."""
        preset = self._preset
        return replace(preset, white_level=self._white_level) if preset.white_level == "auto" else preset

    @property
    def _preset(self) -> Preprocess:
        if isinstance(self.preprocess, Preprocess):
            return self.preprocess
        parameters_of(Detector)["preprocess"].check(self.preprocess)
        return PRESETS[self.preprocess]

    def manifest(self) -> persist.Manifest:
        """What the model file says about itself: parameters, settings, versions; JSON types only."""
        preprocess, parameters = self.preprocessing, plain_parameters(self.method_)
        if is_random(getattr(self.method_, "weights", None)):
            parameters["weights"] = "random"  # then the seed says which, wherever the model is
        settings = plain_parameters(self)
        del settings["method"]
        return {
            "method": self.method_.name,
            "parameters": parameters,
            "images": self.images_,
            "detector": settings
            | {
                "preprocess": {"resize": preprocess.resize, "crop": preprocess.crop}
                | ({} if preprocess.white_level is None else {"white_level": preprocess.white_level}),
                "false_alarm_rate": self.calibration_.false_alarm_rate if self.calibration_ else self.false_alarm_rate,
                "seed": self._seed,
            },
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("blemish", "torch", "torchvision", "numpy")},
            },
        }


def _nothing() -> ArgumentError:
    return ArgumentError.about("images", expected="at least one image", got="none")


def _not_empty(source: ImageSource) -> ImageSource:
    if not len(source):
        raise _nothing()
    return source


def _read_method(
    path: str | Path,
    manifest: Mapping[str, Any],
    *,
    device: str,
    backbone: Backbone | None,
    make_index: Callable[[str], IndexFactory] | None,
) -> Method:
    """The method that a model file describes, not yet restored."""
    name, parameters = manifest["method"], dict(manifest["parameters"])
    if name not in METHODS:
        raise ModelFileError(f"{path}: method {name} is not known here. Known: {', '.join(METHODS)}.")
    stored = parameters.get("backbone", "")
    if stored.startswith("custom:") and (backbone is None or backbone.name != stored):
        raise ModelFileError(
            f"{path}: fitted on the network {stored}. Pass it again: "
            f"Detector.load(path, backbone=custom_backbone(module, name={stored.removeprefix('custom:')!r}, ...))."
        )
    if stored and backbone is not None:
        parameters["backbone"] = backbone
    if parameters.get("index") is not None:
        parameters["index"] = _read_index(path, parameters["index"], make_index)
    return METHODS[name](**read_plain(METHODS[name], parameters | {"device": device}, of="parameters"))


def _read_index(path: str | Path, name: str, make_index: Callable[[str], IndexFactory] | None) -> IndexFactory:
    kind, _, storage = name.partition(":")
    if kind == "exact":
        return Exact(**{"storage": storage} if storage else {})  # type: ignore[arg-type]
    if make_index is None:
        raise ModelFileError(
            f"{path}: fitted with the index {name}. Pass what makes it: "
            "Detector.load(path, make_index=blemish.edges.faiss.index_from_name)."
        )
    return make_index(name)


class _Reporting:
    """Batches that report progress as they are taken."""

    def __init__(self, batches: Batches, stage: str, progress: Progress | None) -> None:
        self._batches, self._stage, self._progress = batches, stage, progress

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[ImageBatch]:
        done = 0
        for batch in self._batches:
            yield batch
            done += len(batch)
            if self._progress is not None:
                self._progress(self._stage, done, len(self._batches))


class _Tiles:
    """The tiles of all images, as batches of their own."""

    def __init__(self, batches: _Reporting, tiling: Tiling, size: Size, at_once: int) -> None:
        self._batches, self._tiling, self._at_once = batches, tiling, at_once
        self._each = len(tiling.corners(size))

    def __len__(self) -> int:
        return len(self._batches) * self._each

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self._batches:
            yield from self._tiling.cut(batch, at_once=self._at_once)
