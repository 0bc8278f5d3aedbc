from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blemish.datasets.layouts import LAYOUTS, open_dataset, open_to_judge
from blemish.errors import ArgumentError, DatasetError
from blemish.images.decode import decode_mask


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


@pytest.mark.parametrize("mask", ["", "candle/Data/Masks/Anomaly/1.png"])
def test_every_defect_of_visa_needs_its_mask_where_there_are_masks(tmp_path, mask):
    images = "candle/Data/Images"
    touch(tmp_path, f"{images}/Normal/0.JPG", f"{images}/Anomaly/0.JPG", f"{images}/Anomaly/1.JPG")
    touch(tmp_path, "candle/Data/Masks/Anomaly/0.png", "split_csv/x.png")
    (tmp_path / "split_csv" / "1cls.csv").write_text(
        "object,split,label,image,mask\n"
        f"candle,train,normal,{images}/Normal/0.JPG,\n"
        f"candle,test,anomaly,{images}/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png\n"
        f"candle,test,anomaly,{images}/Anomaly/1.JPG,{mask}\n"
    )
    with pytest.raises(DatasetError, match=r"Anomaly/1\.JPG: its mask is missing"):
        open_dataset(tmp_path / "candle")


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


# Letter case, names of the normal class, keys


@pytest.mark.parametrize("name", ["OK", "Good", "normal", "good "])
def test_every_name_of_the_normal_class_is_normal(tmp_path, name):
    touch(tmp_path, "train/good/0.png", f"test/{name}/0.png", "test/hole/0.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "mvtec"
    assert {(s.path.parent.name, s.kind, s.anomalous) for s in dataset.test} == {
        (name, name, False),
        ("hole", "hole", True),
    }


def test_train_and_test_in_capitals(tmp_path):
    touch(tmp_path, "Train/OK/0.png", "Test/OK/1.png", "Test/NG/2.png")
    dataset = open_dataset(tmp_path)
    assert [p.name for p in dataset.train] == ["0.png"]
    assert summary(dataset) == [("Test/NG/2.png", "NG", True, None), ("Test/OK/1.png", "OK", False, None)]


def test_masks_are_found_by_the_whole_path(tmp_path):
    for day in ("mon", "tue"):
        touch(tmp_path, "train/good/0.png", f"test/hole/{day}/0.png", f"ground_truth/hole/{day}/0_mask.png")
    assert [(path, mask) for path, _, _, mask in summary(open_dataset(tmp_path))] == [
        (f"test/hole/{day}/0.png", f"ground_truth/hole/{day}/0_mask.png") for day in ("mon", "tue")
    ]


def test_masks_of_another_folder_do_not_count(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/hole/mon/0.png", "ground_truth/hole/0_mask.png")
    with pytest.raises(DatasetError, match=r"mon/0\.png: its mask is missing, expected .*hole/mon/0_mask\.png"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("other", ["0_mask.bmp", "0.png"])
def test_two_masks_for_one_image_are_refused_by_name(tmp_path, other):
    touch(tmp_path, "train/good/0.png", "test/hole/0.png", "ground_truth/hole/0_mask.png", f"ground_truth/hole/{other}")
    with pytest.raises(DatasetError, match=rf"(?s)hole/{other}.*0_mask\.png: 2 masks for one image, 0"):
        open_dataset(tmp_path)


def test_two_images_that_would_share_a_mask_are_refused(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/hole/0.png", "test/hole/0.bmp", "ground_truth/hole/0_mask.png")
    with pytest.raises(DatasetError, match=r"0\.png: another file of that name but for its ending is 0\.bmp"):
        open_dataset(tmp_path)


def test_a_mask_without_an_ending_of_its_own_is_found(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/hole/0.png", "ground_truth/hole/0.png")
    assert summary(open_dataset(tmp_path))[0][3] == "ground_truth/hole/0.png"


# Other layouts


def test_loco_takes_the_union_of_the_masks_of_an_image(tmp_path):
    touch(tmp_path, "train/good/0.png", "validation/good/1.png", "test/good/0.png", "test/logical/0.png")
    for i, row in enumerate((1, 3)):
        mask = np.zeros((4, 4), np.uint8)
        mask[row] = 236 + i
        touch(tmp_path, f"ground_truth/logical/0/{i:03d}.png")
        Image.fromarray(mask).save(tmp_path / f"ground_truth/logical/0/{i:03d}.png")
    dataset = open_dataset(tmp_path)
    (sample,) = (s for s in dataset.test if s.anomalous)
    assert (dataset.layout, [p.name for p in dataset.train]) == ("mvtec-loco", ["0.png"])
    assert sample.mask == tmp_path / "ground_truth/logical/0"
    np.testing.assert_array_equal(decode_mask(sample.mask).any(axis=1), [False, True, False, True])


def test_3d_passes_over_heights_and_masks(tmp_path):
    touch(tmp_path, "train/good/rgb/0.png", "train/good/xyz/0.tiff", "test/good/rgb/0.png", "test/good/gt/0.png")
    touch(tmp_path, "test/hole/rgb/0.png", "test/hole/gt/0.png", "test/hole/xyz/0.tiff")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "mvtec-3d"
    assert [str(p.relative_to(tmp_path)) for p in dataset.train] == ["train/good/rgb/0.png"]
    assert [(path, mask) for path, _, _, mask in summary(dataset)] == [
        ("test/good/rgb/0.png", "test/good/gt/0.png"),
        ("test/hole/rgb/0.png", "test/hole/gt/0.png"),
    ]


def test_ad2_passes_over_the_validation_part(tmp_path):
    touch(tmp_path, "train/good/0_regular.png", "validation/good/1_regular.png", "test_public/good/2_regular.png")
    touch(tmp_path, "test_public/bad/3_regular.png", "test_public/ground_truth/bad/3_regular_mask.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, len(dataset.train)) == ("mvtec-ad2", 1)
    assert summary(dataset) == [
        ("test_public/bad/3_regular.png", "bad", True, "test_public/ground_truth/bad/3_regular_mask.png"),
        ("test_public/good/2_regular.png", "good", False, None),
    ]


@pytest.mark.parametrize(
    ("image", "mask"), [("{}.jpg", "{}.png"), ("kos{}/Part0.jpg", "kos{}/Part0_label.bmp"), ("{}.png", "{}_GT.png")]
)
def test_masks_beside_images_are_not_learned(tmp_path, image, mask):
    touch(tmp_path, *(name.format(i) for i in range(10) for name in (image, mask)))
    white = np.full((4, 4), 255, np.uint8)
    Image.fromarray(white).save(tmp_path / mask.format(3))
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "masks-beside"
    masks = {tmp_path / mask.format(i) for i in range(10)}
    taken = {*dataset.train, *(s.path for s in dataset.test)}
    assert not masks & taken
    assert taken == {tmp_path / image.format(i) for i in range(10)}
    assert [(s.path, s.mask) for s in dataset.test if s.anomalous] == [
        (tmp_path / image.format(3), tmp_path / mask.format(3))
    ]
    assert sum(not s.anomalous for s in dataset.test) == 2  # a fifth of nine


def test_two_photographs_of_one_name_are_no_image_and_mask(tmp_path):
    photograph = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    for name in ("0.jpg", "0.png"):
        Image.fromarray(photograph).save(tmp_path / name)
    with pytest.raises(DatasetError, match=r"0\.png: beside 0\.jpg as its mask would be, but no mask by its grey"):
        open_dataset(tmp_path)


def test_masks_beside_a_few_images_are_refused(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(10)), "3_mask.png")
    with pytest.raises(DatasetError, match=r"3_mask\.png: seems to be the mask of 3\.png beside it"):
        open_dataset(tmp_path)


def test_good_and_bad_side_by_side(tmp_path):
    touch(tmp_path, *(f"good/{i}.png" for i in range(10)), "crack/0.png", "crack/1.png")
    touch(tmp_path, "mask/crack/0.png", "mask/crack/1.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "side-by-side"
    assert {p.parent.name for p in dataset.train} == {"good"}
    assert [(s.kind, s.mask and str(s.mask.relative_to(tmp_path))) for s in dataset.test] == [
        ("crack", "mask/crack/0.png"), ("crack", "mask/crack/1.png"), ("good", None), ("good", None),
    ]  # fmt: skip
    assert len(dataset.train) == 8
    assert not {*dataset.train} & {s.path for s in dataset.test}
    assert not dataset.has_test_part


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("a/NG", "may hold defects"),
        ("a/cracks", "may hold defects"),
        ("labels", "may hold masks"),
        ("gt", "gt, so this"),
    ],
)
def test_a_folder_with_a_telling_name_is_refused_with_what_was_found(tmp_path, folder, reason):
    touch(tmp_path, "a/0.png", "a/1.png", f"{folder}/0.png")
    with pytest.raises(
        DatasetError, match=rf"found .*{reason}.* a \(2\).*{folder} \(1\).*--normal SUB --anomalous SUB"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["NG_0001.bmp", "part_mask.png"])
def test_a_file_with_a_telling_name_is_refused(tmp_path, name):
    touch(tmp_path, "0.png", name)
    with pytest.raises(DatasetError, match=rf"found .*{name}, which may"):
        open_dataset(tmp_path)


def test_masks_within_a_kind_are_refused(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/hole/images/0.png", "test/hole/masks/0.png")
    with pytest.raises(DatasetError, match=r"hole/masks/0\.png: a folder of masks within the images"):
        open_dataset(tmp_path)


# What the arguments say


def test_sub_folders_as_said(tmp_path):
    touch(tmp_path, *(f"fine/{i}.png" for i in range(5)), "odd/deep/0.png", "where/odd/deep/0_mask.png")
    dataset = open_dataset(tmp_path, normal=["fine"], anomalous=["odd"], masks="where")
    assert (len(dataset.train), dataset.has_test_part) == (4, False)
    assert [row for row in summary(dataset) if row[2]] == [("odd/deep/0.png", "odd", True, "where/odd/deep/0_mask.png")]
    (tmp_path / "where/odd/deep/0_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"odd/deep/0\.png: its mask is missing, expected .*where/odd/deep/0\.png"):
        open_dataset(tmp_path, normal=["fine"], anomalous=["odd"], masks="where")


def test_what_lies_around_anomalous_folders_may_be_normal(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(5)), "NG/0.png", "marks/NG/0.png")
    dataset = open_dataset(tmp_path, normal=["."], anomalous=["NG"], masks="marks")
    assert {p.parent for p in dataset.train} == {tmp_path}
    assert [s.mask for s in dataset.test if s.anomalous] == [tmp_path / "marks/NG/0.png"]


def test_a_normal_folder_within_test_is_tested(tmp_path):
    touch(tmp_path, "train/io/0.png", "test/io/1.png", "test/nio/2.png")
    dataset = open_dataset(tmp_path, normal=["train/io", "test/io"], anomalous=["test/nio"])
    assert [p.name for p in dataset.train] == ["0.png"]
    assert summary(dataset) == [("test/io/1.png", "good", False, None), ("test/nio/2.png", "nio", True, None)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"normal": ["no"]}, r"normal: expected sub-folders of .* \(fine, odd\), got no"),
        ({"normal": ["fine"], "anomalous": ["../odd"]}, r"anomalous: expected sub-folders of"),
        ({"anomalous": ["odd"]}, r"normal: expected sub-folders with normal images beside anomalous, got none"),
        ({"masks": "no"}, r"masks: expected sub-folders of .* \(fine, odd\), got no\."),
        ({"masks": "odd"}, r"normal: expected sub-folders with normal images beside masks, got none"),
        ({"normal": ["fine"], "anomalous": ["fine"]}, r"normal: expected other sub-folders than anomalous, got fine"),
    ],
)
def test_what_cannot_be_as_said_is_refused(tmp_path, said, message):
    touch(tmp_path / "set", "fine/0.png", "odd/0.png")
    touch(tmp_path, "odd/0.png")
    with pytest.raises(ArgumentError, match=message):
        open_dataset(tmp_path / "set", **said)


# What there is to judge


def judged(root):
    return [str(s.path.relative_to(root)) for s in open_to_judge(root).test]


def test_test_images_of_a_data_set_are_judged(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/good/1.png", "test/hole/2.png", "ground_truth/hole/2_mask.png")
    assert judged(tmp_path) == ["test/good/1.png", "test/hole/2.png"]
    assert judged(tmp_path / "test") == ["good/1.png", "hole/2.png"]


def test_all_but_masks_are_judged_where_there_is_no_test_part(tmp_path):
    touch(tmp_path, *(f"OK/{i}.png" for i in range(5)), "NG/0.png", "new.png", "mask/NG/0.png")
    assert judged(tmp_path) == ["NG/0.png", *(f"OK/{i}.png" for i in range(5)), "new.png"]


def test_defects_may_be_judged_and_masks_may_not(tmp_path):
    touch(tmp_path, "scratch/0.png", "0.png")
    assert judged(tmp_path) == ["0.png", "scratch/0.png"]
    touch(tmp_path, "labels/0.png")
    with pytest.raises(
        DatasetError, match=r"found labels, which may hold masks.*Name the folders with images to judge"
    ):
        open_to_judge(tmp_path)


def test_training_images_are_not_judged_by_mistake(tmp_path):
    touch(tmp_path, "train/good/0.png")
    with pytest.raises(DatasetError, match=r"training images and no test images.*name their folder: .*train/good"):
        open_to_judge(tmp_path)
