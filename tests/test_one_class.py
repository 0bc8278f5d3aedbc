"""A labelled image set as a data set for anomaly detection: one class is normal, or all but one are."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blemish import Detector, evaluate, open_dataset
from blemish.cli import app
from blemish.cli import study as cli_study
from blemish.datasets.labelled import find_classes, open_labelled, open_parts
from blemish.datasets.layouts import OneClass, one_class
from blemish.errors import ArgumentError, DatasetError
from blemish.methods import OneClassSVM
from blemish.study.plan import StudyPlan
from studies import Inline

CLASSES = {"cat": 60, "dog": 120, "eel": 180}


def picture(value, seed, size=12):
    noise = np.random.default_rng(seed).integers(0, 30, (size, size, 3))
    return (noise + value).astype(np.uint8)


def write_folders(root, count, seed=0):
    for name, value in CLASSES.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(picture(value, seed + i)).save(root / name / f"{i}.png")
    return root


def write_idx(folder, part, labels, compressed=True):
    images = np.stack([picture(60 + 60 * label, i)[:, :, 0] for i, label in enumerate(labels)])
    ending = ".gz" if compressed else ""
    for kind, array in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        path = folder / f"{part}-{kind}-ubyte{ending}"
        path.write_bytes(gzip.compress(content) if compressed else content)
    return images


@pytest.fixture
def animals(tmp_path):
    write_folders(tmp_path / "animals" / "train", 6)
    write_folders(tmp_path / "animals" / "test", 3, seed=50)
    return tmp_path / "animals"


def test_one_class_is_normal(animals):
    dataset = open_dataset(f"{animals}:one-class=dog")
    assert dataset.layout == "one-class"
    assert list(dataset.train) == sorted((animals / "train" / "dog").iterdir())
    assert [(s.path.parent.name, s.kind, s.anomalous, s.mask) for s in dataset.test] == [
        (name, name, name != "dog", None) for name in CLASSES for _ in range(3)
    ]
    assert dataset.test_images().names == tuple(str(s.path) for s in dataset.test)


def test_all_but_one_are_normal(animals):
    dataset = open_dataset(Path(f"{animals}:all-but=dog"))
    assert {path.parent.name for path in dataset.train} == {"cat", "eel"}
    assert len(dataset.train) == 12
    assert {s.kind for s in dataset.test if s.anomalous} == {"dog"}
    assert {s.kind for s in dataset.test if not s.anomalous} == {"cat", "eel"}


def test_without_a_test_part_a_fifth_of_each_class_is_kept_for_it(tmp_path):
    write_folders(tmp_path / "all", 10)
    datasets = [open_dataset(f"{tmp_path / 'all'}:one-class={name}") for name in CLASSES]
    assert [len(d.train) for d in datasets] == [8, 8, 8]
    assert all(d.test != () and {s.path for s in d.test} == {s.path for s in datasets[0].test} for d in datasets)
    assert [sum(s.kind == name for s in datasets[0].test) for name in CLASSES] == [2, 2, 2]
    assert not {s.path for s in datasets[0].test} & {p for d in datasets for p in d.train}
    again = open_dataset(f"{tmp_path / 'all'}:one-class=cat")
    assert again == datasets[0]


def test_the_names_of_mnist(tmp_path):
    write_idx(tmp_path, "train", [0, 1, 1, 2])
    images = write_idx(tmp_path, "t10k", [2, 1, 0])
    dataset = open_dataset(f"{tmp_path}:one-class=1")
    assert [str(p) for p in dataset.train] == ["train-images-idx3-ubyte.gz[1]", "train-images-idx3-ubyte.gz[2]"]
    assert [(s.kind, s.anomalous) for s in dataset.test] == [("2", True), ("1", False), ("0", True)]
    assert np.array_equal(np.asarray(dataset.test_images().load(2))[:, :, 0], images[2])
    assert len(dataset.train_images()) == 2


def test_one_pair_of_idx_files_is_split(tmp_path):
    write_idx(tmp_path, "t10k", [0, 1] * 10, compressed=False)
    (tmp_path / "study").mkdir()
    assert find_classes(tmp_path) == ["0", "1"]
    dataset = open_dataset(f"{tmp_path}:all-but=1")
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    labelled = open_labelled(tmp_path / "t10k-images-idx3-ubyte")
    assert labelled.of(labelled.source.names).tolist() == [0, 1] * 10


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"\0\0\x0d\x01\0\0\0\1a", b"\0\0\x08\x01\0\0\0\2a"])
def test_damaged_idx_files_are_named(tmp_path, content):
    write_idx(tmp_path, "train", [0, 1], compressed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DatasetError, match=r"train-labels-idx1-ubyte: expected a whole idx file"):
        open_parts(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match=r"train-labels-idx1-ubyte: cannot be read"):
        open_parts(tmp_path)


def test_idx_files_with_another_number_of_labels(tmp_path):
    write_idx(tmp_path, "train", [0, 1])
    labels = (tmp_path / "train-labels-idx1-ubyte.gz").read_bytes()
    write_idx(tmp_path, "train", [0, 1, 2])
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(DatasetError, match=r"expected 3 labels beside it, got 2"):
        open_parts(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels[:-9])
    with pytest.raises(DatasetError, match=r"labels-idx1-ubyte.gz: cannot be read"):
        open_parts(tmp_path)


def test_the_binary_version_of_cifar10(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    records = np.concatenate([np.array([[2], [0], [1], [2], [0]], np.uint8), planes.reshape(5, -1)], axis=1)
    (tmp_path / "data_batch_1.bin").write_bytes(records[:2].tobytes())
    (tmp_path / "data_batch_2.bin").write_bytes(records[2:4].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(records[4:].tobytes())
    assert find_classes(tmp_path) == ["0", "1", "2"]
    (tmp_path / "batches.meta.txt").write_text("airplane\nbird\ncat\n\n")
    dataset = open_dataset(f"{tmp_path}:one-class=cat")
    assert [str(p) for p in dataset.train] == ["data_batch_1.bin[0]", "data_batch_2.bin[1]"]
    pixels = np.asarray(dataset.train_images().load(1))
    assert np.array_equal(pixels, planes[3].transpose(1, 2, 0))
    assert [(s.kind, s.anomalous) for s in dataset.test] == [("airplane", True)]
    (tmp_path / "test_batch.bin").write_bytes(b"123")
    with pytest.raises(DatasetError, match=r"test_batch.bin: expected records of 3073 bytes, got 3 bytes"):
        open_parts(tmp_path)
    (tmp_path / "data_batch_1.bin").unlink()
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(DatasetError, match=r"expected data_batch_1.bin"):
        open_parts(tmp_path)


def test_npz_files(tmp_path):
    stack, labels = np.stack([picture(v, v) for v in (10, 20, 30)]), np.array([0, 1, 1])
    np.savez(tmp_path / "train.npz", images=stack, labels=labels)
    np.savez(tmp_path / "test.npz", images=stack[:2], labels=labels[:2])
    dataset = open_dataset(f"{tmp_path}:one-class=1")
    assert [str(p) for p in dataset.train] == ["train.npz[1]", "train.npz[2]"]
    assert [str(s.path) for s in dataset.test] == ["test.npz[0]", "test.npz[1]"]
    np.savez(tmp_path / "one.npz", images=np.concatenate([stack] * 5), labels=np.tile(labels, 5))
    assert len(open_dataset(f"{tmp_path / 'one.npz'}:one-class=1").train) == 8
    np.savez(tmp_path / "none.npz", images=stack)
    with pytest.raises(DatasetError, match=r"none: expected images with labels"):
        open_dataset(f"{tmp_path / 'none.npz'}:one-class=1")


def test_torch_style_datasets_whose_items_are_numbered_alike():
    train, test = ([(picture(60 * label, i), label) for i, label in enumerate(ls)] for ls in ([0, 1, 1], [1, 0]))
    dataset = one_class(Items(train), Items(test), label="1")
    assert [str(p) for p in dataset.train] == ["train item 1", "train item 2"]
    assert [(str(s.path), s.anomalous) for s in dataset.test] == [("test item 0", False), ("test item 1", True)]
    assert np.array_equal(np.asarray(dataset.test_images().load(0)), test[0][0])
    assert np.array_equal(np.asarray(dataset.train_images().load(1)), train[2][0])


class Items:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_the_same_images_to_learn_from_and_to_test_on_are_refused(animals):
    with pytest.raises(DatasetError, match=r"expected other test images, got .*0.png in both"):
        one_class(animals / "train", animals / "train", label="dog")


def test_unknown_classes_kinds_and_folders(animals):
    with pytest.raises(DatasetError, match=r"animals:one-class=cow: expected a class out of cat, dog, eel, got cow"):
        open_dataset(f"{animals}:one-class=cow")
    with pytest.raises(ArgumentError, match=r"kind: expected one-class or all-but, got some"):
        one_class(animals / "train", animals / "test", label="dog", kind="some")
    for label in ("dog", "*"):
        with pytest.raises(DatasetError, match=r"nowhere: expected a"):
            list(map(open_dataset, map(str, OneClass.spelled(f"{animals / 'nowhere'}:one-class={label}").each())))


def test_how_it_is_spelled(tmp_path):
    spelled = OneClass.spelled("D:\\data\\cifar10:all-but=ship")
    assert (spelled.kind, spelled.label) == ("all-but", "ship")
    assert str(spelled) == "D:\\data\\cifar10:all-but=ship"
    assert OneClass.spelled("data/a:one-class=b:one-class=c").folder == Path("data/a:one-class=b")
    for text in ("data/cifar10", "C:/data", "data:one-class=", ":one-class=cat", "data:two-class=cat"):
        assert OneClass.spelled(text) is None
    real = tmp_path / "odd:one-class=name"
    real.mkdir()
    Image.fromarray(picture(60, 0)).save(real / "0.png")
    assert OneClass.spelled(real) is None
    assert open_dataset(real).layout == "folder"


def test_a_star_stands_for_each_class_in_a_plan(animals, tmp_path):
    def folders(*data):
        cells = StudyPlan(data=data, methods=("ocsvm",), backbones=("filters",)).cells()
        return [Path(cell.dataset).name for cell in cells]

    assert folders(f"{animals}:one-class=*") == [f"animals:one-class={name}" for name in CLASSES]
    assert folders(f"{animals}:all-but=e*") == ["animals:all-but=eel"]
    assert folders(f"{tmp_path}/an*:one-class=dog", str(animals)) == ["animals:one-class=dog", "animals"]
    with pytest.raises(DatasetError, match=r"expected a class out of cat, dog, eel, got none"):
        folders(f"{animals}:one-class=x*")


def test_classes_are_found_without_listing_their_images(animals, monkeypatch):
    monkeypatch.setattr("blemish.datasets.labelled.open_parts", None)
    assert find_classes(animals) == list(CLASSES)
    assert find_classes(animals / "test") == list(CLASSES)


def test_from_the_spelling_to_the_figures(animals):
    dataset = open_dataset(f"{animals}:one-class=eel")
    detector = Detector(
        method=OneClassSVM(backbone="pixels", normalise=False), preprocess="default", calibration="none"
    )
    evaluation = evaluate(detector.fit(dataset.train_images()), dataset, allow_overlap=True)
    assert evaluation.figures.image_auroc == 1.0
    assert (evaluation.figures.n_normal, evaluation.figures.n_anomalous) == (3, 6)
    assert [(kind.kind, kind.images) for kind in evaluation.kinds] == [("eel", 3), ("cat", 3), ("dog", 3)]


def test_packed_images_are_scored_by_name(tmp_path):
    write_idx(tmp_path, "train", [0] * 8 + [2] * 8)
    write_idx(tmp_path, "t10k", [0, 2] * 4)
    dataset = open_dataset(f"{tmp_path}:one-class=0")
    detector = Detector(method=OneClassSVM(backbone="pixels", normalise=False), calibration="none").fit(
        dataset.train_images()
    )
    assert evaluate(detector, dataset, allow_overlap=True).figures.image_auroc == 1.0


def test_fit_evaluate_and_study_from_the_command_line(animals, tmp_path):
    run = CliRunner().invoke
    model = tmp_path / "dog.blemish"
    fit = ["fit", f"{animals}:one-class=dog", "--method", "ocsvm", "--backbone", "pixels", "--calibration", "none"]
    assert (
        run(
            app, [*fit, "--resize", "32", "--set", "normalise=false", "--out", str(model)], catch_exceptions=False
        ).exit_code
        == 0
    )
    evaluated = run(app, ["evaluate", str(model), f"{animals}:one-class=dog", "--json"], catch_exceptions=False)
    figures = json.loads(evaluated.stdout)
    assert (figures["image_auroc"], figures["n_normal"], figures["n_anomalous"]) == (1.0, 3, 6)


def test_packed_images_in_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_study.WorkOptions, "executor", lambda _: Inline())
    write_idx(tmp_path, "train", [0] * 8 + [2] * 8)
    write_idx(tmp_path, "t10k", [0, 2] * 4)
    study = [
        "study",
        f"{tmp_path}:one-class=*",
        "--methods",
        "ocsvm,normalise=false",
        "--backbones",
        "pixels",
        "--resize",
        "32",
    ]
    done = CliRunner().invoke(app, [*study, "--held-out", "0", "--out", str(tmp_path / "s"), "--json"])
    rows = json.loads(done.stdout)["cells"]
    assert [row["image_auroc"] for row in rows] == [1.0, 1.0]
