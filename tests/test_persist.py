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


ZEROS = {"a": torch.zeros(4)}
ALMOST = {
    "name": {"b": torch.zeros(4)},
    "type": {"a": torch.zeros(4, dtype=torch.int32)},
    "shape": {"a": torch.zeros(2, 2)},
    "content": {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
    "division": {"a": torch.zeros(2), "b": torch.zeros(2)},
}
"""Each differs from `ZEROS` in one thing; the first three hold the very same bytes."""


@pytest.mark.parametrize("other", ALMOST.values(), ids=ALMOST)
def test_the_digest_tells_apart_what_scores_differently(tmp_path, other):
    assert persist.digest(other) != persist.digest(ZEROS)
    manifest = {"format": persist.FORMAT, "digest": persist.digest(ZEROS)}
    save_file(other, tmp_path / "m", metadata={"blemish": json.dumps(manifest)})
    with pytest.raises(ModelFileError, match=r"m: damaged, the content does not match its digest"):
        persist.load(tmp_path / "m")


def test_the_digest_does_not_depend_on_order_or_layout():
    turned = torch.arange(6.0).reshape(3, 2).T
    assert persist.digest({"b": turned, "a": ZEROS["a"]}) == persist.digest({"a": ZEROS["a"], "b": turned.contiguous()})


def test_a_loaded_tensor_does_not_change_with_its_file(tmp_path):
    persist.save(tmp_path / "m", {"a": torch.ones(1000)}, {})
    tensors, _ = persist.load(tmp_path / "m")
    size = (tmp_path / "m").stat().st_size
    with (tmp_path / "m").open("r+b") as file:  # in place, where `save` puts a new file
        file.write(b"\0" * size)
    assert torch.equal(tensors["a"], torch.ones(1000))


def test_a_manifest_cannot_speak_for_the_file(tmp_path):
    persist.save(tmp_path / "m", ZEROS, {"digest": "none", "kept": 1})
    assert persist.load(tmp_path / "m")[1]["digest"] == persist.digest(ZEROS)


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
