"""What a plan will cost before it runs: shapes from one image, times from a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..datasets.layouts import open_dataset
from ..errors import ArgumentError, BlemishError
from ..features.backbones import find_backbone
from ..methods import FeatureMethod
from ..types import FeatureMaps
from .group import decoded, forward_ms, make_method, prepared, share_held_out, shared_extractor
from .messages import WorkerSettings
from .plan import Cell, Group


@dataclass(frozen=True)
class CellEstimate:
    """One cell; bytes beside the network and the shared features."""

    cell: Cell
    model_bytes: int | None
    peak_bytes: int | None
    problem: str
    """Why it will fail; empty where nothing speaks against it."""


@dataclass(frozen=True)
class GroupEstimate:
    """One group."""

    images: int
    feature_bytes: int
    """Of the features that its cells share, in memory or on disk."""
    seconds: float
    """For reading all images once, and for the fits; scoring and figures come on top."""
    cells: tuple[CellEstimate, ...]


def estimate(group: Group, settings: WorkerSettings) -> GroupEstimate:
    """Look at a few images of a group; needs no weights."""
    torch.set_num_threads(settings.threads)
    first = group.cells[0]
    try:
        dataset = open_dataset(first.dataset)
        backbone = find_backbone(first.backbone)
        extractor = shared_extractor(group, backbone, None, settings)
        preprocess = prepared(dataset, first, backbone)
        pixels, decode_ms = decoded(dataset, preprocess)
        slowest_ms = max(decode_ms / settings.decoders, forward_ms(extractor, pixels))
        maps = extractor(torch.zeros(1, 3, *preprocess.size)).maps
    except BlemishError as error:
        return GroupEstimate(0, 0, 0.0, tuple(CellEstimate(cell, None, None, str(error)) for cell in group.cells))
    by_tap = dict(zip(extractor.taps, maps, strict=True))
    images = len(dataset.train) + len(dataset.test)
    seconds = images * slowest_ms / 1e3
    cells = []
    for cell in group.cells:
        try:
            learned = round(len(dataset.train) * (1 - share_held_out(cell, len(dataset.train))))
            method = make_method(cell, backbone, settings)
            if not isinstance(method, FeatureMethod):
                cells.append(CellEstimate(cell, None, None, ""))
                continue
            missing = [tap for tap in method.tapped() if tap not in by_tap]
            if missing and method.reads_features:
                raise ArgumentError.about("taps", expected=f"layers of {backbone.name}", got=", ".join(missing))
            some = FeatureMaps(tuple(by_tap[tap] for tap in method.tapped() if tap in by_tap), preprocess.size)
            needed = method.plan(some, learned)
        except (BlemishError, TypeError) as error:
            cells.append(CellEstimate(cell, None, None, str(error)))
            continue
        seconds += needed.seconds()
        cells.append(CellEstimate(cell, needed.model_bytes, needed.peak_bytes, ""))
    each = sum(m.numel() * m.element_size() for m in maps)
    return GroupEstimate(images, images * each, seconds, tuple(cells))
