"""What a fitted detector is: what its fit left, how it judges, and how it is kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from . import model_file, persist
from .calibrate import Calibration
from .datasets.region import Region
from .device import find_device
from .discoveries import BatchAlarms, choose_alarms
from .errors import ArgumentError, NotFittedError
from .features.backbones import Backbone, find_backbone
from .features.memory import FeatureMemory
from .features.runtime import RuntimeChoice, RuntimeName
from .images.look import looks_of
from .images.source import Batches, ImageInput, ImageSource, InMemory, Reporting, Skipped, sources
from .methods import FeatureMethod, Method
from .ops.neighbours import IndexFactory
from .parameters import plain_parameters
from .parts import Parts, Views, views_of
from .progress import Progress
from .running import Running, read_runtime, require_that_of_the_fit, run_on
from .scorer import Scorer
from .settings import DetectorSettings
from .tensors import below, check_finite
from .types import AnomalousRegion, Decision, ImageBatch, PartDecision, Scores

_D = TypeVar("_D", bound="FittedDetector")


@dataclass(kw_only=True)
class FittedDetector(DetectorSettings):
    """A `Detector` that has learned; how it learns stands in `detector.py`."""

    calibration_: Calibration | None = field(default=None, init=False, repr=False)
    peaks_: Calibration | None = field(default=None, init=False, repr=False)
    """Of the peaks of held-out maps, for regions; None without maps, and from files that are older than regions."""
    parts_: Parts | None = field(default=None, init=False, repr=False)
    """Of held-out parts, with `part_by`."""
    _views: Views = field(default_factory=dict, init=False, repr=False, compare=False)
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
    others_: tuple[Method, ...] = field(default=(), init=False, repr=False)
    """With `cross`, the models of all folds but the first, which is `method_`."""
    scales_: tuple[float, ...] = field(default=(), init=False, repr=False)
    """Of all those models, where `auto` took several methods: by these their scores are divided."""
    kept_: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)
    """With `full`, what the method remembers of the learned images."""
    region_: Region | None = field(default=None, init=False, repr=False, compare=False)
    """The region of interest of the latest fit, which a model file keeps."""
    _running: Running = field(default_factory=Running, init=False, repr=False, compare=False)

    def check(self) -> None:
        """Refuse wrong parameters; `fit` does so before the work. Raises `ArgumentError`."""
        self.check_settings(recorded=self._running.kept is not None)

    def predict(
        self,
        images: ImageInput | Iterable[str | Path | InMemory],
        *,
        maps: bool = True,
        progress: Progress | None = None,
    ) -> Iterator[Decision]:
        """Judge images: a generator of one `Decision` each, in order and as they are done; nothing runs before `next`.

        An iterator, such as one over a camera, is read `batch_size` images at a time and may never end. Without `maps`
        decisions bring none, which saves time on large pictures; score, verdict and regions are the same.

        Raises `NotFittedError`, `ArgumentError` for images or weights that give no finite score, and `ImageError` for
        an unreadable file (unless `on_error="skip"`: then `skipped_` names it).
        """
        for batch, scores in self.score(images, progress=progress):
            yield from self.decisions(batch, scores, maps=maps)

    def decisions(self, batch: ImageBatch, scores: Scores, *, maps: bool = True) -> Iterator[Decision]:
        """What `predict` makes of a batch and the `scores` that `score` or `score_batch` gave it."""
        preprocess = self.preprocessing
        small = scores.maps.cpu() if maps and scores.maps is not None else None
        models = [None] * len(batch) if scores.p_values is None else scores.p_values.tolist()
        p_values, regions, looks = self.p_values(scores), self.regions(batch, scores), looks_of(batch.pixels)
        for i, (name, size, score) in enumerate(zip(batch.names, batch.sizes, scores.images.tolist(), strict=True)):
            region = None if batch.inside is None else batch.inside[i]
            map = None if small is None else preprocess.to_original(small[i], size, region)
            decision = self.decide(name, score, map, models[i], p_value=p_values[i])
            yield replace(decision, regions=regions[i], look=looks[i])

    def score_batch(self, batch: ImageBatch) -> Scores:
        """The scores of images that are decoded and preprocessed, or that bring their feature maps."""
        self._use_runtime()
        return self._scorer.score(batch)

    def score(
        self, images: ImageInput | Iterable[str | Path | InMemory], *, progress: Progress | None = None
    ) -> Iterator[tuple[ImageBatch, Scores]]:
        """Give raw scores batch by batch, with maps at the size of the network's input; a generator like `predict`."""
        self.skipped_, found = [], 0
        self._use_runtime()
        for source in sources(images, at_once=self.batch_size, max_pixels=self.max_pixels):
            found += len(source)
            batches, before = self._batches(source), self.skipped_
            for pair in self._score_all(batches, progress):
                self.skipped_ = before + batches.skipped
                yield pair
            self.skipped_ = before + batches.skipped
        require_any(found)

    def _score_all(self, batches: Batches, progress: Progress | None) -> Iterator[tuple[ImageBatch, Scores]]:
        for batch in Reporting(batches, "predict", progress):
            yield batch, self._scorer.score(batch)

    def p_values(self, scores: Scores) -> list[float | None]:
        """The conformal p-value of each image of a batch; None without a calibration."""
        if self.calibration_ is None:
            return [None] * len(scores.images)
        plus = None if scores.plus is None or self.calibration_.kind == "split" else scores.plus.tolist()
        found: list[float | None] = self.calibration_.p_values(scores.images.tolist(), plus=plus).tolist()
        return found

    def decide(
        self,
        name: str,
        score: float,
        map: Any = None,
        model_p_value: float | None = None,
        *,
        p_value: float | None = None,
    ) -> Decision:
        """Turn a raw score into a decision; with `cross` and `full`, `p_value` must come from `p_values`."""
        c = self.calibration_
        if c is None:
            return Decision(name, score, map, None, None, model_p_value)
        p_value = c.p_value(score) if p_value is None else p_value
        return Decision(name, score, map, p_value, c.threshold, model_p_value, c.promise)

    def regions(self, batch: ImageBatch, scores: Scores) -> list[tuple[AnomalousRegion, ...] | None]:
        """Where, for each image of a batch and the `scores` that `score` gave it; see `Decision.regions`."""
        return self.localiser.regions(batch, scores, self.peaks_)

    def judge_parts(self, decisions: Iterable[Decision], paths: Iterable[str]) -> list[PartDecision]:
        """The verdict on each part of these images; `paths` are those in which `part_by` looks, one an image.

        Raises `NotFittedError` without held-out parts, and `ArgumentError` for a path in which no part is named.
        """
        if self.parts_ is None or self.part_by is None:
            raise NotFittedError("Detector.judge_parts needs held-out parts. Fit with part_by=PATTERN.")
        found = list(decisions)
        images = views_of([one.name for one in found], paths, self.part_by)
        return list(self.parts_.judge(images, [one.score for one in found], [one.p_value or 1.0 for one in found]))

    def choose_alarms(self, decisions: Sequence[Decision | PartDecision], level: float) -> BatchAlarms:
        """Choose alarms among a batch of images, or of parts, so that on average at most the share `level` is false.

        Raises `NotFittedError` without a calibration, `CalibrationError` where it guarantees nothing, `ArgumentError`.
        """
        calibration = self.calibration_ if self.parts_ is None else self.parts_.calibration
        if calibration is None:
            raise NotFittedError("Detector.choose_alarms needs a calibrated detector: fit with calibration='split'.")
        are_its_own = self.parts_ is None or all(one.threshold is not None for one in decisions)
        return choose_alarms(
            [1.0 if one.p_value is None else one.p_value for one in decisions], level, calibration,
            are_its_own=are_its_own,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write everything, the backbone's parameters included, into one safetensors file.

        Raises `NotFittedError`, and `OutputError` where the file cannot be written.
        """
        if not self.images_:
            raise NotFittedError("Detector.save needs a fitted detector. Call fit(normal_images) first.")
        tensors = {f"method.{name}": tensor for name, tensor in self.method_.state().items()}
        parts = None if self.parts_ is None else self.parts_.calibration
        seen = model_file.write_seen(self.learned_, self.calibrated_on_, self.calibration_, self.peaks_, parts)
        seen |= {} if self.region_ is None else self.region_.state()
        folds = model_file.write_folds(self.method_, self.others_)
        kept = {f"left_out.{name}": tensor for name, tensor in (self.kept_ or {}).items()}
        graphs = {} if self._running.kept is None else self._running.kept.tensors()
        persist.save(path, tensors | folds | kept | seen | graphs, self.manifest())

    @classmethod
    def load(
        cls: type[_D],
        path: str | Path,
        *,
        device: str = "auto",
        backbone: Backbone | None = None,
        make_index: Callable[[str], IndexFactory] | None = None,
        runtime: RuntimeChoice | None = None,
    ) -> _D:
        """Read a detector; it scores exactly as the saved one, on the runtime that calibrated, or torch on a GPU.

        Another `runtime` scores drawn images first; raises `ArgumentError` where they differ by more than 1e-4.

        A custom `backbone` must be given again. `make_index` makes the index that the file names, where it is not
        the built-in one: `blemish.edges.faiss.index_from_name`. Raises `ModelFileError`, and `MissingPackageError`.
        """
        tensors, manifest = persist.load(path)
        find_device(device)  # where the device is wrong, the file is not to blame
        with model_file.blaming(path, backbone):
            check_finite(tensors)
            about, complete = model_file.read_manifest(manifest)
            read = partial(
                model_file.read_method, complete=complete, device=device, backbone=backbone, make_index=make_index
            )
            method = read(about.method, about.parameters)
            detector = cls(method=method, **model_file.read_settings(cls, about.detector, complete=complete))
            detector.images_, detector.excluded_, detector.chosen_ = about.images, about.excluded, about.chosen
            kept = read_runtime(_beginning("runtime.", tensors), about.runtime)
        require_that_of_the_fit(kept, method, runtime)
        with model_file.blaming(path, backbone):
            on_cpu = find_device(device).type == "cpu"
            running = Running.of_file(kept, method, wanted=runtime, on_cpu=on_cpu)
            detector._running, detector.runtime = running, running.choice
            if running.runner is not None and about.versions == model_file.versions():
                running.runner.records = False  # what wrote the file would build the same network
            detector.check()
            detector._take(tensors, about, read)
            run_on(detector._scorer.methods, running.runner)
        if running.runner is not None:
            running.runner.records = True
        detector.runtime = runtime or detector.runtime
        if kept is not None and running.runner is None:
            detector._change_runtime()
        detector._use_runtime()
        return detector

    def _take(
        self,
        tensors: Mapping[str, Tensor],
        about: model_file.ModelManifest,
        read: Callable[[str, Mapping[str, Any]], Method],
    ) -> None:
        """Take back what a file keeps of what was learned, looked at and left out; `read` makes a method of a fold."""
        region = _beginning("region.", tensors)
        self.region_ = Region.restore(region) if region else None
        elsewhere = ("method.", "fold.", "left_out.", "runtime.", "region.")
        seen = {name: tensor for name, tensor in tensors.items() if not name.startswith(elsewhere)}
        self.learned_, self.calibrated_on_, self.calibration_, self.peaks_, of_parts = model_file.read_seen(
            seen, about.left_out, false_alarm_rate=self.false_alarm_rate, certain=self.certain
        )
        self._views, self.parts_ = model_file.read_parts(of_parts, about.parts)
        size = self._input_size()
        model_file.restore_method(self.method_, below(tensors, "method."), size=size)
        self.others_, self.scales_ = model_file.read_folds(self.method_, tensors, about.left_out, read, size=size)
        self.kept_ = below(tensors, "left_out.") or None
        model_file.check_left_out(self.calibration_, self.peaks_, self._scorer.methods, self.kept_, size=size)

    @property
    def runtime_(self) -> RuntimeName:
        """The runtime that runs the networks now; with `auto` the one that was chosen."""
        return self._running.name

    def _use_runtime(self) -> None:
        """Go over to the runtime that is asked for now, where another one runs; drawn images must score the same."""
        if self.images_ and self.runtime != self._running.choice:
            self._change_runtime()

    def _change_runtime(self) -> None:
        self._running = self._running.moved_to(self.runtime, self._scorer, self.preprocessing.size, self.calibration_)

    def _keep_runtime(self) -> None:
        """After a fit or a calibration: what ran is what a file names."""
        self._running = self._running.keeping(self._scorer, self.preprocessing.size)

    def _batches(self, source: ImageSource, *, learn: bool = False, known: FeatureMemory | None = None) -> Batches:
        """Batches of images, or of maps that are `known`; an empty memory knows none."""
        batch_size = self.batch_size if self.tile is None else 1  # a large image is a batch of tiles by itself
        if self.features is not None:
            self._require_own(self.features)
        return Batches(
            source, self.preprocessing, batch_size, self.workers, self.on_error,
            features=known or self.features, refuse_constant=learn, region=self._region,
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
    def _region(self) -> Region | None:
        """Where to look; the folder of regions for each picture may have been given anew since the fit."""
        if self.region_ is None or self.region_.is_one or self.roi is None:
            return self.region_
        return self._read_roi()

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.method_, self.others_, self.scales_, self.kept_, self._tiling, self.batch_size)

    def measure(self, batch: ImageBatch) -> Scores:
        """Score a batch that was checked, by operations on tensors alone: an export traces them.

        Raises `ArgumentError` for a method that cannot be exported.
        """
        return self._scorer.measure(batch)

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
                "calibration": self.calibration_.kind if self.calibration_ else self.calibration,
                "seed": self._seed,
            },
            "versions": model_file.versions(),
            **({"chosen": self.chosen_} if self.chosen_ else {}),
            **model_file.write_left_out(self.calibration_, self._scorer.methods, self.scales_),
            **model_file.write_parts(self._views, self.parts_),
            **({} if self._running.kept is None else self._running.kept.section()),
        }


def _beginning(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def require_any(images: int) -> None:
    """Refuse to do nothing."""
    if not images:
        raise ArgumentError.about("images", expected="at least one image", got="none")
