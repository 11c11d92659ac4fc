"""Pickles of a few bytes that ask for much: keys that are hashed or written for ever, and copies of shared parts."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from specdiag.checkpoint.distributed.metadata import SavedTensor
from specdiag.checkpoint.distributed.model import choose_model
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def put(place: int) -> bytes:
    return b"r" + struct.pack("<I", place)


def get(place: int) -> bytes:
    return b"h" + bytes([place])


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x10tQK\x00K\x04K\x04\x86K\x04K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
)
WEIGHT = b"}" + text("w.weight") + TENSOR + b"s"


def saved(folder: Path, body: bytes) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", np.ones(16, "f4").tobytes())
        archive.writestr("a/version", b"3\n")
    return path


def doubled(opening: bytes, closing: bytes, times: int, width: int = 2) -> bytes:
    """A container of two of a container of two ..., the last kept in its place."""
    steps = (put(i) + b"0" + opening + get(i) * width + closing for i in range(times))
    return b"N" + b"".join(steps) + put(times) + b"0"


WIDE = b"(" + b"N" * 2000 + b"t" + put(0) + b"0"
PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(20_000)) + b"e" + put(0) + b"0"
BOMBS = {
    "a key of shared tuples": doubled(b"(", b"t", 7, 60) + WEIGHT + get(7) + TENSOR + b"s",
    "a wide key": WIDE + WEIGHT + get(0) + b"Ns",
    "a key of a million digits": b"\x8b"
    + struct.pack("<i", 10**6)
    + b"\x7f" * 10**6
    + put(0)
    + WEIGHT
    + get(0)
    + b"Ns",
    "ordered copies": PAIRS + WEIGHT + b"](" + (b"ccollections\nOrderedDict\n" + get(0) + b"\x85R") * 200 + b"e0",
    "ordered copies of a tuple": b"("
    + PAIRS[2:].removesuffix(b"e" + put(0) + b"0")
    + b"t"
    + put(0)
    + b"0"
    + WEIGHT
    + b"]("
    + (b"ccollections\nOrderedDict\n" + get(0) + b"\x85R") * 200
    + b"e0",
    "copies of arguments": WIDE + b"cfoo\nbar\n)R" + put(1) + WEIGHT + b"](" + (get(1) + get(0) + b"R") * 2000 + b"e0",
    "copies of a text": text("a" * 10**6)
    + put(0)
    + b"0"
    + WEIGHT
    + b"]("
    + (b"c_codecs\nencode\n" + get(0) + text("latin1") + b"\x86R") * 1000
    + b"e0",
    "a list as a key of an object": WEIGHT + text("o") + b"cfoo\nbar\n)R](" + b"e" + b"Nss",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_is_never_in_a_checkpoint_is_refused(tmp_path: Path, bomb: str) -> None:
    with pytest.raises(SourceError, match=r"model.pt' (is not a readable torch checkpoint \(a key of|holds more than)"):
        open_checkpoint(saved(tmp_path, BOMBS[bomb]))


def test_an_object_as_a_key_is_written_by_its_kind(tmp_path: Path) -> None:
    body = doubled(b"](", b"e", 39) + WEIGHT + b"cfoo\nbar\n" + get(39) + b"\x85R" + TENSOR + b"s"
    stored = open_checkpoint(saved(tmp_path, body)).stored or ()
    assert [tensor.name for tensor in stored] == ["w.weight", "<foo.bar>"]


def test_a_long_key_above_many_tensors_is_refused(tmp_path: Path) -> None:
    inner = b"".join(text(str(i)) + get(0) for i in range(200))
    with pytest.raises(SourceError, match=r"holds keys too long for names, such as 'aaaa.*\(100000\d characters\)'"):
        open_checkpoint(
            saved(tmp_path, TENSOR + put(0) + b"0}" + text("m") + b"}" + text("a" * 10**6) + b"}(" + inner + b"uss")
        )


@pytest.mark.parametrize("key", ["opt" + "_state_dict" * 60 + "!", "optim_" * 20_000 + "!", "optim" + "1" * 60 + "x"])
def test_keys_beside_the_weights_take_no_time(tmp_path: Path, key: str) -> None:
    torch.save({key: {"w": torch.ones(2)}, "model": {"a.weight": torch.ones(8, 8)}}, tmp_path / "m.pt")
    assert [matrix.name for matrix in open_checkpoint(tmp_path / "m.pt").matrices] == ["a.weight"]
    tensors = {w: SavedTensor((w, "a.weight"), (2, 2), torch.float32, []) for w in (key, "model")}
    assert choose_model(tensors, "here")[0] == {"a.weight": "model"}


def test_more_axes_than_an_array_has_are_left_out(tmp_path: Path) -> None:
    ones = b"(" + b"K\x01" * 70 + b"t"
    tensor = TENSOR.replace(b"K\x04K\x04\x86K\x04K\x01\x86", ones * 2)
    (skipped,) = open_checkpoint(saved(tmp_path, WEIGHT + text("b") + tensor + b"s")).skipped
    assert skipped.reason == "unsupported dtype float32 (70 axes: at most 64 can be read)"
    np.savez(tmp_path / "m.npz", a=np.ones((8, 8)))
    with zipfile.ZipFile(tmp_path / "n.npz", "w") as archive:
        head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'1, ' * 70}), }}"
        head += " " * (63 - (10 + len(head)) % 64) + "\n"
        archive.writestr("b.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(8))
        archive.writestr("a.npy", zipfile.ZipFile(tmp_path / "m.npz").read("a.npy"))
    (skipped,) = open_checkpoint(tmp_path / "n.npz").skipped
    assert skipped.reason == "unsupported dtype float64 (70 axes: at most 64 can be read)"
