"""One look at a data set before anybody learns from it.

Labels and pixels of test images are never seen by a model here: the pictures of both sides are compared with each
other, and only the normal training images go through the backbone.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..datasets.layouts import Dataset, OneClass
from ..datasets.taken import take
from ..device import find_device
from ..features.backbones import find_backbone
from ..features.extract import build_extractor
from ..features.weights import find_weights
from ..images.preprocess import Preprocess
from ..images.source import Batches, ImageSource, Skipped
from ..progress import Progress
from .alike import find_identical, find_nearly_identical
from .masks import suspicious_masks
from .pictures import SeenPicture, looked_at
from .unlike import Seen

INPUT = Preprocess(192)
"""What the backbone sees. Chosen on `screw` and `bottle`: 256 pixels cost three times as much and ranked no better."""

_ODD = 0.1


@dataclass(frozen=True)
class FolderFacts:
    """What the pictures of one folder have in common."""

    folder: str
    images: int
    sizes: dict[str, int]
    """`height x width` and how many are so, the most frequent first."""
    modes: dict[str, int]
    """Likewise, as `RGB, 8 bit`."""
    black: float
    """Median share of the pixels at the lowest level."""
    white: float


@dataclass(frozen=True)
class Inspection:
    """What `inspect_dataset` found. All names are paths below the folder."""

    root: Path
    layout: str
    train: int
    test: int
    folders: tuple[FolderFacts, ...]
    unreadable: tuple[Skipped, ...]
    passed_over: tuple[Skipped, ...]
    identical: tuple[tuple[str, ...], ...]
    nearly_identical: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, ...], ...]
    """Those of the identical that are on both sides, train and test."""
    constant: tuple[str, ...]
    exposure: tuple[tuple[str, str], ...]
    masks: tuple[tuple[str, str], ...]
    """Mask and what is odd about it."""
    unlike: tuple[tuple[str, float], ...]
    """Normal training images by how unlike the others they are, 1 at most, the most unlike first; empty if too few."""
    seconds: float

    def names_below(self, names: Iterable[str]) -> list[str]:
        """Names of images as they are here."""
        folder = _folder(self.root)
        return [_below(folder, name) for name in names]

    @property
    def most_unlike(self) -> tuple[tuple[str, float], ...]:
        """The most unlike tenth."""
        return self.unlike[: -(-len(self.unlike) // 10)]


def inspect_dataset(
    dataset: Dataset, *, device: str = "auto", workers: int = 2, progress: Progress | None = None
) -> Inspection:
    """Read each picture once, and tell what is odd."""
    start = time.perf_counter()
    root = _folder(dataset.root)
    train, unreadable, seen = _read_train(dataset.train_images(), device, workers, progress)
    test, bad = _read_test(dataset.test_images(), workers, progress)
    sizes = {picture.name: picture.size for picture in test}
    masks = [(_below(root, mask), remark) for mask, remark in suspicious_masks(dataset.test, sizes, workers=workers)]
    sides = [_named(root, pictures) for pictures in (train, test)]
    pictures = [*sides[0], *sides[1]]
    identical = find_identical(pictures)
    of_train, of_test = ({picture.name for picture in side} for side in sides)
    scores = seen.scores([picture.size for picture in train])
    unlike = sorted(zip((p.name for p in sides[0]), scores.tolist(), strict=False), key=lambda row: -row[1])
    return Inspection(
        root=dataset.root,
        layout=dataset.layout,
        train=len(train),
        test=len(test),
        folders=tuple(_folders(pictures)),
        unreadable=tuple((_below(root, name), reason) for name, reason in [*unreadable, *bad]),
        passed_over=tuple(
            (Path(over.folder, name).as_posix(), over.reason)
            for over in take(dataset).passed_over
            for name in over.files
        ),
        identical=tuple(identical),
        nearly_identical=tuple(find_nearly_identical(pictures)),
        leaks=tuple(names for names in identical if of_train.intersection(names) and of_test.intersection(names)),
        constant=tuple(picture.name for picture in pictures if picture.is_constant),
        exposure=tuple(_exposure(pictures)),
        masks=tuple(masks),
        unlike=tuple(unlike),
        seconds=time.perf_counter() - start,
    )


def inspection_json(inspection: Inspection) -> dict[str, object]:
    """Everything as one object; of the scores, those of the most unlike tenth."""
    return {
        "root": str(inspection.root),
        "layout": inspection.layout,
        "train": inspection.train,
        "test": inspection.test,
        "folders": [vars(folder) for folder in inspection.folders],
        "identical": inspection.identical,
        "nearly_identical": inspection.nearly_identical,
        "leaks": inspection.leaks,
        "constant": inspection.constant,
        "most_unlike": [{"name": name, "score": score} for name, score in inspection.most_unlike],
        **{
            key: [{"name": name, "remark": remark} for name, remark in getattr(inspection, key)]
            for key in ("unreadable", "passed_over", "exposure", "masks")
        },
        "seconds": round(inspection.seconds, 3),
        "images_per_second": round((inspection.train + inspection.test) / inspection.seconds, 1),
    }


def _read_train(
    source: ImageSource, device: str, workers: int, progress: Progress | None
) -> tuple[list[SeenPicture], list[Skipped], Seen]:
    """Pictures, files that cannot be read, and what the backbone saw."""
    row = find_backbone("compact")
    extractor = build_extractor(row, weights=find_weights(row), device=find_device(device))
    watched, known = looked_at(source)
    batches = Batches(watched, INPUT, workers=workers, on_error="skip")
    names: list[str] = []
    seen = Seen()
    for batch in batches:
        seen.add(extractor(batch.pixels).maps)
        names += batch.names
        if progress is not None:
            progress("train", len(names), len(source))
    return [known[name] for name in names], list(batches.skipped), seen


def _read_test(source: ImageSource, workers: int, progress: Progress | None) -> tuple[list[SeenPicture], list[Skipped]]:
    watched, known = looked_at(source)
    batches = Batches(watched, Preprocess(16), workers=workers, on_error="skip")
    names: list[str] = []
    for batch in batches:
        names += batch.names
        if progress is not None:
            progress("test", len(names), len(source))
    return [known[name] for name in names], list(batches.skipped)


def _folder(root: Path) -> Path:
    spelled = OneClass.spelled(root)
    return root if spelled is None else spelled.folder


def _below(root: Path, name: str) -> str:
    path = Path(name)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _named(root: Path, pictures: list[SeenPicture]) -> list[SeenPicture]:
    return [replace(picture, name=_below(root, picture.name)) for picture in pictures]


def _by_folder(pictures: list[SeenPicture]) -> dict[str, list[SeenPicture]]:
    found = defaultdict(list)
    for picture in pictures:
        found[str(PurePosixPath(picture.name).parent)].append(picture)
    return found


def _folders(pictures: list[SeenPicture]) -> Iterator[FolderFacts]:
    for folder, own in _by_folder(pictures).items():
        sizes = Counter(f"{height} x {width}" for height, width in (picture.size for picture in own))
        modes = Counter(f"{picture.mode}, {picture.bits} bit" for picture in own)
        yield FolderFacts(
            folder,
            len(own),
            dict(sizes.most_common()),
            dict(modes.most_common()),
            float(np.median([picture.black for picture in own])),
            float(np.median([picture.white for picture in own])),
        )


def _exposure(pictures: list[SeenPicture]) -> Iterator[tuple[str, str]]:
    """Pictures with many more pixels at an end of the scale than is usual in their folder."""
    for own in _by_folder(pictures).values():
        for end, words in (("black", "under-exposed"), ("white", "over-exposed")):
            usual = float(np.median([getattr(picture, end) for picture in own]))
            for picture in own:
                share = getattr(picture, end)
                if share > usual + _ODD:
                    yield picture.name, f"{words}: {share:.0%} of its pixels are {end}, {usual:.0%} is usual there"
