from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish import Detector, PaDiM, PatchCore
from blemish.errors import ArgumentError
from blemish.images.decode import decode
from blemish.images.preprocess import MOST_ASPECT, Preprocess
from blemish.images.settle import settle
from blemish.images.source import as_source, from_arrays, from_folder, from_paths
from blemish.presets import PRESETS

sizes = st.tuples(st.integers(40, 160), st.integers(40, 160))
preprocesses = st.sampled_from([Preprocess(64), Preprocess(64, crop=48), Preprocess(80, crop=80), Preprocess(33)])


def ramp(size, axis):
    """Each pixel holds its own coordinate along one axis, in original pixels."""
    return np.indices(size)[axis].astype(np.float32)


@settings(max_examples=60)
@given(sizes, preprocesses, st.integers(0, 1))
def test_a_map_comes_back_to_the_pixels_it_came_from(size, preprocess, axis):
    """Preprocess an image of coordinates and place the result back: every seen pixel must hold its own coordinate."""
    coordinates = ramp(size, axis)
    scale = 255 / max(size)
    pixels = preprocess.pixels(Image.fromarray(coordinates * scale))
    placed = preprocess.to_original(pixels[0] * 255 / scale, size)
    assert placed.shape == size
    seen = preprocess.visible(size)
    np.testing.assert_array_equal(np.isfinite(placed), seen)
    # Interpolation repeats edges, so the outermost pixels can be off by the size of one network pixel.
    step = int(np.ceil(max(size) / preprocess.resize)) + 1
    inner = np.zeros(size, bool)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    inner[rows[0] + step : rows[-1] - step + 1, columns[0] + step : columns[-1] - step + 1] = True
    np.testing.assert_allclose(placed[inner], coordinates[inner], atol=0.51)


@given(sizes)
def test_default_sees_every_pixel(size):
    settled = PRESETS["default"].preprocess.with_aspect(size[1] / size[0], multiple=16)
    assert settled.visible(size).all()


@given(st.floats(0.1, 10), st.sampled_from([14, 16, 32]), st.sampled_from([256, 448]))
def test_auto_keeps_the_area_and_the_aspect_as_far_as_the_network_lets_it(aspect, multiple, side):
    height, width = Preprocess(f"auto:{side}").with_aspect(aspect, multiple=multiple).size
    aspect = min(max(aspect, 1 / MOST_ASPECT), MOST_ASPECT)
    assert (height, width) == (side, side) or (height % multiple, width % multiple) == (0, 0)
    assert abs(height - side / aspect**0.5) <= multiple / 2
    assert abs(width - side * aspect**0.5) <= multiple / 2
    on_its_side = Preprocess(f"auto:{side}").with_aspect(1 / aspect, multiple=multiple).size
    assert on_its_side == (width, height)


@pytest.mark.parametrize("multiple", [14, 16, 32])
def test_square_pictures_get_the_square_as_before(multiple):
    settled = settle(Preprocess("auto"), from_arrays([np.zeros((70, 70), np.uint8)] * 3), multiple=multiple)
    assert settled == Preprocess(256)


def test_auto_is_the_median_of_upright_sizes_read_without_decoding(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for i, (width, height) in enumerate(((100, 40), (90, 40), (300, 40))):
        Image.new("L", (width, height)).save(tmp_path / f"{i}.png")
    Image.new("L", (40, 100)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (40, 100)).save(tmp_path / "turned too.jpg", exif=exif)
    source = replace(from_folder(tmp_path), _load=None)
    assert settle(Preprocess("auto"), source, multiple=16, levels=False).size == (160, 400)
    paths = as_source(sorted(map(str, tmp_path.iterdir())))
    assert settle(Preprocess("auto"), paths.subset([2]), multiple=16).size == (96, 704)
    (tmp_path / "cut short.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    assert settle(Preprocess("auto"), as_source([str(tmp_path / "cut short.png")]), multiple=16).size == (96, 704)
    late = (tmp_path / "0.png").read_bytes()  # EXIF behind the pixels turns it on its side
    chunk = b"eXIf" + exif.tobytes()[6:]
    end = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + late[-12:]
    (tmp_path / "late.png").write_bytes(late[:-12] + end)
    assert decode(tmp_path / "late.png").size == (40, 100)
    assert settle(Preprocess("auto"), from_paths([tmp_path / "late.png"]), multiple=16).size == (400, 160)
    in_memory = {"tensor": torch.zeros(1, 40, 100), "array": np.zeros((40, 100, 3), np.uint8)}
    assert settle(Preprocess("auto"), as_source(in_memory), multiple=16).size == (160, 400)


@pytest.mark.parametrize(
    ("side", "settings", "says"),
    [
        (512, {}, True),
        (511, {}, False),
        (512, {"tile": 128}, False),
        (512, {"preprocess": Preprocess("auto:64")}, False),
        (512, {"method": PaDiM(backbone="filters")}, False),
    ],
)
def test_large_images_are_told_what_shows_more_of_them(side, settings, says, caplog):
    caplog.set_level("INFO")
    images = [np.random.default_rng(i).integers(0, 256, (side, side), np.uint8) for i in range(3)]
    Detector(**{"method": PatchCore(backbone="filters", count=10), "calibration": "none", **settings}).fit(images)
    assert ("--preset accurate" in caplog.text) == says


def test_long_strips_are_bounded_and_unreadable_sizes_passed_over(tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    assert settle(Preprocess("auto"), from_folder(tmp_path), multiple=16, levels=False).size == (256, 256)
    assert not caplog.messages
    Image.new("L", (1600, 120)).save(tmp_path / "strip.png")
    assert settle(Preprocess("auto"), from_folder(tmp_path), multiple=16).size == (96, 720)
    assert "aspect ratio is 1 : 13.3; the network's input gets 1 : 8" in caplog.text


def test_paper_preset_is_torchvisions_resize_and_centre_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[16 : 16 + 224, 58 : 58 + 224]  # round(58.5) = 58, as in torchvision
    pixels = PRESETS["paper"].preprocess.pixels(image)
    assert pixels.shape == (3, 224, 224)
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), expected / 255, atol=1e-6)


def test_deep_grey_keeps_values_between_8_bit_steps():
    deep = Image.fromarray(np.full((50, 50), 100.25, np.float32))
    torch.testing.assert_close(Preprocess(16).pixels(deep), torch.full((3, 16, 16), 100.25 / 255))


@pytest.mark.parametrize("preprocess", [Preprocess(64), Preprocess(64, crop=48)])
def test_mask_and_pixels_go_the_same_way(preprocess):
    square = np.zeros((120, 90), bool)
    square[50:70, 40:60] = True
    image = Image.fromarray((square * 255).astype(np.uint8)).convert("RGB")
    soft, hard = preprocess.pixels(image)[0].numpy() > 0.5, preprocess.mask(square)
    assert hard.any()
    assert (soft != hard).mean() < 0.01
    assert (soft & hard).sum() / (soft | hard).sum() > 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": 8}, "resize: expected a whole number of at least 16 pixels, got 8"),
        ({"resize": 64.5}, "resize: expected a whole number"),
        ({"resize": "wide"}, "resize: expected a side, .height, width., auto, or auto:SIDE, got wide"),
        ({"resize": "auto:8"}, "resize: expected a whole number of at least 16 pixels, got 8"),
        ({"resize": "auto", "crop": 64}, "resize: expected a side with a crop, got auto"),
        ({"resize": 64, "crop": 65}, "crop: expected at most resize = 64, got 65"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Preprocess(**arguments)
