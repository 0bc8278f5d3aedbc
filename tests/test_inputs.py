"""One picture gives one verdict, whatever holds it; what its numbers mean is asked, and never guessed in silence."""

from __future__ import annotations

import re
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from blemish import Detector, PaDiM, Preprocess, persist
from blemish.datasets.layouts import open_dataset
from blemish.errors import ArgumentError, DatasetError, ImageError, ModelFileError
from blemish.evaluation.detector import Masks, evaluate
from blemish.images.source import as_source
from blemish.inspection.masks import suspicious_masks
from blemish.report.heatmap import UNSEEN, write_heatmap

SIZE = 32


def good(seed, height=SIZE, width=SIZE):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + random.uniform(0, 8)
    base = 128 + 30 * np.sin(2 * np.pi * x / 8) + 30 * np.sin(2 * np.pi * y / 8)
    noisy = base[..., None] * [0.8, 0.9, 1.0] + random.normal(0, 6, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def make(**settings):
    method = PaDiM(backbone="filters")
    return Detector(**{"method": method, "preprocess": Preprocess(SIZE), "false_alarm_rate": 0.2, **settings})


NORMAL = [good(i) for i in range(40)]
PICTURE = good(99)


@pytest.fixture(scope="module")
def fitted():
    return make().fit(NORMAL)


@pytest.mark.parametrize(
    "held",
    [
        lambda a: a,
        lambda a: [a],
        lambda a: (a,),
        lambda a: a[None],
        Image.fromarray,
        lambda a: [Image.fromarray(a)],
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: torch.from_numpy(a).permute(2, 0, 1)[None],
        lambda a: [torch.from_numpy(a / 255).permute(2, 0, 1)],
        lambda a: {"a name": a},
        lambda a: (picture for picture in [a]),
        lambda a: iter([Image.fromarray(a)]),
    ],
)
def test_one_picture_is_one_verdict(fitted, held):
    expected = next(fitted.predict([PICTURE]))
    (found,) = fitted.predict(held(PICTURE))
    assert found.score == expected.score
    assert found.map.shape == (SIZE, SIZE)


def test_names_come_from_the_mapping_and_from_the_place(fitted, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    assert [d.name for d in fitted.predict({"left": PICTURE, "right": tmp_path / "x.png"})] == ["left", "right"]
    mixed = iter([PICTURE, tmp_path / "x.png", *NORMAL[:17]])
    expected = ["image 0", str(tmp_path / "x.png"), *(f"image {i}" for i in range(2, 19))]
    assert [d.name for d in fitted.predict(mixed)] == expected


@pytest.mark.parametrize("images", [[], (), {}, np.zeros((0, 9, 9, 3), np.uint8), iter([]), torch.zeros(0, 3, 9, 9)])
def test_nothing_is_no_verdict_and_nothing_to_learn(fitted, images):
    with pytest.raises(ArgumentError, match="images: expected at least one image, got none"):
        list(fitted.predict(images))
    if not hasattr(images, "__next__"):
        with pytest.raises(DatasetError, match="images: expected normal images to fit on, got none"):
            make().fit(images)


def test_a_stack_of_grey_pictures_is_said(fitted):
    stack = np.stack([picture[:, :, 0] for picture in NORMAL[:5]])
    with pytest.raises(ArgumentError, match=r"For several grey pictures, write list\(stack\)"):
        list(fitted.predict(stack))
    assert len(list(fitted.predict(list(stack)))) == 5
    with pytest.raises(ArgumentError, match=r"array\[\.\.\., :3\] drops an alpha channel"):
        make().fit(np.dstack([good(1, 256, 256), np.full((256, 256), 255, np.uint8)]))


def test_an_endless_camera_is_judged_as_it_comes(fitted):
    taken = 0

    def camera():
        nonlocal taken
        while True:
            taken += 1
            yield PICTURE

    verdicts = fitted.predict(camera())
    for _ in range(20):
        next(verdicts)
    assert taken <= 20 + fitted.batch_size
    with pytest.raises(ArgumentError, match=r"Write list\(images\)"):
        make().fit(camera())


def test_bad_files_of_all_batches_of_an_iterator_are_named(fitted, tmp_path):
    detector = make(on_error="skip", batch_size=2).fit(NORMAL)
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for i, file in enumerate(files):
        if i % 3:
            Image.fromarray(NORMAL[i]).save(file)
    assert len(list(detector.predict(iter(files)))) == 4
    assert [name for name, _ in detector.skipped_] == [str(files[0]), str(files[3])]


def test_a_picture_of_one_colour_is_not_learned_but_judged(fitted):
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ImageError, match=r"image 40: all its pixels have one colour, so there is nothing to learn"):
        make(calibration="none").fit([*NORMAL, black])
    tolerant = make(calibration="none", on_error="skip").fit([*NORMAL, black])
    assert tolerant.images_ == 40
    assert [name for name, _ in tolerant.skipped_] == ["image 40"]
    assert next(fitted.predict([black])).is_anomalous


def test_held_out_pictures_judged_again_keep_their_verdict(fitted):
    """Of the method alone, each in a batch of its own, and in others: the last digits differ, the verdict must not."""
    held_out = as_source(NORMAL).split(0.2, seed=0)[1]
    detector = Detector.load(saved(fitted), device="cpu")
    rounding = 2e-6  # more than any method showed between batch sizes
    for batch_size in (1, 3, 8):
        detector.batch_size = batch_size
        again = [decision.score for decision in detector.predict(held_out)]
        scores = fitted.calibration_.scores
        for moved in (1 - rounding, 1, 1 + rounding):
            flagged = [fitted.decide("", score * moved).is_anomalous for score in again]
            assert sum(flagged) == sum(scores > fitted.calibration_.threshold)
            p_values = sorted(fitted.decide("", score * moved).p_value for score in again)
            np.testing.assert_allclose(p_values, np.arange(2, 10) / 9)


def saved(detector):
    path = f"{tempfile.mkdtemp()}/model.blemish"
    detector.save(path)
    return path


def deep(white, *, colour=False):
    """The same pictures as levels of a camera."""
    pictures = [picture if colour else picture[:, :, 0] for picture in NORMAL]
    return [np.round(picture / 255 * white).astype(np.uint16) for picture in pictures]


@pytest.mark.parametrize("colour", [False, True])
def test_levels_of_a_camera_score_as_its_full_range(tmp_path, colour, caplog):
    full = make(calibration="none").fit(deep(65535, colour=colour))
    expected = [d.score for d in full.predict(deep(65535, colour=colour)[:5])]
    assert not caplog.messages
    for white in (1023, 4095):
        told = make(calibration="none", preprocess=Preprocess(SIZE, white_level=white))
        found = make(calibration="none", preprocess=Preprocess(SIZE, white_level="auto"))
        for detector in (told, found):
            detector.fit(deep(white, colour=colour))
            again = Detector.load(saved(detector))
            assert again.preprocessing.white_level == white
            scores = [d.score for d in again.predict(deep(white, colour=colour)[:5])]
            np.testing.assert_allclose(scores, expected, rtol=0.05)
            assert scores == [d.score for d in detector.predict(deep(white, colour=colour)[:5])]
        (note,) = caplog.messages
        assert note.startswith(f"White level {white}: ")
        caplog.clear()


def test_dark_levels_are_noted_and_levels_above_white_refused(caplog):
    detector = make(calibration="none").fit(deep(1023))
    assert "up to" in caplog.text
    assert "white_level=1023 (--white-level 1023)" in caplog.text
    assert detector.manifest()["detector"]["preprocess"]["white_level"] is None
    caplog.clear()
    make(calibration="none").fit(NORMAL)
    assert not caplog.messages
    dark = make(calibration="none", preprocess=Preprocess(SIZE, white_level=1023)).fit(deep(1023))
    with pytest.raises(ImageError, match=r"image 0: a level of \d+, above the white level of 1023"):
        list(dark.predict(deep(4095)[:1]))
    assert len(list(dark.predict(NORMAL[:1]))) == 1  # 8 bits are what they are
    with pytest.raises(ArgumentError, match="white_level: expected a number"):
        Preprocess(white_level=0)


def write(root, *, height, width, how, masks):
    """Pictures that EXIF turns, with masks of the pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = how
    for folder, count in (("train/good", 2), ("test/good", 2), ("test/hole", 2)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            picture = good(i, height, width)
            if "hole" in folder:
                picture[4:12, 4:12] = 0
                (root / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
                mask = np.zeros((height, width), np.uint8)
                mask[4:12, 4:12] = 255
                Image.fromarray(mask).save(
                    root / f"ground_truth/hole/{i}_mask.png", **({"exif": exif} if masks else {})
                )
            Image.fromarray(picture).save(root / folder / f"{i}.png", exif=exif)
    return open_dataset(root)


@pytest.mark.parametrize(("width", "how"), [(32, 6), (48, 3)])
def test_masks_whose_shape_does_not_tell_are_noted(tmp_path, caplog, width, how):
    detector = make(calibration="none", preprocess=Preprocess((32, width))).fit([good(i, 32, width) for i in range(20)])
    evaluate(detector, write(tmp_path / "a", height=32, width=width, how=how, masks=False))
    (note,) = caplog.messages
    assert re.search(r"hole/0_mask\.png: EXIF turns its image, and no shape tells .*\(2 such masks\)$", note)
    caplog.clear()
    evaluate(detector, write(tmp_path / "b", height=32, width=width, how=how, masks=True))
    assert not caplog.messages


@pytest.mark.parametrize("how", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 2])
def test_masks_of_the_stored_pixels_are_turned_with_their_pictures(tmp_path, caplog, how, scale):
    dataset = write(tmp_path, height=32, width=48, how=how, masks=False)
    sample = next(sample for sample in dataset.test if sample.mask)
    with Image.open(sample.mask) as stored:
        larger = stored.resize((48 * scale, 32 * scale), Image.Resampling.NEAREST)
    larger.save(sample.mask)
    detector = make(calibration="none", preprocess=Preprocess(48)).fit(
        [np.rot90(good(100 + i, 32, 48)) for i in range(20)]
    )
    evaluation = evaluate(detector, dataset)
    assert re.search(r"drawn on the stored pixels; turned .*\(2 such masks\)$", caplog.messages[0])
    upright = np.asarray(ImageOps.exif_transpose(Image.open(sample.path)))
    mask = Masks().of(sample, upright.shape[:2])
    assert mask.shape == (48 * scale, 32 * scale)
    assert (upright[mask[::scale, ::scale]] == 0).all()  # the defect was drawn in black
    assert evaluation.figures.pixel_auroc > 0.9
    (remark,) = {remark for _, remark in suspicious_masks([sample], {str(sample.path): (48, 32)})}
    assert remark == "drawn on the stored pixels of an image that EXIF turns; it is turned with it"


def test_a_nearly_square_mask_is_told_by_its_exact_size(tmp_path):
    sample = write(tmp_path, height=100, width=101, how=6, masks=False).test[-1]
    masks = Masks()
    assert masks.drawn_as_stored(sample, (101, 100)) is True
    Image.new("L", (100, 101)).save(sample.mask)
    assert Masks().drawn_as_stored(sample, (101, 100)) is False
    Image.new("L", (200, 200)).save(sample.mask)
    assert Masks().drawn_as_stored(sample, (101, 100)) is None


def test_one_limit_of_pixels_for_images_masks_and_the_report(tmp_path, monkeypatch):
    from blemish.report.evaluation import write_report

    dataset = write(tmp_path / "data", height=32, width=48, how=1, masks=False)
    with pytest.raises(ImageError, match=r"the limit is 1,000 .* max_pixels \(--max-pixels\)"):
        make(calibration="none", max_pixels=1000).fit(tmp_path / "data")
    detector = make(calibration="none", max_pixels=32 * 48).fit(tmp_path / "data")
    with monkeypatch.context() as patched:  # what was judged is shown
        patched.setattr("blemish.report.figures.MAX_PIXELS", 9)
        page = write_report(
            evaluate(detector, dataset, allow_overlap=True), tmp_path / "page.html", title="t", facts={}
        )
    assert "no longer be read" not in page.read_text(encoding="utf-8")
    with pytest.raises(ImageError, match="the limit is 9 "):
        Masks(max_pixels=9).of(dataset.test[-1], (32, 48))
    detector.max_pixels = 1000
    with pytest.raises(ImageError, match="the limit is 1,000"):
        evaluate(detector, dataset)
    with pytest.raises(ImageError, match="the limit is 1,000"):
        list(detector.predict(tmp_path / "data/test/good"))


@pytest.mark.parametrize("threshold", [1.0, -1.0, 0.0, 1e-30, 5.0, None])
def test_one_scale_of_heat_maps(tmp_path, threshold):
    map = np.array([[-3, -2, -1, -0.5], [0, 0.5, 1, np.nan]], np.float32)
    write_heatmap(tmp_path / "h.png", map, threshold=threshold)
    image = Image.open(tmp_path / "h.png")
    index, low, high = np.asarray(image).astype(int), float(image.text["low"]), float(image.text["high"])
    assert index[1, 3] == UNSEEN
    assert (np.diff(index.ravel()[:7]) >= 0).all()
    seen = np.isfinite(map)
    np.testing.assert_allclose(
        low + index[seen] / 254 * (high - low), np.clip(map[seen], low, high), atol=(high - low) / 500
    )
    if threshold is not None:
        assert (low + high) / 2 == threshold
        assert ((index[seen] > 127) <= (map[seen] > threshold)).all()
        assert ((index[seen] < 127) <= (map[seen] < threshold)).all()
    else:
        assert (low, high) == (-3, 1)


@pytest.mark.parametrize("value", [0.0, -5.0, np.nan])
def test_a_flat_map_without_a_threshold_has_a_scale(tmp_path, value):
    write_heatmap(tmp_path / "h.png", np.full((2, 2), value, np.float32), threshold=None)
    image = Image.open(tmp_path / "h.png")
    assert set(np.asarray(image).ravel().tolist()) == {UNSEEN if np.isnan(value) else 0}
    assert float(image.text["low"]) < float(image.text["high"])


def test_a_strip_is_learned_in_tiles_of_its_own_shape():
    strips = [good(i, 128, 48) for i in range(12)]
    detector = make(calibration="none", preprocess=Preprocess((128, 48)), tile=(64, 48), overlap=16).fit(strips[:10])
    bad = strips[10].copy()
    bad[60:68, 8:16] = 0
    fine, broken = detector.predict([strips[11], bad])
    assert broken.score > fine.score
    y, x = np.unravel_index(broken.map.argmax(), broken.map.shape)
    assert 52 <= y <= 76
    assert 4 <= x <= 20
    again = Detector.load(saved(detector))
    assert again.tile == (64, 48)
    assert next(again.predict([bad])).score == broken.score


def test_a_model_without_a_white_level_reads_as_before(fitted, tmp_path):
    assert fitted.manifest()["detector"]["preprocess"] == {"resize": SIZE, "crop": None, "white_level": None}
    again = Detector.load(saved(fitted))
    assert again.preprocessing == Preprocess(SIZE)


def test_the_own_aspect_is_found_once_and_kept_as_numbers(tmp_path):
    wide = [good(i, 40, 100) for i in range(20)]
    detector = make(calibration="none", preprocess=Preprocess("auto:64")).fit(wide)
    assert detector.preprocessing.size == (48, 96)
    told = make(calibration="none", preprocess=Preprocess((48, 96))).fit(wide)
    others = [wide[0], good(7, 100, 40), good(8, 30, 30)]
    expected = [d.score for d in told.predict(others)]
    again = Detector.load(saved(detector))
    assert again.preprocess == Preprocess((48, 96))
    for one in (detector, again):
        decisions = list(one.predict(others))
        assert [d.score for d in decisions] == expected
        assert [d.map.shape for d in decisions] == [(40, 100), (100, 40), (30, 30)]
    detector.update([good(i, 100, 40) for i in range(20, 40)])  # of another shape: the input stays
    assert detector.preprocessing.size == (48, 96)
    assert detector.manifest()["detector"]["preprocess"]["resize"] == (48, 96)
    assert detector.fit([good(i, 100, 40) for i in range(20)]).preprocessing.size == (96, 48)


def test_what_no_size_is_known_for_is_refused_in_time(fitted, tmp_path):
    open_ = make(calibration="none", preprocess=Preprocess("auto:64"), tile=(64, 64))
    with pytest.raises(ArgumentError, match="tile: expected at most the preprocessed image's 48 x 96 pixels"):
        open_.fit([good(i, 40, 100) for i in range(4)])
    with pytest.raises(ArgumentError, match="resize: expected numbers, which `fit` finds, got auto"):
        Preprocess("auto").pixels(Image.fromarray(NORMAL[0]))
    tensors, manifest = persist.load(saved(fitted))
    manifest["detector"]["preprocess"]["resize"] = "auto"
    persist.save(
        tmp_path / "open.blemish", tensors, {k: v for k, v in manifest.items() if k not in ("format", "digest")}
    )
    with pytest.raises(ModelFileError, match="resize: expected numbers"):
        Detector.load(tmp_path / "open.blemish")
