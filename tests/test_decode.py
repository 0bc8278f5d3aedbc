"""Each kind of file does what the table in `images/decode.py` says."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, PngImagePlugin

from blemish.errors import ArgumentError, ImageError
from blemish.images.decode import FORMATS, SUFFIXES, decode, decode_mask, from_array

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(tmp_path, image, name="x.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def pixels(path):
    return np.asarray(decode(path))


def test_rgb_is_untouched(tmp_path):
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.fromarray(RGB))), RGB)


def test_grey_is_repeated(tmp_path):
    grey = RGB[:, :, 0]
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.fromarray(grey))), np.stack([grey] * 3, axis=2))


def test_bilevel_becomes_black_and_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB[:, :, 0] > 128))
    np.testing.assert_array_equal(pixels(path)[:, :, 1], np.where(RGB[:, :, 0] > 128, 255, 0))


def test_16_bit_grey_keeps_its_depth(tmp_path):
    deep = np.array([[0, 1, 257], [65535, 32768, 258]], dtype=np.uint16)
    image = decode(saved(tmp_path, Image.fromarray(deep)))
    assert image.mode == "F"
    np.testing.assert_allclose(np.asarray(image), deep / 257, rtol=1e-6)


def test_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    np.testing.assert_array_equal(pixels(saved(tmp_path, image)), [[[10, 20, 30], [200, 100, 50]]])


def test_alpha_is_composed_over_white(tmp_path):
    rgba = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    np.testing.assert_array_equal(
        pixels(saved(tmp_path, Image.fromarray(rgba))), [[[100, 0, 0], [255, 255, 255], [127, 127, 127]]]
    )


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    path = saved(tmp_path, image, transparency=0)
    np.testing.assert_array_equal(pixels(path), [[[255, 255, 255], [200, 100, 50]]])


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    red = np.zeros((16, 16, 4), dtype=np.uint8)
    red[:, :, 1:3] = 255  # magenta + yellow
    path = saved(tmp_path, cmyk(red), "x.jpg", quality=95)
    np.testing.assert_allclose(pixels(path)[8, 8], [255, 0, 0], atol=8)


def cmyk(array):
    return Image.frombytes("CMYK", (array.shape[1], array.shape[0]), array.tobytes())


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    path = tmp_path / "x.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(path), np.broadcast_to([255, 0, 0], (6, 8, 3)))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_rotation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.fromarray(RGB), exif=exif)), upright(RGB))


def test_one_pixel_is_an_image(tmp_path):
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.new("RGB", (1, 1), "lime"))), [[[0, 255, 0]]])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_truncated_file_is_named(tmp_path, format):
    whole = io.BytesIO()
    Image.fromarray(RGB.repeat(4, axis=0).repeat(4, axis=1)).save(whole, format)
    path = tmp_path / f"half.{format.lower()}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ImageError, match=rf"half\.{format.lower()}: (damaged or truncated|not an image)"):
        decode(path)


def test_text_named_jpg_is_named(tmp_path):
    path = tmp_path / "letter.jpg"
    path.write_text("Dear Sir or Madam")
    with pytest.raises(ImageError, match=r"letter\.jpg: not an image"):
        decode(path)


def test_empty_file_and_folder_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png: not an image"):
        decode(tmp_path / "empty.png")
    with pytest.raises(ImageError, match=r": a folder, not an image file"):
        decode(tmp_path)


def test_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = saved(tmp_path, Image.new("1", (5000, 4000)))
    with pytest.raises(ImageError, match=r"x\.png: claims 4000 x 5000 = 20,000,000 pixels, the limit is 1,000,000"):
        decode(path, max_pixels=1_000_000)


def test_pillows_own_limit_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("x.png", "x.webp", "x.tif", "x.gif"):
        path = saved(tmp_path, Image.fromarray(RGB), name)
        with pytest.raises(ImageError, match="claims 20 x 30 = 600 pixels, the limit is 50 "):
            decode(path, max_pixels=50)
        assert Image.MAX_IMAGE_PIXELS == 100
    for name in ("x.png", "x.webp", "x.tif", "x.gif"):
        Image.MAX_IMAGE_PIXELS = 100
        assert decode(tmp_path / name, max_pixels=600).size == (30, 20)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM"}])
def test_a_webp_is_refused_before_its_reader_opens_it(tmp_path, monkeypatch, options):
    path = saved(tmp_path, Image.fromarray(RGB), "x.webp", **options)
    monkeypatch.setitem(Image.OPEN, "WEBP", (None, lambda start: True))
    with pytest.raises(ImageError, match="claims 20 x 30 = 600 pixels, the limit is 599 "):
        decode(path, max_pixels=599)


@pytest.mark.skipif(os.name != "posix", reason="a program on the path of POSIX")
@pytest.mark.parametrize("name", ["part.png", "part.eps", "part.jpg"])
def test_no_other_program_is_started(tmp_path, monkeypatch, name):
    """Pillow reads EPS by Ghostscript."""
    program, marker = tmp_path / "bin" / "gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / name
    Image.fromarray(RGB).save(path, "EPS")
    for read in (decode, decode_mask):
        with pytest.raises(ImageError, match=r"a format that is not read\. Read are BMP, GIF, JPEG, JPEG2000, PNG"):
            read(path)
    assert not marker.exists()
    with Image.open(path) as image, suppress(OSError):
        image.load()
    assert marker.exists()  # so the trap was set


@pytest.mark.parametrize("format", ["PDF", "TGA", "ICO", "PCX", "SGI", "MSP", "DDS", "QOI", "AVIF"])
def test_formats_that_are_not_named_are_not_read(tmp_path, format):
    try:
        Image.fromarray(RGB).convert("1" if format == "MSP" else "RGB").save(tmp_path / "x.png", format)
    except (KeyError, OSError):
        pytest.skip("this Pillow cannot write it")
    with pytest.raises(ImageError, match=r"x\.png: not an image, or of a format that is not read"):
        decode(tmp_path / "x.png")


def test_every_suffix_has_a_format_that_is_read(tmp_path):
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} == {*FORMATS, "MPO"}
    for suffix in SUFFIXES:
        image = Image.fromarray(RGB)
        (image.convert("L") if suffix == ".pgm" else image).save(tmp_path / f"x{suffix}")
        assert decode(tmp_path / f"x{suffix}").size == (30, 20)


def test_several_pictures_in_one_jpeg_give_the_first(tmp_path):
    red, blue = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (16, 8), "blue")
    path = tmp_path / "phone.jpg"
    red.save(path, "MPO", save_all=True, append_images=[blue])
    np.testing.assert_allclose(pixels(path)[4, 8], [255, 0, 0], atol=4)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (OSError(5, "Input/output error"), r"cannot be read \(Input/output error\)"),
        (MemoryError(), "too large for the memory that is free"),
        (OSError("broken data stream"), r"damaged or truncated \(broken data stream\)"),
    ],
)
def test_a_failing_disk_is_no_damaged_file(tmp_path, monkeypatch, error, reason):
    def fail(self):
        raise error

    path = saved(tmp_path, Image.fromarray(RGB))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    for read in (decode, decode_mask):
        with pytest.raises(ImageError, match=rf"x\.png: {reason}"):
            read(path)


@pytest.mark.parametrize("read", [decode, decode_mask])
def test_what_cannot_be_opened_is_told_apart(tmp_path, monkeypatch, read):
    with pytest.raises(ImageError, match=r"gone\.png: the file does not exist"):
        read(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"a folder, not an image file|expected masks of one size in this folder"):
        read(tmp_path)
    with pytest.raises(ImageError, match=r"not the name of a file"):
        read("a\0.png")
    path = saved(tmp_path, Image.fromarray(RGB))

    def stat(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("blemish.images.decode.os.stat", stat)
    with pytest.raises(ImageError, match=r"x\.png: no permission to read it"):
        read(path)


def test_float_pixels_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "x.tiff")
    with pytest.raises(ImageError, match=r"floating-point pixels have no fixed white level"):
        decode(path)


def test_any_nonzero_mask_value_is_anomalous(tmp_path):
    mask = np.array([[0, 1, 255], [7, 0, 0]], dtype=np.uint8)
    np.testing.assert_array_equal(decode_mask(saved(tmp_path, Image.fromarray(mask))), mask > 0)


def test_transparent_parts_of_a_mask_are_normal(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[1, 2] = 255
    expected = rgba[:, :, 3] > 0
    np.testing.assert_array_equal(decode_mask(saved(tmp_path, Image.fromarray(rgba))), expected)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(decode_mask(saved(tmp_path, palette, transparency=0)), [[False, True]])


@settings(max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP"]), st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damaged_exif_gives_an_image_or_an_image_error(format, position, noise):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a camera", 72.5
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, format, exif=exif)
    content = bytearray(whole.getvalue())
    start = max(0, content.find(b"a camera") - 100) + position
    content[start : start + len(noise)] = noise
    with tempfile.NamedTemporaryFile(suffix=f".{format.lower()}") as file:
        file.write(content)
        file.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
            try:
                assert decode(file.name).mode in ("RGB", "F")
            except ImageError as error:
                assert str(error).startswith(file.name)  # noqa: PT017 (an image is as good an answer)


def test_arrays():
    np.testing.assert_array_equal(np.asarray(from_array(RGB)), RGB)
    np.testing.assert_array_equal(np.asarray(from_array(RGB[:, :, :1]))[:, :, 2], RGB[:, :, 0])
    np.testing.assert_allclose(np.asarray(from_array(np.full((2, 2), 65535, np.uint16))), 255.0)
    np.testing.assert_allclose(np.asarray(from_array(np.full((2, 2), 0.5))), 127.5)
    np.testing.assert_array_equal(np.asarray(from_array(np.full((2, 2, 3), 1.0)))[0, 0], [255, 255, 255])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"an array of shape \(height, width\) or \(height, width, 3\)"),
        (np.zeros((0, 5), np.uint8), r"got an array of shape \(0, 5\)"),
        (np.zeros((4, 4), np.int64), "expected dtype uint8, uint16"),
        (np.full((4, 4), 3.0), r"float values in \[0, 1\], got values from 3.0 to 3.0"),
        (np.full((4, 4), np.nan), r"float values in \[0, 1\]"),
    ],
)
def test_wrong_array_is_described(array, message):
    with pytest.raises(ArgumentError, match=message):
        from_array(array, name="images[3]")


@settings(max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"]), st.floats(0, 1), st.integers(0, 255))
def test_damaged_bytes_give_an_image_or_an_image_error(format, where, value):
    """Whatever byte is changed, wherever the file is cut: never another exception."""
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, format)
    content = bytearray(whole.getvalue())
    position = int(where * (len(content) - 1))
    for damaged in (content[:position], content[:position] + bytes([value]) + content[position + 1 :]):
        with tempfile.NamedTemporaryFile(suffix=f".{format.lower()}") as file:
            file.write(damaged)
            file.flush()
            try:
                assert decode(file.name).mode in ("RGB", "F")
            except ImageError as error:
                assert str(error).startswith(file.name)  # noqa: PT017 (an image is as good an answer)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "I;16"]))
def test_any_size_and_mode_becomes_rgb_or_deep_grey_of_that_size(width, height, mode):
    image = Image.new(mode, (width, height))
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        image.save(file.name)
        decoded = decode(file.name)
    assert decoded.size == (width, height)
    assert decoded.mode == ("F" if mode == "I;16" else "RGB")
