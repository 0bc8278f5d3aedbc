"""How the folders of each layout are listed; `layouts.LAYOUTS` says which layout a folder has."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ArgumentError, DatasetError
from ..files import read_text
from ..images.decode import read_mask
from ..images.listing import Listing, image_files, list_folder, subfolders
from ..images.source import from_paths
from .dataset import Dataset, Sample
from .folders import (
    counted_folders,
    find_folders,
    is_mask_folder,
    is_normal,
    is_part,
    may_hold_masks,
    may_show_a_defect,
    same_name,
    tells_of_defects,
    tells_of_masks,
    tells_of_parts,
)
from .masks import MaskFolder, all_masks_beside, key_of, masks_beside, named_like_a_mask, refuse_doubles


@dataclass(frozen=True, slots=True)
class FolderPatterns:
    """A layout that the names of folders tell, as patterns of `folders.find_folders`."""

    name: str
    train: str
    test: str
    masks: str
    ending: str = ""
    """What a mask's name has more than that of its image, for messages: every known ending is understood."""

    def match(self, root: Path) -> bool:
        return bool(find_folders(root, self.train))

    def match_folders_of_masks(self, root: Path) -> bool:
        """Whether some image has a folder of masks of its own."""
        images = dict(find_folders(root, self.test)) if self.match(root) else {}
        for kind, folder in find_folders(root, self.masks):
            inside = {child.name for child in subfolders(folder)}
            if inside and kind in images and any(path.stem in inside for path in image_files(images[kind])):
                return True
        return False

    def read(self, root: Path) -> Dataset:
        learned = [folder for _, folder in find_folders(root, self.train)]
        train = _images(learned)
        kinds = [(kind, folder) for kind, folder in find_folders(root, self.test) if folder not in learned]
        known = {mask_kind: folder for mask_kind, folder in find_folders(root, self.masks)}
        test: list[Sample] = []
        for kind, folder in kinds:
            own = next((path for name, path in known.items() if same_name(name, kind)), None)
            wanted = own or root / self.masks.format(kind=kind, masks="mask")
            test += _samples(kind, folder, wanted, self.ending, has_masks=bool(known))
        return Dataset(root, self.name, tuple(train), tuple(sorted(test, key=lambda sample: sample.path)))


def _images(folders: Iterable[Path]) -> list[Path]:
    """The images below these folders; refuses what seems to be a mask."""
    found: list[Path] = []
    for folder in folders:
        files = image_files(folder)
        _refuse_masks_inside(folder, files)
        refuse_doubles(files, folder)
        found += files
    return sorted(found)


def _refuse_masks_inside(folder: Path, files: Iterable[Path]) -> None:
    for path in files:
        inside = path.relative_to(folder).parent.parts
        if any(map(is_mask_folder, inside)):
            raise DatasetError(
                f"{path}: a folder of masks within the images of {folder}. Move it out, or say which sub-folders are "
                f"which: {_OPTIONS}."
            )


def _samples(kind: str, folder: Path, masks: Path, ending: str, *, has_masks: bool) -> Iterator[Sample]:
    """The images of one kind with their masks."""
    found, anomalous = MaskFolder(masks), not is_normal(kind)
    for path in _images([folder]):
        key = key_of(path, folder)
        mask = found.find(key)
        if has_masks and anomalous and mask is None:
            raise _missing(path, f"{masks / key}{ending}.png")
        yield Sample(path, kind, anomalous, mask)


def _missing(image: Path, wanted: object) -> DatasetError:
    return DatasetError(f"{image}: its mask is missing, expected {wanted}. Add it, or remove the image.")


_SIDE_BY_SIDE = FolderPatterns("side-by-side", "{normal}", "{kind}", "{masks}/{kind}")


def are_side_by_side(root: Path) -> bool:
    kinds = {kind for kind, _ in find_folders(root, _SIDE_BY_SIDE.test)}
    has_parts = any(is_part(folder.name, part) for folder in subfolders(root) for part in ("train", "test"))
    return any(map(is_normal, kinds)) and not all(map(is_normal, kinds)) and not has_parts


def read_side_by_side(root: Path) -> Dataset:
    odd = [kind for kind, _ in find_folders(root, _SIDE_BY_SIDE.test) if may_hold_masks(kind)]
    if odd:
        raise _not_understood(root, list_folder(root), f"{odd[0]} may hold masks, or defects")
    dataset = _SIDE_BY_SIDE.read(root)
    normal = _images(folder for _, folder in find_folders(root, _SIDE_BY_SIDE.train))
    return _with_drawn(replace(dataset, train=tuple(normal)))


def _with_drawn(dataset: Dataset) -> Dataset:
    """Keep a fifth of the normal images for the test, drawn with seed 0: the folder does not say which ones."""
    rest, kept = from_paths(dataset.train).split(0.2, seed=0)
    drawn = [Sample(Path(name), "good", anomalous=False) for name in kept.names]
    return replace(
        dataset,
        train=tuple(map(Path, rest.names)),
        test=tuple(sorted([*dataset.test, *drawn], key=lambda sample: sample.path)),
        has_test_part=False,
    )


def have_masks_beside(root: Path) -> bool:
    files = image_files(root)
    pairs = masks_beside(files, root)
    return bool(pairs) and 3 * len(pairs) >= len(files)  # half of the images have one, or more


def read_masks_beside(root: Path) -> Dataset:
    """Images whose mask is black are normal; so masks are read here."""
    files = image_files(root)
    pairs = masks_beside(files, root)
    images = sorted({*files} - {*pairs.values()})
    normal, test = list[Path](), list[Sample]()
    for path in images:
        if path not in pairs:
            an_image, a_mask = next(iter(pairs.items()))
            raise _missing(path, f"a mask beside it, as {a_mask.name} of {an_image.name}, black for a normal image")
        anomalous = _marks_a_defect(path, pairs[path])
        folder = path.relative_to(root).parent
        if not anomalous and not _is_in(folder, "test"):
            normal.append(path)
        elif not _is_in(folder, "train"):
            test.append(Sample(path, "anomaly" if anomalous else "good", anomalous, pairs[path] if anomalous else None))
    dataset = Dataset(root, "masks-beside", tuple(normal), tuple(test))
    return dataset if any(not sample.anomalous for sample in test) else _with_drawn(dataset)


def _is_in(folder: Path, part: str) -> bool:
    """Whether a folder is, or is below, one for training or for tests."""
    return any(is_part(name, part) for name in folder.parts)


def masks_among(files: Sequence[Path], root: Path) -> set[Path]:
    """Files in a folder of masks, or beside their image."""
    inside = (path for path in files if any(map(is_mask_folder, path.relative_to(root).parent.parts)))
    beside = (path for found in all_masks_beside(files, root).values() for path in found)
    return {*beside, *inside}


def _marks_a_defect(image: Path, path: Path) -> bool:
    mask = read_mask(path)
    if mask.is_picture:
        raise DatasetError(
            f"{path}: beside {image.name} as its mask would be, but no mask by its grey values. Rename or move one."
        )
    return bool(mask.anomalous.any())


def read_as_said(root: Path, normal: Sequence[str], anomalous: Sequence[str], masks: str | None) -> Dataset:
    """What `normal`, `anomalous` and `masks` say."""
    marked = None if masks is None else MaskFolder(_subfolder(root, "masks", masks))
    bad = [_subfolder(root, "anomalous", name) for name in anomalous]
    good = [_subfolder(root, "normal", name) for name in normal]
    if not good:
        beside = " and ".join(option for option, said in (("anomalous", anomalous), ("masks", masks)) if said)
        expected = f"sub-folders with normal images beside {beside}"
        raise ArgumentError.about("normal", expected=expected, got="none", instead=f"Write {_OPTIONS}.")
    others = bad if marked is None else [*bad, marked.folder]
    test = [sample for folder in bad for sample in _said_anomalous(root, folder, marked, others)]
    learn: list[Path] = []
    for name, folder in zip(normal, good, strict=True):
        found = _images_but(folder, others)
        if _is_in(Path(name), "test"):
            test += [Sample(path, "good", anomalous=False) for path in found]
        else:
            learn += found
    _check_said(learn, test, normal, masks)
    if not learn:
        raise DatasetError.about(str(root), expected=f"normal training images in {', '.join(normal)}", got="none")
    dataset = Dataset(root, "as said", tuple(sorted({*learn})), tuple(sorted(test, key=lambda sample: sample.path)))
    return dataset if not bad or any(not sample.anomalous for sample in test) else _with_drawn(dataset)


def _check_said(learn: Sequence[Path], test: Sequence[Sample], normal: Sequence[str], masks: str | None) -> None:
    """Refuse files that are said to be two things."""
    judged = {sample.path for sample in test}
    images = judged.union(learn)
    if any(sample.mask in images or sample.path.parent == sample.mask for sample in test):
        raise ArgumentError.about("masks", expected="a sub-folder without the images", got=masks)
    if judged.intersection(learn):
        raise ArgumentError.about("normal", expected="other sub-folders than anomalous", got=", ".join(normal))


def _said_anomalous(root: Path, folder: Path, masks: MaskFolder | None, others: Sequence[Path]) -> Iterator[Sample]:
    for path in _images_but(folder, others):
        mask = None
        if masks is not None:
            keys = (key_of(path, root), f"{folder.name}/{key_of(path, folder)}", key_of(path, folder))
            mask = next((found for found in map(masks.find, keys) if found is not None), None)
            if mask is None:
                raise _missing(path, f"{masks.folder / keys[1]}.png, or without {folder.name}")
        yield Sample(path, folder.name, anomalous=True, mask=mask)


def _subfolder(root: Path, option: str, name: str) -> Path:
    folder = root / name
    if not folder.is_dir() or folder.is_absolute() != root.is_absolute() or ".." in Path(name).parts:
        inside = ", ".join(child.name for child in subfolders(root)) or "none"
        raise ArgumentError.about(option, expected=f"sub-folders of {root} ({inside})", got=name)
    return folder


def _images_but(folder: Path, others: Iterable[Path]) -> list[Path]:
    """The images of a folder, without those of other folders within it."""
    inner = [other for other in others if folder in other.parents]
    files = [path for path in image_files(folder) if not any(other in path.parents for other in inner)]
    refuse_doubles(files, folder)
    return files


def visa_table(root: Path) -> Path:
    return root.parent / "split_csv" / "1cls.csv"


def read_visa(root: Path) -> Dataset:
    rows = [row for row in _visa_rows(visa_table(root)) if row["object"] == root.name]
    has_masks = any(row["mask"] for row in rows)
    train = tuple(root.parent / row["image"] for row in rows if row["split"] == "train")
    test = tuple(_visa_sample(root.parent, row, has_masks) for row in rows if row["split"] != "train")
    return Dataset(root, "visa", train, test)


def _visa_rows(table: Path) -> list[dict[str, str]]:
    columns = {"object", "split", "label", "image", "mask"}
    text = read_text(table, expected=f"a table with the columns {', '.join(sorted(columns))}", error=DatasetError)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
    except csv.Error as error:
        raise DatasetError(f"{table}: not a CSV file ({error}).") from error
    if rows and not columns <= rows[0].keys():
        raise DatasetError.about(str(table), expected=f"columns {', '.join(sorted(columns))}", got=", ".join(rows[0]))
    return rows


def _visa_sample(root: Path, row: Mapping[str, str], has_masks: bool) -> Sample:
    path, anomalous = root / row["image"], row["label"] != "normal"
    mask = root / row["mask"] if row["mask"] else None
    if anomalous and has_masks and (mask is None or not mask.is_file()):
        raise _missing(path, mask or "its name in the column mask of split_csv/1cls.csv")
    return Sample(path, "anomaly" if anomalous else "good", anomalous, mask)


_OPTIONS = (
    "--normal SUB --anomalous SUB --masks SUB (each but the last may come several times; in Python "
    "open_dataset(root, normal=[...], anomalous=[...], masks=...))"
)


def read_plain_folder(root: Path) -> Dataset:
    """Learn from everything; silently learning from defects would be the worst possible reading of a folder."""
    found = list_folder(root)
    for reason in (*_against_judging(root, found), *_against_learning(root, found)):
        raise _not_understood(root, found, reason)
    refuse_doubles(found.files, root)
    return Dataset(root, "folder", found.files, ())


def read_unlabelled_folder(root: Path) -> Dataset:
    """Judge everything; images of defects are welcome here, masks are not."""
    found = list_folder(root)
    for reason in _against_judging(root, found):
        raise DatasetError(
            f"{root}: found {reason}. Images: {counted_folders(root, found.files)}. "
            "Name the folders with images to judge."
        )
    return Dataset(root, "folder", (), tuple(Sample(path, "unknown", anomalous=False) for path in found.files))


def _against_judging(root: Path, found: Listing) -> Iterator[str]:
    for folder in tells_of_parts(root, found):
        yield f"{folder}, so this seems to hold several categories, or a layout that is not known"
    for folder in tells_of_masks(root, found):
        yield f"{folder}, which may hold masks"


def _against_learning(root: Path, found: Listing) -> Iterator[str]:
    for folder in tells_of_defects(root, found):
        yield f"{folder}, which may hold defects"
    like_masks = [path for path in found.files if named_like_a_mask(path)]
    if 10 * len(like_masks) >= len(found.files) > 0:  # photographs of ski masks have such names too
        yield f"{len(like_masks)} files such as {like_masks[0].relative_to(root)}, which may be masks"
    for path in found.files:
        if may_show_a_defect(path.stem):
            yield f"{path.relative_to(root)}, which may show a defect"


def _not_understood(root: Path, found: Listing, reason: str) -> DatasetError:
    return DatasetError(
        f"{root}: found {reason}. Images: {counted_folders(root, found.files)}. Name one category's folder, or a "
        "folder with nothing but normal images, or FOLDER:one-class=CLASS; or say which sub-folders are which: "
        f"{_OPTIONS}."
    )
