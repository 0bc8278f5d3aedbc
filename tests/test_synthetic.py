from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from blemish.datasets.synthetic import DEFECTS, PRODUCTS, draw, write_dataset
from blemish.errors import ArgumentError

TEXTURES = ("weave", "brushed", "leather", "terrazzo")
every_product = pytest.mark.parametrize("product", PRODUCTS)
every_defect = pytest.mark.parametrize("defect", DEFECTS)


def across(mask):
    rows, columns = np.nonzero(mask)
    return max(np.ptp(rows), np.ptp(columns)) + 1


def auroc(normal, anomalous):
    """Share of pairs in which the anomalous image has the larger score, by ranks; ties count half."""
    scores = np.concatenate([normal, anomalous])
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    for value in np.unique(scores):
        ranks[scores == value] = ranks[scores == value].mean()
    n, m = len(normal), len(anomalous)
    return (ranks[n:].sum() - m * (m + 1) / 2) / (n * m)


# --- one picture


@every_product
def test_the_same_arguments_give_the_same_picture(product):
    np.random.seed(1)  # the global state of NumPy plays no part
    first = draw(product, seed=5, defect="chip", size=96)
    np.random.seed(2)
    second = draw(product, seed=5, defect="chip", size=96)
    assert first.pixels.dtype == np.uint8
    assert first.mask.dtype == np.bool_
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.mask, second.mask)


@every_product
def test_every_seed_is_another_part_in_another_light(product):
    pictures = [draw(product, seed=seed, size=96).pixels.astype(float) for seed in range(8)]
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert np.abs(first - second).mean() > 3
    assert np.ptp([picture.mean() for picture in pictures]) > 10


def test_products_and_defects_do_not_share_random_numbers():
    masks = [draw(product, seed=0, defect="spot", size=96).mask for product in TEXTURES]
    assert len({mask.tobytes() for mask in masks}) == len(masks)


@every_product
def test_a_picture_without_a_defect_has_an_empty_mask(product):
    sample = draw(product, seed=2, size=96)
    assert not sample.mask.any()
    assert sample.mask.shape == (96, 96)
    assert sample.pixels.shape == (96, 96, 3)


@every_product
@every_defect
def test_a_defect_changes_the_pixels_of_its_mask_and_no_others(product, defect):
    for seed in (1, 2):
        good = draw(product, seed=seed, size=128).pixels.astype(int)
        bad = draw(product, seed=seed, defect=defect, size=128)
        change = np.abs(bad.pixels.astype(int) - good).max(axis=2)
        assert not change[~bad.mask].any()
        assert across(bad.mask) >= 8
        assert bad.mask.mean() < 0.35
        assert change[bad.mask].mean() > 6  # grey values: the defect can be seen ...
        assert (change[bad.mask] > 1).mean() > 0.75  # ... nearly everywhere in its mask


@every_product
def test_defects_are_eight_pixels_across_even_in_small_pictures(product):
    for seed, defect in enumerate(DEFECTS):
        assert across(draw(product, seed=seed, defect=defect, size=64).mask) >= 8


@pytest.mark.parametrize("size", [65, 127, 200, 1024])
def test_every_size_works(size):
    sample = draw("capsule", seed=1, defect="missing", size=size)
    assert sample.pixels.shape == (size, size, 3)
    assert sample.mask.shape == (size, size)
    assert sample.mask.any()


def test_a_part_looks_the_same_at_every_size():
    """The layout does not depend on the number of pixels; the fine noise does."""
    large = Image.fromarray(draw("board", seed=1, size=512).pixels)
    small = draw("board", seed=1, size=128).pixels.astype(float)
    shrunk = np.asarray(large.resize((128, 128), Image.Resampling.BOX)).astype(float)
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.95


@every_defect
def test_defects_lie_on_the_object_not_on_the_background(defect):
    centre = np.arange(128) + 0.5 - 64
    radius = 2 * np.hypot(centre[:, None], centre)  # in units of 1/256 of the side
    for seed in range(3):
        mask = draw("washer", seed=seed, defect=defect, size=128).mask
        # The ring spans 48 to 100 around a middle that is up to 8.5 off.
        assert radius[mask].min() > 48 - 9 - 3
        assert radius[mask].max() < 100 + 9 + 3


@pytest.mark.parametrize("product", TEXTURES)
def test_a_distortion_changes_the_arrangement_but_no_mean_colour(product):
    ratio = []
    for seed in range(4):
        good = draw(product, seed=seed, size=128).pixels.astype(float)
        bad = draw(product, seed=seed, defect="distortion", size=128)
        inside = bad.pixels[bad.mask] - good[bad.mask]
        ratio.append(np.abs(inside.mean(axis=0)).max() / np.abs(inside).mean())
    assert np.mean(ratio) < 0.4


# --- a data set


def test_write_dataset_writes_the_mvtec_layout(tmp_path):
    folder = write_dataset(
        tmp_path / "new" / "capsule", product="capsule", seed=2, n_train=3, n_test_normal=2, n_per_defect=1, size=64
    )
    assert folder == tmp_path / "new" / "capsule"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    expected = [f"train/good/{i:03d}.png" for i in range(3)] + [f"test/good/{i:03d}.png" for i in range(2)]
    expected += [f"test/{kind}/000.png" for kind in DEFECTS]
    expected += [f"ground_truth/{kind}/000_mask.png" for kind in DEFECTS]
    assert files == sorted(expected)
    pictures = [path for path in folder.rglob("*.png") if "ground_truth" not in path.parts]
    assert len({path.read_bytes() for path in pictures}) == len(pictures)


def test_the_files_hold_what_draw_returns(tmp_path):
    write_dataset(str(tmp_path), product="weave", seed=2, n_train=2, n_test_normal=1, n_per_defect=1, size=64)
    assert np.array_equal(read(tmp_path / "train/good/001.png"), draw("weave", seed=2_000_001, size=64).pixels)
    first = next(iter(DEFECTS))
    sample = draw("weave", seed=2_000_003, defect=first, size=64)
    assert np.array_equal(read(tmp_path / "test" / first / "000.png"), sample.pixels)
    mask = read(tmp_path / "ground_truth" / first / "000_mask.png")
    assert np.array_equal(mask, sample.mask * np.uint8(255))


def read(path: Path):
    with Image.open(path) as image:
        return np.asarray(image)


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product": "teapot"}, r"^product: expected one of weave, .*board, cork, got teapot\."),
        ({"product": ["weave"]}, r"^product: expected one of weave, .*, got \['weave'\]\."),
        ({"defect": "dent"}, r"^defect: expected one of scratch, .*missing, got dent\. Leave it out"),
        ({"seed": -1}, r"^seed: expected a whole number of at least 0, got -1\."),
        ({"seed": 1.5}, r"^seed: expected a whole number of at least 0, got 1\.5\."),
        ({"seed": True}, r"^seed: expected a whole number of at least 0, got True\."),
        ({"size": 63}, r"^size: expected a whole number from 64 to 1024, got 63\."),
        ({"size": 1025}, r"^size: expected a whole number from 64 to 1024, got 1025\."),
        ({"size": (64, 64)}, r"^size: expected a whole number from 64 to 1024, got \(64, 64\)\."),
    ],
)
def test_draw_says_which_argument_is_wrong(arguments, message):
    given = {"product": "weave", "seed": 0, **arguments}
    with pytest.raises(ArgumentError, match=message):
        draw(given.pop("product"), **given)


def test_whole_numbers_of_numpy_are_welcome():
    sample = draw("weave", seed=np.int64(3), size=np.int32(64))
    assert np.array_equal(sample.pixels, draw("weave", seed=3, size=64).pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product": "teapot"}, "^product: expected one of weave"),
        ({"seed": -1}, "^seed: expected a whole number of at least 0, got -1"),
        ({"n_train": -1}, "^n_train: expected a whole number from 0 to 100000, got -1"),
        ({"n_test_normal": 0.5}, "^n_test_normal: expected a whole number"),
        ({"n_per_defect": 10**6}, "^n_per_defect: expected a whole number from 0 to 100000, got 1000000"),
        ({"size": 32}, "^size: expected a whole number from 64 to 1024, got 32"),
    ],
)
def test_write_dataset_checks_everything_before_it_writes(tmp_path, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        write_dataset(tmp_path / "new", **{"product": "weave", **arguments})
    assert not (tmp_path / "new").exists()


def test_write_dataset_does_not_mix_with_old_files(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(ArgumentError, match=r"^folder: expected a new or empty folder, got .*Old and new pictures"):
        write_dataset(tmp_path, product="weave")
    with pytest.raises(ArgumentError, match=r"^folder: expected a new or empty folder, got"):
        write_dataset(tmp_path / "old.txt", product="weave")


# --- hard enough: what ignores local structure does not find the defects


@dataclass(frozen=True)
class Trial:
    train: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray

    def auroc(self, score):
        return auroc([score(image) for image in self.normal], [score(image) for image in self.anomalous])


@pytest.fixture(scope="module")
def trials():
    return {product: trial(product) for product in PRODUCTS}


def trial(product):
    plan = [None] * 48 + list(DEFECTS) * 4
    pictures = [draw(product, seed=seed, defect=defect, size=128).pixels for seed, defect in enumerate(plan)]
    pixels = np.stack(pictures).astype(np.float32)
    return Trial(train=pixels[:24], normal=pixels[24:48], anomalous=pixels[48:])


def brightness(train):
    usual = train.mean()
    return lambda image: abs(image.mean() - usual)


def contrast(train):
    usual = train.std(axis=(1, 2, 3)).mean()
    return lambda image: abs(image.std() - usual)


def histogram(train):
    def count(image):
        return np.concatenate([np.histogram(image[..., c], bins=16, range=(0, 255))[0] for c in range(3)])

    known = np.stack([count(image) for image in train])
    return lambda image: np.abs(known - count(image)).sum(axis=1).min()


def per_pixel(train):
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1
    return lambda image: ndimage.gaussian_filter((np.abs(image - mean) / deviation).mean(axis=2), 2).max()


def per_pixel_in_even_light(train):
    def even(image):
        return image - ndimage.gaussian_filter(image, (8, 8, 0))

    score = per_pixel(np.stack([even(image) for image in train]))
    return lambda image: score(even(image))


@pytest.mark.parametrize("baseline", [brightness, contrast, histogram, per_pixel, per_pixel_in_even_light])
def test_trivial_baselines_fail(trials, baseline):
    reached = {product: t.auroc(baseline(t.train)) for product, t in trials.items()}
    assert np.mean(list(reached.values())) < 0.65, reached
    assert max(reached.values()) < 0.8, reached  # cork, whose ground is constant, is the most even


def local_structure(train):
    """Mahalanobis distance of small filter responses to those of the good pictures, wherever they lie."""
    known = np.concatenate([responses(image)[::3, ::3].reshape(-1, 11) for image in train[:15]])
    mean, precision = known.mean(axis=0), np.linalg.inv(np.cov(known.T) + 1e-9 * np.eye(11))

    def score(image):
        away = responses(image) - mean
        return ndimage.gaussian_filter(np.einsum("ijc,cd,ijd->ij", away, precision, away), 1.5).max()

    return score


def responses(image):
    grey = image.mean(axis=2)
    light = ndimage.gaussian_filter(grey, 10) + 10
    even = (grey - light) / light
    found = [ndimage.gaussian_filter(even, 2)]
    for sigma in (1, 2):
        along_y = ndimage.gaussian_filter(even, sigma, order=(1, 0))
        along_x = ndimage.gaussian_filter(even, sigma, order=(0, 1))
        energies = [along_y**2, along_x**2, along_y * along_x]
        found += [ndimage.gaussian_laplace(even, sigma), *(ndimage.gaussian_filter(e, 2) for e in energies)]
    hue = np.log(image + 5) - np.log(image + 5).mean(axis=2, keepdims=True)
    found += [h - np.median(h) for h in (ndimage.gaussian_filter(hue[..., c], 2) for c in (0, 2))]
    return np.stack(found, axis=2)


def test_local_structure_tells_the_defects_of_textures(trials):
    local = np.mean([trials[product].auroc(local_structure(trials[product].train)) for product in TEXTURES])
    trivial = np.mean([trials[product].auroc(per_pixel(trials[product].train)) for product in TEXTURES])
    assert local > 0.75
    assert local > trivial + 0.15
