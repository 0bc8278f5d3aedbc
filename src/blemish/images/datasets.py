"""THE TABLE of dataset layouts: one row each. A new dataset is one row.

Only training images that are normal are listed for training. Labels and masks of the test images reach the metrics
and nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .source import ImageSource, from_paths, image_files


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image: its kind (`good`, or the name of a defect) and its mask file, where there is one."""

    path: Path
    kind: str
    anomalous: bool
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Normal images to learn from and, in some layouts, labelled images to test on."""

    root: Path
    layout: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]

    def train_images(self) -> ImageSource:
        """The normal training images."""
        return from_paths(self.train)

    def test_images(self) -> ImageSource:
        """The test images, in the order of `test`."""
        return from_paths(sample.path for sample in self.test)


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of the table."""

    name: str
    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


def open_dataset(root: str | Path) -> Dataset:
    """Recognise the layout of a folder and list its images; nothing is decoded.

    Raises `DatasetError` where the folder is missing, empty, or where an anomalous image of a layout with masks
    lacks its mask.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError.about(str(root), expected="a dataset folder", got="nothing there, or a file")
    layout = next(layout for layout in LAYOUTS if layout.matches(root))
    dataset = layout.read(root)
    if not dataset.train:
        raise DatasetError(
            f"{root}: no normal training images found. Expected {layout.description}. "
            "Known layouts: " + "; ".join(f"{row.name} ({row.description})" for row in LAYOUTS)
        )
    return dataset


def _read_mvtec(root: Path) -> Dataset:
    test = tuple(_kinds(root / "test", root / "ground_truth", normal="good", suffix="_mask"))
    return Dataset(root, "mvtec", tuple(image_files(root / "train" / "good")), test)


def _read_btad(root: Path) -> Dataset:
    test = tuple(_kinds(root / "test", root / "ground_truth", normal="ok", suffix=""))
    return Dataset(root, "btad", tuple(image_files(root / "train" / "ok")), test)


def _kinds(test: Path, masks: Path, *, normal: str, suffix: str) -> Iterator[Sample]:
    """List `test/<kind>/<stem>.*` with `masks/<kind>/<stem><suffix>.*`, whatever the file types."""
    for folder in sorted(p for p in test.glob("*") if p.is_dir()):
        has_masks = masks.is_dir()
        own = masks / folder.name
        by_stem = {p.stem: p for p in image_files(own)} if own.is_dir() else {}
        for path in image_files(folder):
            mask = by_stem.get(f"{path.stem}{suffix}")
            if has_masks and folder.name != normal and mask is None:
                wanted = own / f"{path.stem}{suffix}.png"
                raise DatasetError(f"{path}: its mask is missing, expected {wanted}. Add it, or remove the image.")
            yield Sample(path, folder.name, folder.name != normal, mask)


def _visa_table(root: Path) -> Path:
    return root.parent / "split_csv" / "1cls.csv"


def _read_visa(root: Path) -> Dataset:
    train: list[Path] = []
    test: list[Sample] = []
    with _visa_table(root).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["object"] != root.name:
                continue
            path = root.parent / row["image"]
            if row["split"] == "train":
                train.append(path)
                continue
            anomalous = row["label"] != "normal"
            mask = root.parent / row["mask"] if row["mask"] else None
            test.append(Sample(path, "anomaly" if anomalous else "good", anomalous, mask))
    return Dataset(root, "visa", tuple(train), tuple(test))


_TELLING = frozenset({"train", "test", "ground_truth", "split_csv"})
"""Folder names that belong to some layout, so a folder that holds them is not just normal images."""


def _read_folder(root: Path) -> Dataset:
    # Silently learning from test images would be the worst possible reading of such a folder.
    inner = next((p for p in sorted(root.rglob("*")) if p.is_dir() and p.name in _TELLING), None)
    if inner is not None:
        raise DatasetError(
            f"{root}: found {inner.relative_to(root)}, so this seems to hold several categories, or a layout that is "
            "not known. Name one category's folder, or a folder with nothing but normal images."
        )
    return Dataset(root, "folder", tuple(image_files(root)), ())


LAYOUTS = (
    Layout(
        "mvtec",
        "train/good, test/<kind>, ground_truth/<kind>/<stem>_mask.png; test/good is normal",
        lambda root: (root / "train" / "good").is_dir(),
        _read_mvtec,
    ),
    Layout(
        "btad",
        "train/ok, test/ok, test/ko, ground_truth/ko/<stem>.png",
        lambda root: (root / "train" / "ok").is_dir(),
        _read_btad,
    ),
    Layout(
        "visa",
        "one object's folder of VisA with split_csv/1cls.csv beside it",
        lambda root: _visa_table(root).is_file(),
        _read_visa,
    ),
    Layout("folder", "any folder of normal images; nothing to test on", lambda root: True, _read_folder),
)
"""In the order in which they are tried."""
