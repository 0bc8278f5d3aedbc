"""The front door: how a detector learns from normal images, and is calibrated on those that it has not learned."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .calibrator import FreshScore, require_left_out
from .choosing.auto import Auto, spell_chosen
from .choosing.candidates import Candidate
from .choosing.choose import Choice, compare
from .datasets.layouts import normal_images
from .device import find_device
from .errors import ArgumentError, DatasetError, NotFittedError, log
from .features.backbones import find_backbone
from .features.memory import FeatureMemory, Remembering
from .fitted import FittedDetector, require_any
from .folds import fold_of, folds_for, pick_calibration, same_again, scales_of, sides_of
from .images.digest import pixel_digest, with_digests
from .images.groups import Grouped, find_groups, hold_out, join_groups, read_pattern, without_copies
from .images.settle import is_found_in, settle
from .images.source import Batches, ImageInput, ImageSource, Reporting, Skipped, within
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
from .parts import Parts, Views, learned_views, views_of
from .presets import find_preset
from .progress import Progress
from .promises import images_needed
from .running import Running, precision_loss, run_on
from .types import CalibrationKind, ImageBatches

_MOST_OF_A_VIEW = 50
"""Learned images that say what a view scores, some more where there are nearly twice as many."""


@dataclass(kw_only=True)
class Detector(FittedDetector):
    """Finds anomalous images after seeing normal ones; what it takes: `blemish.settings.DetectorSettings`.

    >>> import numpy as np
    >>> from blemish import Preprocess
    >>> images = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    >>> detector = Detector(method="padim", preprocess=Preprocess(64), false_alarm_rate=0.2)
    >>> decision = next(detector.fit(images).predict(images[:1]))
    >>> decision.map.shape, decision.is_anomalous
    ((64, 64), False)
    """

    _kind: str = field(default="split", init=False, repr=False, compare=False)
    """`calibration`, or what took its place in the latest fit."""
    _has_chosen: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether `choose` has looked at images, which then cannot calibrate."""

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

    def fit(self, images: ImageInput, *, exclude: Collection[str] = (), progress: Progress | None = None) -> Detector:
        """Learn from normal images: a folder, or what `as_source` takes; forgets earlier fits.

        `exclude` leaves images out, by their path below the folder, or by name. Raises `ArgumentError` for wrong
        parameters or images, `DatasetError` for a folder that is not understood, `CalibrationError` where the held-out
        images cannot support the false-alarm rate, `ImageError` for an unreadable file (unless `on_error="skip"`),
        `WeightsError`, `NotEnoughMemoryError` before the work begins, and `TrainingError` from methods that train.
        """
        self.check()
        self._start_anew()
        source = normal_images(images, max_pixels=self.max_pixels)
        kept = source.without(exclude)
        self.excluded_ = len(source) - len(kept)
        _require_normal(kept)
        grouped = Grouped(kept, ()) if self.calibration == "none" else self._grouped(kept)
        self._kind = self.calibration or self._pick(grouped)
        train, held_out = self._split(grouped) if self._kind == "split" else (kept, None)
        if self._kind in ("cross", "loo", "full"):
            self._require_left_out(grouped)
        self._settle(train)
        if held_out is not None and self.on_error == "skip":
            self._require_readable(held_out)
        train, digests = with_digests(train)
        if self._kind == "cross":
            self._fit_folds(replace(grouped, source=train), digests, progress)
        else:
            memory = self._fit_one(train, digests, progress)
            if held_out is not None:
                self._calibrate(held_out, progress)
            elif self._kind != "none":
                self._leave_out(grouped, digests, progress, known=memory)
        self._keep_runtime()
        return self

    def _start_anew(self) -> None:
        """Forget an earlier fit."""
        self.calibration_, self.peaks_, self.images_, self._named, self._settled = None, None, 0, None, None
        self.learned_, self.calibrated_on_, self.chosen_ = frozenset(), frozenset(), ""
        self.others_, self.scales_, self.kept_, self.parts_, self._views = (), (), None, None, {}
        self.region_ = self._read_roi()
        self._running = Running.start(self.runtime, None if self._auto else self.method_)

    def _fit_one(
        self, train: ImageSource, digests: Mapping[str, int], progress: Progress | None
    ) -> FeatureMemory | None:
        """Fit the one model that there is; gives the images' maps where another pass will want them."""
        known = None
        if self._auto is not None:
            self._named, self.chosen_, known = self._choose(self._auto, train, progress)
        memory = self._memory_of(train) if self._kind in ("loo", "full") else None
        self.skipped_ = self._learn(self.method_, train, "fit", progress, known=known, memory=memory)
        self.images_ = len(train) - len(self.skipped_)
        self.learned_ = frozenset(digests.values())
        if self.part_by is not None:
            self._views = self._learned_views(train, self.part_by, progress)
        return memory

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
        run_on([method], self._running.runner)
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
            require_any(len(fresh.source))
            self._use_runtime()
            changed._running = self._running
            changed.calibration, changed.held_out, changed.kept_, changed.skipped_ = "split", None, None, []
            changed._calibrator.require(fresh.groups, may_be_off=False)
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
        require_any(len(source))
        fresh = None
        if held_out is not None:
            fresh = without_copies(self._grouped(normal_images(held_out, max_pixels=self.max_pixels)), of=source)
            self._calibrator.require(fresh.groups, may_be_off=False)
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
        given. Held-out pictures among them go with the calibration. Raises `ArgumentError` for a method that cannot,
        for pictures that the model has not seen, and where an exact result is not possible; then nothing changes.
        """
        self.check()
        method = self.method_
        require_kind(method, Forgetful, "forget", instead="Fit again without them.")
        assert isinstance(method, Forgetful)
        self._require_one_model("to forget images")
        source = normal_images(images, max_pixels=self.max_pixels)
        require_any(len(source))
        digests = [pixel_digest(source.load(index)) for index in range(len(source))]
        for name, digest in zip(source.names, digests, strict=True):
            if digest not in self.learned_ | self.calibrated_on_:
                expected = "pictures that were learned, or that set the threshold"
                raise ArgumentError.about("images", expected=expected, got=f"{name}, which is neither")
        source = source.subset([index for index, digest in enumerate(digests) if digest in self.learned_])
        self._use_runtime()
        had_copies = len(self.learned_) != self.images_
        if len(source):
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
            log.info("chosen: %s", self.chosen_)
        kind, reason = pick_calibration(self.method_, grouped.groups, self.false_alarm_rate)
        if reason:
            log.info("calibration %s: %s", kind, reason)
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
        log.info("chosen: %s", found[1])
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
        loss = precision_loss(self._scorer, batches, found) if self._is_reduced else None
        self._running = replace(self._running, loss=loss)
        fresh = [judged for judged in found if digests.get(judged.name) not in self.learned_]
        if len(fresh) < len(found):
            log.warning(
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
        skipped: dict[str, str] = {}
        memory = None if auto is not None else self._memory_of(learned.source)  # all models are on the same network
        for fold in range(count):
            rest, left_out = map(learned.source.subset, sides_of(numbers, fold))
            known, fresh = (memory, None) if fold else (None, memory)
            if auto is None:
                method, of_rest = same_again(self.method_) if fold else self.method_, known
            else:
                method, _, of_rest = self._choose(auto, rest, progress)
                self._named = self._named or method
            bad = self._learn(method, rest, f"fit {fold + 1} of {count}", progress, known=of_rest, memory=fresh)
            own = self._batches(left_out, learn=True, known=known)
            scored = self._scorer.each_alone(method, _kept(own, method, fresh))
            found.append(self._calibrator.by_pixel.judge(scored))
            if isinstance(method, KeepsReserve):
                method.drop_reserve()  # a model of several folds is not updated
            methods.append(method)
            skipped |= dict([*bad, *own.skipped])
        self.others_, self.skipped_ = tuple(methods[1:]), list(skipped.items())
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

    def _require_left_out(self, learned: Grouped) -> None:
        """Refuse, before the fit, images that cannot be left out, or are too few."""
        groups = learned.groups
        if self._kind == "cross":
            folds = self._folds_for(learned)
            self._calibrator.require(range(len(set(groups)) // folds * folds))
        else:
            require_left_out(self.method_, self._kind, groups)
            self._calibrator.require(groups)

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

    def _to_learn(self, batches: Batches, stage: str, progress: Progress | None) -> Reporting | Tiles:
        return self._scorer.tiled(Reporting(batches, stage, progress), self.preprocessing.size)


def _kept(batches: Batches | Reporting | Tiles, method: Method, memory: FeatureMemory | None) -> ImageBatches:
    """The same batches, whose maps are kept where there is a memory for them."""
    if memory is None or isinstance(batches, Tiles):
        return batches
    assert isinstance(method, FrozenMethod)
    return Remembering(batches, method.with_maps, memory)


def _require_normal(images: ImageSource) -> None:
    if not len(images):
        raise DatasetError.about("images", expected="normal images to fit on", got="none")
