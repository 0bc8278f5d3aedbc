from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blemish.datasets.layouts import LAYOUTS, open_dataset
from blemish.errors import DatasetError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / path)


def summary(dataset):
    root = dataset.root
    return [
        (str(s.path.relative_to(root)), s.kind, s.anomalous, s.mask and str(s.mask.relative_to(root)))
        for s in dataset.test
    ]


def test_mvtec(tmp_path):
    touch(tmp_path, "train/good/1.png", "train/good/0.png", "test/good/0.png", "test/hole/0.png", "test/hole/1.jpg")
    touch(tmp_path, "ground_truth/hole/0_mask.png", "ground_truth/hole/1_mask.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "mvtec"
    assert [p.name for p in dataset.train] == ["0.png", "1.png"]
    assert summary(dataset) == [
        ("test/good/0.png", "good", False, None),
        ("test/hole/0.png", "hole", True, "ground_truth/hole/0_mask.png"),
        ("test/hole/1.jpg", "hole", True, "ground_truth/hole/1_mask.png"),
    ]
    assert len(dataset.train_images()) == 2
    assert dataset.test_images().names == tuple(str(s.path) for s in dataset.test)


def test_mvtec_without_masks_is_image_level(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/good/0.png", "test/bad/0.png")
    assert [s.mask for s in open_dataset(tmp_path).test] == [None, None]


def test_missing_mask_is_named(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/hole/0.png", "test/hole/1.png", "ground_truth/hole/0_mask.png")
    with pytest.raises(DatasetError, match=r"hole/1\.png: its mask is missing, expected .*hole/1_mask\.png"):
        open_dataset(tmp_path)


def test_every_defect_needs_its_mask_where_there_are_masks(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/hole/0.png", "test/dent/0.png", "ground_truth/hole/0_mask.png")
    with pytest.raises(DatasetError, match=r"dent/0\.png: its mask is missing"):
        open_dataset(tmp_path)


def test_btad(tmp_path):
    touch(tmp_path, "train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "btad"
    assert summary(dataset) == [
        ("test/ko/2.bmp", "ko", True, "ground_truth/ko/2.png"),
        ("test/ok/1.bmp", "ok", False, None),
    ]


def test_visa(tmp_path):
    images = "candle/Data/Images"
    touch(tmp_path, f"{images}/Normal/0.JPG", f"{images}/Normal/1.JPG", f"{images}/Anomaly/0.JPG")
    touch(tmp_path, "candle/Data/Masks/Anomaly/0.png")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(
        "object,split,label,image,mask\n"
        f"candle,train,normal,{images}/Normal/0.JPG,\n"
        f"candle,test,normal,{images}/Normal/1.JPG,\n"
        f"candle,test,anomaly,{images}/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png\n"
        "pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,\n"
    )
    dataset = open_dataset(tmp_path / "candle")
    assert dataset.layout == "visa"
    assert [p.name for p in dataset.train] == ["0.JPG"]
    assert [(s.kind, s.anomalous, s.mask is not None) for s in dataset.test] == [
        ("good", False, False),
        ("anomaly", True, True),
    ]


def test_plain_folder_has_nothing_to_test_on(tmp_path):
    touch(tmp_path, "a/0.png", "b.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, len(dataset.train), dataset.test) == ("folder", 2, ())


@pytest.mark.parametrize(
    "inner", ["bottle/train/good/0.png", "odd/ground_truth/x/0.png", "Train/0.png", "test/dent/0.png"]
)
def test_a_folder_that_holds_defects_is_not_read_as_normal_images(tmp_path, inner):
    touch(tmp_path, inner)
    with pytest.raises(DatasetError, match=r"seems to hold several categories"):
        open_dataset(tmp_path)


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no normal training images found.*Known layouts: one-class"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"nowhere: expected a dataset folder"):
        open_dataset(tmp_path / "nowhere")


def test_every_layout_has_its_own_name():
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
