from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.errors import ArgumentError, DatasetError, ImageError
from blemish.images.preprocess import Preprocess
from blemish.images.source import Batches, as_source, from_arrays, from_folder, from_manifest, from_paths

SMALL = Preprocess(16)


def numbered(n):
    """Image i is all grey value i."""
    return [np.full((20, 20), i, np.uint8) for i in range(n)]


def values(batches):
    return [round(float(p.mean()) * 255) for b in batches for p in b.pixels]


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        (tmp_path / str(i // 6)).mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30), i * 10, np.uint8)).save(tmp_path / str(i // 6) / f"{i:02}.png")
    (tmp_path / "readme.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_pass_gives_all_images_in_order(batch_size, workers):
    batches = Batches(from_arrays(numbered(10)), SMALL, batch_size, workers)
    assert values(batches) == list(range(10))
    assert values(batches) == list(range(10))
    assert [len(b) for b in batches][:-1] == [batch_size] * ((10 - 1) // batch_size)


def test_folder_is_sorted_and_passes_over_other_files(folder):
    source = from_folder(folder)
    assert len(source) == 12
    assert values(Batches(source, SMALL)) == [i * 10 for i in range(12)]
    assert [b.sizes for b in Batches(source, SMALL, 12)] == [((20, 30),) * 12]


def test_manifest(folder):
    (folder / "list.txt").write_text("# normals\n1/07.png\n\n0/02.png  # a comment\n")
    assert values(Batches(from_manifest(folder / "list.txt"), SMALL)) == [70, 20]
    assert len(as_source(folder / "list.txt")) == 2


@pytest.mark.parametrize("keep", [lambda f: f, str, lambda f: [f / "0" / "00.png"]])
def test_as_source_takes_paths(folder, keep):
    assert as_source(keep(folder)).names[0] == str(folder / "0" / "00.png")


def test_as_source_takes_arrays():
    stack = np.zeros((4, 20, 20, 3), np.uint8)
    assert len(as_source(stack)) == 4
    assert len(as_source(list(stack))) == 4
    assert len(as_source(stack[0])) == 1
    assert len(as_source(list(stack[:, :, :, 0]))) == 4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("no/such/folder", "no/such/folder: expected a folder, an image file or a manifest, got nothing there"),
        (7, "images: expected a folder, paths, arrays, Pillow images, tensors or an ImageSource, got 7"),
        ([[1, 2], [3, 4]], "image 0: expected a path, a NumPy array, a Pillow image or a torch tensor, got list"),
        (
            torch.zeros(2, 9, 9, 3),
            r"image 0: expected a tensor of shape .* tensor.permute\(2, 0, 1\) puts the channels",
        ),
        ((p for p in ["a.png"]), "images: .* Write list\\(images\\): they are read more than once"),
        ("list.txt", "list.txt: the file does not exist, expected a list of images"),
    ],
)
def test_other_input_is_described(images, message):
    with pytest.raises((ArgumentError, DatasetError), match=message):
        as_source(images)


def test_hidden_files_are_passed_over(folder):
    for name in (".hidden.png", "__MACOSX/00.png", ".ipynb_checkpoints/01.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"junk")
    assert len(from_folder(folder)) == 12


def test_split_is_seeded_complete_and_in_order():
    source = from_arrays(numbered(50))
    rest, held_out = source.split(0.2, seed=1)
    assert len(held_out) == 10
    assert sorted([*rest.names, *held_out.names]) == sorted(source.names)
    assert [source.names.index(n) for n in rest.names] == sorted(source.names.index(n) for n in rest.names)
    assert source.split(0.2, seed=1)[1].names == held_out.names
    assert source.split(0.2, seed=2)[1].names != held_out.names
    assert values(Batches(held_out, SMALL)) == [int(n.split()[1]) for n in held_out.names]


def test_a_bad_file_stops_the_run_and_is_named(folder):
    (folder / "0" / "03.png").write_bytes(b"junk")
    with pytest.raises(ImageError, match=r"03\.png: not an image"):
        list(Batches(from_folder(folder), SMALL))


def test_thousand_images_with_three_bad_ones_lose_nothing(tmp_path):
    for i in range(1000):
        path = tmp_path / f"{i:04}.png"
        if i in (0, 500, 999):
            path.write_bytes(b"junk")
        else:
            Image.fromarray(np.full((4, 4), i % 251, np.uint8)).save(path)
    batches = Batches(from_folder(tmp_path), SMALL, batch_size=16, on_error="skip")
    for _ in range(2):  # the count starts anew on each pass
        assert values(batches) == [i % 251 for i in range(1000) if i not in (0, 500, 999)]
        assert [name[-8:] for name, _ in batches.skipped] == ["0000.png", "0500.png", "0999.png"]


def test_leaving_early_stops_the_threads():
    before = threading.active_count()
    for _ in Batches(from_arrays(numbered(200)), SMALL, 4):
        break
    assert threading.active_count() <= before


def test_results_do_not_depend_on_decoding_ahead():
    random = np.random.default_rng(0).integers(0, 255, (9, 40, 50, 3), dtype=np.uint8)
    one, many = (Batches(as_source(random), SMALL, size) for size in (1, 9))
    assert torch.equal(torch.cat([b.pixels for b in one]), torch.cat([b.pixels for b in many]))


def test_errors_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: expected a folder"):
        from_folder(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"names: expected 2 names"):
        from_arrays(numbered(2), names=["a"])
    with pytest.raises(ArgumentError, match=r"on_error: expected 'raise' or 'skip', got 'ignore'"):
        Batches(from_paths([]), SMALL, on_error="ignore")
    with pytest.raises(ArgumentError, match=r"batch_size: expected at least 1, got 0"):
        Batches(from_paths([]), SMALL, 0)
    with pytest.raises(ArgumentError, match=r"image 0: expected an array of shape"):
        list(Batches(from_arrays([np.zeros((3, 20, 20), np.uint8)]), SMALL))
