from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from blemish import persist
from blemish.errors import ModelFileError, OutputError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 4, dtype=torch.float16)}


def test_round_trip(tmp_path):
    persist.save(tmp_path / "m", TENSORS, {"method": "x", "nested": {"k": [1, 2.5, None]}})
    tensors, manifest = persist.load(tmp_path / "m")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())
    assert manifest["nested"] == {"k": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "m"
    persist.save(path, TENSORS, {})
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m: damaged, the content does not match its digest"):
        persist.load(path)


def test_foreign_damaged_and_newer_files_are_told_apart(tmp_path):
    path = tmp_path / "m"
    with pytest.raises(ModelFileError, match=r"m: the file does not exist. `blemish fit DATA --out"):
        persist.load(path)
    path.write_bytes(b"PK\x03\x04 a zip perhaps")
    with pytest.raises(ModelFileError, match=r"m: not a model file, or damaged"):
        persist.load(path)
    save_file(TENSORS, path)
    with pytest.raises(ModelFileError, match=r"a safetensors file, but not written by blemish"):
        persist.load(path)
    save_file(TENSORS, path, metadata={"blemish": json.dumps({"format": 99, "versions": {"blemish": "9.9"}})})
    with pytest.raises(ModelFileError, match=r"format 99, this version reads format 2. Use blemish 9\.9"):
        persist.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    persist.save(path, TENSORS, {"old": True})

    def full_disk(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(persist, "save_file", full_disk)
    with pytest.raises(OutputError, match=r"m: cannot be written \(no space left on device\)"):
        persist.save(path, TENSORS, {"old": False})
    assert persist.load(path)[1]["old"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_written_for_everyone_whom_the_umask_lets(tmp_path):
    persist.save(tmp_path / "m", TENSORS, {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode
