"""What lies in a folder is listed, or named with a reason; nothing vanishes."""

from __future__ import annotations

import os
import socket
from collections import Counter

import pytest
from PIL import Image

from blemish.datasets.labelled import find_classes, open_labelled, open_parts
from blemish.datasets.layouts import open_dataset
from blemish.datasets.taken import take
from blemish.errors import ArgumentError, DatasetError, ImageError
from blemish.images import listing
from blemish.images.decode import decode
from blemish.images.listing import image_files, list_folder, subfolders
from blemish.images.source import as_source, from_folder, from_manifest
from fuzz import folders

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and sockets of POSIX")


@pytest.fixture
def folder(tmp_path):
    for name in ("b/1.png", "a/0.PNG", "a/notes.txt", ".git/x.png", "a/._0.png", "__MACOSX/0.png", "c/deep/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(paths, root):
    return [str(path.relative_to(root)) for path in paths]


def reasons(listing, root):
    return {os.path.relpath(name, root): reason for name, reason in listing.passed_over}


def test_everything_is_listed_or_named(folder):
    found = list_folder(folder)
    assert names(found.files, folder) == ["a/0.PNG", "b/1.png", "c/deep/2.jpg"]
    assert names(found.folders, folder) == ["a", "b", "c", "c/deep"]
    assert reasons(found, folder) == {
        ".git": "hidden",
        "__MACOSX": "hidden",
        "a/._0.png": "hidden",
        "a/notes.txt": "not an image by its name",
    }
    assert from_folder(folder).passed_over == as_source(folder).passed_over == found.passed_over
    assert image_files(folder) == list(found.files)
    assert names(subfolders(folder), folder) == ["a", "b", "c"]


@posix
def test_links_are_followed_once(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "9.png").touch()
    (outside / "back").symlink_to(folder)
    for link, target in (("a/self", "self"), ("a/up", ".."), ("a/above", "../.."), ("0", "b"), ("z", outside)):
        (folder / link).symlink_to(target)
    (folder / "y").symlink_to(outside)
    found = list_folder(folder)
    assert names(found.files, folder) == ["a/0.PNG", "b/1.png", "c/deep/2.jpg", "y/9.png"]
    again = "a link to a folder that is listed already"
    assert {name: reason for name, reason in reasons(found, folder).items() if reason == again} == {
        name: again for name in ("0", "a/above", "a/up", "y/back", "z")
    }
    assert reasons(found, folder)["a/self"] == "not an image by its name"
    assert open_dataset(folder).train == found.files


@posix
def test_a_link_that_leads_nowhere_is_an_error_of_its_image(folder):
    (folder / "a" / "gone.png").symlink_to("nowhere.png")
    (folder / "a" / "round.png").symlink_to("round.png")
    assert names(image_files(folder), folder)[1:3] == ["a/gone.png", "a/round.png"]
    with pytest.raises(ImageError, match=r"gone\.png: the file does not exist"):
        decode(folder / "a" / "gone.png")
    with pytest.raises(ImageError, match=r"round\.png: cannot be read \(Too many levels of symbolic links\)"):
        decode(folder / "a" / "round.png")


@posix
def test_only_regular_files_are_images(folder):
    os.mkfifo(folder / "a" / "pipe.png")
    os.mkfifo(folder / "list.txt")
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        made.bind("s.png")
        os.chdir(here)
    (folder / "null.png").symlink_to("/dev/null")
    found = list_folder(folder)
    assert names(found.files, folder) == ["a/0.PNG", "b/1.png", "c/deep/2.jpg"]
    special = {name for name, reason in reasons(found, folder).items() if reason == "a pipe, socket or device"}
    assert special == {"a/pipe.png", "s.png", "null.png"}
    for name in special:
        with pytest.raises(ImageError, match="a pipe, socket or device, not an image file"):
            decode(folder / name)
        with pytest.raises(DatasetError, match="an image file or a manifest, got a pipe, socket or device"):
            as_source(folder / name)
    with pytest.raises(DatasetError, match=r"list\.txt: expected a list of images, a path a line, got a pipe"):
        from_manifest(folder / "list.txt")


@pytest.mark.parametrize("read", [list_folder, from_folder, open_dataset, find_classes])
def test_an_unreadable_folder_is_an_error(folder, monkeypatch, read):
    whole = os.scandir

    def scandir(path):
        if read is find_classes or str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"the folder cannot be read \(no permission\)"):
        read(folder)


@pytest.mark.parametrize("layout", ["train/good", "train/ok"])
def test_an_unreadable_test_folder_is_an_error(folder, monkeypatch, layout):
    (folder / layout).mkdir(parents=True)
    (folder / layout / "0.png").touch()
    (folder / "test").mkdir()
    whole = os.scandir

    def scandir(path):
        if str(path).endswith("test"):
            raise OSError(5, "Input/output error", str(path))
        return whole(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"test: the folder cannot be read \(Input/output error\)"):
        open_dataset(folder)


def test_hidden_folders_are_no_kinds_of_a_test(folder):
    for name in ("train/good/0.png", "test/good/0.png", "test/.ipynb_checkpoints/0.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    dataset = open_dataset(folder)
    assert [sample.kind for sample in dataset.test] == ["good"]
    assert ("hidden", (".ipynb_checkpoints",)) in [(over.reason, over.files) for over in take(dataset).passed_over]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"object,split\ncandle,train\n", "expected columns image, label, mask, object, split, got object, split"),
        (b"object,split,label,image,mask\ncandle,\xff\n", "cannot be read as UTF-8 text"),
        (b"object,split,label,image,mask\ncandle," + b"x" * 200_000, "not a CSV file"),
    ],
)
def test_a_damaged_table_of_visa_is_named(folder, table, message):
    (folder / "candle").mkdir()
    (folder / "split_csv").mkdir()
    (folder / "split_csv" / "1cls.csv").write_bytes(table)
    with pytest.raises(DatasetError, match=rf"1cls\.csv: {message}"):
        open_dataset(folder / "candle")


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 30, "-1", "1.0", ""])
def test_a_class_number_that_is_none_is_named(tmp_path, number):
    (tmp_path / "a.csv").write_text(f"0.png,{number}\n")
    with pytest.raises(DatasetError, match=r"a\.csv: expected lines `path,class number`"):
        open_labelled(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("names", "message"), [(b"gr\xf6n\n", "cannot be read as UTF-8 text"), (b"cat\n", "expected 3 names of")]
)
def test_the_names_of_cifar_classes_are_checked(tmp_path, names, message):
    for file in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / file).write_bytes(b"\2" + bytes(3072))
    (tmp_path / "batches.meta.txt").write_bytes(names)
    with pytest.raises(DatasetError, match=rf"batches\.meta\.txt: {message}"):
        open_parts(tmp_path)


@pytest.mark.parametrize("masks", ["bad", ".", "bad/inner"])
def test_no_image_is_its_own_mask_nor_that_of_another(tmp_path, masks):
    for name in ("good/0.png", "good/1.png", "bad/0.png", "bad/inner/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    said = {"normal": ["good"], "anomalous": ["bad", "bad/inner"] if masks == "bad/inner" else ["bad"]}
    with pytest.raises(ArgumentError, match="masks: expected a sub-folder without the images"):
        open_dataset(tmp_path, **said, masks=masks)


def test_some_hundred_odd_folders_do_no_harm():
    outcomes = list(folders.fuzz(300, seed=1))
    assert [wrong for _, wrong in outcomes if wrong and "took" not in wrong] == []
    counts = sum((found for found, _ in outcomes), Counter())
    assert counts["to learn: value"] > 50  # else the changes would be too coarse
    assert counts["to learn: refused"] > 50
