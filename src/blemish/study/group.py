"""What happens inside the process of one group: the images are read once, then its cells are fitted and measured."""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets.layouts import Dataset, open_dataset
from ..detector import Detector
from ..device import find_device
from ..errors import ArgumentError, BlemishError, DatasetError, WeightsError
from ..evaluation.detector import Evaluation, Masks, evaluate
from ..features.backbones import Backbone, find_backbone
from ..features.extract import Extractor, build_extractor
from ..features.memory import FeatureMemory
from ..features.weights import StateDict, find_weights
from ..images.preprocess import Preprocess
from ..images.settle import settle, warn_of_dark
from ..images.source import Batches
from ..memory import available_bytes, forget_peak, peak_since
from ..methods import FeatureMethod, Method
from ..methods.registry import METHODS
from ..parameters import parameters_of
from ..persist import digest
from ..promises import images_needed, require_images, share_to_hold_out
from .messages import Finished, ImagesRead, Message, Started, WorkerSettings
from .plan import Cell, Group

_BATCH = 8
_TIMED = 8
"""Images on which decoding and forward passes are timed, one after the other; together they disturb each other."""
_PASSES = 3
"""Over these images, of which the fastest counts; other work of the machine only adds to it."""


def run_group(group: Group, settings: WorkerSettings) -> Iterator[Message]:
    """Run all cells of a group, one message a step; an error ends its cell, not the group."""
    torch.set_num_threads(settings.threads)
    try:
        shared = yield from _read(group, settings)
    except Exception as error:
        for cell in group.cells:
            yield Finished(cell.key, failure(error))
        return
    for cell in group.cells:
        yield Started(cell.key, os.getpid())
        try:
            values = _run(cell, shared, settings)
        except Exception as error:
            values = failure(error)
        yield Finished(cell.key, values)


def failure(error: Exception) -> dict[str, Any]:
    """The values of a cell that an error ended."""
    reason = " ".join(str(error).split()) or "no message"
    trace = None if isinstance(error, BlemishError) else "".join(traceback.format_exception(error))
    return {"status": "failed", "reason": f"{type(error).__name__}: {reason}", "trace": trace, "finished_at": _now()}


@dataclass(frozen=True)
class _Shared:
    """What the cells of a group have in common."""

    dataset: Dataset
    backbone: Backbone
    features: FeatureMemory
    masks: Masks
    pixels: Tensor
    """Some images, to time forward passes."""
    forward: dict[tuple[str, ...], float]
    """Milliseconds of one image by the layers read, as far as they are known."""
    columns: dict[str, Any]
    """Columns of the row that are the same for all cells."""


def _read(group: Group, settings: WorkerSettings) -> Generator[Message, None, _Shared]:
    """Read every image once; returns what the cells share."""
    first = group.cells[0]
    dataset = open_dataset(first.dataset)
    if not dataset.test:
        raise DatasetError(f"{dataset.root}: no labelled test images ({dataset.layout} layout), so no figures.")
    backbone, weights = _backbone(first)
    extractor = shared_extractor(group, backbone, weights, settings)
    preprocess = prepared(dataset, first, backbone)
    warn_of_dark(dataset.train_images())
    features = FeatureMemory(
        backbone=backbone.name,
        precision=_precision(first),
        preprocess=preprocess,
        images=len(dataset.train) + len(dataset.test),
        budget=_budget(settings),
    )
    # Separately, so that the last batch of each is the one that a fit and an evaluation see.
    for source in (dataset.train_images(), dataset.test_images()):
        for batch in Batches(source, preprocess, _BATCH, settings.decoders):
            maps = extractor(batch.pixels).maps
            features.add(batch, dict(zip(extractor.taps, maps, strict=True)))
            yield ImagesRead(len(features), len(dataset.train) + len(dataset.test))
    pixels, decode_ms = decoded(dataset, preprocess)
    columns = {
        "decode_ms": decode_ms,
        "dataset_digest": _digest_of_files(dataset),
        "weights_digest": digest(weights),
        "shared_bytes": features.bytes,
        "threads": settings.threads,
        "device": str(extractor.device),
    }
    return _Shared(dataset, backbone, features, Masks(), pixels, {}, columns)


def share_held_out(cell: Cell, images: int) -> float:
    """Of the normal images: the cell's, or as many as its rate takes, as in a plain fit. Refuses too few images."""
    if not cell.held_out:
        return 0.0
    share = share_to_hold_out(images, images_needed(cell.false_alarm_rate), least=cell.held_out)
    require_images(round(images * share), cell.false_alarm_rate, total=images, may_be_off=False)
    return share


def _run(cell: Cell, shared: _Shared, settings: WorkerSettings) -> dict[str, Any]:
    start = time.perf_counter()
    forget_peak()
    method = make_method(cell, shared.backbone, settings)
    detector = Detector(
        method=method,
        preprocess=shared.features.preprocess,
        calibration="split" if cell.held_out else "none",
        held_out=share_held_out(cell, len(shared.dataset.train)) or Detector.held_out,
        false_alarm_rate=cell.false_alarm_rate,
        seed=cell.seed,
        batch_size=_BATCH,
        features=shared.features if isinstance(method, FeatureMethod) and method.reads_features else None,
    )
    detector.fit(shared.dataset.train_images())
    fit_seconds = time.perf_counter() - start
    evaluation = evaluate(
        detector, shared.dataset, intervals=cell.intervals, repetitions=cell.repetitions, masks=shared.masks
    )
    return {
        "status": "finished",
        "reason": None,
        **shared.columns,
        **asdict(evaluation.figures),
        **_facts(detector, evaluation),
        "fit_seconds": fit_seconds,
        "forward_ms": _forward_ms(method.extractor_, shared) if isinstance(method, FeatureMethod) else 0.0,
        "score_ms": 1e3 * evaluation.seconds / len(evaluation.records),
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_since(),
        "finished_at": _now(),
    }


def _facts(detector: Detector, evaluation: Evaluation) -> dict[str, Any]:
    calibration = detector.calibration_
    state = detector.method_.state()
    return {
        "n_fit": detector.images_,
        "n_held_out": 0 if calibration is None else len(calibration.scores),
        "model_bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        "intervals": evaluation.intervals,
        "versions": detector.manifest()["versions"],
        "rest": {"kinds": [asdict(kind) for kind in evaluation.kinds], "pixels": evaluation.pixels},
    }


def make_method(cell: Cell, backbone: Backbone, settings: WorkerSettings) -> Method:
    """The method of a cell, not fitted."""
    kind = METHODS[cell.method]
    given: dict[str, Any] = {"seed": cell.seed, "device": settings.device, "memory_gb": settings.memory_gb}
    if issubclass(kind, FeatureMethod):  # others have weights of another kind
        given |= {"backbone": backbone, "weights": cell.weights, "taps": cell.taps}
    known = parameters_of(kind)
    return kind(**{name: value for name, value in given.items() if name in known}, **dict(cell.parameters))


def _backbone(cell: Cell) -> tuple[Backbone, StateDict]:
    """The row, and the parameters that its network will have."""
    row = find_backbone(cell.backbone)
    return row, find_weights(row, cell.weights, seed=cell.seed) or dict(row.build().state_dict())


def shared_extractor(
    group: Group, backbone: Backbone, weights: StateDict | None, settings: WorkerSettings
) -> Extractor:
    """An extractor of all layers that the cells read, those left out that cannot be read."""

    def build(taps: Sequence[str]) -> Extractor:
        return build_extractor(
            backbone, weights=weights or None, taps=taps, device=device, precision=_precision(group.cells[0])
        )

    device = find_device(settings.device)
    sets = dict.fromkeys(taps for cell in group.cells if (taps := _tapped(cell, backbone, settings)))
    sets = sets or {backbone.taps[-1:]: None}  # no cell reads features, but the group is timed on some
    try:
        return build(_union(sets))
    except (ArgumentError, WeightsError) as error:
        # One cell's wrong layer, or one without weights, must not end the others; it gets its own error in its fit.
        good = [taps for taps in sets if _works(build, taps)]
        if not good:
            raise error
        return build(_union(good))


def _works(build: Any, taps: Sequence[str]) -> bool:
    try:
        build(taps)
    except (ArgumentError, WeightsError):
        return False
    return True


def _union(sets: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tap for taps in sets for tap in taps))


def _tapped(cell: Cell, backbone: Backbone, settings: WorkerSettings) -> tuple[str, ...]:
    """The layers of the frozen network that a cell reads; none where its method cannot even be made."""
    try:
        method = make_method(cell, backbone, settings)
        return method.tapped() if isinstance(method, FeatureMethod) and method.reads_features else ()
    except Exception:  # it comes again, and is recorded, where the cell is fitted
        return ()


def _precision(cell: Cell) -> Any:
    return dict(cell.parameters).get("precision", "float32")


def _budget(settings: WorkerSettings) -> int | None:
    """Half of what this process may hold is for features, the other half for the methods."""
    if settings.memory_gb is not None:
        return int(settings.memory_gb * 1e9 / 2)
    available = available_bytes()
    return None if available is None else available // 2


def _forward_ms(extractor: Extractor, shared: _Shared) -> float:
    if extractor.taps not in shared.forward:
        shared.forward[extractor.taps] = forward_ms(extractor, shared.pixels)
    return shared.forward[extractor.taps]


def prepared(dataset: Dataset, cell: Cell, backbone: Backbone) -> Preprocess:
    """How the images of a data set are prepared; `auto` asks for the sizes of all its normal training images."""
    pixels = Preprocess(cell.resize, cell.crop, cell.white_level)
    levels = cell.white_level == "auto"
    return settle(pixels, dataset.train_images(), multiple=backbone.multiple, levels=levels)


def decoded(dataset: Dataset, preprocess: Preprocess) -> tuple[Tensor, float]:
    """Some test images, and how many milliseconds it took to decode and resize one."""
    source = dataset.test_images().subset(range(min(_TIMED, len(dataset.test))))
    start = time.perf_counter()
    pixels = torch.stack([preprocess.pixels(source.load(i)) for i in range(len(source))])
    return pixels, 1e3 * (time.perf_counter() - start) / len(source)


def forward_ms(extractor: Extractor, pixels: Tensor) -> float:
    """Milliseconds to push one image through the network, one at a time."""
    passes = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        for one in pixels.split(1):  # type: ignore[no-untyped-call]
            extractor(one).maps[-1].cpu()  # a GPU has not done its work before someone wants to see it
        passes.append(time.perf_counter() - start)
    return 1e3 * min(passes) / len(pixels)


def _digest_of_files(dataset: Dataset) -> str:
    """Of names and sizes of all images and masks, in order; their content is not read. Packed ones have no size."""
    found = hashlib.sha256()
    for part, paths in (("train", dataset.train), ("test", [sample.path for sample in dataset.test])):
        for path in paths:
            size = path.stat().st_size if dataset.packed is None else 0
            found.update(f"{part} {_below(dataset.root, path)} {size}\n".encode())
    for sample in dataset.test:
        if sample.mask is not None:
            found.update(f"mask {_below(dataset.root, sample.mask)} {sample.mask.stat().st_size}\n".encode())
    return found.hexdigest()


def _below(root: Path, path: Path) -> str:
    """The same on every system: a study may move from one to another."""
    return Path(os.path.relpath(path, root)).as_posix()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
