"""The front door: preprocessing + method + calibration, with `fit`, `predict`, `save` and `load`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import model_file, persist
from .calibrate import Calibration, calibrate, images_needed, require_differences, require_images, with_margin
from .choosing.auto import Auto
from .choosing.candidates import Candidate
from .choosing.choose import Choice, compare
from .datasets.layouts import normal_images
from .datasets.region import Region
from .device import find_device
from .errors import (
    ArgumentError,
    DatasetError,
    NotFittedError,
)
from .features.backbones import Backbone, find_backbone
from .features.memory import FeatureMemory
from .images.decode import MAX_PIXELS
from .images.digest import with_digests
from .images.groups import GroupBy, Grouped, find_groups, hold_out, join_groups, read_pattern, without_copies
from .images.preprocess import Preprocess
from .images.settle import settle
from .images.source import (
    Batches,
    ImageInput,
    ImageSource,
    InMemory,
    OnError,
    Reporting,
    Skipped,
    sources,
    within,
)  # fmt: skip
from .images.tiling import Tiles, Tiling, scored_inside
from .localise import Localiser
from .methods import FeatureMethod, Incremental, Method
from .methods.registry import METHODS, find_method
from .ops.neighbours import IndexFactory
from .parameters import Parameterised, check_parameters, parameter, parameters_of, plain_parameters
from .presets import find_preset
from .progress import Progress
from .tensors import below, check_finite
from .types import AnomalousRegion, Decision, ImageBatch, Scores, Size

_MOST_PIXELS = 1 << 28
"""Of one batch: 3.2 GB in float32. A parameter, perhaps out of a file, must not be able to ask for any memory."""


_log = logging.getLogger("blemish")


@dataclass(kw_only=True)
class Detector(Parameterised):
    """Finds anomalous images after seeing normal ones.

    Parameters
    ----------
    method: the normality model, or its name (`blemish list methods`), which takes its defaults and `seed`; `auto`, or
        an `Auto`: the one that these normal images choose (docs/choose.md).
    preprocess: `Preprocess`, or the name of a preset, for its own: `default` (the images' own aspect ratio at the area
        of 256 x 256, nothing cropped), `paper` (256, crop 224).
    tile: side, or (height, width), in pixels of the tiles in which a large preprocessed image is learned and scored;
        None: in one piece. The image's score is that of its most anomalous tile.
    overlap: pixels by which tiles overlap at least; None: a quarter of a tile's shorter side.
    calibration: `split` holds out a seeded share of the normal images and gives p-values and a threshold;
        `none` fits on all of them and gives raw scores only.
    held_out: the share to hold out; None: a fifth, or as many as `false_alarm_rate` needs where a fifth is too few and
        at least as many remain to learn from.
    group_by: what says which images belong together, such as a burst, a part or a recording: a regular expression on
        the path below the data set's folder, whose first group is the key, or a function from that path to the key.
        Groups are held out whole, and the promised rate counts groups: it is that of one image of a new group.
        Copies of one picture always are a group.
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
    features: feature maps of all images that will come, made with the method's backbone and weights: they are read
        instead of the images. Not part of a model file.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    >>> detector = Detector(method="padim", preprocess=Preprocess(64), false_alarm_rate=0.2)
    >>> decision = next(detector.fit(images).predict(images[:1]))
    >>> decision.map.shape, decision.is_anomalous
    ((64, 64), False)
    """

    method: Method | Auto | str = "patchcore"
    preprocess: Preprocess | str = "default"
    tile: int | tuple[int, int] | None = parameter(None, at_least=1)
    overlap: int | None = parameter(None, at_least=0)
    calibration: Literal["split", "none"] = "split"
    held_out: float | None = parameter(None, above=0, below=1)
    false_alarm_rate: float = parameter(0.05, above=0, below=1)
    certain: float | None = parameter(None, above=0, below=1)
    min_area: int = parameter(1, at_least=1)
    seed: int | None = None
    batch_size: int = parameter(8, at_least=1)
    workers: int = parameter(2, at_least=1, role="place")
    on_error: OnError = parameter("raise", role="place")
    group_by: GroupBy | None = parameter(None, role="place")
    roi: Region | str | Path | np.ndarray[Any, Any] | None = parameter(None, role="place")
    max_pixels: int = parameter(MAX_PIXELS, at_least=1, role="place")
    features: FeatureMemory | None = field(default=None, repr=False, metadata={"role": "place"})

    calibration_: Calibration | None = field(default=None, init=False, repr=False)
    peaks_: Calibration | None = field(default=None, init=False, repr=False)
    """Of the peaks of held-out maps, for regions; None without maps, and from files that are older than regions."""
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
    chosen_: str = field(default="", init=False, repr=False)
    """Why `auto` took this method; empty for a method that was named."""
    _settled: Preprocess | None = field(default=None, init=False, repr=False, compare=False)
    region_: Region | None = field(default=None, init=False, repr=False, compare=False)
    """The region of interest of the latest fit, which a model file keeps."""
    _named: Method | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def preset(cls, name: str, *, method: str | None = None) -> Detector:
        """A detector as `blemish fit --preset NAME` makes it: `blemish list presets`.

        `method` is another one by name, where the preset leaves it open. Raises `ArgumentError`.

        >>> Detector.preset("few").method
        Subspace(..., turns=8, ...)
        """
        chosen = find_preset(name)
        kind, parameters = chosen.choose(method)
        return cls(
            method=kind(**parameters) if parameters else kind.name, preprocess=name, calibration=chosen.calibration
        )

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

    def check(self) -> None:
        """Refuse wrong parameters; `fit` does so before the work. Raises `ArgumentError`."""
        check_parameters(self)
        if isinstance(self.group_by, str):
            read_pattern(self.group_by)
        if self.roi is not None and self.features is not None:
            raise ArgumentError.about("roi", expected="None with the features of whole images", got=self.roi)
        if self.certain is not None and self.calibration == "none":
            raise ArgumentError.about(
                "certain", expected="None without calibration", got=self.certain, instead="Take calibration='split'."
            )
        if self.overlap is not None and self.tile is None:
            raise ArgumentError.about("overlap", expected="None without tiles", got=self.overlap, instead="Give tile.")
        if not isinstance(self.preprocessing.resize, str):
            self._check_size()

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

    def fit(self, images: ImageInput, *, exclude: Collection[str] = (), progress: Progress | None = None) -> Detector:
        """Learn from normal images: a folder, or what `as_source` takes; forgets earlier fits.

        `exclude` leaves images out, by their path below the folder, or by name. Raises `ArgumentError` for wrong
        parameters or images, `DatasetError` for a folder that is not understood, `CalibrationError` where the held-out
        images cannot support the false-alarm rate, `ImageError` for an unreadable file (unless `on_error="skip"`),
        `WeightsError`, `NotEnoughMemoryError` before the work begins, and `TrainingError` from methods that train.
        """
        self.check()
        self.calibration_, self.peaks_, self.images_, self._named, self._settled = None, None, 0, None, None
        self.learned_, self.calibrated_on_, self.chosen_ = frozenset(), frozenset(), ""
        self.region_ = None if self.roi is None else Region.read(self.roi, max_pixels=self.max_pixels)
        source = normal_images(images, max_pixels=self.max_pixels)
        kept = source.without(exclude)
        self.excluded_ = len(source) - len(kept)
        train, held_out = self._split(kept)
        self._settle(train)
        if held_out is not None and self.on_error == "skip":
            self._require_readable(held_out)
        train, digests = with_digests(train)
        known = None if self._auto is None else self._choose(self._auto, train, progress)
        batches = self._batches(train, learn=True)
        batches = batches if known is None else replace(batches, features=known)
        self.method_.fit(self._tiled(Reporting(batches, "fit", progress)))
        self.images_ = len(train) - len(batches.skipped)
        self.learned_ = frozenset(digests.values())
        self.skipped_ = list(batches.skipped)
        if held_out is not None:
            self._calibrate(held_out, progress)
        return self

    def choose(
        self,
        images: ImageInput,
        candidates: Sequence[Candidate] | None = None,
        *,
        exclude: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Choice:
        """Rank methods on the normal images of which `fit` would learn, and pick one; nothing is fitted in the end.

        `candidates` are those of the table where None, with the detector's preprocessing. The images that `fit` would
        hold out for its threshold, with the same settings, are not looked at. Raises what `choosing.choose` raises.
        """
        self.check()
        self._settled = None
        train, _ = self._split(normal_images(images, max_pixels=self.max_pixels).without(exclude))
        self._settle(train)
        auto = self._auto or Auto()
        rows = auto.candidates(self.preprocessing, seed=self._seed) if candidates is None else candidates
        groups = self._grouped(train).groups
        return compare(self._whole(train), rows, groups=groups, seed=self._seed, progress=progress)[0]

    def recalibrate(self, false_alarm_rate: float, *, certain: float | None = None) -> Detector:
        """Choose another false-alarm rate; the held-out scores are at hand, so nothing is fitted again.

        `certain` is another certainty; None keeps the detector's own, which `set_params(certain=None)` drops before.
        Raises `NotFittedError` without a calibration, and `CalibrationError` where its images cannot support the rate.
        """
        if self.calibration_ is None:
            raise NotFittedError("Detector.recalibrate needs a calibrated detector. Fit with calibration='split'.")
        certain = self.certain if certain is None else certain
        self.calibration_, self.peaks_ = (
            known and calibrate(known.scores, false_alarm_rate=false_alarm_rate, groups=known.groups, certain=certain)
            for known in (self.calibration_, self.peaks_)
        )
        self.false_alarm_rate, self.certain = false_alarm_rate, certain
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
        source = normal_images(images, max_pixels=self.max_pixels)
        _require_any(len(source))
        fresh = (
            None
            if held_out is None
            else without_copies(self._grouped(normal_images(held_out, max_pixels=self.max_pixels)), of=source)
        )
        if fresh is not None:
            self._require(fresh.groups)
        source, digests = with_digests(source)
        batches = self._batches(source, learn=True)
        method.partial_fit(self._tiled(Reporting(batches, "update", progress)))
        self.images_ += len(batches) - len(batches.skipped)
        self.skipped_ = list(batches.skipped)
        self.learned_ |= frozenset(digests.values())
        self.calibration_, self.peaks_, self.calibrated_on_ = None, None, frozenset()
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
            regions = self.regions(batch, scores)
            for i, (name, size, score) in enumerate(zip(batch.names, batch.sizes, scores.images.tolist(), strict=True)):
                region = None if batch.inside is None else batch.inside[i]
                map = None if maps is None else preprocess.to_original(maps[i], size, region)
                yield replace(self.decide(name, score, map, p_values[i]), regions=regions[i])

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
        _require_any(found)

    def _score_all(self, batches: Batches, progress: Progress | None) -> Iterator[tuple[ImageBatch, Scores]]:
        for batch in Reporting(batches, "predict", progress):
            scores = self._score(batch)
            bad = [name for name, score in zip(batch.names, scores.images.tolist(), strict=True) if not isfinite(score)]
            if bad:
                raise ArgumentError.about(
                    "method", expected="finite scores", got=f"NaN or infinity for {', '.join(bad)}",
                    instead="Check the backbone's weights.",
                )  # fmt: skip
            yield batch, scores

    def decide(self, name: str, score: float, map: Any = None, model_p_value: float | None = None) -> Decision:
        """Turn a raw score into a decision."""
        c = self.calibration_
        if c is None:
            return Decision(name, score, map, None, None, model_p_value)
        return Decision(name, score, map, c.p_value(score), c.threshold, model_p_value, c.promise)

    def regions(self, batch: ImageBatch, scores: Scores) -> list[tuple[AnomalousRegion, ...] | None]:
        """Where, for each image of a batch and the `scores` that `score` gave it; see `Decision.regions`."""
        return self.localiser.regions(batch, scores, self.peaks_)

    def save(self, path: str | Path) -> None:
        """Write everything, the backbone's parameters included, into one safetensors file.

        Raises `NotFittedError`, and `OutputError` where the file cannot be written.
        """
        if not self.images_:
            raise NotFittedError("Detector.save needs a fitted detector. Call fit(normal_images) first.")
        tensors = {f"method.{name}": tensor for name, tensor in self.method_.state().items()}
        seen = model_file.write_seen(self.learned_, self.calibrated_on_, self.calibration_, self.peaks_)
        seen |= {} if self.region_ is None else self.region_.state()
        persist.save(path, tensors | seen, self.manifest())

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
        with model_file.blaming(path, backbone):
            check_finite(tensors)
            about, complete = model_file.read_manifest(manifest)
            method = model_file.read_method(
                about, complete=complete, device=device, backbone=backbone, make_index=make_index
            )
            detector = cls(method=method, **model_file.read_settings(cls, about.detector, complete=complete))
            detector.images_, detector.excluded_, detector.chosen_ = about.images, about.excluded, about.chosen
            detector.check()
            seen = {name: tensor for name, tensor in tensors.items() if not name.startswith("method.")}
            region = {name: seen.pop(name) for name in [name for name in seen if name.startswith("region.")]}
            detector.region_ = Region.restore(region) if region else None
            kept = model_file.read_seen(seen, false_alarm_rate=detector.false_alarm_rate, certain=detector.certain)
            detector.learned_, detector.calibrated_on_, detector.calibration_, detector.peaks_ = kept
            model_file.restore_method(method, below(tensors, "method."), size=detector._input_size())
        return detector

    def _input_size(self) -> Size:
        """`(height, width)` of what the method sees: of a tile, or of the whole image."""
        if self.tile is None:
            return self.preprocessing.size
        return self.tile if isinstance(self.tile, tuple) else (self.tile, self.tile)

    def _split(self, source: ImageSource) -> tuple[ImageSource, Grouped | None]:
        if not len(source):
            raise DatasetError.about("images", expected="normal images to fit on", got="none")
        if self.calibration == "none":
            return source, None
        grouped = self._grouped(source)
        train, held_out = hold_out(grouped.groups, self._share_to_hold_out(grouped.groups), seed=self._seed)
        chosen = grouped.subset(held_out)
        self._require(chosen.groups, total=len(set(grouped.groups)))
        return source.subset(train), chosen

    def _share_to_hold_out(self, groups: Sequence[int]) -> float:
        if self.held_out is not None:
            return self.held_out
        needed = images_needed(self.false_alarm_rate, certain=self.certain) / (max(groups) + 1)
        return needed if 0.2 < needed <= 0.5 else 0.2

    def _choose(self, auto: Auto, train: ImageSource, progress: Progress | None) -> FeatureMemory | None:
        """Name the method, by images that are not held out; gives their feature maps where they were read."""
        comparable = self.tile is None and self.features is None
        self._named, self.chosen_, known = auto.choose(
            self._whole(train), self._grouped(train).groups, comparable=comparable, seed=self._seed, progress=progress
        )
        _log.info("chosen: %s", self.chosen_)
        return known

    def _settle(self, train: ImageSource) -> None:
        """Find in the images what the preprocessing leaves open."""
        backbone = getattr(self._auto or self.method_, "backbone", None)
        multiple = 16 if backbone is None else find_backbone(backbone).multiple
        self._settled = settle(
            self._preset, within(train, self.region_), multiple=multiple, levels=self.features is None
        )
        self._check_size()

    def _whole(self, source: ImageSource) -> Batches:
        """Images to be learned from, in one piece and from their files."""
        return Batches(
            source, self.preprocessing, self.batch_size, self.workers, self.on_error,
            refuse_constant=True, region=self._region,
        )  # fmt: skip

    def _grouped(self, source: ImageSource) -> Grouped:
        return Grouped(source, find_groups(source, source.paths(), self.group_by))

    def _require(self, groups: Sequence[int], *, total: int | None = None) -> None:
        """Refuse too few groups, which are images where none belong together."""
        count = len(set(groups))
        alone = count == len(groups) and self.group_by is None
        of = "normal images" if alone else "groups of normal images"
        require_images(count, self.false_alarm_rate, certain=self.certain, of=of, total=total)

    def _calibrate(self, held_out: Grouped, progress: Progress | None) -> None:
        source, digests = with_digests(held_out.source)
        batches = self._batches(source, learn=True)
        found: list[tuple[str, float]] = []
        peaks: dict[str, float] = {}
        for batch in Reporting(batches, "calibrate", progress):
            judged = self._score(batch)
            found += zip(batch.names, judged.images.tolist(), strict=True)
            peaks.update(zip(batch.names, self.localiser.peaks(batch, judged), strict=False))
        self.skipped_ += batches.skipped
        fresh = [(name, score) for name, score in found if digests.get(name) not in self.learned_]
        if len(fresh) < len(found):
            _log.warning(
                "%d held-out pictures were learned as well, from files of another kind: they do not count. "
                "`blemish inspect` names them.", len(found) - len(fresh),
            )  # fmt: skip
        groups = join_groups(held_out.of(name for name, _ in fresh), [digests.get(name, name) for name, _ in fresh])
        self.calibrated_on_ = frozenset(digests.values()) - self.learned_
        scores = [score for _, score in fresh]
        self._require(groups)
        require_differences(scores)
        self.calibration_ = self._calibrated(scores, groups)
        self.peaks_ = self._calibrated([peaks[name] for name, _ in fresh], groups) if peaks else None

    def _calibrated(self, values: list[float], groups: list[int]) -> Calibration:
        return calibrate(
            with_margin(values), false_alarm_rate=self.false_alarm_rate, groups=groups, certain=self.certain
        )

    def _require_readable(self, held_out: Grouped) -> None:
        """Find out before the fit, not after it, that too few held-out files can be read."""
        readable = (name for batch in self._batches(held_out.source, learn=True) for name in batch.names)
        self._require(held_out.of(readable))

    def _batches(self, source: ImageSource, *, learn: bool = False) -> Batches:
        batch_size = self.batch_size if self.tile is None else 1  # a large image is a batch of tiles by itself
        if self.features is not None:
            self._require_own(self.features)
        return Batches(
            source, self.preprocessing, batch_size, self.workers, self.on_error,
            features=self.features, refuse_constant=learn, region=self._region,
        )  # fmt: skip

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
    def _auto(self) -> Auto | None:
        return Auto() if self.method == "auto" else self.method if isinstance(self.method, Auto) else None

    @property
    def localiser(self) -> Localiser:
        return Localiser(self.preprocessing, self.min_area)

    @property
    def _region(self) -> Region | None:
        """Where to look; the folder of regions for each picture may have been given anew since the fit."""
        if self.region_ is None or self.region_.is_one or self.roi is None:
            return self.region_
        return Region.read(self.roi, max_pixels=self.max_pixels)

    @property
    def _seed(self) -> int:
        return int(getattr(self._auto or self.method_, "seed", 0)) if self.seed is None else self.seed

    @property
    def _tiling(self) -> Tiling | None:
        if self.tile is None:
            return None
        size = self._input_size()
        return Tiling(size, min(size) // 4 if self.overlap is None else self.overlap)

    def _tiled(self, batches: Reporting) -> Reporting | Tiles:
        tiling, size = self._tiling, self.preprocessing.size
        return batches if tiling is None else Tiles(batches, tiling, size=size, at_once=self.batch_size)

    def _score(self, batch: ImageBatch) -> Scores:
        tiling = self._tiling
        if tiling is None:
            return self.method_.score(batch)
        size = (batch.pixels.shape[2], batch.pixels.shape[3])
        cut = tiling.cut(batch, at_once=self.batch_size)
        return tiling.join([scored_inside(self.method_.score(tiles), tiles) for tiles in cut], size)

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

    def manifest(self) -> persist.Manifest:
        """What the model file says about itself: parameters, settings, versions; JSON types only."""
        preprocess, settings = self.preprocessing, plain_parameters(self)
        del settings["method"]
        return {
            **model_file.write_method(self.method_),
            "images": self.images_,
            "excluded": self.excluded_,
            "detector": settings
            | {
                "preprocess": {name: getattr(preprocess, name) for name in ("resize", "crop", "white_level")},
                "false_alarm_rate": self.calibration_.false_alarm_rate if self.calibration_ else self.false_alarm_rate,
                "certain": self.calibration_.certain if self.calibration_ else self.certain,
                "seed": self._seed,
            },
            "versions": model_file.versions(),
            **({"chosen": self.chosen_} if self.chosen_ else {}),
        }


def _require_any(images: int) -> None:
    if not images:
        raise ArgumentError.about("images", expected="at least one image", got="none")
