"""The front door: preprocessing + method + calibration, with `fit`, `predict`, `save` and `load`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from . import model_file, persist, running
from .calibrate import Calibration, images_needed
from .calibrator import FreshScore, require_left_out
from .choosing.auto import Auto, spell_chosen
from .choosing.candidates import Candidate
from .choosing.choose import Choice, compare
from .datasets.layouts import normal_images
from .datasets.region import Region
from .device import find_device
from .discoveries import BatchAlarms, choose_alarms
from .errors import (
    ArgumentError,
    DatasetError,
    NotFittedError,
)
from .features.backbones import Backbone, find_backbone
from .features.memory import FeatureMemory, Remembering
from .features.runtime import Runner, RuntimeChoice, RuntimeName
from .folds import fold_of, folds_for, pick_calibration, same_again, scales_of
from .images.digest import pixel_digest, with_digests
from .images.groups import Grouped, find_groups, hold_out, join_groups, read_pattern, without_copies
from .images.look import looks_of
from .images.settle import is_found_in, settle
from .images.source import (
    Batches,
    ImageInput,
    ImageSource,
    InMemory,
    Reporting,
    Skipped,
    sources,
    within,
)  # fmt: skip
from .images.tiling import Tiles
from .methods import (
    FeatureMethod,
    Forgetful,
    FrozenMethod,
    Incremental,
    KeepsReserve,
    LeavesOut,
    Method,
    ScoresBeside,
)
from .methods._base import memory_left
from .methods.registry import require_kind
from .ops.neighbours import IndexFactory
from .parameters import plain_parameters
from .parts import Parts, Views, learned_views, views_of
from .presets import find_preset
from .progress import Progress
from .scorer import Scorer
from .settings import DetectorSettings
from .tensors import below, check_finite
from .types import (
    AnomalousRegion,
    CalibrationKind,
    Decision,
    ImageBatch,
    ImageBatches,
    PartDecision,
    Scores,
)

_MOST_OF_A_VIEW = 50
"""Learned images that say what a view scores, some more where there are nearly twice as many."""

_log = logging.getLogger("blemish")


@dataclass(kw_only=True)
class Detector(DetectorSettings):
    """Finds anomalous images after seeing normal ones; what it takes: `blemish.settings.DetectorSettings`.

    >>> import numpy as np
    >>> from blemish import Preprocess
    >>> images = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    >>> detector = Detector(method="padim", preprocess=Preprocess(64), false_alarm_rate=0.2)
    >>> decision = next(detector.fit(images).predict(images[:1]))
    >>> decision.map.shape, decision.is_anomalous
    ((64, 64), False)
    """

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
    _kind: str = field(default="split", init=False, repr=False, compare=False)
    """`calibration`, or what took its place in the latest fit."""
    _has_chosen: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether `choose` has looked at images, which then cannot calibrate."""
    region_: Region | None = field(default=None, init=False, repr=False, compare=False)
    """The region of interest of the latest fit, which a model file keeps."""
    _runner: Runner | None = field(default=None, init=False, repr=False, compare=False)
    """What runs the networks now; None: torch."""
    _kept_runtime: running.KeptRuntime | None = field(default=None, init=False, repr=False, compare=False)
    """The runtime of the latest fit, or of what came after it that learned or calibrated; None: torch."""
    _loss: float | None = field(default=None, init=False, repr=False, compare=False)
    """What a reduced precision did to held-out scores."""

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

    def check(self) -> None:
        """Refuse wrong parameters; `fit` does so before the work. Raises `ArgumentError`."""
        self.check_settings(recorded=self._kept_runtime is not None)

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
        self.others_, self.scales_, self.kept_, self.parts_, self._views = (), (), None, None, {}
        self.region_, self._kept_runtime, self._loss = self._read_roi(), None, None
        self._runner = running.start(self.runtime, None if self._auto else self.method_)
        source = normal_images(images, max_pixels=self.max_pixels)
        kept = source.without(exclude)
        self.excluded_ = len(source) - len(kept)
        _require_normal(kept)
        grouped = Grouped(kept, ()) if self.calibration == "none" else self._grouped(kept)
        self._kind = self.calibration or self._pick(grouped)
        train, held_out = self._split(grouped) if self._kind == "split" else (kept, None)
        learned = self._require_left_out(grouped) if self._kind in ("cross", "loo", "full") else None
        self._settle(train)
        if held_out is not None and self.on_error == "skip":
            self._require_readable(held_out)
        train, digests = with_digests(train)
        if learned is not None and self._kind == "cross":
            self._fit_folds(replace(learned, source=train), digests, progress)
            self._keep_runtime()
            return self
        known = None
        if self._auto is not None:
            self._named, self.chosen_, known = self._choose(self._auto, train, progress)
        memory = None if learned is None else self._memory_of(train)
        self.skipped_ = self._learn(self.method_, train, "fit", progress, known=known, memory=memory)
        self.images_ = len(train) - len(self.skipped_)
        self.learned_ = frozenset(digests.values())
        if self.part_by is not None:
            self._views = self._learned_views(train, self.part_by, progress)
        if held_out is not None:
            self._calibrate(held_out, progress)
        elif learned is not None:
            self._leave_out(learned, digests, progress, known=memory)
        self._keep_runtime()
        return self

    def _learn(
        self,
        method: Method,
        images: ImageSource,
        stage: str,
        progress: Progress | None,
        *,
        known: FeatureMemory | None = None,
        memory: FeatureMemory | None = None,
    ) -> list[Skipped]:
        """Fit a method; gives the files that were left out. Maps that are not `known` are kept in `memory`."""
        running.run_on([method], self._runner)
        batches = self._batches(images, learn=True, known=known)
        method.fit(_kept(self._to_learn(batches, stage, progress), method, memory))
        return list(batches.skipped)

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
        self._settled, self.region_ = None, self._read_roi()
        train = normal_images(images, max_pixels=self.max_pixels).without(exclude)
        _require_normal(train)
        if self.calibration in (None, "split"):
            train, _ = self._split(self._grouped(train))
        self._has_chosen = True
        self._settle(train)
        auto = self._auto or Auto()
        rows = auto.candidates(self.preprocessing, seed=self._seed) if candidates is None else candidates
        groups = self._grouped(train).groups
        return compare(self._whole(train), rows, groups=groups, seed=self._seed, progress=progress)[0]

    def recalibrate(
        self,
        false_alarm_rate: float | None = None,
        *,
        certain: float | None = None,
        images: ImageInput | None = None,
        progress: Progress | None = None,
    ) -> Detector:
        """Choose another false-alarm rate, or make p-values of new normal images; nothing is fitted again.

        `images` are normal ones that the model has not learned: they take the place of all earlier ones, as held-out
        images do (`split`), whatever the calibration was. Without them the scores at hand serve another rate.
        `false_alarm_rate` and `certain`: None keeps the detector's own; `set_params(certain=None)` drops that before.
        Raises `NotFittedError`, and `CalibrationError` where the images cannot support the rate; then nothing changes.
        """
        changed = copy.copy(self)
        changed.false_alarm_rate = self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        changed.certain = self.certain if certain is None else certain
        if images is not None:
            if not self.images_:
                raise NotFittedError("Detector.recalibrate needs a fitted detector. Call fit(normal_images) first.")
            fresh = self._grouped(normal_images(images, max_pixels=self.max_pixels))
            _require_any(len(fresh.source))
            self._use_runtime()
            changed._runner, changed._kept_runtime = self._runner, self._kept_runtime
            changed.calibration, changed.held_out, changed.kept_, changed.skipped_ = "split", None, None, []
            changed._calibrator.require(fresh.groups)
            changed._calibrate(fresh, progress)
            changed._keep_runtime()
        elif self.calibration_ is None:
            raise NotFittedError("Detector.recalibrate needs a calibrated detector, or new normal images (images=).")
        else:
            changed.calibration_, changed.peaks_ = (
                known and known.at(changed.false_alarm_rate, certain=changed.certain)
                for known in (self.calibration_, self.peaks_)
            )
            changed.parts_ = self.parts_ and self.parts_.at(changed.false_alarm_rate, certain=changed.certain)
        vars(self).update(vars(changed))
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
        require_kind(method, Incremental, "be updated", instead="Fit again.")
        assert isinstance(method, Incremental)
        self._require_one_model("to be updated")
        source = normal_images(images, max_pixels=self.max_pixels)
        _require_any(len(source))
        fresh = (
            None
            if held_out is None
            else without_copies(self._grouped(normal_images(held_out, max_pixels=self.max_pixels)), of=source)
        )
        if fresh is not None:
            self._calibrator.require(fresh.groups)
        self._use_runtime()
        source, digests = with_digests(source)
        batches = self._batches(source, learn=True)
        method.partial_fit(self._to_learn(batches, "update", progress))
        self.images_ += len(batches) - len(batches.skipped)
        self.skipped_ = list(batches.skipped)
        self.learned_ |= frozenset(digests.values())
        self._drop_calibration()
        if fresh is not None:
            self._calibrate(fresh, progress)
        self._keep_runtime()
        return self

    def forget(self, images: ImageInput, *, progress: Progress | None = None) -> Detector:
        """Unlearn images, which must come again, as if they had never been there; the calibration is dropped.

        They are known by the digests of their pictures; of copies that were learned, one is forgotten for each that is
        given. Raises `ArgumentError` for a method that cannot, for what was not learned, and where an exact result is
        not possible; then nothing changes.
        """
        self.check()
        method = self.method_
        require_kind(method, Forgetful, "forget", instead="Fit again without them.")
        assert isinstance(method, Forgetful)
        self._require_one_model("to forget images")
        source = normal_images(images, max_pixels=self.max_pixels)
        _require_any(len(source))
        digests = [pixel_digest(source.load(index)) for index in range(len(source))]
        for name, digest in zip(source.names, digests, strict=True):
            if digest not in self.learned_:
                raise ArgumentError.about("images", expected="pictures that were learned", got=f"{name}, which was not")
        self._use_runtime()
        had_copies = len(self.learned_) != self.images_
        method.forget(self._to_learn(self._batches(source, learn=True), "forget", progress))
        self.images_ -= len(source)
        if not had_copies:
            self.learned_ -= frozenset(digests)
        self._drop_calibration()
        self._keep_runtime()
        return self

    def _drop_calibration(self) -> None:
        """It belongs to the model that was."""
        self.calibration_, self.peaks_, self.parts_ = None, None, None
        self.calibrated_on_, self.kept_ = frozenset(), None

    def _require_one_model(self, what: str) -> None:
        if self.others_:
            raise ArgumentError.about(
                "calibration", expected=f"one model, {what}", got=f"cross with {1 + len(self.others_)}",
                instead="Fit again.",
            )  # fmt: skip

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
        _require_any(found)

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
        graphs = {} if self._kept_runtime is None else self._kept_runtime.tensors()
        persist.save(path, tensors | folds | kept | seen | graphs, self.manifest())

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        backbone: Backbone | None = None,
        make_index: Callable[[str], IndexFactory] | None = None,
        runtime: RuntimeChoice | None = None,
    ) -> Detector:
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
            graphs = {name: tensor for name, tensor in tensors.items() if name.startswith("runtime.")}
            detector._kept_runtime = running.read_runtime(graphs, about.runtime)
            detector._start_kept(runtime, find_device(device).type)
            if detector._runner is not None and about.versions == model_file.versions():
                detector._runner.records = False  # what wrote the file would build the same network
            detector.check()
            parts = ("method.", "fold.", "left_out.", "runtime.")
            seen = {name: tensor for name, tensor in tensors.items() if not name.startswith(parts)}
            region = {name: seen.pop(name) for name in [name for name in seen if name.startswith("region.")]}
            detector.region_ = Region.restore(region) if region else None
            kept = model_file.read_seen(
                seen, about.left_out, false_alarm_rate=detector.false_alarm_rate, certain=detector.certain
            )
            detector.learned_, detector.calibrated_on_, detector.calibration_, detector.peaks_, of_parts = kept
            detector._views, detector.parts_ = model_file.read_parts(of_parts, about.parts)
            model_file.restore_method(method, below(tensors, "method."), size=detector._input_size())
            detector.others_, detector.scales_ = model_file.read_folds(
                method, tensors, about.left_out, read, size=detector._input_size()
            )
            detector.kept_ = below(tensors, "left_out.") or None
            model_file.check_left_out(
                detector.calibration_, detector.peaks_, (method, *detector.others_), detector.kept_,
                size=detector._input_size(),
            )  # fmt: skip
            running.run_on(detector._methods, detector._runner)
        if detector._runner is not None:
            detector._runner.records = True
        detector.runtime = runtime or detector.runtime
        if detector._kept_runtime is not None and detector._runner is None:
            detector._change_runtime()
        detector._use_runtime()
        return detector

    def _start_kept(self, wanted: RuntimeChoice | None, device: str) -> None:
        """While a file is read: the runtime that it names, unless another one is wanted that may differ by rounding."""
        kept = self._kept_runtime
        if kept is None:
            return
        self.runtime, self._loss = kept.name, kept.loss
        if self._is_reduced or (device == "cpu" and wanted in (None, kept.name)):
            self._runner = running.start(kept.name, self.method_, kept)
            running.run_on([self.method_], self._runner)
        else:
            self.runtime = "torch"

    @property
    def runtime_(self) -> RuntimeName:
        """The runtime that runs the networks now; with `auto` the one that was chosen."""
        return "torch" if self._runner is None else self._runner.name or "torch"

    def _use_runtime(self) -> None:
        """Go over to the runtime that is asked for now, where another one runs; drawn images must score the same."""
        if self.images_ and self.runtime != ("torch" if self._runner is None else self._runner.choice):
            self._change_runtime()

    def _change_runtime(self) -> None:
        kept, earlier = self._kept_runtime, self._runner
        if getattr(self.method_, "precision", "float32") != "float32":
            raise ArgumentError.about(
                "runtime", expected="the one of the fit with less than float32", got=self.runtime, instead="Fit again."
            )
        running.run_on(self._methods, None)
        try:
            before = self._check_scores() if kept is None else kept.checks
            self._runner = running.start(self.runtime, self.method_, kept)
            running.run_on(self._methods, self._runner)
            after = self._check_scores()
            name = "torch" if self._runner is None else self._runner.name or self.runtime
            running.report_change(name, before, after, self.calibration_)
        except BaseException:
            self._runner = earlier
            running.run_on(self._methods, earlier)
            raise

    def _keep_runtime(self) -> None:
        """After a fit or a calibration: what ran is what a file names."""
        self._kept_runtime = running.keep(self._runner, self._scorer, self.preprocessing.size, self._loss)

    def _check_scores(self) -> tuple[float, ...]:
        return running.check_scores(self._scorer, self.preprocessing.size)

    @property
    def _methods(self) -> tuple[Method, ...]:
        return (self.method_, *self.others_)

    @property
    def _holds_out(self) -> bool:
        """Whether a setting needs images that are held out, whatever their number."""
        settings = (self.tile, self.held_out, self.certain, self.part_by, self._is_reduced or None)
        return self._has_chosen or any(setting is not None for setting in settings)

    def _pick(self, grouped: Grouped) -> str:
        """The calibration for these images, where none is named; says why in one line."""
        if self._holds_out:
            return "split"
        if self._auto is not None:
            count, needed = len(set(grouped.groups)), images_needed(self.false_alarm_rate)
            if not needed <= count < 2 * needed:
                return "split"
            why = f"{count} images are too few to choose by and to calibrate with; from {2 * needed} on they do both"
            self._named, self.chosen_ = self._auto.fixed(why, seed=self._seed)
            _log.info("chosen: %s", self.chosen_)
        kind, reason = pick_calibration(self.method_, grouped.groups, self.false_alarm_rate)
        if reason:
            _log.info("calibration %s: %s", kind, reason)
        return kind

    def _split(self, grouped: Grouped) -> tuple[ImageSource, Grouped]:
        calibrator = self._calibrator
        share = calibrator.share_to_hold_out(grouped.groups) if self.held_out is None else self.held_out
        train, held_out = hold_out(grouped.groups, share, seed=self._seed)
        chosen = grouped.subset(held_out)
        calibrator.require(chosen.groups, total=len(set(grouped.groups)), fewest=self._fewest_left_out())
        return grouped.source.subset(train), chosen

    def _fewest_left_out(self) -> int | None:
        """From how many images on none would be held out; None where a setting or the method needs it."""
        needed = self._calibrator.needed
        if self.calibration is not None or self._holds_out:
            return None
        if self._auto is not None:
            return needed
        kind, _ = pick_calibration(self.method_, range(needed), self.false_alarm_rate)
        return None if kind == "split" else needed

    def _choose(
        self, auto: Auto, train: ImageSource, progress: Progress | None
    ) -> tuple[FeatureMethod, str, FeatureMemory | None]:
        """The method, by images that will not calibrate it, why, and their feature maps where they were read."""
        comparable = self.tile is None and self.features is None
        found = auto.choose(
            self._whole(train), self._grouped(train).groups, comparable=comparable, seed=self._seed, progress=progress
        )
        _log.info("chosen: %s", found[1])
        return found

    def _settle(self, train: ImageSource) -> None:
        """Find in the images what the preprocessing leaves open."""
        method = self._auto or self.method_
        backbone = getattr(method, "backbone", None)
        multiple = 16 if backbone is None else find_backbone(backbone).multiple
        larger_pays = isinstance(method, FeatureMethod) and method.larger_pays and self.tile is None
        self._settled = settle(
            self._preset, within(train, self.region_), multiple=multiple, levels=self.features is None,
            larger_pays=larger_pays,
        )  # fmt: skip
        self._check_size()

    def _whole(self, source: ImageSource) -> Batches:
        """Images to be learned from, in one piece and from their files."""
        return Batches(
            source, self.preprocessing, self.batch_size, self.workers, self.on_error,
            refuse_constant=True, region=self._region,
        )  # fmt: skip

    def _grouped(self, source: ImageSource) -> Grouped:
        return Grouped(source, find_groups(source, source.paths(), self.group_by or self.part_by))

    def _calibrate(self, held_out: Grouped, progress: Progress | None) -> None:
        """Make the calibration of images that were not learned."""
        source, digests = with_digests(held_out.source)
        batches = self._batches(source, learn=True)
        calibrator, score = self._calibrator, self._scorer.score
        found = calibrator.judge((batch, score(batch)) for batch in Reporting(batches, "calibrate", progress))
        self.skipped_ += batches.skipped
        self._loss = running.precision_loss(self._scorer, batches, found) if self._is_reduced else None
        fresh = [judged for judged in found if digests.get(judged.name) not in self.learned_]
        if len(fresh) < len(found):
            _log.warning(
                "%d held-out pictures were learned as well, from files of another kind: they do not count. "
                "`blemish inspect` names them.", len(found) - len(fresh),
            )  # fmt: skip
        names = [judged.name for judged in fresh]
        groups = join_groups(held_out.of(names), [digests.get(name, name) for name in names])
        self.calibrated_on_ = frozenset(digests.values()) - self.learned_
        self.calibration_, self.peaks_ = calibrator.calibrate(fresh, groups, "split")
        if self.part_by is not None:
            view_of = {one.name: one for one in views_of(source.names, source.paths(), self.part_by)}
            self.parts_ = Parts.of(
                [view_of[name] for name in names], [judged.score for judged in fresh], groups,
                views=self._views, false_alarm_rate=self.false_alarm_rate, certain=self.certain,
            )  # fmt: skip

    def _learned_views(self, learned: ImageSource, part_by: str, progress: Progress | None) -> Views:
        """What the learned images of each view score; nothing where the pattern names no views."""
        if read_pattern(part_by, of="part_by").groups < 2:
            return {}
        images = views_of(learned.names, learned.paths(), part_by)
        some = {view: [i for i, one in enumerate(images) if one.view == view] for view in {one.view for one in images}}
        kept = sorted(i for found in some.values() for i in found[:: max(1, len(found) // _MOST_OF_A_VIEW)])
        batches = self._batches(learned.subset(kept))
        view_of = {images[i].name: images[i] for i in kept}
        score = self._scorer.score
        judged = self._calibrator.judge((batch, score(batch)) for batch in Reporting(batches, "scale", progress))
        return learned_views([view_of[one.name] for one in judged], [one.score for one in judged])

    def _leave_out(
        self,
        learned: Grouped,
        digests: Mapping[str, int],
        progress: Progress | None,
        *,
        known: FeatureMemory | None,
    ) -> None:
        """Make the calibration of the images that were learned, each by the model without its group."""
        batches, method = self._batches(learned.source, learn=True, known=known), self.method_
        assert isinstance(method, LeavesOut)
        groups = list(self._read(learned, digests).values())
        require_left_out(method, self._kind, groups)  # copies in files of other kinds are known now
        found = self._calibrator.judge(method.left_out(Reporting(batches, "leave out", progress), groups))
        kind: CalibrationKind = "loo"
        if self._kind == "full":
            assert isinstance(method, ScoresBeside)
            kind, self.kept_ = "full", method.remember(batches)
        unproven = self._unproven(learned, groups)
        self.calibration_, self.peaks_ = self._calibrator.calibrate(found, groups, kind, unproven=unproven)

    def _fit_folds(self, learned: Grouped, digests: Mapping[str, int], progress: Progress | None) -> None:
        """Fit a model for each fold on all the others, and make the calibration of what each has not learned.

        `auto` chooses anew for each fold, by the images that its model learns.
        """
        auto = self._auto if self._named is None else None
        count = self._folds_for(learned)
        numbers = fold_of(learned.groups, count, seed=self._seed)
        methods: list[Method] = []
        found: list[list[FreshScore]] = []
        skipped: dict[str, Skipped] = {}
        memory = None if auto is not None else self._memory_of(learned.source)  # all models are on the same network
        for fold in range(count):
            rest = learned.source.subset([i for i, number in enumerate(numbers) if number != fold])
            known, fresh = (memory, None) if fold else (None, memory)
            if auto is None:
                method, of_rest = same_again(self.method_) if fold else self.method_, known
            else:
                method, _, of_rest = self._choose(auto, rest, progress)
                self._named = self._named or method
            bad = self._learn(method, rest, f"fit {fold + 1} of {count}", progress, known=of_rest, memory=fresh)
            chosen = learned.source.subset([i for i, number in enumerate(numbers) if number == fold])
            own = self._batches(chosen, learn=True, known=known)
            judged = ((batch, self._scorer.alone(method, batch)) for batch in _kept(own, method, fresh))
            if isinstance(method, KeepsReserve):
                method.drop_reserve()  # a model of several folds is not updated
            methods.append(method)
            found.append(self._calibrator.by_pixel.judge(judged))
            skipped |= {entry[0]: entry for entry in [*bad, *own.skipped]}
        self.others_, self.skipped_ = tuple(methods[1:]), list(skipped.values())
        self.scales_ = scales_of(methods, [[one.score for one in of_fold] for of_fold in found])
        self.chosen_ = self.chosen_ if auto is None else spell_chosen(methods)
        self.images_ = len(learned.source) - len(skipped)
        self.learned_ = frozenset(digests.values())
        group_of = self._read(learned, digests)
        self.calibration_, self.peaks_ = self._calibrator.calibrate_folds(
            found, group_of, dict(zip(learned.source.names, numbers, strict=True)), scales=self.scales_,
            unproven=self._unproven(learned, list(group_of.values())),
        )  # fmt: skip

    def _read(self, learned: Grouped, digests: Mapping[str, int]) -> dict[str, int]:
        """The group of each image that could be read, by name; copies in files of other kinds are known now."""
        skipped = {name for name, _ in self.skipped_}
        names = [name for name in learned.source.names if name not in skipped]
        return dict(
            zip(names, join_groups(learned.of(names), [digests.get(name, name) for name in names]), strict=True)
        )

    def _require_left_out(self, learned: Grouped) -> Grouped:
        """Refuse, before the fit, images that cannot be left out, or are too few."""
        if self._kind != "cross":
            require_left_out(self.method_, self._kind, learned.groups)
        groups, folds = learned.groups, self._folds_for(learned)
        left_out = len(set(groups)) // folds * folds
        self._calibrator.require(range(left_out) if self._kind == "cross" else groups)
        return learned

    def _folds_for(self, learned: Grouped) -> int:
        return folds_for(learned.groups, self.folds, self._calibrator.needed)

    def _unproven(self, learned: Grouped, groups: Sequence[int]) -> str:
        """Why leaving these images out guarantees nothing; empty where it does."""
        if is_found_in(self._preset, learned.source):
            return "the input was settled in view of images of several sizes: give a size"
        method = self.method_
        return method.unproven(groups) if self._kind == "loo" and isinstance(method, LeavesOut) else ""

    def _require_readable(self, held_out: Grouped) -> None:
        """Find out before the fit, not after it, that too few held-out files can be read."""
        readable = (name for batch in self._batches(held_out.source, learn=True) for name in batch.names)
        self._calibrator.require(held_out.of(readable))

    def _memory_of(self, source: ImageSource) -> FeatureMemory | None:
        """Where the maps of a fit's images can be kept for further passes; None: these begin with the images."""
        method = self.method_
        whole = self.tile is None and self.features is None
        if not (whole and isinstance(method, FrozenMethod) and method.keeps_maps):
            return None
        left = memory_left(find_device("cpu"), method.memory_gb)
        return FeatureMemory(
            backbone=find_backbone(method.backbone).name, preprocess=self.preprocessing, images=len(source),
            precision=method.precision, budget=None if left is None else left // 4,
        )  # fmt: skip

    def _batches(self, source: ImageSource, *, learn: bool = False, known: FeatureMemory | None = None) -> Batches:
        """Batches of images, or of maps that are `known`; an empty memory knows none."""
        batch_size = self.batch_size if self.tile is None else 1  # a large image is a batch of tiles by itself
        if self.features is not None:
            self._require_own(self.features)
        return Batches(
            source, self.preprocessing, batch_size, self.workers, self.on_error,
            features=known or self.features, refuse_constant=learn, region=self._region,
        )  # fmt: skip

    def _to_learn(self, batches: Batches, stage: str, progress: Progress | None) -> Reporting | Tiles:
        return self._scorer.tiled(Reporting(batches, stage, progress), self.preprocessing.size)

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
            **model_file.write_left_out(self.calibration_, self._methods, self.scales_),
            **model_file.write_parts(self._views, self.parts_),
            **({} if self._kept_runtime is None else self._kept_runtime.section()),
        }


def _kept(batches: Batches | Reporting | Tiles, method: Method, memory: FeatureMemory | None) -> ImageBatches:
    """The same batches, whose maps are kept where there is a memory for them."""
    if memory is None or isinstance(batches, Tiles):
        return batches
    assert isinstance(method, FrozenMethod)
    return Remembering(batches, method.with_maps, memory)


def _require_normal(images: ImageSource) -> None:
    if not len(images):
        raise DatasetError.about("images", expected="normal images to fit on", got="none")


def _require_any(images: int) -> None:
    if not images:
        raise ArgumentError.about("images", expected="at least one image", got="none")
