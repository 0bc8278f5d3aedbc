"""THE TABLE of dataset layouts: one row each. A new dataset is one row.

Only training images that are normal are listed for training. Labels and masks of the test images reach the metrics
and nothing else. What no row explains is refused: nothing is learned by mistake.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import ArgumentError, DatasetError
from ..images.decode import MAX_PIXELS
from ..images.listing import list_folder
from ..images.source import ImageInput, ImageSource, as_source
from . import readers
from .dataset import Dataset as Dataset
from .dataset import Sample as Sample
from .folders import find_folders
from .labelled import LabelledInput, find_classes, find_packed_classes, open_labelled, open_parts
from .readers import FolderPatterns


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of the table."""

    name: str
    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


def open_dataset(
    root: str | Path, *, normal: Sequence[str] = (), anomalous: Sequence[str] = (), masks: str | None = None
) -> Dataset:
    """Recognise the layout of a folder and list its images; only masks that lie beside images are decoded.

    `FOLDER:one-class=CLASS` takes one class of a labelled image set for normal, `FOLDER:all-but=CLASS` all others;
    `labelled.open_parts` says what such a set may be.

    `normal`, `anomalous` and `masks` say it for a folder of another layout: sub-folders of `root` with normal images,
    with defects, and with masks (at the path that an image has below its sub-folder, or below `root`). A normal
    sub-folder within one called `test` is there to test on; without such a one, a fifth of the normal images is.

    Raises `DatasetError` where the folder is missing, empty or not understood, where an anomalous image of a layout
    with masks lacks its mask, and where two masks might belong to one image.
    """
    root = Path(root)
    with _errors_named(root):
        if not root.is_dir() and OneClass.spelled(root) is None:
            raise DatasetError.about(str(root), expected="a dataset folder", got="nothing there, or a file")
        if normal or anomalous or masks:
            return readers.read_as_said(root, normal, anomalous, masks)
        layout = next(layout for layout in LAYOUTS if layout.matches(root))
        dataset = layout.read(root)
    if not dataset.train:
        raise DatasetError(
            f"{root}: no normal training images found. Expected {layout.description}. {_what_is_there(root)}"
            "Known layouts: " + "; ".join(f"{row.name} ({row.description})" for row in LAYOUTS)
        )
    return dataset


def normal_images(images: ImageInput, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Images to learn from: of a folder in a known layout its normal training images, never test images or masks."""
    if isinstance(images, str | Path) and (os.path.isdir(images) or OneClass.spelled(images)):
        return open_dataset(images).train_images(max_pixels=max_pixels)
    return as_source(images, max_pixels=max_pixels)


def open_to_judge(root: str | Path) -> Dataset:
    """As `open_dataset`, with all images that are there to be judged in `test`: never masks, nor training images.

    Those are the test images; without a test part, all images. Nothing is learned, so a folder may hold defects.
    """
    root = Path(root)
    with _errors_named(root):
        layout = next(layout for layout in LAYOUTS if layout.matches(root))
        if layout.read is readers.read_plain_folder:
            return readers.read_unlabelled_folder(root)
        dataset = layout.read(root)
        files = list_folder(root).files
    if dataset.has_test_part:
        if not dataset.test and dataset.train:
            raise DatasetError(
                f"{root}: training images and no test images ({dataset.layout} layout). To judge training images, name "
                f"their folder: {dataset.train[0].parent}."
            )
        return dataset
    known = {sample.path: sample for sample in dataset.test}
    known |= {path: Sample(path, "good", anomalous=False) for path in dataset.train}
    masks = readers.masks_among(files, root) - known.keys()
    test = tuple(known.get(path, Sample(path, "unknown", anomalous=False)) for path in files if path not in masks)
    return replace(dataset, train=(), test=test)


_ARCHIVES = (".7z", ".bz2", ".tar", ".tgz", ".xz", ".zip", ".zst")


def _what_is_there(root: Path) -> str:
    packed = find_packed_classes(root) if root.is_dir() else ()
    if packed:
        example = f"{root}:one-class={packed[0]}"
        return f"There are images of {len(packed)} classes in packed files: say which is normal, {example}. "
    archives = [path.name for path in sorted(root.iterdir()) if path.suffix in _ARCHIVES] if root.is_dir() else []
    if archives:
        return f"Archives are not read: unpack {', '.join(archives[:3])}. "
    passed_over = list_folder(root).passed_over if root.is_dir() else ()
    if not passed_over:
        return ""
    name, reason = passed_over[0]
    return f"Passed over: {len(passed_over)} files, such as {name} ({reason}). "


@contextmanager
def _errors_named(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{error.filename or root}: cannot be read ({error.strerror}).") from error


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
        if found is None or os.path.exists(text):
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
    has_test_part = test is not None
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
        None if Path(images[0][0]).is_file() else learn.source.joined(check.source),
        has_test_part,
    )


def _read_one_class(root: Path) -> Dataset:
    spelled = OneClass.spelled(root)
    assert spelled is not None  # or the row would not match
    train, test = open_parts(spelled.folder)
    return one_class(train, test, label=spelled.label, kind=spelled.kind, root=root)


_3D = FolderPatterns("mvtec-3d", "train/{normal}/rgb", "test/{kind}/rgb", "test/{kind}/gt")
_AD2 = FolderPatterns("mvtec-ad2", "train/{normal}", "test_public/{kind}", "test_public/ground_truth/{kind}", "_mask")
_LOCO = FolderPatterns("mvtec-loco", "train/{normal}", "test/{kind}", "ground_truth/{kind}", "/000")
_BTAD = FolderPatterns("btad", "train/ok", "test/{kind}", "ground_truth/{kind}")
_MVTEC = FolderPatterns("mvtec", "train/{normal}", "test/{kind}", "ground_truth/{kind}", "_mask")

LAYOUTS = (
    Layout(
        "one-class",
        "FOLDER:one-class=CLASS, or FOLDER:all-but=CLASS, of a labelled image set: train/<class>/*, test/<class>/*; "
        "<class>/*; train.npz, test.npz; idx files of MNIST; binary CIFAR-10",
        lambda root: OneClass.spelled(root) is not None,
        _read_one_class,
    ),
    Layout("mvtec-3d", "train/good/rgb, test/<kind>/rgb, test/<kind>/gt/<image>.png", _3D.match, _3D.read),
    Layout(
        "mvtec-ad2",
        "train/good, test_public/<kind>, test_public/ground_truth/<kind>/<image>_mask.png",
        lambda root: _AD2.match(root) and bool(find_folders(root, "test_public")),
        _AD2.read,
    ),
    Layout(
        "mvtec-loco",
        "train/good, test/<kind>, ground_truth/<kind>/<image>/000.png ...",
        _LOCO.match_folders_of_masks,
        _LOCO.read,
    ),
    Layout("btad", "train/ok, test/ok, test/ko, ground_truth/ko/<image>.png", _BTAD.match, _BTAD.read),
    Layout(
        "mvtec",
        "MVTec AD and MPDD: train/good, test/<kind>, ground_truth/<kind>/<image>_mask.png; test/good is normal",
        _MVTEC.match,
        _MVTEC.read,
    ),
    Layout(
        "visa",
        "one object's folder of VisA with split_csv/1cls.csv beside it",
        lambda root: readers.visa_table(root).is_file(),
        readers.read_visa,
    ),
    Layout(
        "masks-beside",
        "KolektorSDD: <image>.jpg with <image>_label.bmp, _GT.png, _mask.png or <image>.png beside it, black if normal",
        readers.have_masks_beside,
        readers.read_masks_beside,
    ),
    Layout(
        "side-by-side",
        "good, <kind> ..., masks/<kind>/<image>.png; no test part",
        readers.are_side_by_side,
        readers.read_side_by_side,
    ),
    Layout("folder", "any folder of normal images; nothing to test on", lambda root: True, readers.read_plain_folder),
)
"""In the order in which they are tried; folders in any letter case, `good`, `ok` and `normal` alike."""
