"""Images that belong together, such as bursts, parts or recordings, and copies of one picture."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ArgumentError, log
from .digest import contents
from .source import ImageSource

_T = TypeVar("_T")

GroupBy = str | Callable[[str], Hashable]
"""A regular expression on the path whose first group is the key; or a function from the path to the key."""


@dataclass(frozen=True)
class Grouped:
    """Images, and the number of the group of each."""

    source: ImageSource
    groups: Sequence[int]

    def subset(self, indices: Sequence[int]) -> Grouped:
        """Choose images by position, in the given order."""
        return Grouped(self.source.subset(indices), [self.groups[i] for i in indices])

    def of(self, names: Iterable[str]) -> list[int]:
        """The groups of images by name."""
        group_of = dict(zip(self.source.names, self.groups, strict=True))
        return [group_of[name] for name in names]


def grouped(items: Iterable[_T], key: Callable[[_T], Any]) -> dict[Any, list[_T]]:
    """Bundle items with an equal key, keys in the order of their first item."""
    bundles: dict[Any, list[_T]] = {}
    for item in items:
        bundles.setdefault(key(item), []).append(item)
    return bundles


def find_groups(source: ImageSource, paths: Sequence[str], group_by: GroupBy | None = None) -> list[int]:
    """Number the groups of images: those that `group_by` gives the same key of their path, and copies of one picture.

    `paths` are the images' names as `group_by` sees them, relative to the data set's folder, with `/` in between.
    """
    copies = list(contents(source))
    return join_groups(copies) if group_by is None else join_groups(copies, _keys(paths, group_by))


def without_copies(held_out: Grouped, *, of: ImageSource) -> Grouped:
    """The groups with no copy of these pictures in them, told without decoding files as in `find_groups`; says so."""
    keys = list(contents(of.joined(held_out.source)))
    learned, own = set(keys[: len(of)]), keys[len(of) :]
    known = {group for group, key in zip(held_out.groups, own, strict=True) if key in learned}
    kept = [i for i, group in enumerate(held_out.groups) if group not in known]
    if known:
        log.warning("%d held-out pictures are learned as well: they do not count.", len(own) - len(kept))
    return held_out.subset(kept)


def join_groups(*columns: Sequence[Hashable]) -> list[int]:
    """Number the images' groups in order; those that share a key in any column are of one group.

    >>> join_groups(["a", "b", "c", "d"], [1, 2, 1, 3])
    [0, 1, 0, 2]
    """
    parent = list(range(len(columns[0])))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for keys in columns:
        first: dict[Hashable, int] = {}
        for index, key in enumerate(keys):
            low, high = sorted((root(index), root(first.setdefault(key, index))))
            parent[high] = low
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(index), len(numbers)) for index in range(len(parent))]


def hold_out(groups: Sequence[int], fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Hold out a seeded random `fraction` of the groups: the images of the rest, and of those, by position.

    Where each image is a group, it is the draw of `ImageSource.split`.
    """
    count = max(groups) + 1
    chosen = set(random.Random(seed).sample(range(count), round(count * fraction)))
    parts = ([i for i, group in enumerate(groups) if (group in chosen) == wanted] for wanted in (False, True))
    rest, held_out = parts
    return rest, held_out


def read_pattern(text: str, *, of: str = "group_by") -> re.Pattern[str]:
    """The regular expression, with a group in it, of a parameter. Raises `ArgumentError`."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ArgumentError.about(of, expected="a regular expression", got=f"{text!r} ({error})") from None
    if not pattern.groups:
        raise ArgumentError.about(
            of,
            expected="a regular expression with a group in parentheses",
            got=repr(text),
            instead="Put what names a burst or a part into ( ).",
        )
    return pattern


def _keys(paths: Sequence[str], group_by: GroupBy) -> list[Hashable]:
    if not isinstance(group_by, str):
        return [group_by(path) for path in paths]
    pattern = read_pattern(group_by)
    return [find_key(pattern, path)[1] for path in paths]


def find_key(pattern: re.Pattern[str], path: str, *, of: str = "group_by") -> re.Match[str]:
    """Where a parameter's expression is in a path, its first group at least. Raises `ArgumentError`."""
    found = pattern.search(path)
    if found is None or found[1] is None:
        raise ArgumentError.about(
            of, expected=f"a pattern that is found in every path, such as {path!r}", got=repr(pattern.pattern)
        )
    return found
