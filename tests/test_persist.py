from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from blemish import persist
from blemish.errors import ModelFileError, OutputError
from blemish.tensors import check_finite, check_tensors

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
    persist.save(tmp_path / "m", ZEROS, {})
    manifest = persist.load(tmp_path / "m")[1]
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
    persist.save(tmp_path / "m", ZEROS, {"digest": "none", "format": 99, "kept": 1})
    manifest = persist.load(tmp_path / "m")[1]
    assert (manifest["format"], manifest["kept"], len(manifest["digest"])) == (3, 1, 64)


MANIFEST = {"method": "x", "parameters": {"rate": 0.2, "sigma": 4.0, "reweight": 0}, "detector": {"resize": [64, 32]}}


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "m"
    persist.save(path, {"a": torch.tensor([1.0, 2.0])}, MANIFEST)
    content = path.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(ModelFileError, match=r"^.*m: "):
            persist.load(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.2", b"0.6"),
        (b"4.0", b"5.0"),
        (b'reweight\\": 0', b'reweight\\": 1'),
        (b"[64, 32]", b"[74, 32]"),
        (b"sigma", b"sigmb"),
    ],
)
def test_a_changed_manifest_is_noticed(tmp_path, old, new):
    path = tmp_path / "m"
    persist.save(path, TENSORS, MANIFEST)
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(ModelFileError, match=r"m: damaged, the content does not match its digest"):
        persist.load(path)


def write_format_2(path, tensors, manifest, **changed):
    manifest = {**manifest, "format": 2, "digest": persist.digest(tensors)} | changed
    save_file(tensors, path, metadata={"blemish": json.dumps(manifest)})


def test_format_2_is_still_read(tmp_path):
    write_format_2(tmp_path / "m", TENSORS, MANIFEST)
    tensors, manifest = persist.load(tmp_path / "m")
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert manifest["format"] == 2
    write_format_2(tmp_path / "m", TENSORS, MANIFEST, digest=persist.digest(ZEROS))
    with pytest.raises(ModelFileError, match=r"m: damaged, the content does not match its digest"):
        persist.load(tmp_path / "m")


def test_keys_of_any_type_and_tuples_are_digested_as_they_are_read(tmp_path):
    persist.save(tmp_path / "m", TENSORS, {"table": {1: "a", 10: "b", 2: "c"}, "pair": (1, 2)})
    assert persist.load(tmp_path / "m")[1]["table"] == {"1": "a", "10": "b", "2": "c"}


def test_foreign_damaged_and_newer_files_are_told_apart(tmp_path):
    path = tmp_path / "m"
    for missing in (path, path / "below", tmp_path / "a\0b"):
        with pytest.raises(ModelFileError, match=r"the file does not exist. Check its name and its folder"):
            persist.load(missing)
    with pytest.raises(ModelFileError, match=r"expected a model file, got a folder"):
        persist.load(tmp_path)
    with pytest.raises(ModelFileError, match=r"/dev/null: expected a model file, got a device, a pipe or a socket"):
        persist.load("/dev/null")
    for other in (b"", b"no", b"PK\x03\x04 a zip perhaps", b"\x80\x04\x95 a pickle"):
        path.write_bytes(other)
        with pytest.raises(ModelFileError, match=r"m: not a model file, it is no safetensors file"):
            persist.load(path)
    save_file(TENSORS, path)
    with pytest.raises(ModelFileError, match=r"a safetensors file, but not written by blemish"):
        persist.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(ModelFileError, match=r"m: damaged, its header would have \d+ bytes: the file is cut off"):
        persist.load(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match=r"m: damaged \(.*not fully covered"):
        persist.load(path)
    save_file(TENSORS, path, metadata={"blemish": json.dumps({"format": 99, "versions": {"blemish": "9.9"}})})
    with pytest.raises(ModelFileError, match=r"format 99, this version reads formats 2 and 3. Use blemish 9\.9"):
        persist.load(path)


def test_a_file_without_permission_says_so(tmp_path, monkeypatch):
    persist.save(tmp_path / "m", TENSORS, {})

    def locked(*_args, **_kwargs):  # who is root may read all files
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(persist.Path, "open", locked)
    with pytest.raises(ModelFileError, match=r"m: cannot be read \(Permission denied\)"):
        persist.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "too large, or too deeply nested"),
        ('{"format": 3, "x": ' + "[" * 20 + "]" * 20 + "}", "too large, or too deeply nested"),
        ('"' + '\\"' * 1_000_000, "Unterminated string"),
        (" " * (5 << 20), "too large, or too deeply nested"),
        ('{"format": 3, "format": 3}', "a key occurs twice"),
        ('{"format": 3, "x": NaN}', "NaN is no number"),
        ('{"format": 3, "x": 1e999}', "1e999 is no number"),
        ('{"format": 3, "x": 9223372036854775808}', "9223372036854775808 is no number"),
        ('{"format": 3, "x": ' + "9" * 5000 + "}", "999 is no number"),
        ("[3]", "not an object"),
        ("{", "Expecting property name"),
    ],
)
def test_a_manifest_is_bounded_before_it_is_read(tmp_path, manifest, reason):
    save_file(TENSORS, tmp_path / "m", metadata={"blemish": manifest})
    with pytest.raises(ModelFileError, match=rf"m: damaged, its manifest cannot be read \(.*{reason}"):
        persist.load(tmp_path / "m")


@pytest.mark.parametrize("known", ["true", "2.0", '"2"', "[2]", "null", "1"])
def test_a_format_is_a_whole_number(tmp_path, known):
    save_file(TENSORS, tmp_path / "m", metadata={"blemish": f'{{"format": {known}, "versions": [1]}}'})
    with pytest.raises(ModelFileError, match=r"this version reads formats 2 and 3. Use blemish \(unknown\)"):
        persist.load(tmp_path / "m")


def test_types_that_no_version_writes_are_refused(tmp_path):
    save_file({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "m", metadata={"blemish": '{"format": 3}'})
    with pytest.raises(ModelFileError, match=r"m: tensor 'a': type C64, which no version"):
        persist.load(tmp_path / "m")


def test_a_header_is_bounded(tmp_path):
    (tmp_path / "m").write_bytes((17 << 20).to_bytes(8, "little") + b"{" + b" " * (18 << 20))
    with pytest.raises(ModelFileError, match=r"m: damaged, its header would have 17825792 bytes"):
        persist.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"a": "float32 2 d", "b": "int64"}, "tensor c: not expected here"),
        ({"a": "float32 2 d", "b": "int64", "c": "float16 n 4", "e": "int64"}, "tensor e: missing"),
        (
            {"a": "float32 3 d", "b": "int64", "c": "float16 n 4"},
            r"expected float32 \(3, d\), got float32 \(2, 3\)",
        ),
        ({"a": "float32 d d", "b": "int64", "c": "float16 n 4"}, r"a: expected float32 \(d = 2, d = 2\)"),
        ({"a": "float32 p d", "b": "int64", "c": "float16 n d"}, r"tensor c: expected float16 \(n = 0, d = 3\)"),
        ({"a": "float32 p", "b": "int64", "c": "float16 n 4"}, r"tensor a: expected float32 \(p\)"),
        ({"a": "float64|float16 p d", "b": "int64", "c": "float16 n 4"}, "expected float64 or float16"),
    ],
)
def test_tensors_are_what_a_pattern_says(patterns, message):
    with pytest.raises(ModelFileError, match=message):
        check_tensors(TENSORS, patterns)


def test_tensors_must_be_finite():
    check_finite(TENSORS)
    for value in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            with pytest.raises(ModelFileError, match="tensor x: NaN or infinity"):
                check_finite({"x": torch.tensor([1, value], dtype=dtype)})


def test_a_full_disk_is_told_in_plain_words(tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        os_error = 'Os { code: 28, kind: StorageFull, message: "No space left on device" }'
        raise SafetensorError(f"Error while serializing: IoError({os_error})")

    monkeypatch.setattr(persist, "save_file", full_disk)
    with pytest.raises(OutputError, match=r"m: cannot be written \(No space left on device\)\.$"):
        persist.save(tmp_path / "m", TENSORS, {})


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
