"""THE TABLE of dataset layouts: one row each. A new dataset is one row.

Only training images that are normal are listed for training. Labels and masks of the test images reach the metrics
and nothing else.
"""

from __future__ import annotations

import csv
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import ArgumentError, DatasetError
from ..images.decode import MAX_PIXELS, Picture
from ..images.listing import image_files, list_folder, subfolders
from ..images.source import ImageSource, Skipped, from_paths
from .labelled import LabelledInput, find_classes, open_labelled, open_parts


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image: its kind (`good`, the name of a defect, or of a class) and its mask file, where there is one."""

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
    packed: ImageSource | None = None
    """Reads images that have no file of their own, by the names in `train` and `test`."""

    def train_images(self, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
        """The normal training images."""
        return self._source(self.train, max_pixels)

    def test_images(self, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
        """The test images, in the order of `test`."""
        return self._source([sample.path for sample in self.test], max_pixels)

    def find_passed_over(self) -> tuple[Skipped, ...]:
        """What lies below the folder and is no image to be listed, with the reason of each; looks again."""
        spelled = OneClass.spelled(self.root)
        folder = self.root if spelled is None else spelled.folder
        return list_folder(folder).passed_over if folder.is_dir() else ()

    def _source(self, paths: Iterable[Path], max_pixels: int) -> ImageSource:
        if self.packed is None:
            return from_paths(paths, max_pixels=max_pixels)
        position = {name: i for i, name in enumerate(self.packed.names)}
        return self.packed.subset([position[str(path)] for path in paths])


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of the table."""

    name: str
    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


def open_dataset(root: str | Path) -> Dataset:
    """Recognise the layout of a folder and list its images; nothing is decoded.

    `FOLDER:one-class=CLASS` takes one class of a labelled image set for normal, `FOLDER:all-but=CLASS` all others;
    `labelled.open_parts` says what such a set may be.

    Raises `DatasetError` where the folder is missing, empty, or where an anomalous image of a layout with masks
    lacks its mask.
    """
    root = Path(root)
    if not root.is_dir() and OneClass.spelled(root) is None:
        raise DatasetError.about(str(root), expected="a dataset folder", got="nothing there, or a file")
    try:
        layout = next(layout for layout in LAYOUTS if layout.matches(root))
        dataset = layout.read(root)
    except OSError as error:
        raise DatasetError(f"{error.filename or root}: cannot be read ({error.strerror}).") from error
    if not dataset.train:
        raise DatasetError(
            f"{root}: no normal training images found. Expected {layout.description}. "
            "Known layouts: " + "; ".join(f"{row.name} ({row.description})" for row in LAYOUTS)
        )
    return dataset


class OneClass(NamedTuple):
    """What `FOLDER:one-class=CLASS` or `FOLDER:all-but=CLASS` says."""

    folder: Path
    kind: Literal["one-class", "all-but"]
    label: str

    @classmethod
    def spelled(cls, text: str | Path) -> OneClass | None:
        """Read such a text; None for any other, and for what really has this name.

        >>> OneClass.spelled("C:/data/cifar10:one-class=cat").label
        'cat'
        """
        found = re.fullmatch("(.+):(one-class|all-but)=(.+)", str(text))
        if found is None or Path(text).exists():
            return None
        return cls(Path(found[1]), "one-class" if found[2] == "one-class" else "all-but", found[3])

    def __str__(self) -> str:
        return f"{self.folder}:{self.kind}={self.label}"

    def each(self) -> list[OneClass]:
        """One for every class that the label stands for, where `*` is in it."""
        if "*" not in self.label:
            return [self]
        classes = find_classes(self.folder)
        found = fnmatch.filter(classes, self.label)
        if not found:
            raise DatasetError.about(str(self), expected=f"a class out of {', '.join(classes)}", got="none")
        return [self._replace(label=label) for label in found]


def one_class(
    train: LabelledInput,
    test: LabelledInput | None = None,
    *,
    label: str,
    kind: Literal["one-class", "all-but"] = "one-class",
    root: str | Path = "",
) -> Dataset:
    """Make a data set for anomaly detection of a labelled image set: one class is normal, or `all-but` one are.

    The normal images of `train` are there to learn from, all images of `test` to test on; without it, a fifth of each
    class, drawn with seed 0, is kept for that. `label` is a name of `LabelledImages.class_names`; `root` names the
    whole in messages.
    """
    learn = open_labelled(train, folders_are_classes=True)
    learn, check = learn.split(0.2, seed=0) if test is None else (learn, open_labelled(test, folders_are_classes=True))
    classes = learn.class_names()
    if kind not in ("one-class", "all-but"):
        raise ArgumentError.about("kind", expected="one-class or all-but", got=kind)
    if label not in classes:
        raise DatasetError.about(
            str(root or learn.name), expected=f"a class out of {', '.join(sorted(set(classes)))}", got=label
        )
    common = set(learn.source.names) & set(check.source.names)
    if any(Path(name).is_file() for name in common):
        raise DatasetError.about(str(root or learn.name), expected="other test images", got=f"{min(common)} in both")
    if common:  # items of two torch-style datasets are numbered alike
        learn, check = learn.renamed("train"), check.renamed("test")
    images = [*zip(learn.source.names, classes, strict=True)]
    return Dataset(
        Path(root),
        kind,
        tuple(Path(name) for name, own in images if (own == label) == (kind == "one-class")),
        tuple(
            Sample(Path(name), own, anomalous=(own == label) != (kind == "one-class"))
            for name, own in zip(check.source.names, check.class_names(), strict=True)
        ),
        None if Path(images[0][0]).is_file() else _joined(learn.source, check.source),
    )


def _read_one_class(root: Path) -> Dataset:
    spelled = OneClass.spelled(root)
    assert spelled is not None  # or the row would not match
    train, test = open_parts(spelled.folder)
    return one_class(train, test, label=spelled.label, kind=spelled.kind, root=root)


def _joined(first: ImageSource, second: ImageSource) -> ImageSource:
    def load(index: int) -> Picture:
        return first.load(index) if index < len(first) else second.load(index - len(first))

    return ImageSource(first.names + second.names, load)


def _read_mvtec(root: Path) -> Dataset:
    test = tuple(_kinds(root / "test", root / "ground_truth", normal="good", suffix="_mask"))
    return Dataset(root, "mvtec", tuple(image_files(root / "train" / "good")), test)


def _read_btad(root: Path) -> Dataset:
    test = tuple(_kinds(root / "test", root / "ground_truth", normal="ok", suffix=""))
    return Dataset(root, "btad", tuple(image_files(root / "train" / "ok")), test)


def _kinds(test: Path, masks: Path, *, normal: str, suffix: str) -> Iterator[Sample]:
    """List `test/<kind>/<stem>.*` with `masks/<kind>/<stem><suffix>.*`, whatever the file types."""
    for folder in subfolders(test) if test.is_dir() else ():
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
    for row in _visa_rows(_visa_table(root)):
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


def _visa_rows(table: Path) -> list[dict[str, str]]:
    columns = {"object", "split", "label", "image", "mask"}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read as a UTF-8 table ({error}).") from error
    if rows and not columns <= rows[0].keys():
        raise DatasetError.about(str(table), expected=f"columns {', '.join(sorted(columns))}", got=", ".join(rows[0]))
    return rows


_TELLING = frozenset({"train", "test", "ground_truth", "split_csv"})
"""Folder names that belong to some layout, so a folder that holds them is not just normal images."""


def _read_folder(root: Path) -> Dataset:
    # Silently learning from test images would be the worst possible reading of such a folder.
    found = list_folder(root)
    inner = next((folder for folder in found.folders if folder.name in _TELLING), None)
    if inner is not None:
        raise DatasetError(
            f"{root}: found {inner.relative_to(root)}, so this seems to hold several categories, or a layout that is "
            "not known. Name one category's folder, a folder with nothing but normal images, or FOLDER:one-class=CLASS."
        )
    return Dataset(root, "folder", found.files, ())


LAYOUTS = (
    Layout(
        "one-class",
        "FOLDER:one-class=CLASS, or FOLDER:all-but=CLASS, of a labelled image set: train/<class>/*, test/<class>/*; "
        "<class>/*; train.npz, test.npz; idx files of MNIST; binary CIFAR-10",
        lambda root: OneClass.spelled(root) is not None,
        _read_one_class,
    ),
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
