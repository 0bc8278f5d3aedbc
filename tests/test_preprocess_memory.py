"""Memory follows the pixels of an image, whatever its shape; and the way that keeps it so gives the same."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.images import preprocess as module
from blemish.images.preprocess import Preprocess
from blemish.memory import forget_peak

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def picture(size, mode):
    random = np.random.default_rng(sum(size))
    if mode == "F":
        return Image.fromarray(random.uniform(0, 255, size).astype(np.float32))
    return Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))


def plainly(preprocess, image, how):
    """Resize columns, then rows of the whole image, then crop."""
    if preprocess.crop is None:
        width, height = preprocess.size[::-1]
        return np.asarray(image.resize((width, image.height), how).resize((width, height), how))
    short = min(image.size)
    width, height = (
        preprocess.resize if side == short else int(preprocess.resize * side / short) for side in image.size
    )
    top, left = round((height - preprocess.crop) / 2), round((width - preprocess.crop) / 2)
    resized = image.resize((width, image.height), how).resize((width, height), how)
    return np.asarray(resized)[top : top + preprocess.crop, left : left + preprocess.crop]


@st.composite
def shapes(draw, most=8.0):
    """`(height, width)` up to this aspect ratio, lying or standing."""
    short = draw(st.integers(1, 150))
    long = int(short * draw(st.floats(1, most)))
    return draw(st.sampled_from([(short, long), (long, short)]))


@settings(max_examples=150, deadline=None)
@given(shapes(), st.sampled_from([Preprocess(128, 112), Preprocess(128), Preprocess(64, 48), Preprocess((40, 90))]))
def test_ordinary_images_are_resized_and_cropped_to_the_bit(size, preprocess):
    for mode in ("RGB", "F"):
        image = picture(size, mode)
        expected = plainly(preprocess, image, BILINEAR).astype(np.float32) / np.float32(255)
        got = preprocess.pixels(image).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(got[:, :, 0] if mode == "F" else got, np.clip(expected, 0, 1))
    mask = np.random.default_rng(0).random(size) > 0.5
    expected = plainly(preprocess, Image.fromarray(mask.astype(np.uint8)), NEAREST).astype(bool)
    np.testing.assert_array_equal(preprocess.mask(mask), expected)


@settings(max_examples=100, deadline=None)
@given(shapes(most=40), st.sampled_from([Preprocess(128, 112), Preprocess(64, 48), Preprocess(33, 33)]))
def test_a_region_alone_gives_what_the_whole_gives(size, preprocess):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PLAIN", 0)
        for mode, most in (("RGB", 1.0), ("F", 0.02)):  # grey levels; 8 bits are rounded, twice
            image = picture(size, mode)
            got = preprocess.pixels(image).permute(1, 2, 0).numpy() * 255
            got = got[:, :, 0] if mode == "F" else got
            np.testing.assert_allclose(got, plainly(preprocess, image, BILINEAR), atol=most + 1e-3)
        mask = np.zeros(size, bool)
        mask[: -(-size[0] // 3), : -(-size[1] // 2)] = True
        expected = plainly(preprocess, Image.fromarray(mask.astype(np.uint8)), NEAREST)
        # Pillow adds up steps, so that ties fall either way: one row, and one column.
        assert (preprocess.mask(mask) != expected).sum() <= sum(preprocess.size)
        map = torch.rand(preprocess.size, generator=torch.Generator().manual_seed(0))
        region = preprocess.to_original(map, size)
    np.testing.assert_allclose(region, preprocess.to_original(map, size), atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(300, 900), st.sampled_from(["RGB", "F"]))
def test_height_first_gives_what_width_first_gives(width, height, mode):
    image, preprocess = picture((height, width), mode), Preprocess((64, 48))
    expected = preprocess.pixels(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PLAIN", 0)
        np.testing.assert_allclose(preprocess.pixels(image).numpy(), expected.numpy(), atol=1.01 / 255)


@given(shapes(most=40), st.sampled_from([Preprocess(128, 112), Preprocess(128), Preprocess(33, 20)]))
def test_visible_pixels_have_their_centres_inside_the_crop(size, preprocess):
    short = min(size)
    inside = []
    for side in size:
        resized = preprocess.size[0] if preprocess.crop is None else preprocess.resize
        if preprocess.crop is not None and side != short:
            resized = int(preprocess.resize * side / short)
        low = round((resized - preprocess.size[0]) / 2)
        centres = (np.arange(side) + 0.5) * (resized / side)
        inside.append((centres >= low) & (centres < low + preprocess.size[0]))
    np.testing.assert_array_equal(preprocess.visible(size), np.outer(*inside))


SCRIPT = """
import json, sys
import numpy as np, torch
from PIL import Image
from blemish.images.preprocess import Preprocess
from blemish.memory import forget_peak, peak_since, resident_bytes

def taken(work):
    forget_peak()
    before = resident_bytes()
    work()
    return peak_since() - before

arguments, sizes = json.loads(sys.argv[1])
preprocess = Preprocess(*arguments)
map = torch.zeros(preprocess.size)
for height, width in sizes:
    image, mask = Image.new("RGB", (width, height)), np.zeros((height, width), bool)
    print(json.dumps({
        "pixels": taken(lambda: preprocess.pixels(image)),
        "mask": taken(lambda: preprocess.mask(mask)),
        "to_original": taken(lambda: preprocess.to_original(map, (height, width))),
        "visible": taken(lambda: preprocess.visible((height, width))),
    }))
"""
SIZES = [(10_000, 1), (1, 10_000), (100_000, 3), (2_000_000, 1), (1, 2_000_000), (1500, 1000)]


@pytest.mark.skipif(not forget_peak(), reason="the system does not say how much memory was taken")
@pytest.mark.parametrize(
    "arguments", [(256, 224), *(pytest.param(of, marks=pytest.mark.heavy) for of in ((256,), (2048, 2048)))]
)
def test_memory_is_bounded_by_pixels(arguments):
    """As the docstring of `Preprocess` says."""
    command = [sys.executable, "-c", SCRIPT, json.dumps([arguments, SIZES])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for (height, width), taken in zip(SIZES, map(json.loads, lines), strict=True):
        bound = 32 * height * width + 32 * Preprocess(*arguments).size[0] ** 2 + 150_000_000
        assert {name: bytes for name, bytes in taken.items() if bytes > bound} == {}, (height, width)
