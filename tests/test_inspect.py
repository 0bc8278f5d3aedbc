"""Look before you learn: each oddity is made, and found; the scores are those of leaving one out."""

from __future__ import annotations

import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf
from typer.testing import CliRunner

from blemish import Detector
from blemish.cli import app
from blemish.cli.options import read_names
from blemish.datasets.layouts import Sample, open_dataset
from blemish.errors import ArgumentError
from blemish.images.source import from_arrays
from blemish.inspection.alike import find_identical, find_nearly_identical
from blemish.inspection.inspect import inspect_dataset, inspection_json
from blemish.inspection.masks import suspicious_masks
from blemish.inspection.pictures import looked_at
from blemish.inspection.unlike import Seen, leave_one_out, near_its_place
from contract.laws import normal_pixels
from test_detector import arrays

NORMAL = arrays(normal_pixels(24, 5))


def save(folder, name, array):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def naive_leave_one_out(vectors):
    """One Gaussian for each image, fitted without it; scale and shrinkage as of all."""
    x = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    covariance, a = ledoit_wolf(x)
    scatter = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
    target = len(x) * covariance - (1 - a) * scatter  # a times the mean variance on the diagonal
    found = []
    for i in range(len(x)):
        others = np.delete(x, i, axis=0)
        d = others - others.mean(axis=0)
        own = x[i] - others.mean(axis=0)
        found.append(np.sqrt(own @ np.linalg.inv(((1 - a) * d.T @ d + target) / len(others)) @ own))
    return np.array(found)


@pytest.mark.parametrize(("n", "dimension"), [(30, 5), (12, 20)])
def test_leave_one_out_is_what_leaving_out_gives(n, dimension):
    vectors = np.random.default_rng(0).normal(size=(n, dimension)) * np.arange(1, dimension + 1)
    vectors[3] *= 4
    np.testing.assert_allclose(leave_one_out(vectors), naive_leave_one_out(vectors), rtol=1e-8)
    assert leave_one_out(vectors).argmax() == 3


def test_leave_one_out_of_few_or_equal_images_says_nothing():
    assert leave_one_out(np.ones((20, 3))).tolist() == [0.0] * 20
    assert leave_one_out(np.eye(4)).tolist() == [0.0] * 4


def naive_near_its_place(places, drawn):
    n, height, width, _ = places.shape
    scaled, found = places / places[drawn].std(axis=(0, 1, 2), ddof=1), []
    grid = list(np.ndindex(height, width))
    for i in range(n):
        nearest = []
        for y, x in grid:
            near = [(v, u) for v, u in grid if abs(v - y) <= 1 and abs(u - x) <= 1]
            others = [scaled[j, v, u] for j in drawn if j != i for v, u in near]
            nearest.append(min(np.linalg.norm(scaled[i, y, x] - other) for other in others))
        found.append(np.mean(sorted(nearest)[-3:]))
    return found


def test_an_image_is_compared_with_the_others_near_each_place():
    places = np.random.default_rng(0).normal(size=(9, 3, 4, 2))
    places[4, 1, 3] += 6
    places[5] = np.roll(places[6], 1, axis=1)  # a part that lies one place further
    tensor = torch.from_numpy(places).float()
    np.testing.assert_allclose(near_its_place(tensor), naive_near_its_place(places, range(9)), rtol=1e-4)
    assert near_its_place(tensor).argmax() == 4
    drawn = sorted(random.Random(0).sample(range(9), 4))
    np.testing.assert_allclose(near_its_place(tensor, references=4), naive_near_its_place(places, drawn), rtol=1e-4)


def test_the_score_combines_what_is_odd_as_a_whole_and_at_a_place():
    shapes = [(4, 24, 24), (8, 12, 12), (16, 6, 6)]
    maps = [torch.rand(12, *shape, generator=torch.Generator().manual_seed(shape[0])) for shape in shapes]
    maps[0][3] *= 3
    maps[0][9, :, :2], maps[0][9, :, :, 22:] = 99, -99  # the rim, which is no part of the whole
    maps[1][7, :, 2:4, 2] += 4
    seen = Seen()
    seen.add([m[:5] for m in maps])
    seen.add([m[5:] for m in maps])
    inside = [maps[0][:, :, 2:-2, 2:-2], maps[1][:, :, 1:-1, 1:-1], maps[2]]
    wholes = torch.cat([part for m in inside for part in (m.mean(dim=(2, 3)), m.std(dim=(2, 3)))], dim=1)
    found = leave_one_out(wholes.double().numpy()), near_its_place(torch.cat(seen._places))
    fisher = [0.0] * 12
    for of in (values.tolist() for values in found):
        for i, value in enumerate(of):
            fisher[i] -= math.log(1 - (1 + sum(other < value for other in of)) / 13)
    fisher = np.round(fisher, 9).tolist()  # two ranks the other way round are as unlike, and share a rank
    expected = [(1 + sum(x < value for x in fisher) + sum(x <= value for x in fisher)) / 24 for value in fisher]
    assert seen.scores([(90, 100)] * 12).tolist() == expected
    assert seen.scores([(90, 100)] * 7 + [(100, 80)] * 5).tolist() == expected  # five of twelve are not most
    assert np.argmax(expected) == 7
    of_many_shapes = seen.scores([(100, 40 + 20 * i) for i in range(12)])
    np.testing.assert_allclose(of_many_shapes, rankdata(found[0]) / 12)
    assert of_many_shapes.tolist() != expected


def pictures_of(images):
    source, known = looked_at(from_arrays(images))
    for i in range(len(source)):
        source.load(i)
    return list(known.values())


def test_pictures_that_are_the_same_or_nearly():
    random = np.random.default_rng(0)
    noisy = np.clip(NORMAL[0] + random.normal(0, 2, NORMAL[0].shape), 0, 255).astype(np.uint8)
    wide = np.asarray(Image.fromarray(NORMAL[0]).resize((128, 64)))
    pictures = pictures_of([NORMAL[0], NORMAL[1], NORMAL[0], noisy, wide, 255 - NORMAL[2]])
    assert find_identical(pictures) == [("image 0", "image 2")]
    assert find_nearly_identical(pictures) == [("image 0", "image 2", "image 3")]
    assert find_nearly_identical(pictures_of([NORMAL[0], NORMAL[0]])) == []
    assert find_nearly_identical([]) == []


def test_what_one_picture_tells():
    half = np.zeros((8, 8, 3), np.uint8)
    half[:2] = 255
    flat = np.full((4, 6, 3), 7, np.uint8)
    first, second = pictures_of([half, flat])
    assert (first.black, first.white, first.is_constant) == (0.75, 0.25, False)
    assert (second.size, second.is_constant) == ((4, 6), True)


def test_masks_that_are_odd(tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    ramp = mask.copy()
    ramp[10:20, 20] = 100
    cases = {
        "fine": (mask, True, None),
        "one": (mask // 255, True, None),
        "empty": (0 * mask, True, "empty: no pixel of the defect is marked"),
        "good": (mask, False, "marks 6.2% of an image that is normal"),
        "empty_good": (0 * mask, False, None),
        "inverted": (255 - mask, True, "inverted, it seems: 94% is marked"),
        "soft": (ramp, True, "soft: 0.62% of its pixels are neither black nor white"),
        "wide": (mask[:30], True, "of another shape (30 x 40) than its image (40 x 40)"),
    }
    for name, (array, anomalous, expected) in cases.items():
        path = save(tmp_path, f"{name}.png", array)
        sample = Sample(tmp_path / "x.png", "kind", anomalous, path)
        found = list(suspicious_masks([sample], {str(sample.path): (40, 40)}))
        assert len(found) == (expected is not None), name
        assert not found or (found[0][0] == str(path) and found[0][1].startswith(expected)), name
    gone = Sample(tmp_path / "x.png", "kind", True, tmp_path / "gone.png")
    assert "the file does not exist" in next(suspicious_masks([gone], {}))[1]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A data set with one of each oddity."""
    root = tmp_path_factory.mktemp("odd")
    for i, array in enumerate(NORMAL[:20]):
        save(root, f"train/good/{i:02d}.png", array)
    save(root, "train/good/copy.bmp", NORMAL[3])
    save(root, "train/good/flat.png", np.full((64, 64, 3), 90, np.uint8))
    dark = NORMAL[21].copy()
    dark[:32] = 0
    save(root, "train/good/dark.png", dark)
    save(root, "test/good/leak.png", NORMAL[4])
    save(root, "test/bad/0.png", NORMAL[22])
    save(root, "ground_truth/bad/0_mask.png", np.zeros((64, 64), np.uint8))
    (root / "train/good/broken.png").write_bytes(b"no image")
    (root / "train/good/notes.txt").write_text("x")
    return root


def test_one_of_each_is_found(odd):
    found = inspection_json(inspect_dataset(open_dataset(odd)))
    assert (found["train"], found["test"], found["layout"]) == (23, 2, "mvtec")
    assert found["folders"][0]["folder"] == "train/good"
    assert found["folders"][0]["images"] == 23
    assert found["folders"][0]["sizes"] == {"64 x 64": 23}
    assert found["folders"][0]["modes"] == {"RGB, 8 bit": 23}
    leak = ("train/good/04.png", "test/good/leak.png")
    assert found["identical"] == (("train/good/03.png", "train/good/copy.bmp"), leak)
    assert found["leaks"] == (leak,)
    assert found["constant"] == ("train/good/flat.png",)
    assert [row["name"] for row in found["exposure"]] == ["train/good/dark.png"]
    assert [row["name"] for row in found["unreadable"]] == ["train/good/broken.png"]
    assert [row["name"] for row in found["passed_over"]] == ["train/good/notes.txt"]
    assert found["masks"] == [
        {"name": "ground_truth/bad/0_mask.png", "remark": "empty: no pixel of the defect is marked"}
    ]
    assert len(found["most_unlike"]) == 3
    assert {row["name"] for row in found["most_unlike"][:2]} == {"train/good/flat.png", "train/good/dark.png"}


def test_the_depth_is_that_of_the_file(tmp_path):
    for i in range(3):
        save(tmp_path, f"{i}.png", (NORMAL[i][:, :, 0].astype(np.uint16) * 257))
    save(tmp_path, "3.png", NORMAL[3][:, :, 0])
    folder = inspect_dataset(open_dataset(tmp_path)).folders[0]
    assert folder.modes == {"I;16, 16 bit": 3, "L, 8 bit": 1}


@pytest.fixture
def sound(odd, tmp_path):
    """The same, but that it can be learned and evaluated."""
    copy = shutil.copytree(odd, tmp_path / "sound")
    (copy / "train/good/broken.png").unlink()
    save(copy, "ground_truth/bad/0_mask.png", np.eye(64, dtype=np.uint8))
    return copy


def test_the_page_the_list_and_a_fit_without_what_was_thrown_out(sound, tmp_path):
    page, names = tmp_path / "page.html", tmp_path / "list.txt"
    result = CliRunner().invoke(app, ["inspect", str(sound), "--report", str(page), "--out", str(names), "--json"])
    assert json.loads(result.stdout)["leaks"] == [["train/good/04.png", "test/good/leak.png"]]
    html = page.read_text("utf-8")
    for words in (
        "1 picture to learn from and to test on at once",
        "The 3 most unlike of 23",
        "one colour all over",
    ):
        assert words in html
    assert html.count("data:image/webp") == 3
    assert read_names(names) == []
    lines = names.read_text().splitlines()
    flat = next(line for line in lines if "flat.png" in line)
    names.write_text("\n".join(lines).replace(flat, flat.removeprefix("# ")))
    assert read_names(names) == ["train/good/flat.png"]
    out = tmp_path / "m.blemish"
    fit = [
        "fit",
        str(sound),
        "--exclude",
        str(names),
        "--out",
        str(out),
        "--resize",
        "32",
        "--false-alarm-rate",
        "0.25",
    ]
    result = CliRunner().invoke(app, fit)
    assert "Excluded: 1 of 23; the promise holds for images that the same rule would keep" in result.stdout
    assert Detector.load(out).excluded_ == 1
    assert "train/good/flat.png" in CliRunner().invoke(app, ["inspect", str(sound)]).stdout
    with pytest.raises(ArgumentError, match=r"gone.txt: the file does not exist"):
        read_names(tmp_path / "gone.txt")


def test_groups_and_overlap_on_the_command_line(sound, tmp_path):
    out = str(tmp_path / "m.blemish")
    small = ["--resize", "32", "--false-alarm-rate", "0.4", "--out", out, "--json"]
    small += ["--on-error", "skip"]  # one picture has one colour all over
    result = CliRunner().invoke(app, ["fit", str(sound), "--group-by", r"(\w)\.\w+$", *small])
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    assert (row["groups"], row["held_out"]) == (2, 4)  # the picture of one colour was a group
    result = CliRunner().invoke(app, ["evaluate", out, str(sound)])
    assert result.exit_code == 1
    assert "leak.png: the model learned from this picture" in result.stderr
    result = CliRunner().invoke(app, ["evaluate", out, str(sound), "--allow-overlap", "--json"])
    assert json.loads(result.stdout)["overlap"] == 1
