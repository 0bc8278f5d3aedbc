"""What of a folder was taken, and what was passed over: a line a folder, for people and as JSON."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..images.listing import list_folder
from .dataset import Dataset
from .layouts import OneClass
from .readers import masks_among

_MOST_LINES = 40
_MOST_NAMES = 20


@dataclass(frozen=True)
class TakenFolder:
    """Images of one folder that have the same use."""

    folder: str
    """Relative to the root."""
    use: Literal["train", "test"]
    kind: str
    anomalous: bool
    images: int
    masks: int


@dataclass(frozen=True)
class PassedOver:
    """Files of one folder that were left out for the same reason."""

    folder: str
    reason: str
    count: int
    files: tuple[str, ...]
    """Their names; the first ones where there are many."""


@dataclass(frozen=True)
class Taken:
    """What was taken of a folder."""

    root: str
    layout: str
    folders: tuple[TakenFolder, ...]
    passed_over: tuple[PassedOver, ...]
    has_test_part: bool

    def lines(self, *, use: str = "to learn from") -> Iterator[str]:
        """For people: a line a folder; `use` is that of the normal images that are no test images."""
        yield f"{self.root}: {_LAYOUT_WORDS.get(self.layout, f'layout {self.layout}')}"
        said = [*(_taken_line(folder, use) for folder in self.folders), *map(_passed_over_line, self.passed_over)]
        yield from said[:_MOST_LINES]
        if len(said) > _MOST_LINES:
            yield f"  ... and {len(said) - _MOST_LINES} more folders (--json names all)"
        if not self.has_test_part and any(folder.use == "train" for folder in self.folders):
            yield "  no test part: a fifth of the normal images, drawn with seed 0, is kept for the test"

    def as_json(self) -> dict[str, object]:
        """The same as plain values."""
        return asdict(self)


_MASK = "a mask of no anomalous test image"
_LAYOUT_WORDS = {"folder": "a folder of images", "as said": "sub-folders as said"}


def take(dataset: Dataset) -> Taken:
    """Count what a data set takes, folder by folder, and look again for what it does not."""
    spelled = OneClass.spelled(dataset.root)
    root = dataset.root if spelled is None else spelled.folder
    groups: dict[tuple[str, Literal["train", "test"], str, bool], list[Path | None]] = defaultdict(list)
    for path in dataset.train:
        groups[_folder(path, root), "train", "normal", False].append(None)
    for sample in dataset.test:
        groups[_folder(sample.path, root), "test", sample.kind, sample.anomalous].append(sample.mask)
    folders = [
        TakenFolder(*key, images=len(masks), masks=sum(mask is not None for mask in masks))
        for key, masks in groups.items()
    ]
    order = {"train": 0, "test": 1}
    return Taken(
        str(dataset.root),
        dataset.layout,
        tuple(sorted(folders, key=lambda row: (order[row.use], row.folder, row.kind))),
        tuple(_passed_over(dataset, root)) if dataset.packed is None and root.is_dir() else (),
        dataset.has_test_part,
    )


def _passed_over(dataset: Dataset, root: Path) -> Iterator[PassedOver]:
    found = list_folder(root)
    masks = {sample.mask for sample in dataset.test if sample.mask is not None}
    used = {*dataset.train, *(sample.path for sample in dataset.test), *masks}
    left = [path for path in found.files if path not in used and path.parent not in masks]
    no_images = masks_among(found.files, root)
    reasons = [(Path(name), reason) for name, reason in found.passed_over]
    for path in left:
        reasons.append((path, _MASK if path in no_images else f"no part of what the layout {dataset.layout} takes"))
    yield from _grouped(reasons, root)


def _grouped(reasons: Iterable[tuple[Path, str]], root: Path) -> Iterator[PassedOver]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, reason in reasons:
        groups[_folder(path, root), reason].append(path.name)
    for (folder, reason), names in sorted(groups.items()):
        yield PassedOver(folder, reason, len(names), tuple(sorted(names)[:_MOST_NAMES]))


def _folder(path: Path, root: Path) -> str:
    return os.path.relpath(path.parent, root) if path.parent.parts else "."


def _taken_line(row: TakenFolder, use: str) -> str:
    if row.use == "train":
        what = f"normal, {use}"
    elif row.kind == "unknown":
        what = "to judge"
    else:
        what = f"test, anomalous ({row.kind})" if row.anomalous else "test, normal"
    return f"  {row.folder}: {row.images} images, {what}" + (f", {row.masks} masks" if row.masks else "")


def _passed_over_line(row: PassedOver) -> str:
    more = f" and {row.count - len(row.files)} more" if row.count > len(row.files) else ""
    names = "" if row.reason.startswith((_MASK, "no part of")) else f": {', '.join(row.files)}{more}"
    return f"  {row.folder}: passed over {row.count} files, {row.reason}{names}"
