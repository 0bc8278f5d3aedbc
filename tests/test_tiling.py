from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from blemish import Detector, Preprocess
from blemish.errors import ArgumentError
from blemish.images.tiling import Tiling
from blemish.methods import METHODS
from blemish.types import ImageBatch, Scores
from trained import quick


def pattern(height, width):
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return (0.5 + 0.3 * torch.sin(9 * x) * torch.cos(7 * y)).expand(3, -1, -1)


@pytest.mark.parametrize(("size", "count"), [((64, 64), 1), ((64, 65), 2), ((112, 160), 6), ((200, 64), 4)])
def test_tiles_cover_every_pixel_and_overlap(size, count):
    tiling = Tiling((64, 64), 16)
    corners = tiling.corners(size)
    assert len(corners) == count
    covered = torch.zeros(size)
    for y, x in corners:
        assert 0 <= y <= size[0] - 64
        assert 0 <= x <= size[1] - 64
        covered[y : y + 64, x : x + 64] += 1
    assert covered.min() >= 1
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert all(b - a <= 64 - 16 for a, b in pairwise(starts))


@pytest.mark.parametrize("overlap", [0, 1, 16, 32])
def test_a_map_that_depends_on_the_pixel_alone_comes_back_exactly(overlap):
    tiling, image = Tiling((64, 64), overlap), pattern(150, 200)
    tiles = torch.cat([part.pixels for part in tiling.cut(ImageBatch(image[None], ("a",), ((150, 200),)), at_once=3)])
    torch.testing.assert_close(tiling.stitch(tiles[:, 0], (150, 200)), image[0])


def test_tiles_that_disagree_fade_into_each_other():
    tiling = Tiling((64, 64), 32)
    corners = tiling.corners((64, 96))
    assert corners == [(0, 0), (0, 32)]
    row = tiling.stitch(torch.stack([torch.zeros(64, 64), torch.ones(64, 64)]), (64, 96))[10]
    assert row[:32].max() == 0
    assert row[64:].min() == 1
    assert row.diff().max() < 2 / 32
    assert row.diff().min() >= 0


def test_batches_of_tiles_are_bounded_and_named():
    batch = ImageBatch(torch.stack([pattern(64, 112), pattern(64, 112) / 2]), ("a", "b"), ((64, 112),) * 2)
    parts = list(Tiling((64, 64), 16).cut(batch, at_once=3))
    assert [len(part) for part in parts] == [3, 1]
    assert parts[0].names == ("a [0:64, 0:64]", "a [0:64, 48:112]", "b [0:64, 0:64]")
    assert torch.equal(parts[1].pixels[0], batch.pixels[1, :, :, 48:])


def test_an_image_scores_as_its_most_anomalous_tile():
    parts = [
        Scores(torch.tensor([1.0, 5.0, 2.0]), None, torch.tensor([0.5, 0.01, 1.0])),
        Scores(torch.ones(1), None, torch.ones(1)),
    ]
    joined = Tiling((64, 64), 16).join(parts, (64, 112))
    assert joined.images.tolist() == [5.0, 2.0]
    assert joined.p_values.tolist() == pytest.approx([0.02, 1.0])
    assert joined.maps is None


# What trains a network draws on what it knew before; the tiny ones of `quick` know nothing.
PRETRAINED = {key: {"backbone": "compact"} for key in ("gaussian_finetune", "geom", "joint", "panda", "mean_shifted")}
PRETRAINED["deep_svdd"] = {"backbone": "compact", "network": "backbone"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_scores_large_images(name, tmp_path):
    random = np.random.default_rng(0)
    images = (pattern(96, 160).permute(1, 2, 0).numpy() + 0.05 * random.normal(size=(12, 96, 160, 3))).clip(0, 1)
    detector = Detector(
        method=quick(name, **PRETRAINED.get(name, {})),
        preprocess=Preprocess((96, 160)),
        tile=64,
        overlap=16,
        calibration="none",
        batch_size=4,
    ).fit(list(images[:10]))
    bad = images[10].copy()
    bad[60:80, 100:120] = random.random((20, 20, 3))
    good_one, bad_one = detector.predict([images[11], bad])
    assert bad_one.score > good_one.score
    if bad_one.map is not None:
        assert bad_one.map.shape == (96, 160)
        y, x = np.unravel_index(bad_one.map.argmax(), bad_one.map.shape)
        assert 52 <= y <= 88
        assert 92 <= x <= 128
    detector.save(tmp_path / "model.blemish")
    again = next(Detector.load(tmp_path / "model.blemish").predict([bad]))
    assert again.score == bad_one.score


@pytest.mark.parametrize(("side", "overlap", "message"), [
    (8, 2, "tile: expected whole numbers of at least 16"), (64, 33, "overlap: expected 0 to 32"), (64, -1, "overlap"),
])  # fmt: skip
def test_bad_tiles(side, overlap, message):
    with pytest.raises(ArgumentError, match=message):
        Tiling((side, side), overlap)


def test_tiles_of_any_shape_are_those_of_squares_along_each_side():
    tiling, size = Tiling((64, 32), 16), (150, 80)
    rows = [top for top, left in Tiling((64, 64), 16).corners((150, 64))]
    columns = [left for top, left in Tiling((32, 32), 16).corners((32, 80))]
    assert tiling.corners(size) == [(top, left) for top in rows for left in columns]
    image = pattern(*size)
    parts = list(tiling.cut(ImageBatch(image[None], ("a",), (size,)), at_once=4))
    assert {part.sizes[0] for part in parts} == {(64, 32)}
    assert parts[0].names[1] == f"a [0:64, {columns[1]}:{columns[1] + 32}]"
    tiles = torch.cat([part.pixels for part in parts])
    torch.testing.assert_close(tiling.stitch(tiles[:, 0], size), image[0])
    maps = [Scores(torch.zeros(len(part)), part.pixels[:, 0]) for part in parts]
    torch.testing.assert_close(tiling.join(maps, size).maps[0], image[0])


def test_a_tile_larger_than_the_image():
    with pytest.raises(ArgumentError, match=r"tile: expected at most the preprocessed image's 48 pixels, got 64"):
        Tiling((64, 64), 0).corners((64, 48))
