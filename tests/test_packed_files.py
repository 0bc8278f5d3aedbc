"""Damaged files of many images are named, and unpack to no more than there is memory for."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest

from blemish.datasets import labelled
from blemish.datasets.labelled import open_labelled
from blemish.errors import DatasetError, NotEnoughMemoryError


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


IMAGES = np.zeros((3, 4, 4), np.uint8)
WHOLE = npz(images=IMAGES, labels=np.arange(3))


@pytest.mark.parametrize("at", range(0, len(WHOLE), 7))
def test_a_damaged_npz_is_named_or_read(tmp_path, at):
    path = tmp_path / "x.npz"
    for data in (WHOLE[:at], WHOLE[:at] + b"\xff\xff" + WHOLE[at + 2 :]):
        path.write_bytes(data)
        try:
            assert len(open_labelled(path)) == 3
        except (DatasetError, NotEnoughMemoryError) as error:
            assert str(error).startswith(str(path))  # noqa: PT017 (what is not read has no other answer)


@pytest.mark.parametrize(
    "arrays",
    [{"images": np.array(5)}, {"images": IMAGES, "labels": np.array(["a", "b", "c"])}, {"labels": np.arange(3)}],
)
def test_other_arrays_are_described(tmp_path, arrays):
    (tmp_path / "x.npz").write_bytes(npz(**arrays))
    with pytest.raises(DatasetError, match=r"x\.npz: expected `images`"):
        open_labelled(tmp_path / "x.npz")


def test_what_unpacks_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "available_bytes", lambda: 1000)
    (tmp_path / "x.npz").write_bytes(npz(images=np.zeros((10, 20, 20), np.uint8)))
    idx = b"\0\0\x08\x03" + np.array([10, 20, 20], ">u4").tobytes() + bytes(4000)
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    for name in ("x.npz", "images-idx3-ubyte.gz"):
        with pytest.raises(NotEnoughMemoryError, match=r"unpacks to .* are free"):
            open_labelled(tmp_path / name)


def test_an_idx_file_is_read_no_further_than_it_claims(tmp_path):
    idx = b"\0\0\x08\x03" + np.array([1, 2, 2], ">u4").tobytes() + bytes(4_000_000)
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    with pytest.raises(DatasetError, match="expected a whole idx file"):
        open_labelled(tmp_path / "images-idx3-ubyte.gz")
