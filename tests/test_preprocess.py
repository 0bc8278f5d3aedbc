from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.errors import ArgumentError
from blemish.images.preprocess import PRESETS, Preprocess

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
    assert PRESETS["default"].visible(size).all()


def test_paper_preset_is_torchvisions_resize_and_centre_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[16 : 16 + 224, 58 : 58 + 224]  # round(58.5) = 58, as in torchvision
    pixels = PRESETS["paper"].pixels(image)
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
        ({"resize": 64, "crop": 65}, "crop: expected at most resize = 64, got 65"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Preprocess(**arguments)
