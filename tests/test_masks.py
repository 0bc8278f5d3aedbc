"""Masks as labelling tools save them, and what an evaluation says about them before it scores anything."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blemish import Detector, PaDiM, Preprocess, evaluate, open_dataset
from blemish.errors import DatasetError, ImageError
from blemish.evaluation.detector import evaluation_json
from blemish.evaluation.masks import Masks, look_at_masks
from blemish.images.decode import decode_mask, read_mask, upright_size

SQUARE = np.zeros((48, 48), dtype=bool)
SQUARE[11:30, 13:37] = True
GREY = SQUARE.astype(np.uint8) * 255


def saved(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def hundredths(mask):
    return round(100 * np.logical_xor(mask, SQUARE).sum() / SQUARE.sum())


def test_a_mask_saved_as_jpeg_does_not_grow(tmp_path):
    path = saved(tmp_path / "m.jpg", GREY, quality=75)
    assert hundredths(np.asarray(Image.open(path)) > 0) > 10  # the rule for other masks
    mask = read_mask(path)
    assert hundredths(mask.anomalous) == 0
    assert mask.is_soft


def test_a_soft_mask_is_cut_at_half_of_its_highest_level(tmp_path):
    blurred = Image.fromarray((SQUARE * 200).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    mask = read_mask(saved(tmp_path / "m.png", blurred))
    assert mask.is_soft
    assert hundredths(mask.anomalous) < 5


@pytest.mark.parametrize("pixels", [SQUARE.astype(np.float32), SQUARE.astype(np.uint8), SQUARE, GREY])
def test_float_one_bit_and_small_values_are_read_right(tmp_path, pixels):
    mask = read_mask(saved(tmp_path / "m.tiff", pixels))
    np.testing.assert_array_equal(mask.anomalous, SQUARE)
    assert not mask.is_soft


def test_numbers_of_kinds_are_all_anomalous(tmp_path):
    kinds = SQUARE.astype(np.uint8) * (1 + np.arange(48, dtype=np.uint8) // 12)
    mask = read_mask(saved(tmp_path / "m.png", kinds))
    np.testing.assert_array_equal(mask.anomalous, SQUARE)
    assert not mask.is_soft


def test_float_masks_that_say_nothing_are_refused(tmp_path):
    pixels = SQUARE.astype(np.float32)
    pixels[0, 0] = np.nan
    with pytest.raises(ImageError, match=r"m\.tiff: a mask with NaN or infinity"):
        decode_mask(saved(tmp_path / "m.tiff", pixels))


def test_a_folder_of_masks_of_other_sizes_is_refused(tmp_path):
    saved(tmp_path / "0" / "0.png", GREY)
    saved(tmp_path / "0" / "1.png", GREY[:, :20])
    with pytest.raises(ImageError, match=r"expected masks of one size"):
        decode_mask(tmp_path / "0")


def test_the_size_of_a_turned_image_is_told_from_its_head(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "turned.jpg", GREY[:20], exif=exif)
    assert upright_size(path) == (48, 20)
    assert upright_size(saved(tmp_path / "plain.png", GREY[:20])) == (20, 48)
    path.write_bytes(b"junk")
    assert upright_size(path) is None


# Before the scoring begins


def write(root, masks, *, good_masks=(), image_shape=(48, 48)):
    """Noise as normal images; a white square in noise as defects, with these masks."""
    noise = np.random.default_rng(0)

    def picture():
        return noise.integers(60, 200, image_shape).astype(np.uint8)

    for i in range(6):
        saved(root / f"train/good/{i}.png", picture())
    for i in range(3):
        saved(root / f"test/good/{i}.png", picture())
    for i, mask in enumerate(masks):
        defect = picture()
        defect[11:30, 13:37] = 255
        saved(root / f"test/hole/{i}.png", defect)
        saved(root / f"ground_truth/hole/{i}_mask.png", mask)
    for i, mask in enumerate(good_masks):
        saved(root / f"ground_truth/good/{i}_mask.png", mask)
    return open_dataset(root)


NOISY = (GREY + np.random.default_rng(1).integers(0, 40, GREY.shape) * (GREY == 0)).astype(np.uint8)


@pytest.mark.parametrize(
    ("masks", "good_masks", "note"),
    [
        ([255 - GREY] * 3, [], r"hole/0_mask\.png: marked over more than half.*\(3 such masks\)"),
        ([GREY, GREY * 0], [], r"hole/1_mask\.png: empty, though its image is anomalous$"),
        ([GREY], [GREY * 0, GREY], r"good/1_mask\.png: a defect marked on a normal image$"),
        ([GREY, NOISY], [], r"hole/1_mask\.png: soft: what is above half"),
    ],
)
def test_what_is_suspicious_is_named(tmp_path, masks, good_masks, note):
    dataset = write(tmp_path, masks, good_masks=good_masks)
    (found,) = look_at_masks(dataset.test, Masks())
    assert re.search(note, found)


def test_nothing_is_said_of_sound_masks(tmp_path):
    dataset = write(tmp_path, [GREY, 255 - GREY, GREY], good_masks=[GREY * 0])
    assert look_at_masks(dataset.test, Masks()) == ()


class NeverScores(Detector):
    def score(self, images, **_):
        raise AssertionError("scored before the masks were looked at")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (GREY[:20], r"hole/0_mask\.png: expected the shape of its image, \(48, 48\), got \(20, 48\)"),
        (None, r"hole/0_mask\.png: not an image"),
    ],
)
def test_a_mask_of_another_shape_or_damaged_is_named_before_anything_is_scored(tmp_path, mask, message):
    dataset = write(tmp_path, [GREY if mask is None else mask])
    if mask is None:
        (tmp_path / "ground_truth/hole/0_mask.png").write_bytes(b"junk")
    with pytest.raises((DatasetError, ImageError), match=message):
        evaluate(NeverScores(), dataset)


def test_a_mask_on_its_side_says_so(tmp_path):
    dataset = write(tmp_path, [np.zeros((48, 20), np.uint8)], image_shape=(48, 48))
    for path in (tmp_path / "test/hole").iterdir():
        saved(path, GREY[:20])
    with pytest.raises(DatasetError, match=r"got \(48, 20\)\. The mask lies on its side"):
        look_at_masks(dataset.test, Masks())


def test_a_crop_that_cuts_all_defects_off_leaves_the_figures_of_images(tmp_path):
    corner = np.zeros((48, 48), np.uint8)
    corner[:4, :4] = 255
    dataset = write(tmp_path, [corner, corner])
    method = PaDiM(backbone="filters", dimensions=5)
    detector = Detector(method=method, preprocess=Preprocess(96, 64), calibration="none").fit(dataset.train_images())
    figures = evaluate(detector, dataset, intervals=True, repetitions=5)
    assert 0 <= figures.figures.image_auroc <= 1
    assert figures.figures.pixel_auroc is figures.figures.au_pro_30 is None
    assert "pixel_auroc" not in figures.intervals
    assert "image_auroc" in figures.intervals


def test_notes_are_in_the_evaluation_and_its_json(tmp_path, caplog):
    dataset = write(tmp_path, [255 - GREY])
    detector = Detector(
        method=PaDiM(backbone="filters", dimensions=5), preprocess=Preprocess(48), calibration="none"
    ).fit(dataset.train_images())
    evaluation = evaluate(detector, dataset)
    assert evaluation_json(evaluation)["notes"] == list(evaluation.notes)
    assert "are black and white exchanged?" in evaluation.notes[0]
    assert evaluation.notes[0] in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="there are no such pipes")
def test_a_pipe_is_no_mask_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=r"mask\.png: a pipe, socket or device, not an image file"):
        read_mask(tmp_path / "mask.png")
