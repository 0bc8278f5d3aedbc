"""Each kind of file does what the table in `images/decode.py` says."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, PngImagePlugin

from blemish.errors import ArgumentError, ImageError
from blemish.images.decode import (
    FORMATS,
    SUFFIXES,
    decode,
    decode_mask,
    extent,
    from_memory,
    is_constant,
    levels_of,
    orientation,
)

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
    np.testing.assert_array_equal(np.asarray(from_memory(RGB)), RGB)
    np.testing.assert_array_equal(np.asarray(from_memory(RGB[:, :, :1]))[:, :, 2], RGB[:, :, 0])
    np.testing.assert_allclose(np.asarray(from_memory(np.full((2, 2), 65535, np.uint16))), 255.0)
    np.testing.assert_allclose(np.asarray(from_memory(np.full((2, 2), 0.5))), 127.5)
    np.testing.assert_array_equal(np.asarray(from_memory(np.full((2, 2, 3), 1.0)))[0, 0], [255, 255, 255])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"an array of shape \(height, width, 3\), or \(height, width\)"),
        (np.zeros((0, 5), np.uint8), r"got an array of shape \(0, 5\)"),
        (np.zeros((4, 4), np.int64), "expected dtype uint8, uint16"),
        (np.full((4, 4), 3.0), r"float values in \[0, 1\], got values from 3.0 to 3.0"),
        (np.full((4, 4), np.nan), r"float values in \[0, 1\]"),
    ],
)
def test_wrong_array_is_described(array, message):
    with pytest.raises(ArgumentError, match=message):
        from_memory(array, name="images[3]")


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
    image = Image.new(mode, (width, height), {"RGBA": "red", "LA": (9, 9)}.get(mode, 0))
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        image.save(file.name)
        decoded = decode(file.name)
    assert decoded.size == (width, height)
    assert decoded.mode == ("F" if mode == "I;16" else "RGB")


def deep_png(levels):
    """A PNG file of 16 bits with 2, 3 or 4 channels, which Pillow cannot write."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_tiff(levels, order, *, planar=False):
    """A plain TIFF file of 16-bit colour, in either byte order."""
    height, width, channels = levels.shape
    data = (np.moveaxis(levels, -1, 0) if planar else levels).astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 0, 259: 1, 262: 2, 273: 0, 277: channels, 278: height, 279: len(data)}
    tags |= {284: 2} if planar else {}
    after = 8 + 2 + 12 * len(tags) + 4
    strips = channels if planar else 1
    starts = [after + 2 * channels + 8 * strips + i * len(data) // strips for i in range(strips)]
    counts = [len(data) // strips] * strips
    lists = {258: (3, channels, after), 273: (4, strips, after + 2 * channels)}
    lists[279] = (4, strips, after + 2 * channels + 4 * strips)
    if strips == 1:
        lists |= {273: (4, 1, starts[0]), 279: (4, 1, counts[0])}
    entries = b"".join(struct.pack(f"{order}HHII", tag, *lists.get(tag, (4, 1, value))) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack(f"{order}{channels}H{2 * strips}I", *[16] * channels, *starts, *counts) + data


DEEP = np.random.default_rng(1).integers(0, 65536, (7, 11, 3), dtype=np.uint16)


@pytest.mark.parametrize("write", [deep_png, lambda a: deep_tiff(a, "<"), lambda a: deep_tiff(a, ">")])
def test_16_bit_colour_keeps_every_level(tmp_path, write):
    (tmp_path / "x").write_bytes(write(DEEP))
    found = decode(tmp_path / "x")
    assert found.shape == (7, 11, 3)
    np.testing.assert_array_equal(np.round(found * 257), DEEP)
    assert levels_of(found) == 65535
    assert extent(found) == (7, 11)
    np.testing.assert_array_equal(from_memory(DEEP), found)


def test_16_bit_colour_is_composed_over_white_and_turned(tmp_path):
    alpha = np.full((7, 11, 1), 65535, np.uint16)
    alpha[0, 0], alpha[0, 1] = 0, 32768
    (tmp_path / "x.png").write_bytes(deep_png(np.dstack([DEEP, alpha])))
    found = decode(tmp_path / "x.png") * 257
    np.testing.assert_allclose(found[0, 0], [65535] * 3)
    np.testing.assert_allclose(found[0, 1], 65535 + (DEEP[0, 1] - 65535.0) * 32768 / 65535, rtol=1e-5)
    np.testing.assert_allclose(found[1:], DEEP[1:], rtol=1e-5)
    (tmp_path / "clear.png").write_bytes(deep_png(np.dstack([DEEP, 0 * alpha])))
    with pytest.raises(ImageError, match=r"clear\.png: transparent everywhere"):
        decode(tmp_path / "clear.png")


@pytest.mark.parametrize(
    "write",
    [
        lambda: deep_png(DEEP[:, :, :2]),
        lambda: deep_tiff(DEEP, "<", planar=True),
        lambda: b"P6 11 7 65535\n" + DEEP.astype(">u2").tobytes(),
        lambda: b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">8IH", 11, 7, 0, 0, 11, 7, 0, 0, 3) + b"\x0f\1\1" * 3,
    ],
)
def test_deep_colour_is_never_cut_to_8_bits(tmp_path, write):
    (tmp_path / "x").write_bytes(write())
    with pytest.raises(ImageError, match=r"x: colour \(or alpha\) of more than 8 bits that would be cut to 8"):
        decode(tmp_path / "x")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_everywhere_shows_nothing(tmp_path, mode):
    path = saved(tmp_path, Image.new(mode, (4, 4)))
    for read in (decode, decode_mask):
        with pytest.raises(ImageError, match=r"x\.png: transparent everywhere, so it shows nothing"):
            read(path)


def test_a_picture_in_memory_is_what_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(RGB).convert("RGBA"), exif=exif)
    expected = pixels(path)
    assert expected.shape == (30, 20, 3)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(from_memory(opened)), expected)
    tensor = torch.from_numpy(np.moveaxis(RGB, -1, 0).copy())
    for same in (Image.fromarray(RGB), tensor, tensor / 255, RGB / 255, RGB.astype(np.float32) / 255):
        np.testing.assert_array_equal(np.asarray(from_memory(same)), RGB)
    grey = torch.from_numpy(RGB[:, :, 0].copy())
    for same in (grey, grey[None], grey / 255, grey[None] / 255):
        np.testing.assert_array_equal(np.asarray(from_memory(same)), RGB[:, :, [0, 0, 0]])
    between = np.full((2, 2, 3), 0.5001)
    np.testing.assert_allclose(from_memory(between), 255 * between)


@pytest.mark.parametrize(
    ("shape", "write"),
    [
        ((9, 8, 4), r"array\[\.\.\., :3\] drops an alpha channel"),
        ((9, 8, 2), r"array\[\.\.\., :1\] drops an alpha channel"),
        ((3, 9, 8), r"np\.moveaxis\(array, 0, -1\) puts the channels last"),
        ((1, 9, 8), r"np\.moveaxis\(array, 0, -1\)"),
        ((4, 9, 8), r"np\.moveaxis\(array\[:3\], 0, -1\)"),
        ((5, 9, 8), r"For several grey pictures, write list\(stack\)"),
        ((5, 9, 8, 3), r"For several pictures, write list\(stack\)"),
        ((9, 0, 3), r"There is nothing in it"),
        ((9,), r"expected an array of shape \(height, width, 3\), or \(height, width\)"),
    ],
)
def test_what_is_not_one_picture_says_what_to_write(shape, write):
    with pytest.raises(ArgumentError, match=write):
        from_memory(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("shape", "write"),
    [((9, 8, 3), r"tensor\.permute\(2, 0, 1\)"), ((4, 9, 8), r"tensor\[:3\] drops"), ((5, 9, 8), r"list\(stack\)")],
)
def test_a_tensor_has_its_channels_first(shape, write):
    with pytest.raises(ArgumentError, match=write):
        from_memory(torch.zeros(shape))


def test_what_was_written_helps():
    """What the errors advise gives the picture."""
    rgba = np.dstack([RGB, RGB[:, :, 0]])
    for right in (
        rgba[..., :3],
        np.moveaxis(np.moveaxis(RGB, -1, 0), 0, -1),
        np.moveaxis(np.moveaxis(rgba, -1, 0)[:3], 0, -1),
    ):
        np.testing.assert_array_equal(np.asarray(from_memory(right)), RGB)


def test_a_file_that_says_nothing_is_upright(tmp_path):
    assert orientation(saved(tmp_path, Image.fromarray(RGB))) == 1
    assert orientation(tmp_path / "no such file") == 1


def test_constant_pictures_are_told():
    assert is_constant(Image.new("RGB", (3, 3), "red"))
    assert is_constant(from_memory(np.full((3, 3), 7, np.uint16)))
    assert is_constant(from_memory(np.full((3, 3, 3), 7, np.uint16)))
    assert not is_constant(Image.fromarray(RGB))
    assert not is_constant(from_memory(DEEP[:, :, 0]))
    assert not is_constant(from_memory(DEEP))
