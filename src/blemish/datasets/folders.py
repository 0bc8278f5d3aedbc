"""What the names of folders say: which hold normal images, which masks, which defects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..images.listing import Listing, subfolders

_NORMAL = frozenset({"good", "ok", "normal"})
_MASKS = frozenset({"mask", "masks", "gt", "ground_truth", "groundtruth"})
_PARTS = frozenset({"train", "training", "test", "testing", "test_public", "val", "validation", "split_csv"})
"""Names of the parts of a data set: a folder that holds one is not just normal images."""

# fmt: off
_MASK_WORDS = frozenset({
    "annotation", "annotations", "groundtruth", "gt", "label", "labels", "mask", "masks", "seg", "segmentation",
})
_DEFECT_WORDS = frozenset({
    "ausschuss", "bad", "bent", "break", "broken", "cut", "dent", "dents", "fail", "failed", "fault", "faulty",
    "fehler", "fray", "hole", "holes", "ko", "missing", "ng", "nio", "nok", "reject", "rejected", "rejects", "rust",
    "schlecht", "scrap", "stain", "stains",
})
# fmt: on
_DEFECT_FILE_WORDS = frozenset({"abnormal", "anomalous", "anomaly", "defect", "defective", "ng", "nok"})
_DEFECT_STEMS = ("anomal", "abnormal", "blowhole", "contaminat", "crack", "damage", "defec", "defek", "scratch")
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def is_normal(name: str) -> bool:
    """Whether a folder of this name holds normal images.

    >>> [name for name in ("good", "OK", "Normal ", "not_ok") if is_normal(name)]
    ['good', 'OK', 'Normal ']
    """
    return _folded(name) in _NORMAL


def is_mask_folder(name: str) -> bool:
    """Whether a folder of this name holds masks."""
    return _folded(name) in _MASKS


def is_part(name: str, part: str) -> bool:
    """Whether a folder of this name holds the `train` or `test` part of a data set."""
    return re.fullmatch(f"{part}(ing|_public)?", _folded(name)) is not None


def same_name(one: str, other: str) -> bool:
    """Whether two names of folders are the same in any letter case."""
    return _folded(one) == _folded(other)


def find_folders(root: Path, pattern: str) -> list[tuple[str, Path]]:
    """Kind and path of each folder that fits, such as `train/{normal}` or `test/{kind}/rgb`.

    `{normal}` is a name of the normal class, `{masks}` one of a folder of masks, `{kind}` any other or normal one.
    Letter case does not matter.
    """
    found = [("", root)]
    for part in pattern.split("/"):
        is_named = part.startswith("{")
        found = [
            (child.name if is_named and part != "{masks}" else kind, child)
            for kind, folder in found
            for child in subfolders(folder)
            if _fits(child.name, part)
        ]
    return found


def tells_of_parts(root: Path, listing: Listing) -> list[str]:
    """Folders, relative to `root`, that hold a part of a data set, or its masks."""
    folders = _relative(root, listing.folders)
    return [str(folder) for folder in folders if _folded(folder.name) in _PARTS or is_mask_folder(folder.name)]


def tells_of_masks(root: Path, listing: Listing) -> list[str]:
    """Folders, relative to `root`, that may hold masks by their names."""
    return [str(folder) for folder in _relative(root, listing.folders) if may_hold_masks(folder.name)]


def may_hold_masks(name: str) -> bool:
    """Whether a word of the name is one for masks.

    >>> [name for name in ("seg_masks", "GroundTruth", "ground truth", "masked") if may_hold_masks(name)]
    ['seg_masks', 'GroundTruth', 'ground truth']
    """
    words = _words(name)
    return bool(_MASK_WORDS & {*words}) or "groundtruth" in "".join(words)


def tells_of_defects(root: Path, listing: Listing) -> list[str]:
    """Folders, relative to `root`, whose name has a word for a defect."""
    return [str(folder) for folder in _relative(root, listing.folders) if is_defect(folder.name)]


def is_defect(name: str) -> bool:
    """Whether a word of the name is one for a defect.

    >>> [name for name in ("NG", "broken_large", "Scratches", "BadParts", "badge") if is_defect(name)]
    ['NG', 'broken_large', 'Scratches', 'BadParts']
    """
    return any(word in _DEFECT_WORDS or word.startswith(_DEFECT_STEMS) for word in _words(name))


def may_show_a_defect(stem: str) -> bool:
    """Whether a word of a file's name is one for a defect; files have less telling names than folders.

    >>> [name for name in ("NG_0012", "part 7 defect", "cut_glass", "singing") if may_show_a_defect(name)]
    ['NG_0012', 'part 7 defect']
    """
    return bool(_DEFECT_FILE_WORDS & {*_words(stem)})


def counted_folders(root: Path, files: Iterable[Path], *, most: int = 12) -> str:
    """Folders of these files with their numbers, for a message.

    >>> counted_folders(Path("a"), [Path("a/OK/0.png"), Path("a/OK/1.png"), Path("a/2.png")])
    '. (1), OK (2)'
    """
    numbers = sorted(Counter(str(path.parent.relative_to(root)) for path in files).items())
    shown = ", ".join(f"{folder} ({number})" for folder, number in numbers[:most])
    return shown + (f" and {len(numbers) - most} more folders" if len(numbers) > most else "")


def _relative(root: Path, folders: Iterable[Path]) -> list[Path]:
    return [folder.relative_to(root) for folder in folders]


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(name)]


def _folded(name: str) -> str:
    return name.strip().casefold()


def _fits(name: str, part: str) -> bool:
    if part == "{normal}":
        return is_normal(name)
    if part == "{masks}":
        return is_mask_folder(name)
    return not is_mask_folder(name) if part == "{kind}" else same_name(name, part)
