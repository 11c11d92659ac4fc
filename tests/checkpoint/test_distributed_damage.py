"""Distributed checkpoints that are damaged, incomplete or hostile: one sentence that names the tensor or the file."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_files import change_metadata, save_chunks
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

NAME = "layers.0.mlp.up_proj.weight"
VALUES = torch.arange(48.0).reshape(8, 6)
HALVES = [((0, 0), (4, 6)), ((4, 0), (4, 6))]


def halves(tmp_path: Path) -> Path:
    return save_chunks(tmp_path / "a", {NAME: VALUES}, {NAME: HALVES})


def chunks_of(metadata: Metadata) -> list[ChunkStorageMetadata]:
    return metadata.state_dict_metadata[NAME].chunks  # pyright: ignore[reportAttributeAccessIssue]


def info_of(metadata: Metadata) -> Any:
    return metadata.storage_data[MetadataIndex(NAME, torch.Size([4, 0]))]


def rename(metadata: Metadata, path: str) -> None:
    info_of(metadata).relative_path = path


CHANGES: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "a chunk less": (lambda m: chunks_of(m).pop(), f"'{NAME}' of shape [8, 6] in 1 chunks, and its chunks leave gaps"),
    "a chunk twice": (lambda m: chunks_of(m).append(chunks_of(m)[0]), "in 3 chunks, and its chunks overlap"),
    "a larger tensor": (lambda m: setattr(m.state_dict_metadata[NAME], "size", torch.Size([9, 6])), "leave gaps"),
    "a smaller tensor": (lambda m: setattr(m.state_dict_metadata[NAME], "size", torch.Size([7, 6])), "reach beyond it"),
    "an enormous chunk": (
        lambda m: setattr(chunks_of(m)[1], "sizes", torch.Size([1 << 30, 1 << 20])),
        f"bytes for the chunk of '{NAME}' at [4, 0], which has {1 << 52}: it is damaged",
    ),
    "a negative size": (lambda m: setattr(chunks_of(m)[1], "sizes", torch.Size([-4, 6])), "no readable metadata"),
    "nothing stored": (lambda m: m.storage_data.clear(), f"names no file for the chunk of '{NAME}' at [0, 0]"),
    "a longer file": (lambda m: setattr(info_of(m), "length", 10**6), "it was cut short, or is of another save"),
    "a parent": (lambda m: rename(m, "../a/__1_0.distcp"), "names '../a/__1_0.distcp', no file inside its own folder"),
    "an absolute path": (lambda m: rename(m, "/etc/passwd"), "names '/etc/passwd', no file inside its own folder"),
    "a NUL": (lambda m: rename(m, "a\0b"), "no file inside its own folder"),
    "another file": (lambda m: rename(m, "__7_0.distcp"), "lacks __7_0.distcp, which its .metadata names: fetch it again"),
    "no name": (lambda m: rename(m, None), "no readable metadata"),  # pyright: ignore[reportArgumentType]
    "no tensors": (lambda m: m.state_dict_metadata.clear(), "is a distributed checkpoint without tensors"),
    "no dictionary": (lambda m: setattr(m, "storage_data", [1]), "a list in the place of a dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_metadata(tmp_path: Path, name: str) -> None:
    folder = halves(tmp_path)
    change, sentence = CHANGES[name]
    change_metadata(folder, change)
    with pytest.raises(SourceError) as error:
        open_checkpoint(folder)
    assert sentence in str(error.value)


def reading(folder: Path) -> np.ndarray[Any, Any]:
    (tensor,) = open_checkpoint(folder).stored or ()
    return tensor.read(None)


def move(metadata: Metadata) -> None:
    info_of(metadata).offset += 1
    info_of(metadata).length -= 1


def replaced(value: Any) -> Callable[[Path], object]:
    """Write something else in the place of the second chunk."""

    def replace(folder: Path) -> None:
        stream = io.BytesIO()
        torch.save(value, stream)
        path = folder / "__1_0.distcp"
        path.write_bytes(stream.getvalue())
        change_metadata(folder, lambda m: setattr(info_of(m), "length", path.stat().st_size))

    return replace


def flip(folder: Path) -> None:
    path = folder / "__1_0.distcp"
    data = bytearray(path.read_bytes())
    place = data.index(VALUES[4:].numpy().tobytes())
    data[place + 8] ^= 1
    path.write_bytes(data)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("/tmp/specdiag-must-not-exist",))


ITEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another offset": (lambda folder: change_metadata(folder, move), "no file of torch.save lies there"),
    "another shape": (replaced(VALUES[3:].clone()), "a tensor of shape 5x6 lies there: fetch it again"),
    "another type": (replaced(VALUES[4:].half().repeat(1, 1)), "values of type F16 lie there"),
    "a dictionary": (replaced({"a": VALUES}), "no plain tensor"),
    "a program": (replaced(Runs()), "no plain tensor"),
    "a flipped bit": (flip, "its bytes do not fit the checksum of 'archive/data/0'"),
    "zeros": (lambda folder: (folder / "__1_0.distcp").write_bytes(bytes(5000)), "no file of torch.save lies there"),
}


@pytest.mark.parametrize("name", ITEMS)
def test_damaged_chunks(tmp_path: Path, name: str) -> None:
    folder = halves(tmp_path)
    assert np.array_equal(reading(folder), VALUES.numpy())
    change, sentence = ITEMS[name]
    change(folder)
    with pytest.raises(SourceError) as error:
        reading(folder)
    assert f"should hold '{NAME}' (F32 of shape 4x6 at 4x0), and " in str(error.value)
    assert sentence in str(error.value)
    assert not Path("/tmp/specdiag-must-not-exist").exists()


def test_a_file_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    folder = halves(tmp_path)
    (tensor,) = open_checkpoint(folder).stored or ()
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(SourceError, match=r"should hold .* and it is not readable \(\[Errno 2\] No such file"):
        tensor.read(None)


def test_links(tmp_path: Path) -> None:
    """A link within the folder is followed, one out of it is not; the hub's cache consists of links to its blobs."""
    folder = halves(tmp_path)
    part = folder / "__1_0.distcp"
    part.rename(folder / "real")
    part.symlink_to("real")
    assert np.array_equal(reading(folder), VALUES.numpy())
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(folder.iterdir()):
        (blobs / str(i)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blobs / str(i))
    assert np.array_equal(reading(snapshot), VALUES.numpy())
    part.unlink()
    (folder / "real").rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"__1_0\.distcp' is a link that leads out of its folder"):
        open_checkpoint(folder)
    part.unlink()
    part.symlink_to(part)
    with pytest.raises(SourceError, match=r"lacks __1_0\.distcp"):
        open_checkpoint(folder)


def test_compression_is_refused(tmp_path: Path) -> None:
    folder = halves(tmp_path)
    change_metadata(folder, lambda m: setattr(info_of(m), "transform_descriptors", ["stream.zstd"]))
    with pytest.raises(
        SourceError, match=r"was transformed when it was saved \(\['stream.zstd'\]\), which is not support"
    ):
        open_checkpoint(folder)


def test_many_chunks_over_the_same_bytes(tmp_path: Path) -> None:
    """A small file cannot claim to be a large tensor."""
    folder = halves(tmp_path)

    def claim(metadata: Metadata) -> None:
        entry: Any = metadata.state_dict_metadata[NAME]
        entry.size = torch.Size([4000, 6])
        entry.chunks[:] = [ChunkStorageMetadata(torch.Size([4 * i, 0]), torch.Size([4, 6])) for i in range(1000)]
        info = info_of(metadata)
        metadata.storage_data = {MetadataIndex(NAME, chunk.offsets): info for chunk in entry.chunks}

    change_metadata(folder, claim)
    with pytest.raises(SourceError, match="it was cut short, or is of another save"):
        open_checkpoint(folder)


def test_a_long_path_that_every_tensor_shares(tmp_path: Path) -> None:
    """It is not followed: the flat names stand."""
    folder = halves(tmp_path)

    def nest(metadata: Metadata) -> None:
        entry, path = metadata.state_dict_metadata.pop(NAME), tuple("x" * 100_000)
        metadata.state_dict_metadata = {f"optimizer.{i}": entry for i in range(20_000)} | {NAME: entry}
        metadata.planner_data = dict.fromkeys(metadata.state_dict_metadata, path)

    change_metadata(folder, nest)
    assert np.array_equal(reading(folder), VALUES.numpy())


def test_many_tensors_that_share_their_chunks(tmp_path: Path) -> None:
    folder = halves(tmp_path)

    def share(metadata: Metadata) -> None:
        entry: Any = metadata.state_dict_metadata[NAME]
        entry.chunks *= 1000
        metadata.state_dict_metadata = dict.fromkeys((f"layers.{i}.weight" for i in range(1000)), entry)

    change_metadata(folder, share)
    with pytest.raises(SourceError, match="holds more than 600000 chunks"):
        open_checkpoint(folder)


HOSTILE = {
    "a call": pickle.dumps(Runs()),
    "a count": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",
    "a memo": b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b".",
    "depth": b"\x80\x04" + b"(" * 1_000_000 + b".",
    "objects": b"\x80\x04" + b"}" * 5_000_000 + b".",
    "nothing": b"\x80\x04N.",
    "cut": b"\x80\x04\x95",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(tmp_path: Path, name: str) -> None:
    head = b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n0"
    (tmp_path / ".metadata").write_bytes(head + HOSTILE[name][2:])
    tracemalloc.start()
    try:
        with pytest.raises(SourceError):
            open_checkpoint(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert not Path("/tmp/specdiag-must-not-exist").exists()


def test_a_stream_with_a_large_directory_is_refused(tmp_path: Path) -> None:
    folder = halves(tmp_path)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"archive/{i:060d}", b"")
    (folder / "__1_0.distcp").write_bytes(stream.getvalue())
    change_metadata(folder, lambda m: setattr(info_of(m), "length", len(stream.getvalue())))
    with pytest.raises(SourceError, match=r"a directory or pickle of \d+ bytes\)"):
        reading(folder)


def test_what_is_no_metadata_of_torch(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_text("a: 1\n")
    with pytest.raises(SourceError, match=r"\.metadata' is a text file, not weights"):
        open_checkpoint(tmp_path)
