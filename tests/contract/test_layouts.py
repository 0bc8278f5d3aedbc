"""Every law on every row of the table of data-set layouts, and on rows that break it.

A new row needs a maker here: a few lines that write a small data set of its kind.
"""

from __future__ import annotations

import csv
import struct
from dataclasses import replace

import numpy as np
import pytest

from blemish.datasets import layouts
from blemish.datasets.layouts import LAYOUTS, Dataset, Layout, Sample
from blemish.errors import DatasetError
from blemish.images.listing import image_files
from blemish.images.source import ImageSource, from_paths
from contract import layout_laws as laws
from contract.layout_laws import LAWS, SIDE, Example, Known, write_images, write_masks


def write_folders(folder, *, train, test, masks, backwards, inside=""):
    """Write images at `train/<stem>`, `test/<kind>/<stem>` and `masks/<kind>/<stem>`, with these endings.

    `inside` is a folder of each kind of test images; `masks` may name the kind itself, as `{kind}`.
    """
    (normal, ending), (of_tests, kinds) = train, test
    example = Example(folder / "set", empty=folder / "empty")
    values = {example.root / normal / f"{i}{ending}": 10 + i for i in range(3)}
    example.train = {str(path): grey for path, grey in values.items()}
    for number, kind in enumerate(kinds):
        for i in range(2):
            path, grey = example.root / of_tests / kind / inside / f"{i}{ending}", 100 + 10 * number + i
            values[path] = grey
            example.test[str(path)] = Known(grey, kind, anomalous=bool(number))
            if number:
                own = masks[0] if "{kind}" in masks[0] else f"{masks[0]}/{{kind}}"
                example.masks[str(path)] = example.root / own.format(kind=kind) / f"{i}{masks[1]}"
    write_images(values, backwards=backwards)
    write_masks({mask: example.test[image].grey for image, mask in example.masks.items()})
    write_images({example.empty / of_tests / kinds[0] / inside / f"0{ending}": 1}, backwards=False)
    (example.empty / normal).mkdir(parents=True)
    return example


def make_mvtec(folder, backwards):
    return write_folders(
        folder,
        train=("train/good", ".png"),
        test=("test", ("good", "crack", "hole")),
        masks=("ground_truth", "_mask.png"),
        backwards=backwards,
    )


def make_capitals(folder, backwards):
    return write_folders(
        folder,
        train=("Train/Normal", ".png"),
        test=("TEST", ("OK", "NG")),
        masks=("Ground_Truth", "_MASK.png"),
        backwards=backwards,
    )


def make_3d(folder, backwards):
    return write_folders(
        folder,
        train=("train/good/rgb", ".png"),
        test=("test", ("good", "hole")),
        masks=("test/{kind}/gt", ".png"),
        backwards=backwards,
        inside="rgb",
    )


def make_ad2(folder, backwards):
    return write_folders(
        folder,
        train=("train/good", "_regular.png"),
        test=("test_public", ("good", "bad")),
        masks=("test_public/ground_truth", "_regular_mask.png"),
        backwards=backwards,
    )


def make_loco(folder, backwards):
    return write_folders(
        folder,
        train=("train/good", ".png"),
        test=("test", ("good", "logical", "structural")),
        masks=("ground_truth", "/000.png"),
        backwards=backwards,
    )


def make_btad(folder, backwards):
    return write_folders(
        folder,
        train=("train/ok", ".bmp"),
        test=("test", ("ok", "ko")),
        masks=("ground_truth", ".png"),
        backwards=backwards,
    )


def make_visa(folder, backwards):
    example = Example(folder / "candle", empty=folder / "without")
    images = {f"Normal/{i}.JPG": 10 + i for i in range(5)} | {f"Anomaly/{i}.JPG": 100 + i for i in range(3)}
    rows = []
    for name, grey in sorted(images.items()):
        path, anomalous = f"candle/Data/Images/{name}", name.startswith("Anomaly")
        mask = f"candle/Data/Masks/{name}".replace("JPG", "png") if anomalous else ""
        split = "test" if anomalous or grey > 12 else "train"
        rows.append(("candle", split, "anomaly" if anomalous else "normal", path, mask))
        if split == "train":
            example.train[str(folder / path)] = grey
        else:
            example.test[str(folder / path)] = Known(grey, "anomaly" if anomalous else "good", anomalous=anomalous)
        if mask:
            example.masks[str(folder / path)] = folder / mask
    rows.append(("pcb1", "train", "normal", "pcb1/Data/Images/Normal/0.JPG", ""))
    write_images({folder / "candle/Data/Images" / name: grey for name, grey in images.items()}, backwards=backwards)
    write_masks({mask: example.test[image].grey for image, mask in example.masks.items()})
    (folder / "split_csv").mkdir()
    (folder / "without").mkdir()
    with (folder / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    return example


def make_beside(folder, backwards):
    """A mask beside each image, black for a normal one."""
    example = Example(folder / "set", empty=folder / "empty")
    values, masks = {}, {}
    for i in range(5):
        path = example.root / f"train/kos{i}/Part.jpg"
        values[path], example.train[str(path)] = 10 + i, 10 + i
        masks[path.with_name("Part_label.bmp")] = 0
    for i, anomalous in enumerate((False, True, True)):
        path = example.root / f"test/kos{i}/Part.jpg"
        values[path] = 100 + i
        example.test[str(path)] = Known(100 + i, "anomaly" if anomalous else "good", anomalous=anomalous)
        mask = path.with_name("Part_label.bmp")
        masks[mask] = 100 + i if anomalous else 0
        if anomalous:
            example.masks[str(path)] = mask
    write_images(values, backwards=backwards)
    write_masks(masks)
    write_images({example.empty / "test/0.jpg": 1}, backwards=False)
    write_masks({example.empty / "test/0_label.bmp": 3})
    return example


def make_side_by_side(folder, backwards):
    """A fifth of the normal images is drawn for the test."""
    example = Example(folder / "set", empty=folder / "empty")
    values = {example.root / f"OK/{i}.png": 10 + i for i in range(10)}
    for path, grey in values.items():
        if path.stem in ("6", "9"):
            example.test[str(path)] = Known(grey, "good", anomalous=False)
        else:
            example.train[str(path)] = grey
    for i in range(2):
        path = example.root / f"crack/deep/{i}.png"
        values[path], example.test[str(path)] = 100 + i, Known(100 + i, "crack", anomalous=True)
        example.masks[str(path)] = example.root / f"Mask/crack/deep/{i}.png"
    write_images(values, backwards=backwards)
    write_masks({mask: example.test[image].grey for image, mask in example.masks.items()})
    write_images({example.empty / "NG" / "0.png": 1}, backwards=False)
    (example.empty / "OK").mkdir()
    return example


def make_folder(folder, backwards):
    images = {folder / "set" / name: 10 + i for i, name in enumerate(("a/0.png", "a/1.png", "b.png"))}
    write_images(images, backwards=backwards)
    (folder / "empty").mkdir()
    return Example(folder / "set", {str(path): grey for path, grey in images.items()}, empty=folder / "empty")


def make_class_folders(folder, backwards):
    images, example = {}, Example(f"{folder / 'set'}:one-class=dog", empty=f"{folder / 'empty'}:one-class=dog")
    for number, (part, kind) in enumerate((part, kind) for part in ("train", "test") for kind in ("cat", "dog")):
        for i in range(2):
            path, grey = folder / "set" / part / kind / f"{i}.png", 20 * number + i
            images[path] = grey
            if part == "test":
                example.test[str(path)] = Known(grey, kind, anomalous=kind != "dog")
            elif kind == "dog":
                example.train[str(path)] = grey
    write_images(images, backwards=backwards)
    for part in ("train/dog", "test/dog"):
        (folder / "empty" / part).mkdir(parents=True)
    return example


def make_idx(folder, backwards):
    """Images without files of their own."""
    example = Example(f"{folder}:one-class=1", empty=f"{folder}:one-class=7")
    for first, part, labels in ((10, "train", [0, 1, 1, 0]), (100, "t10k", [1, 0, 0])):
        images = np.stack([np.full((SIDE, SIDE), first + i, np.uint8) for i in range(len(labels))])
        for kind, array in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
            folder.mkdir(parents=True, exist_ok=True)
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)
        for i, label in enumerate(labels):
            name = f"{part}-images-idx3-ubyte[{i}]"
            if part == "t10k":
                example.test[name] = Known(first + i, str(label), anomalous=label != 1)
            elif label == 1:
                example.train[name] = first + i
    return example


MAKERS = {
    "one-class": [make_class_folders, make_idx],
    "mvtec-3d": [make_3d],
    "mvtec-ad2": [make_ad2],
    "mvtec-loco": [make_loco],
    "btad": [make_btad],
    "mvtec": [make_mvtec, make_capitals],
    "visa": [make_visa],
    "masks-beside": [make_beside],
    "side-by-side": [make_side_by_side],
    "folder": [make_folder],
}
CASES = [(row, make) for row in LAYOUTS for make in MAKERS.get(row.name, [])]


def test_every_row_has_its_makers_and_a_name_of_its_own():
    assert [row.name for row in LAYOUTS] == list(MAKERS), "a row needs a maker in this file, in the table's order"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize(("row", "make"), CASES, ids=lambda case: getattr(case, "name", None) or case.__name__)
def test_layout_keeps(row, make, law, tmp_path):
    law(row, make, tmp_path)


# The laws can fail: a row like MVTec's, and one that breaks each of them


def read_soundly(root):
    masks = {mask.stem: mask for mask in image_files(root / "masks")}
    test = []
    for path in image_files(root / "check"):
        kind = path.parent.name
        mask = masks.get(f"{kind}{path.stem}")
        if kind != "fine" and mask is None:
            raise DatasetError(f"{path}: its mask is missing.")
        test.append(Sample(path, kind, kind != "fine", mask))
    return Dataset(root, "sound", tuple(image_files(root / "fine")), tuple(test))


SOUND = Layout("sound", "", lambda root: (root / "fine").is_dir(), read_soundly)


def make_sound(folder, backwards):
    example = write_folders(
        folder,
        train=("fine", ".png"),
        test=("check", ("fine", "hole")),
        masks=("masks", ".png"),
        backwards=backwards,
    )
    for image, mask in example.masks.items():
        example.masks[image] = mask.parents[1] / f"hole{mask.name}"
        mask.rename(example.masks[image])
    (example.empty / "masks").mkdir()
    return example


def changed(**change):
    """A row that reads soundly, and then changes what it has read."""

    def read(root):
        dataset = read_soundly(root)
        return replace(dataset, **{name: of(dataset) for name, of in change.items()})

    return replace(SOUND, read=read)


def by_age(root):
    dataset = read_soundly(root)
    return replace(dataset, train=tuple(sorted(dataset.train, key=lambda path: path.stat().st_mtime_ns, reverse=True)))


def without_looking_for_masks(root):
    return replace(
        read_soundly(root)
        if len(image_files(root / "masks")) == 2
        else Dataset(root, "sound", tuple(image_files(root / "fine")), ())
    )


def anything_near(root):
    dataset = read_soundly(root)
    return replace(dataset, train=dataset.train or tuple(image_files(root.parent)))


def named_wrongly(dataset):
    """Gives out the images in the opposite order."""
    names = [*dataset.train, *(sample.path for sample in dataset.test)]
    paths = from_paths(names)
    return ImageSource(paths.names, lambda i: paths.load(len(names) - 1 - i))


def samples(change):
    return lambda dataset: tuple(change(sample, dataset) for sample in dataset.test)


def mask_of_the_next(sample, dataset):
    masks = [other.mask for other in dataset.test if other.mask]
    return sample if sample.mask is None else replace(sample, mask=masks[masks.index(sample.mask) - 1])


BROKEN = {
    "matches nothing": (replace(SOUND, matches=lambda root: False), laws.law_reads_its_own_example),
    "has another name": (changed(layout=lambda _: "other"), laws.law_reads_its_own_example),
    "misses an image": (changed(train=lambda d: d.train[1:]), laws.law_lists_every_normal_training_image),
    "misses a test": (changed(test=lambda d: d.test[1:]), laws.law_lists_every_test_image),
    "learns a test image": (changed(train=lambda d: (*d.train, d.test[0].path)), laws.law_no_test_image_is_learned),
    "is not sorted": (changed(train=lambda d: d.train[::-1]), laws.law_order_is_sorted_and_stable),
    "goes by age": (replace(SOUND, read=by_age), laws.law_order_is_sorted_and_stable),
    "calls all anomalous": (
        changed(test=samples(lambda sample, _: replace(sample, anomalous=True))),
        laws.law_normal_kinds_are_not_anomalous,
    ),
    "mixes masks up": (changed(test=samples(mask_of_the_next)), laws.law_masks_belong_to_their_images),
    "gives a mask to all": (
        changed(test=samples(lambda sample, d: replace(sample, mask=d.test[-1].mask))),
        laws.law_masks_belong_to_their_images,
    ),
    "lets masks be missing": (replace(SOUND, read=without_looking_for_masks), laws.law_a_missing_mask_is_refused),
    "takes what is near": (replace(SOUND, read=anything_near), laws.law_nothing_to_learn_from_is_refused),
    "names wrongly": (changed(packed=named_wrongly), laws.law_images_are_those_of_their_names),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_sound_double_keeps(law, tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "LAYOUTS", (SOUND, *LAYOUTS[1:]))
    law(SOUND, make_sound, tmp_path)


@pytest.mark.parametrize("broken", BROKEN)
def test_law_catches(broken, tmp_path, monkeypatch):
    row, law = BROKEN[broken]
    monkeypatch.setattr(layouts, "LAYOUTS", (row, *LAYOUTS[1:]))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(row, make_sound, tmp_path)


def test_every_law_has_a_double_that_it_catches():
    assert {law for _, law in BROKEN.values()} == set(LAWS)
