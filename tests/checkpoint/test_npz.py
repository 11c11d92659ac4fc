"""Archives of numpy.savez, against numpy itself; nothing in them is unpickled."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from models import queries

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

RNG = np.random.default_rng(0)
ARRAYS = {
    "layers/0/attn/q/kernel": RNG.standard_normal((6, 4)),
    "big_endian": RNG.standard_normal((3, 5)).astype(">f4"),
    "fortran": np.asfortranarray(RNG.standard_normal((5, 3)).astype("f4")),
    "half": RNG.standard_normal((2, 3, 4)).astype("f2"),
    "ids": np.arange(6).reshape(2, 3),
    "scalar": np.float32(3),
    "empty": np.zeros((0, 4), "f4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path: Path, save: type[np.savez]) -> None:
    path = tmp_path / "model.npz"
    save(path, **ARRAYS)
    for source in (path, tmp_path):
        found = {tensor.name: tensor for tensor in open_checkpoint(source).stored or ()}
        assert set(found) == {name.replace("/", ".") for name in ARRAYS}
        for name, array in ARRAYS.items():
            values = found[name.replace("/", ".")].read(None)
            np.testing.assert_array_equal(values, array)
            assert values.dtype.isnative
            assert values.flags.c_contiguous
            if array.ndim and len(array):
                np.testing.assert_array_equal(found[name.replace("/", ".")].read(1), array[1])


def test_objects_are_left_out(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "m.npz", w=np.ones((4, 4)), o=np.array([{}, 1], object), t=np.array(["a"]), r=np.zeros(2, "f4,i4")
    )
    checkpoint = open_checkpoint(tmp_path / "m.npz")
    assert [matrix.name for matrix in checkpoint.matrices] == ["w"]
    reasons = {skipped.name: skipped.reason for skipped in checkpoint.skipped}
    assert reasons["o"] == "unsupported dtype object (Python objects, which are never unpickled)"
    assert reasons["t"] == "unsupported dtype <U1"
    assert reasons["r"].startswith("unsupported dtype [('f0'")


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_names_beyond_latin_letters(tmp_path: Path) -> None:
    """numpy writes the headers of such arrays in format 3.0."""
    record = np.zeros(2, [("größe_ж", "f4"), ("длина", "f4")])
    np.savez(tmp_path / "m.npz", w=np.ones((4, 4)), r=record)
    checkpoint = open_checkpoint(tmp_path / "m.npz")
    assert [matrix.name for matrix in checkpoint.matrices] == ["w"]
    (left,) = checkpoint.skipped
    assert (left.name, left.reason) == ("r", f"unsupported dtype {record.dtype}")


def test_an_archive_makes_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((4, 4)))
    assert open_checkpoint(tmp_path).source.files == ("data.npz",)
    (tmp_path / "train.py").touch()
    with pytest.raises(SourceError, match=r"name it, as with file=data.npz"):
        open_checkpoint(tmp_path)
    assert len(open_checkpoint(tmp_path, file="data.npz").matrices) == 1
    (tmp_path / "train.py").unlink()
    (tmp_path / "checkpoint-5").mkdir()
    np.savez(tmp_path / "checkpoint-5" / "model.npz", x=np.ones((4, 4)))
    (tmp_path / "checkpoint-5" / "model.pt").touch()
    with pytest.raises(SourceError, match="holds weights only in its folders checkpoint-5"):
        open_checkpoint(tmp_path)


def header(text: str) -> bytes:
    data = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data


LIES = {
    "a size beyond the file": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 8)}") + b"\0" * 64,
    "a negative size": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 4)}") + b"\0" * 64,
    "no header": b"hello",
    "an expression": header("__import__('os').system('true')"),
    "a type that is none": header("{'descr': 'zz', 'fortran_order': False, 'shape': (4,)}"),
    "letters that are none": b"\x93NUMPY\x03\x00" + struct.pack("<I", 4) + b"\xff\xfe\xfd\n",
    "a long header": b"\x93NUMPY\x03\x00" + struct.pack("<I", 1 << 31) + b"\0" * 64,
    "a header cut short": b"\x93NUMPY\x03\x00\x01",
    "another version": b"\x93NUMPY\x09\x00" + b"\0" * 64,
    "deep nesting": header("(" * 5000 + ")" * 5000),
}


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie(tmp_path: Path, case: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("w.npy", LIES[case])
    with pytest.raises(SourceError, match=r"is not a readable \.npz archive"):
        open_checkpoint(tmp_path / "m.npz")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, **queries(1, 64, 64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (matrix,) = open_checkpoint(path).matrices
    with pytest.raises(SourceError, match=r"is not a readable \.npz archive"):
        matrix.load()


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((4, 4)))
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a/w.npy", buffer.getvalue())
        archive.writestr("a.w.npy", buffer.getvalue())
    with pytest.raises(SourceError, match=r"holds two arrays of the name 'a.w'"):
        open_checkpoint(tmp_path / "m.npz")
