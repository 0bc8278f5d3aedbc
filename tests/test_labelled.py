from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.datasets.labelled import open_labelled
from blemish.errors import ArgumentError, DatasetError
from blemish.images.source import from_arrays


def grey(value):
    return np.full((20, 20), value, np.uint8)


@pytest.fixture
def folders(tmp_path):
    for name, value in (("b/1", 10), ("a/2", 20), ("b/0", 30)):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey(value)).save(path)
    return tmp_path / "data"


def test_class_folders_are_numbered_in_sorted_order(folders):
    images = open_labelled(folders, folders_are_classes=True)
    assert [name.split("/")[-2:] for name in images.source.names] == [["a", "2.png"], ["b", "0.png"], ["b", "1.png"]]
    assert images.of(images.source.names).tolist() == [0, 1, 1]


def test_without_being_told_folders_are_no_classes(folders):
    assert open_labelled(folders).labels is None


def test_an_image_beside_the_class_folders_is_an_error(folders):
    Image.fromarray(grey(1)).save(folders / "loose.png")
    with pytest.raises(DatasetError, match="1 images beside no folder"):
        open_labelled(folders, folders_are_classes=True)


def test_npz_with_and_without_labels(tmp_path):
    stack = np.stack([grey(v) for v in (10, 20, 30)])
    np.savez(tmp_path / "x.npz", images=stack, labels=np.array([2, 0, 1]))
    images = open_labelled(tmp_path / "x.npz")
    assert images.of(images.source.names).tolist() == [2, 0, 1]
    assert np.asarray(images.source.load(1)).flat[0] == 20
    np.savez(tmp_path / "y.npz", images=stack)
    assert open_labelled(tmp_path / "y.npz").labels is None


@pytest.mark.parametrize("content", [{"x": np.zeros(3)}, {"images": np.zeros((2, 4, 4)), "labels": np.zeros(3)}])
def test_npz_without_images_or_with_labels_of_another_length(tmp_path, content):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(DatasetError, match="expected `images`"):
        open_labelled(tmp_path / "x.npz")


def test_npz_with_pickled_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DatasetError, match=r"x\.npz"):
        open_labelled(tmp_path / "x.npz")


def test_csv_paths_are_relative_to_it(folders):
    (folders / "list.csv").write_text("b/1.png,7\n\na/2.png, 3\n")
    images = open_labelled(folders / "list.csv")
    assert images.of(images.source.names).tolist() == [7, 3]
    assert np.asarray(images.source.load(0)).flat[0] == 10


@pytest.mark.parametrize("line", ["b/1.png", "b/1.png,seven", "b/1.png,1,2"])
def test_csv_lines_that_make_no_sense(folders, line):
    (folders / "list.csv").write_text(f"{line}\n")
    with pytest.raises(DatasetError, match="path,class number"):
        open_labelled(folders / "list.csv")


@pytest.mark.parametrize("kind", ["tensor", "grey tensor", "array", "pillow"])
def test_torch_style_datasets(kind):
    class Pairs:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            value = 40 * (index + 1)
            made = {
                "tensor": torch.full((3, 20, 20), value / 255),
                "grey tensor": torch.full((1, 20, 20), value / 255),
                "array": grey(value),
                "pillow": Image.fromarray(grey(value)),
            }
            return made[kind], 2 - index

    images = open_labelled(Pairs())
    assert images.of(images.source.names).tolist() == [2, 1, 0]
    assert round(float(np.asarray(images.source.load(2)).mean())) == 120


def test_a_sample_is_seeded_ordered_and_keeps_its_labels(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.stack([grey(v) for v in range(50)]), labels=np.arange(50))
    images = open_labelled(tmp_path / "x.npz")
    chosen = images.sample(10, seed=3)
    labels = chosen.of(chosen.source.names).tolist()
    assert labels == sorted(labels)
    assert len(set(labels)) == 10
    assert labels == images.sample(10, seed=3).of(chosen.source.names).tolist()
    assert chosen.source.names != images.sample(10, seed=4).source.names
    assert images.sample(50, seed=0) is images


def test_other_things():
    assert len(open_labelled([grey(1), grey(2)])) == 2
    assert open_labelled(from_arrays([grey(1)])).labels is None
    with pytest.raises(ArgumentError, match="images"):
        open_labelled(5)
