"""The front door: preprocessing + method + calibration, with `fit`, `predict`, `save` and `load`."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from . import persist
from .calibrate import Calibration, calibrate, require_images, with_margin
from .datasets.layouts import OneClass, open_dataset
from .device import find_device
from .errors import (
    ArgumentError,
    BlemishError,
    CalibrationError,
    DatasetError,
    MissingPackageError,
    ModelFileError,
    NotEnoughMemoryError,
    NotFittedError,
)
from .features.backbones import Backbone, find_backbone
from .features.memory import FeatureMemory
from .features.weights import is_random
from .images.decode import MAX_PIXELS
from .images.digest import with_digests
from .images.groups import GroupBy, find_groups, hold_out, join_groups
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

_MOST_PIXELS = 1 << 28
"""Of one batch: 3.2 GB in float32. A parameter, perhaps out of a file, must not be able to ask for any memory."""


@dataclass(kw_only=True)
class ModelManifest:
    """What the manifest of a model file holds, beside its format and its digest: every key, and no other.

    The optional sections are for what a later version may add; this one passes them over.

    Parameters
    ----------
    method: the method's name in the registry.
    parameters: of the method, those of the role `model`.
    images: how many normal images it has learned from.
    excluded: how many normal images a fit was told to leave out.
    detector: the detector's own parameters of the role `model`.
    versions: of Python and the packages that wrote the file.
    digests: of what was learned, by name.
    sums: over what was learned, by name.
    left_out: about scores of normal images by models that were fitted without them.
    runtime: how another program shall run the model.
    """

    method: str
    parameters: dict[str, Any]
    images: int = parameter(at_least=1)
    excluded: int = parameter(0, at_least=0)
    detector: dict[str, Any]
    versions: dict[str, str]
    digests: dict[str, Any] | None = None
    sums: dict[str, Any] | None = None
    left_out: dict[str, Any] | None = None
    runtime: dict[str, Any] | None = None


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
    group_by: what says which images belong together, such as a burst, a part or a recording: a regular expression on
        the path below the data set's folder, whose first group is the key, or a function from that path to the key.
        Groups are held out whole, and the promised rate counts groups: it is that of one image of a new group.
        Copies of one picture always are a group.
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
    group_by: GroupBy | None = parameter(None, role="place")
    max_pixels: int = parameter(MAX_PIXELS, at_least=1, role="place")
    features: FeatureMemory | None = field(default=None, repr=False, metadata={"role": "place"})

    calibration_: Calibration | None = field(default=None, init=False, repr=False)
    images_: int = field(default=0, init=False, repr=False)
    """Normal images that the method learned from; the held-out ones come on top."""
    skipped_: list[Skipped] = field(default_factory=list, init=False, repr=False)
    """Files that the latest `fit` or `predict` left out."""
    excluded_: int = field(default=0, init=False, repr=False)
    """Images that `fit` was told to leave out."""
    learned_: frozenset[int] = field(default=frozenset(), init=False, repr=False)
    """Digests (`images.digest.pixel_digest`) of the pictures that the method learned from."""
    calibrated_on_: frozenset[int] = field(default=frozenset(), init=False, repr=False)
    """Digests of the held-out pictures."""
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
        height, width = self._input_size()
        if self.tile is not None and (height > self.preprocessing.size[0] or width > self.preprocessing.size[1]):
            pixels = " x ".join(map(str, dict.fromkeys(self.preprocessing.size)))
            raise ArgumentError.about(
                "tile", expected=f"at most the preprocessed image's {pixels} pixels", got=self.tile
            )
        whole, batch = math.prod(self.preprocessing.size), self.batch_size * height * width
        if max(whole, batch) > _MOST_PIXELS:
            raise ArgumentError.about(
                "batch_size", expected=f"batches of at most {_MOST_PIXELS} pixels",
                got=f"{self.batch_size} images of {height} x {width}", instead="Give smaller images, or tiles.",
            )  # fmt: skip

    def fit(self, images: ImageInput, *, exclude: Collection[str] = (), progress: Progress | None = None) -> Detector:
        """Learn from normal images: a folder, or what `as_source` takes; forgets earlier fits.

        `exclude` leaves images out, by their path below the folder, or by name. Raises `ArgumentError` for wrong
        parameters or images, `DatasetError` for a folder that is not understood, `CalibrationError` where the held-out
        images cannot support the false-alarm rate, `ImageError` for an unreadable file (unless `on_error="skip"`),
        `WeightsError`, `NotEnoughMemoryError` before the work begins, and `TrainingError` from methods that train.
        """
        self.check()
        self.calibration_, self.images_, self._named, self._white_level = None, 0, None, None
        self.learned_ = self.calibrated_on_ = frozenset()
        source = self._normal_images(images)
        kept = _without(source, source.paths(), exclude)
        self.excluded_ = len(source) - len(kept)
        train, held_out = self._split(kept)
        self._look_at_levels(train)
        if held_out is not None and self.on_error == "skip":
            self._require_readable(held_out)
        train, digests = with_digests(train)
        batches = self._batches(train, learn=True)
        self.method_.fit(self._tiled(_Reporting(batches, "fit", progress)))
        self.images_ = len(train) - len(batches.skipped)
        self.learned_ = frozenset(digests.values())
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
        known = self.calibration_
        self.calibration_ = calibrate(known.scores, false_alarm_rate=false_alarm_rate, groups=known.groups)
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
        fresh = None if held_out is None else self._grouped(self._normal_images(held_out))
        if fresh is not None:
            self._require(fresh.groups)
        source, digests = with_digests(_not_empty(self._normal_images(images)))
        batches = self._batches(source, learn=True)
        method.partial_fit(self._tiled(_Reporting(batches, "update", progress)))
        self.images_ += len(batches) - len(batches.skipped)
        self.skipped_ = list(batches.skipped)
        self.learned_ |= frozenset(digests.values())
        self.calibration_, self.calibrated_on_ = None, frozenset()
        if fresh is not None:
            self._calibrate(fresh, progress)
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
        persist.save(path, tensors | self._memory(), self.manifest())

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
        find_device(device)  # where the device is wrong, the file is not to blame
        with _blaming(path, backbone):
            persist.check_finite(tensors)
            about = ModelManifest(**read_plain(ModelManifest, _sections(manifest), of="manifest"))
            complete = manifest["format"] > 2 and about.versions.get("blemish") == version("blemish")
            method = _read_method(about, complete=complete, device=device, backbone=backbone, index=make_index)
            detector = cls(method=method, **_read_settings(about.detector, complete=complete))
            detector.images_, detector.excluded_ = about.images, about.excluded
            detector.check()
            detector._restore(tensors)
        return detector

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `save` wrote; refuse what does not fit, or would only fail at the first prediction."""
        learned = _below(tensors, "method.")
        self._remember({name: value for name, value in tensors.items() if not name.startswith("method.")})
        self.method_.restore(learned)
        _check_same(learned, self.method_.state())
        if isinstance(self.method_, FeatureMethod):  # what was learned and the network's features must fit together
            size = self._input_size()
            blank = ImageBatch(torch.zeros(1, 3, *size), ("blank",), (size,))
            if not bool(torch.isfinite(self.method_.score(blank).images).all()):
                raise ModelFileError("gives NaN or infinity for a black image.")

    def _input_size(self) -> Size:
        """`(height, width)` of what the method sees: of a tile, or of the whole image."""
        if self.tile is None:
            return self.preprocessing.size
        return self.tile if isinstance(self.tile, tuple) else (self.tile, self.tile)

    def _memory(self) -> dict[str, torch.Tensor]:
        """What a model file keeps of the pictures: which were learned, which set the threshold, and their groups."""
        digests = {"learned.digests": self.learned_, "calibration.digests": self.calibrated_on_}
        kept = {name: torch.tensor(sorted(found)) for name, found in digests.items() if found}
        if self.calibration_ is not None and self.calibration_.groups is not None:
            kept["calibration.groups"] = torch.from_numpy(self.calibration_.groups)
        return kept

    def _remember(self, kept: Mapping[str, torch.Tensor]) -> None:
        # An update drops the calibration, so that also a detector with `split` may have none.
        forms = {"learned.digests?": "int64 n", "calibration.digests?": "int64 m"}
        persist.check_tensors(kept, forms | {"calibration.scores?": "float64 k", "calibration.groups?": "int64 k"})
        none = torch.tensor([], dtype=torch.int64)
        self.learned_ = frozenset(kept.get("learned.digests", none).tolist())
        self.calibrated_on_ = frozenset(kept.get("calibration.digests", none).tolist())
        if "calibration.scores" in kept:
            values, groups = kept["calibration.scores"].numpy(), kept.get("calibration.groups")
            self.calibration_ = calibrate(
                values, false_alarm_rate=self.false_alarm_rate, groups=None if groups is None else groups.numpy()
            )
            if (values != self.calibration_.scores).any():
                raise ModelFileError("tensor calibration.scores: not in ascending order.")

    def _split(self, source: ImageSource) -> tuple[ImageSource, _Grouped | None]:
        if not len(source):
            raise DatasetError.about("images", expected="normal images to fit on", got="none")
        if self.calibration == "none":
            return source, None
        grouped = self._grouped(source)
        train, held_out = hold_out(grouped.groups, self.held_out, seed=self._seed)
        chosen = _Grouped(source.subset(held_out), [grouped.groups[i] for i in held_out])
        self._require(chosen.groups)
        return source.subset(train), chosen

    def _grouped(self, source: ImageSource) -> _Grouped:
        return _Grouped(source, find_groups(source, source.paths(), self.group_by))

    def _require(self, groups: Sequence[int]) -> None:
        """Refuse too few groups, which are images where none belong together."""
        count = len(set(groups))
        alone = count == len(groups) and self.group_by is None
        of = "normal images" if alone else "groups of normal images"
        require_images(count, self.false_alarm_rate, of=of)

    def _calibrate(self, held_out: _Grouped, progress: Progress | None) -> None:
        source, digests = with_digests(held_out.source)
        batches = self._batches(source, learn=True)
        found: list[tuple[str, float]] = []
        for batch in _Reporting(batches, "calibrate", progress):
            found += zip(batch.names, self._score(batch).images.tolist(), strict=True)
        self.skipped_ += batches.skipped
        group_of = dict(zip(source.names, held_out.groups, strict=True))
        fresh = [(name, score) for name, score in found if digests.get(name) not in self.learned_]
        if len(fresh) < len(found):
            _log.warning(
                "%d held-out pictures were learned as well, from files of another kind: they do not count. "
                "`blemish inspect` names them.", len(found) - len(fresh),
            )  # fmt: skip
        groups = join_groups([group_of[name] for name, _ in fresh], [digests.get(name, name) for name, _ in fresh])
        self.calibrated_on_ = frozenset(digests.values()) - self.learned_
        scores = [score for _, score in fresh]
        self._require(groups)
        _require_differences(scores)
        self.calibration_ = calibrate(with_margin(scores), false_alarm_rate=self.false_alarm_rate, groups=groups)

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

    def _require_readable(self, held_out: _Grouped) -> None:
        """Find out before the fit, not after it, that too few held-out files can be read."""
        group_of = dict(zip(held_out.source.names, held_out.groups, strict=True))
        self._require([group_of[name] for batch in self._batches(held_out.source, learn=True) for name in batch.names])

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
            "excluded": self.excluded_,
            "detector": settings
            | {
                "preprocess": {name: getattr(preprocess, name) for name in ("resize", "crop", "white_level")},
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


@contextmanager
def _blaming(path: str | Path, backbone: Backbone | None) -> Iterator[None]:
    """Whatever goes wrong while a file is taken apart is the file's fault; says so, and in which file."""
    try:
        yield
    except (MissingPackageError, NotEnoughMemoryError, torch.OutOfMemoryError, NameError):  # a NameError is ours
        raise
    except BlemishError as error:
        if backbone is not None and not isinstance(error, ModelFileError):
            raise ArgumentError.about(
                "backbone", expected=f"the network with which {path} was fitted", got=f"another one ({error})"
            ) from error
        raise ModelFileError(f"{path}: {_printable(str(error))}") from error
    except Exception as error:  # of a method's `restore`, which may come from outside, and fail in any way
        reason = f"{type(error).__name__}: {_printable(str(error))}"
        raise ModelFileError(f"{path}: not a model of this version of blemish ({reason}). Fit again.") from error


def _printable(text: str) -> str:
    """A file's names and texts reach the terminal in a message: no control characters, and not too many."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:2000])


def _read_stored(
    kind: type, values: Mapping[str, Any], *, of: str, complete: bool, without: Collection[str] = ()
) -> dict[str, Any]:
    """Parameters of a file: what is learned, never a place on a disk or a number of threads.

    A file of another version may lack parameters that are new since, which take their defaults.
    """
    known = parameters_of(kind)
    places = [name for name in values if name in known and known[name].role == "place"]
    for name in places:
        if complete and (name, values[name]) != ("weights", "random"):
            raise ArgumentError.about(of, expected="no parameter of the place", got=name)
    kept = {name: value for name, value in values.items() if name not in (*places, *without)}
    if values.get("weights") == "random" and "weights" in places:
        kept["weights"] = "random"
    return read_plain(kind, kept, of=of, complete=complete, without=without)


def _sections(manifest: persist.Manifest) -> dict[str, Any]:
    """What is the detector's own in a manifest."""
    for name in ("method", "parameters"):
        if name not in manifest:
            raise ModelFileError(f"not a detector's model file: its manifest has no {name}.")
    return {key: value for key, value in manifest.items() if key not in ("format", "digest")}


def _read_settings(settings: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """A detector's own parameters."""
    if "method" in settings:
        raise ArgumentError.about("detector", expected="the method beside it", got="method in it")
    found = _read_stored(Detector, settings, of="detector", complete=complete, without=("method", "preprocess"))
    pixels = settings.get("preprocess")
    if not isinstance(pixels, dict):
        raise ArgumentError.about("detector: preprocess", expected="resize and crop", got=pixels)
    return found | {"preprocess": Preprocess(**read_plain(Preprocess, pixels, of="preprocess", complete=complete))}


def _without(source: ImageSource, paths: Sequence[str], exclude: Collection[str]) -> ImageSource:
    """All images but those that are named, by path or by name; a name that is not there is a mistake."""
    if not exclude:
        return source
    wanted = {Path(name).as_posix() for name in exclude}
    both = list(zip(paths, (Path(name).as_posix() for name in source.names), strict=True))
    missing = wanted.difference(*both)
    if missing:
        raise ArgumentError.about("exclude", expected="names of normal training images", got=min(missing))
    return source.subset([i for i, names in enumerate(both) if wanted.isdisjoint(names)])


def _require_differences(scores: Sequence[float]) -> None:
    if len(scores) > 1 and len(set(scores)) == 1:
        raise CalibrationError(
            f"all {len(scores)} held-out normal images have the score {scores[0]:g}: no threshold can be told from it. "
            "Either they show the same, or the method sees no difference. `blemish inspect DATA` names identical and "
            "constant pictures."
        )


def _read_method(
    about: ModelManifest,
    *,
    complete: bool,
    device: str,
    backbone: Backbone | None,
    index: Callable[[str], IndexFactory] | None,
) -> Method:
    """The method that a model file describes, not yet restored."""
    name, parameters = about.method, dict(about.parameters)
    if name not in METHODS:
        raise ModelFileError(f"method {name[:40]} is not known here. Known: {', '.join(METHODS)}.")
    stored = parameters.get("backbone")
    if isinstance(stored, str) and stored.startswith("custom:") and (backbone is None or backbone.name != stored):
        raise ModelFileError(
            f"fitted on the network {stored}. Pass it again: "
            f"Detector.load(path, backbone=custom_backbone(module, name={stored.removeprefix('custom:')!r}, ...))."
        )
    if stored and backbone is not None:
        parameters["backbone"] = backbone
    if parameters.get("index") is not None:
        parameters["index"] = _read_index(parameters["index"], index)
    kind = METHODS[name]
    method = kind(**_read_stored(kind, parameters, of="parameters", complete=complete))
    method.set_params(device=device)
    method.check()
    return method


def _check_same(stored: Mapping[str, torch.Tensor], taken: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that a method passed over, or took for something else: it hands out what it took."""
    for name in stored.keys() | taken.keys():
        if name not in stored or name not in taken:
            raise ModelFileError(f"tensor method.{name}: {'missing' if name in taken else 'not expected here'}.")
        if (stored[name].dtype, stored[name].shape) != (taken[name].dtype, taken[name].shape):
            raise ModelFileError.about(
                f"tensor method.{name}", expected=_spelled(taken[name]), got=_spelled(stored[name])
            )


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _spelled(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _read_index(name: object, make_index: Callable[[str], IndexFactory] | None) -> IndexFactory:
    if not isinstance(name, str):
        raise ArgumentError.about("parameters: index", expected="a text", got=name)
    kind, _, storage = name.partition(":")
    if kind == "exact":
        return Exact(**{"storage": storage} if storage else {})  # type: ignore[arg-type]
    if make_index is None:
        raise ModelFileError(
            f"fitted with the index {name}. Pass what makes it: "
            "Detector.load(path, make_index=blemish.edges.faiss.index_from_name)."
        )
    return make_index(name)


@dataclass(frozen=True)
class _Grouped:
    """Images, and the number of the group of each."""

    source: ImageSource
    groups: Sequence[int]


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
