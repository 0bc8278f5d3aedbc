"""Which mask belongs to which image: by the whole path below the folder of their kind, never by less."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DatasetError
from ..images.listing import image_files

_ENDING = re.compile("(?<=[^/])[ _.-](mask|gt|label|ground_?truth)$", re.IGNORECASE)
"""What a mask's name has more than that of its image."""

_LOSSY = (".jpg", ".jpeg")


def key_of(path: Path, folder: Path) -> str:
    """Path below a folder, without the ending: what an image and its mask have in common."""
    return path.relative_to(folder).with_suffix("").as_posix()


class MaskFolder:
    """The masks below a folder, by the images they belong to.

    The mask of `a/0.jpg` is `a/0_mask.png`, also `_gt`, `_label` or nothing in place of `_mask`; or the folder `a/0`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _by_key(image_files(folder) if folder.is_dir() else (), folder)

    def find(self, key: str) -> Path | None:
        """The mask of the image with this key; raises `DatasetError` where two files might be it."""
        found = self._files.get(key, [])
        if len(found) > 1:
            raise _two_masks(key, found)
        if found:
            return found[0]
        inside = f"{key}/"
        return self.folder / key if any(other.startswith(inside) for other in self._files) else None


def masks_beside(files: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Images and the masks beside them: `x_label.bmp` of `x.jpg`, also `_mask` and `_gt`; or `x.png` of `x.jpg`.

    Raises `DatasetError` where two masks might belong to one image.
    """
    masks = all_masks_beside(files, folder)
    for image, found in masks.items():
        if len(found) > 1:
            raise _two_masks(str(image), found)
    return {image: found[0] for image, found in masks.items()}


def all_masks_beside(files: Iterable[Path], folder: Path) -> dict[Path, list[Path]]:
    """As `masks_beside`, with all that might be an image's mask."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_name[key_of(path, folder)].append(path)
    masks: dict[Path, list[Path]] = defaultdict(list)
    for key, paths in by_name.items():
        base = _ENDING.sub("", key)
        if base != key and base in by_name:
            masks[by_name[base][0]] += paths
        pictures = [path for path in paths if path.suffix.lower() in _LOSSY]
        if len(paths) == 2 and len(pictures) == 1:
            masks[pictures[0]] += [path for path in paths if path not in pictures]
    return masks


def refuse_doubles(files: Iterable[Path], folder: Path) -> None:
    """Refuse images of which one seems to be the mask of another, or that would share a mask."""
    files = [*files]
    beside = masks_beside(files, folder)
    for image, mask in beside.items():
        raise DatasetError(
            f"{mask}: seems to be the mask of {image.name} beside it ({len(beside)} such pairs). Move the masks into a "
            "folder of their own (--masks SUB), or name the images in a text file, one path a line."
        )
    seen: dict[str, Path] = {}
    for path in files:
        other = seen.setdefault(key_of(path, folder), path)
        if other is not path:
            raise DatasetError(
                f"{path}: another file of that name but for its ending is {other.name}. They may be one picture, or a "
                "picture and its mask. Rename one, or name the images in a text file, one path a line."
            )


def named_like_a_mask(path: Path) -> bool:
    """Whether the name of a file ends like that of a mask."""
    return _ENDING.search(f"_{path.stem}") is not None


def _by_key(files: Iterable[Path], folder: Path) -> Mapping[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        key = key_of(path, folder)
        for name in {key, _ENDING.sub("", key)}:
            found[name].append(path)
    return dict(found)


def _two_masks(key: str, found: list[Path]) -> DatasetError:
    names = " and ".join(map(str, sorted(found)[:2]))
    return DatasetError(f"{names}: {len(found)} masks for one image, {key}. Remove all but one.")
