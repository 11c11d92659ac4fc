"""Damaged and malicious files: one clear sentence, no code run, no hang, no memory beyond the file's size."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import opens_or_says_why
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

QUERY = "layers.0.self_attn.q_proj.weight"
GOOD = save({QUERY: np.ones((8, 8), np.float32), "norm.weight": np.ones(8, np.float32)})


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BROKEN = {
    "truncated data": GOOD[:-1],
    "truncated header": GOOD[:40],
    "trailing bytes": GOOD + b"x",
    "header longer than the file": struct.pack("<Q", 10_000) + b"{}",
    "header longer than memory": struct.pack("<Q", 2**63 - 1) + b"{}",
    "negative header length": struct.pack("<Q", 2**64 - 1) + b"{}",
    "overlap": safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "hole": safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "huge product": safetensors({"a": entry([2**40, 2**40], 0, 4)}, b"\0" * 4),
    "product that overflows to 4": safetensors({"a": entry([2**62, 4, 1], 0, 4)}, b"\0" * 4),
    "negative dimension": safetensors({"a": entry([-1, -4], 0, 16)}, b"\0" * 16),
    "fractional dimension": safetensors({"a": entry([1.5], 0, 4)}, b"\0" * 4),  # type: ignore[list-item]
    "end before begin": safetensors({"a": entry([1], 4, 0)}, b"\0" * 4),
    "offsets beyond the file": safetensors({"a": entry([1], 0, 4)}),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "entry that is a list": safetensors({"a": [1]}, b"\0" * 4),
    "not JSON": safetensors(b"{not json}"),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "deep nesting": safetensors(b'{"a":' * 20_000),
    "metadata that is a number": safetensors({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_safetensors(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[case])
    with pytest.raises(SourceError, match=r"model.safetensors' is not a readable safetensors file .*fetch it again"):
        open_checkpoint(path)


@pytest.mark.parametrize("length", range(0x50, 0x150))
def test_any_length_of_header(tmp_path: Path, length: int) -> None:
    """Its low byte comes first in the file, where pickles, web pages and JSON have their mark."""
    path = tmp_path / "weights"
    path.write_bytes(safetensors(json.dumps({"a": entry([2, 2], 0, 16)}).encode().ljust(length), b"\0" * 16))
    assert open_checkpoint(path).n_tensors == 1


def test_name_that_comes_twice(tmp_path: Path) -> None:
    one = json.dumps(entry([1], 0, 4))
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(f'{{"a": {one}, "a": {one}}}'.encode(), b"\0" * 4))
    with pytest.raises(SourceError, match=r"its header names 'a' twice"):
        open_checkpoint(path)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    matrix = open_checkpoint(path).matrices[0]
    os.truncate(path, len(GOOD) - 40)
    with pytest.raises(SourceError, match=r"ends before byte .* cut short or replaced meanwhile"):
        open_and_read(matrix.tensor.read)
    path.unlink()
    with pytest.raises(SourceError, match=r"model.safetensors' cannot be read: No such file"):
        matrix.tensor.read(None)


def open_and_read(read: Any) -> None:
    for index in (None, 7):
        read(index)


FOREIGN = {
    "": "is empty: fetch it again",
    "version https://git-lfs.github.com/spec/v1\noid sha256:1\n": "a Git LFS pointer.*: run 'git lfs pull'",
    "<!DOCTYPE html><html>Not found</html>": "a web page or XML, not weights",
    "\n  <html></html>": "a web page or XML, not weights",
    '{"error": "not found"}': "is JSON, not weights",
    "GGUF\x03\0\0\0": "not a readable GGUF file",
    "hello": "is a text file, not weights",
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_files_that_are_something_else(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(SourceError, match=FOREIGN[content]):
        open_checkpoint(tmp_path)


def test_binary_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for head, sentence in {
        b"\x89HDF\r\n\x1a\n": "an HDF5 file",
        b"\x93NUMPY\x01\0": "a single numpy array",
        b"\x1f\x8b\x08": "compressed with gzip",
        b"\0" * 257 + b"ustar": "a tar archive",
        struct.pack("<IH", 6, 12) + b"WhisperSpec\0": r"a CTranslate2 model \(WhisperSpec\)",
        bytes(range(128, 256)): "not a readable torch checkpoint|a pickle that cannot be opened",
    }.items():
        path.write_bytes(head + b"\0" * 300)
        with pytest.raises(SourceError, match=sentence):
            open_checkpoint(path)


def test_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SourceError, match="is not a regular file"):
            open_checkpoint(path)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, how: str) -> None:
    path, target = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    content = {QUERY: torch.ones(4, 4), "bomb": Bomb(target)}
    torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    checkpoint = open_checkpoint(tmp_path)
    assert [matrix.name for matrix in checkpoint.matrices] == [QUERY]
    assert "Objects of posix.mkdir in" in checkpoint.notes[-1]
    assert "were not made, and nothing was run" in checkpoint.notes[-1]
    assert not target.exists()


def test_pickle_that_torch_did_not_write(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"bomb": Bomb(target)}, protocol=2))
    with pytest.raises(SourceError, match=r"is a pickle, but not one that torch\.save wrote"):
        open_checkpoint(tmp_path)
    assert not target.exists()


def torch_zip(path: Path) -> bytes:
    torch.save({QUERY: torch.ones(8, 8)}, path)
    return path.read_bytes()


def test_zip_archives_that_torch_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(SourceError, match=r"a zip archive, but not one that torch\.save wrote"):
        open_checkpoint(path)


def test_zip_that_was_compressed_again(tmp_path: Path) -> None:
    original, packed = tmp_path / "original", tmp_path / "packed.bin"
    torch_zip(original)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(SourceError, match=r"was compressed again after torch\.save wrote it"):
        open_checkpoint(packed)


def test_zip_whose_central_directory_lies(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    content = bytearray(torch_zip(path))
    record = content.rfind(b"PK\x01\x02", 0, content.rfind(b"data/0"))
    content[record + 20 : record + 28] = struct.pack("<II", 2**31, 2**31)  # compressed and plain size
    path.write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize("keep", [4, 30, 100, 500, -1, -22, -100])
def test_truncated_torch_zip(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(torch_zip(path)[:keep])
    with pytest.raises(SourceError, match="damaged zip archive"):
        open_checkpoint(path)


@pytest.mark.parametrize("keep", [2, 30, 100, 300, -1, -100])
def test_truncated_legacy_torch_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.bin"
    torch.save({QUERY: torch.ones(8, 8)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"model.bin' is (not a readable|a damaged)"):
        open_checkpoint(path)


def test_small_file_that_claims_a_large_tensor(tmp_path: Path) -> None:
    torch.save({QUERY: torch.ones(1).expand(2**20, 2**20)}, tmp_path / "model.bin")
    (skipped,) = open_checkpoint(tmp_path).skipped
    assert skipped.reason == "a view that repeats 4 stored bytes to 4398046511104"


def test_storage_that_shrank(tmp_path: Path) -> None:
    weight = torch.ones(8, 8)
    matrix = from_state_dict({QUERY: weight.T[2:]}).matrices[0]
    weight.untyped_storage().resize_(8 * 8 * 4 - 4)
    with pytest.raises(SourceError, match=rf"stores fewer values for '{QUERY}' than its shape \(6, 8\) says"):
        matrix.tensor.read(None)


def test_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(SourceError, match="holds no tensors"):
        open_checkpoint(tmp_path)


def survives(content: bytes) -> None:
    opens_or_says_why(content, ".bin", memory=20_000_000)


numbers = st.one_of(st.integers(-2, 40), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=3))
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "F33", 1, None]),
        "shape": st.one_of(st.lists(numbers, max_size=4), numbers, st.none()),
        "data_offsets": st.one_of(st.lists(numbers, min_size=2, max_size=2), numbers),
        "more": numbers,
    },
)
headers = st.dictionaries(st.text(max_size=6), st.one_of(entries, numbers, st.none()), max_size=4)


@settings(max_examples=200)
@given(headers, st.binary(max_size=200))
def test_made_up_headers(header: object, data: bytes) -> None:
    survives(safetensors(header, data))


@settings(max_examples=200)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"GGUF", struct.pack("<Q", 20) + b"{"]),
)
def test_garbage(tail: bytes, head: bytes) -> None:
    survives(head + tail)


@settings(max_examples=200)
@given(st.data())
def test_flipped_bytes(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    survives(bytes(content))


@settings(max_examples=200)
@given(st.booleans(), st.data())
def test_flipped_bytes_of_torch_files(zipped: bool, data: st.DataObject) -> None:
    content = bytearray(TORCH_FILES[zipped])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(content))


MEMBERS = ("a/data.pkl", "a/data/0", "a/version", "a/byteorder", "a/.data/serialization_id", "../up", "a/constants.pkl")


@settings(max_examples=200)
@given(st.data())
def test_made_up_zip_members(data: st.DataObject) -> None:
    """Real members and made-up ones, of any names, contents and claimed sizes."""
    with zipfile.ZipFile(io.BytesIO(TORCH_FILES[True])) as archive:
        real = {f"a/{name.partition('/')[2]}": archive.read(name) for name in archive.namelist()}
    held = data.draw(st.lists(st.one_of(st.sampled_from(MEMBERS), st.text(min_size=1, max_size=8)), max_size=5))
    kind = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in dict.fromkeys([*held, *(name for name in real if data.draw(st.booleans()))]):
            content = data.draw(st.one_of(st.just(real.get(name, b"")), st.binary(max_size=100)))
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=data.draw(kind))
    content = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(0, 2))):  # sizes and offsets that lie, in the central directory
        content[-data.draw(st.integers(1, min(200, len(content))))] = data.draw(st.integers(0, 255))
    survives(bytes(content))


def _torch_file(zipped: bool) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        torch.save({QUERY: torch.ones(8, 8)}, file.name, _use_new_zipfile_serialization=zipped)
        return Path(file.name).read_bytes()


TORCH_FILES = {zipped: _torch_file(zipped) for zipped in (True, False)}
