"""Which method for these parts? Held-out normal images are told from the same images with small drawn changes.

No image with a defect is needed or seen. All candidates are fitted on the same normal images and score the same
others, untouched and changed; those of one backbone and input size share the forward passes. The images that chose
must not set a threshold afterwards: it would be too low.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..augment.changes import draw_change
from ..datasets.layouts import normal_images
from ..device import find_device
from ..errors import ArgumentError, BlemishError, NotEnoughMemoryError, log
from ..features.backbones import find_backbone
from ..features.extract import build_extractor
from ..features.memory import FeatureMemory
from ..features.weights import find_weights
from ..images.groups import GroupBy, find_groups, grouped, hold_out
from ..images.settle import settle
from ..images.source import Batches, ImageInput, ImageSource, OnError, Skipped
from ..memory import spell_bytes
from ..methods import FeatureMethod
from ..methods._base import FitPlan, memory_left
from ..ops.separation import separation
from ..progress import Progress
from ..training.loop import generator
from ..types import FeatureMaps, ImageBatch
from .candidates import Candidate
from .candidates import candidates as candidates_of_the_table
from .criterion import Trial, interval, mean_separation

HELD_OUT = 0.25
"""Share of the images that the candidates do not learn from, but are compared on."""
CHANGES_AN_IMAGE = 4
FAMILIES = ("scratch", "spot", "tint", "blend", "moved", "missing", "grain", "scar")
"""Changes by which candidates are compared: those that follow the true figures (docs/experiments/choose.md)."""
ALIKE = 0.005
"""So much of the criterion is given away for a smaller model."""
LEAST = 0.6
"""Where the best criterion is lower, the images differ by more than small changes, which then say nothing."""
FEWEST = 20
"""Images below which nothing is chosen."""
_WITHOUT = {"reserve": 0}
"""What takes time in a fit and changes no score: the candidates are fitted without it."""
_COARSE = 4
"""Pixels a side of the blocks in which maps are compared with what was changed."""


@dataclass(frozen=True)
class Ranked:
    """One candidate: how well it told changed images from untouched ones, and what it cost."""

    candidate: Candidate
    criterion: float
    """Mean AUROC over the families of changes."""
    interval: tuple[float, float]
    """95 %, by drawing the held-out images again."""
    behind: tuple[float, float]
    """95 % of how far it is behind the first, by the same draws."""
    alike: bool
    """Whether it cannot be told from the first: that interval includes 0."""
    families: dict[str, float]
    """AUROC of each family."""
    pixel_auroc: float | None
    """Mean over the changed images of how well the map finds what was changed; None without maps."""
    fit_seconds: float
    score_ms: float
    """Of an image, without the backbone."""
    model_bytes: int
    """Beside the backbone."""


@dataclass(frozen=True)
class Choice:
    """What `choose` found."""

    ranking: tuple[Ranked, ...]
    """Best criterion first."""
    picked: Candidate
    reason: str
    learned: int
    """Images that the candidates learned from."""
    held_out: tuple[str, ...]
    """Names of the images that chose: none of them may set a threshold."""
    changed: int
    left_out: tuple[Skipped, ...]
    """Candidates that could not be fitted, with the reason."""
    seconds: float
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    """Files that could not be read."""


def choose(
    images: ImageInput,
    candidates: Sequence[Candidate] | None = None,
    *,
    group_by: GroupBy | None = None,
    changes: int = CHANGES_AN_IMAGE,
    seed: int = 0,
    workers: int = 2,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> Choice:
    """Rank methods on normal images, without any defect, and pick one.

    images: normal ones that will set no threshold, as `Detector.fit` takes them; `Detector.choose` leaves those out.
        A seeded quarter is held out from the candidates, and compared with changed copies of itself.
    candidates: None: those of the table (`choosing.candidates`).
    group_by: as for a `Detector`; groups are held out whole.
    changes: changed copies of each held-out image, each of another family in turn.

    Raises `ArgumentError` for too few images, or candidates that train their own network, and `NotEnoughMemoryError`
    where no candidate fits.
    """
    source = normal_images(images)
    chosen = tuple(candidates_of_the_table() if candidates is None else candidates)
    _check(source, chosen, changes)
    groups = find_groups(source, source.paths(), group_by)
    batches = Batches(source, chosen[0].preprocess, 8, workers, on_error, refuse_constant=True)
    return compare(batches, chosen, groups=groups, changes=changes, seed=seed, progress=progress)[0]


def compare(
    batches: Batches,
    candidates: Sequence[Candidate],
    *,
    groups: Sequence[int] | None = None,
    changes: int = CHANGES_AN_IMAGE,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Choice, FeatureMemory]:
    """As `choose`; also gives the feature maps of all images for the candidate that was picked."""
    start, source = perf_counter(), batches.source
    _check(source, candidates, changes)
    learn, held_out = hold_out(range(len(source)) if groups is None else groups, HELD_OUT, seed=seed)
    inputs = _inputs(candidates, batches)
    done, total = 0, len(inputs) * (len(source) + changes * len(held_out))

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("choose", done, total)

    left_out: list[Skipped] = []
    for shared in inputs:
        shared.read(report)
        shared.fit(source.subset(learn), left_out)
        shared.score(source.subset(held_out), changes, seed, report)
    results = [result for shared in inputs for result in shared.results]
    if not results:
        raise NotEnoughMemoryError("no candidate could be fitted: " + "; ".join(": ".join(pair) for pair in left_out))
    trial = inputs[0].trial
    ranking = _ranking(results, trial, seed)
    picked = _pick(ranking, candidates)
    choice = Choice(
        ranking=ranking,
        picked=picked.candidate,
        reason=_reason(ranking, picked),
        learned=len(inputs[0].memory) - trial.images,
        held_out=tuple(trial.names),
        changed=len(trial.of),
        left_out=tuple(left_out),
        seconds=perf_counter() - start,
        skipped=tuple(inputs[0].batches.skipped),
    )
    return choice, next(shared.memory for shared in inputs if picked.candidate in shared.candidates)


@dataclass
class _Result:
    """A fitted candidate and its scores so far."""

    candidate: Candidate
    method: FeatureMethod
    fit_seconds: float
    model_bytes: int
    untouched: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def score(self, batch: ImageBatch, masks: Tensor | None = None) -> None:
        """Score untouched images; or, with masks of what was changed, changed ones."""
        start = perf_counter()
        found = self.method.score(batch)
        values = found.images.tolist()
        self.seconds += perf_counter() - start
        (self.untouched if masks is None else self.changed).extend(values)
        if masks is not None and found.maps is not None:
            self.pixels += [_pixel_auroc(map, mask) for map, mask in zip(found.maps.cpu(), masks, strict=True)]


class _Input:
    """Candidates that read the same network and input size, and the feature maps that they share."""

    def __init__(self, candidates: Sequence[Candidate], batches: Batches) -> None:
        first = candidates[0].method
        self.candidates, row = candidates, find_backbone(first.backbone)
        preprocess = candidates[0].preprocess
        if preprocess.is_open:
            preprocess = settle(preprocess, batches.source, multiple=row.multiple)
        self.batches = replace(batches, preprocess=preprocess, skipped=[])
        self.results: list[_Result] = []
        self.trial = Trial((), (), ())
        self._plans: dict[str, FitPlan] = {}
        self._taps = tuple(dict.fromkeys(tap for candidate in candidates for tap in candidate.method.tapped()))
        self._extractor = build_extractor(
            row,
            weights=find_weights(row, first.weights, seed=first.seed),
            taps=self._taps,
            device=find_device(first.device),
            precision=first.precision,
        )
        left = memory_left(torch.device("cpu"), first.memory_gb)
        self.memory = FeatureMemory(
            backbone=row.name,
            preprocess=self.batches.preprocess,
            images=len(batches.source),
            precision=first.precision,
            budget=None if left is None else left // 2,
        )

    def read(self, report: Callable[[int], None]) -> None:
        """Push every image through the network; say first what memory it will take."""
        for batch in self.batches:
            seen = self._seen(batch)
            assert seen.features is not None
            if not len(self.memory):
                self._plan(seen)
            self.memory.add(batch, seen.features)
            report(len(batch))

    def fit(self, learn: ImageSource, left_out: list[Skipped]) -> None:
        """Fit each candidate; those that differ in how a map becomes a score are fitted once."""
        known: dict[str, FeatureMethod] = {}
        batches = replace(self.batches, source=_known(learn, self.memory), features=self.memory, skipped=[])
        for candidate in self.candidates:
            start, parameters = perf_counter(), candidate.method.get_params(deep=False)
            parameters |= {name: value for name, value in _WITHOUT.items() if name in parameters}
            key = repr({name: value for name, value in parameters.items() if name != "top_share"})
            try:
                if f"{candidate.method.name} {key}" in known:
                    method = copy.copy(known[f"{candidate.method.name} {key}"])
                    method.set_params(top_share=parameters["top_share"])
                else:
                    method = type(candidate.method)(**parameters).fit(batches)
            except BlemishError as error:
                left_out.append((candidate.name, str(error)))
                continue
            known[f"{candidate.method.name} {key}"] = method
            model_bytes = self._plans[candidate.name].model_bytes
            self.results.append(_Result(candidate, method, perf_counter() - start, model_bytes))

    def score(self, held_out: ImageSource, changes: int, seed: int, report: Callable[[int], None]) -> None:
        """Score every held-out image as it is, and changed copies of it, each of the next family."""
        names = list[str]()
        of, drawn = list[int](), list[str]()
        before: Tensor | None = None
        for batch in replace(self.batches, source=_known(held_out, self.memory), skipped=[]):
            numbers = range(len(names), len(names) + len(batch))
            names += batch.names
            self._score(self.memory.batch(batch.names))
            others = [batch.pixels[0] if before is None else before, *batch.pixels[:-1]]
            before = batch.pixels[-1]
            for turn in range(changes):
                own = [FAMILIES[(number * changes + turn) % len(FAMILIES)] for number in numbers]
                regions = [None] * len(batch) if batch.inside is None else [*batch.inside]
                pairs = [
                    draw_change(family, image, other, generator(seed, number, family), inside=inside)
                    for number, family, image, other, inside in zip(
                        numbers, own, batch.pixels, others, regions, strict=True
                    )
                ]
                changed = replace(batch, pixels=torch.stack([image for image, _ in pairs]))
                self._score(self._seen(changed), torch.stack([mask for _, mask in pairs]))
                of, drawn = [*of, *numbers], [*drawn, *own]
                report(len(batch))
        self.trial = Trial(tuple(names), tuple(of), tuple(drawn))

    def _score(self, batch: ImageBatch, masks: Tensor | None = None) -> None:
        for result in self.results:
            result.score(batch, masks)

    def _seen(self, batch: ImageBatch) -> ImageBatch:
        maps = self._extractor(batch.pixels).maps
        return replace(batch, features=dict(zip(self._taps, maps, strict=True)))

    def _plan(self, first: ImageBatch) -> None:
        """Find out what each candidate will take, and say what the largest does."""
        assert first.features is not None
        size, images = (first.pixels.shape[2], first.pixels.shape[3]), len(self.batches)
        maps = sum(m[0].numel() * 4 * images for m in first.features.values())
        for candidate in self.candidates:
            own = FeatureMaps(tuple(first.features[tap] for tap in candidate.method.tapped()), size)
            self._plans[candidate.name] = candidate.method.plan(own, images)
        largest = max(self._plans, key=lambda name: self._plans[name].peak_bytes)
        models = sum(plan.model_bytes for plan in self._plans.values())
        log.info(
            "choosing among %d candidates on %d images: feature maps %s, models %s; the largest, %s: %s",
            len(self._plans), images, spell_bytes(maps), spell_bytes(models), largest,
            spell_bytes(self._plans[largest].peak_bytes),
        )  # fmt: skip


def _check(source: ImageSource, candidates: Sequence[Candidate], changes: int) -> None:
    if not candidates:
        raise ArgumentError.about("candidates", expected="at least one", got="none")
    for candidate in candidates:
        if not isinstance(candidate.method, FeatureMethod) or not candidate.method.reads_features:
            raise ArgumentError.about(
                "candidates", expected="methods that leave the network as it is", got=candidate.method.name
            )
        candidate.method.check()
    if changes < 1:
        raise ArgumentError.about("changes", expected="at least 1", got=changes)
    if len(source) < FEWEST:
        raise ArgumentError.about(
            "images", expected=f"at least {FEWEST} normal images to choose by", got=len(source),
            instead="Name a method; with so few, patchcore.",
        )  # fmt: skip


def _inputs(candidates: Sequence[Candidate], batches: Batches) -> list[_Input]:
    """The candidates by network and input size."""

    def read(candidate: Candidate) -> tuple[object, ...]:
        method = candidate.method
        network = find_backbone(method.backbone).name, str(method.weights), method.precision, method.device, method.seed
        return *network, str(candidate.preprocess)

    return [_Input(own, batches) for own in grouped(candidates, read).values()]


def _known(source: ImageSource, memory: FeatureMemory) -> ImageSource:
    """Those images that could be read."""
    return source.subset([i for i, name in enumerate(source.names) if name in memory])


def _pixel_auroc(map: Tensor, mask: Tensor) -> float:
    """AUROC of the blocks of a map that were changed; NaN where none was, or most of them."""
    blocks = functional.avg_pool2d(map[None, None], _COARSE).flatten()
    marked = functional.max_pool2d(mask[None, None].float(), _COARSE).flatten() > 0
    share = float(marked.float().mean())
    return separation(blocks[~marked], blocks[marked]) if 0 < share < 0.5 else float("nan")


def _ranking(results: Sequence[_Result], trial: Trial, seed: int) -> tuple[Ranked, ...]:
    weights = trial.weights(seed=seed)
    told = [trial.separation(np.array(r.untouched), np.array(r.changed), weights) for r in results]
    criteria = [mean_separation(one) for one in told]
    best = max(criteria, key=lambda drawn: float(drawn[0]))
    rows = []
    for result, one, criterion in zip(results, told, criteria, strict=True):
        pixels = np.array(result.pixels)
        behind = interval(best - criterion)
        rows.append(
            Ranked(
                candidate=result.candidate,
                criterion=float(criterion[0]),
                interval=interval(criterion),
                behind=behind,
                alike=bool(behind[0] <= 0),
                families=dict(zip(trial.family_names, one[0].tolist(), strict=True)),
                pixel_auroc=float(np.nanmean(pixels)) if np.isfinite(pixels).any() else None,
                fit_seconds=result.fit_seconds,
                score_ms=1e3 * result.seconds / (len(result.untouched) + len(result.changed)),
                model_bytes=result.model_bytes,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.criterion, _cost(row))))


def _cost(row: Ranked) -> tuple[bool, int]:
    """A method with maps is worth more than a small one; no seconds, which are others in every run."""
    return row.pixel_auroc is None, row.model_bytes


def _pick(ranking: Sequence[Ranked], candidates: Sequence[Candidate]) -> Ranked:
    """The smallest of those that are hardly behind the first; where nothing is told, the first listed without a map."""
    whole = [row for row in ranking if row.pixel_auroc is None]
    if ranking[0].criterion < LEAST and whole:
        return min(whole, key=lambda row: [row.candidate is one for one in candidates].index(True))
    return min((row for row in ranking if row.criterion >= ranking[0].criterion - ALIKE), key=_cost)


def _reason(ranking: Sequence[Ranked], picked: Ranked) -> str:
    several = len({row.candidate.size for row in ranking}) > 1

    def name(row: Ranked) -> str:
        return row.candidate.name + (f" at {row.candidate.size}" if several else "")

    said = f"{name(picked)}, which told {picked.criterion:.3f} of the changes from untouched images"
    if ranking[0].criterion < LEAST:
        said += f"; none told {LEAST:g}, so small changes say little here"
    elif picked is not ranking[0]:
        said += f", less than {ALIKE:g} behind the first and smaller"
    runners = ", ".join(f"{name(row)} {row.criterion:.3f}" for row in ranking if row is not picked)
    return f"{said}; the others: {runners}" if runners else said
