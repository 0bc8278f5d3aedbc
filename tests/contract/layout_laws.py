"""The contract of a row of `blemish.datasets.layouts.LAYOUTS` as executable laws.

Each law takes a row and `make`, which writes a small data set of that layout into an empty folder and says what is in
it (`Example`). `test_layouts.py` applies every law to every row, and shows that each law catches a row which breaks it.

Every image of an example has a grey value of its own, and the mask of an image as many white pixels, so that a law can
tell what was read from what was named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.datasets import layouts
from blemish.datasets.layouts import Dataset, Layout, open_dataset
from blemish.errors import DatasetError
from blemish.images.decode import decode_mask

SIDE = 16


@dataclass
class Example:
    """What a maker wrote."""

    root: str | Path
    """What `open_dataset` takes."""
    train: dict[str, int] = field(default_factory=dict)
    """Grey value of each normal training image, by the name that a dataset gives it."""
    test: dict[str, Known] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    """Mask file of each anomalous test image, where the layout has masks."""
    empty: str | Path = ""
    """The same layout, and no normal training image in it."""


@dataclass(frozen=True)
class Known:
    """What is known of a test image."""

    grey: int
    kind: str
    anomalous: bool


Make = Callable[[Path, bool], Example]
"""From an empty folder, and whether to write the files in the opposite order, to an example."""


def write_images(values: Mapping[Path, int], *, backwards: bool) -> None:
    for path, grey in reversed(values.items()) if backwards else values.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE), grey, np.uint8)).save(path, quality=100)


def write_masks(masks: Mapping[Path, int]) -> None:
    for path, white in masks.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros(SIDE * SIDE, np.uint8)
        mask[:white] = 255
        Image.fromarray(mask.reshape(SIDE, SIDE)).save(path)


def made(make: Make, folder: Path, *, backwards: bool = False) -> tuple[Example, Dataset]:
    example = make(folder, backwards)
    return example, open_dataset(example.root)


def greys(source) -> dict[str, int]:
    return {name: round(float(np.asarray(source.load(i)).mean())) for i, name in enumerate(source.names)}


def law_reads_its_own_example(row: Layout, make: Make, folder: Path) -> None:
    """And no row before it in the table does."""
    example = make(folder, False)
    assert next(other for other in layouts.LAYOUTS if other.matches(Path(example.root))) is row
    dataset = open_dataset(example.root)
    assert dataset.layout == row.name
    assert dataset.root == Path(example.root)


def law_lists_every_normal_training_image(row: Layout, make: Make, folder: Path) -> None:
    example, dataset = made(make, folder)
    assert len(example.train) >= 2
    assert sorted(map(str, dataset.train)) == sorted(example.train)


def law_lists_every_test_image(row: Layout, make: Make, folder: Path) -> None:
    example, dataset = made(make, folder)
    assert sorted(str(sample.path) for sample in dataset.test) == sorted(example.test)


def law_no_test_image_is_learned(row: Layout, make: Make, folder: Path) -> None:
    _, dataset = made(make, folder)
    assert not {*dataset.train} & {sample.path for sample in dataset.test}
    learned, tested = dataset.train_images(), dataset.test_images()
    assert not {*learned.names} & {*tested.names}
    assert not {*greys(learned).values()} & {*greys(tested).values()}


def law_order_is_sorted_and_stable(row: Layout, make: Make, folder: Path) -> None:
    """Whatever the order in which the files came to be."""
    lists = []
    for name, backwards in (("one", False), ("two", True)):
        (folder / name).mkdir()
        _, dataset = made(make, folder / name, backwards=backwards)
        train, test = [*map(str, dataset.train)], [str(sample.path) for sample in dataset.test]
        assert train == sorted(train)
        assert test == sorted(test)
        lists.append([path.removeprefix(f"{folder / name}") for path in (*train, *test)])
    assert lists[0] == lists[1]


def law_normal_kinds_are_not_anomalous(row: Layout, make: Make, folder: Path) -> None:
    example, dataset = made(make, folder)
    for sample in dataset.test:
        expected = example.test[str(sample.path)]
        assert (sample.kind, sample.anomalous) == (expected.kind, expected.anomalous)


def law_masks_belong_to_their_images(row: Layout, make: Make, folder: Path) -> None:
    example, dataset = made(make, folder)
    for sample in dataset.test:
        if str(sample.path) in example.masks:
            assert int(decode_mask(sample.mask).sum()) == example.test[str(sample.path)].grey
        else:
            assert sample.mask is None


def law_a_missing_mask_is_refused(row: Layout, make: Make, folder: Path) -> None:
    """Of an image with a defect, where the layout has masks: it would count as one without a defect."""
    for number in range(len(make(folder / "all", False).masks)):
        example = make(folder / f"without {number}", False)
        image, mask = [*example.masks.items()][number]
        mask.unlink()
        with pytest.raises(DatasetError, match=rf"{Path(image).name}: its mask is missing"):
            open_dataset(example.root)


def law_nothing_to_learn_from_is_refused(row: Layout, make: Make, folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"[Ee]xpected"):
        open_dataset(make(folder, False).empty)


def law_images_are_those_of_their_names(row: Layout, make: Make, folder: Path) -> None:
    example, dataset = made(make, folder)
    assert greys(dataset.train_images()) == example.train
    tested = dataset.test_images()
    assert tested.names == tuple(str(sample.path) for sample in dataset.test)
    assert greys(tested) == {name: tested.grey for name, tested in example.test.items()}


LAWS = [value for name, value in sorted(globals().items()) if name.startswith("law_")]
