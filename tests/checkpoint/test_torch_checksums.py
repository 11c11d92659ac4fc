"""Bytes of a torch archive that are not those that were saved: no number is computed from them without a word."""

import zipfile
from pathlib import Path

import pytest
import torch

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

NAME = "layers.{}.self_attn.q_proj.weight"


def flip(path: Path, n_bytes: int, at: float = 0.5) -> None:
    """Change one bit of the first member of a size."""
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.file_size == n_bytes)
    data = bytearray(path.read_bytes())
    begin = (
        entry.header_offset + 30 + int.from_bytes(data[entry.header_offset + 26 : entry.header_offset + 28], "little")
    )
    begin += int.from_bytes(data[entry.header_offset + 28 : entry.header_offset + 30], "little")
    data[begin + int(at * n_bytes)] ^= 4
    path.write_bytes(data)


def test_one_flipped_bit_is_one_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({NAME.format(0): torch.randn(64, 64), NAME.format(1): torch.randn(64, 80)}, path)
    clean = specdiag.analyze(tmp_path, jobs=1)
    flip(path, 4 * 64 * 80)
    found = specdiag.analyze(tmp_path, jobs=1)
    assert [record.status for record in found.records] == [clean.records[0].status, "failed"]
    assert found.records[0] == clean.records[0]
    matrix = open_checkpoint(tmp_path).matrices[1]
    with pytest.raises(
        SourceError, match=r"pytorch_model.bin' is damaged at 'layers.1.self_attn.q_proj.weight': .*data/1"
    ):
        matrix.load()


@pytest.mark.parametrize("at", [0.0, 0.999])
@pytest.mark.parametrize(
    "make",
    [
        lambda base: {"a.q_proj.weight": base.T},
        lambda base: {"a.q_proj.weight": base[1:], "b.q_proj.weight": base[:2]},
        lambda base: {"model.layers.0.mlp.experts.down_proj": base.view(4, 20, 32)},
    ],
    ids=["transposed", "two views", "stack"],
)
def test_views_of_a_damaged_storage(tmp_path: Path, make: object, at: float) -> None:
    """Some of them do not show the changed byte; who reads a part learns of the whole."""
    torch.save(make(torch.randn(80, 32)), tmp_path / "x.pt")
    assert all(m.load().numel() for m in open_checkpoint(tmp_path / "x.pt").matrices)
    flip(tmp_path / "x.pt", 4 * 80 * 32, at)
    matrices = open_checkpoint(tmp_path / "x.pt").matrices
    assert matrices
    for matrix in matrices:
        with pytest.raises(SourceError, match="do not fit the checksum"):
            matrix.load()


def test_members_that_are_not_aligned(tmp_path: Path) -> None:
    """They are copied when the file is opened, and compared then."""
    torch.save({"a.weight": torch.randn(33, 32)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(zipfile.ZipInfo(entry.filename.removesuffix("/")), old.read(entry))
    flip(tmp_path / "y.pt", 4 * 33 * 32)
    with pytest.raises(SourceError, match=r"y.pt'.*checksum"):
        open_checkpoint(tmp_path / "y.pt").matrices[0].load()


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="an older torch always saves them")
def test_files_saved_without_checksums(tmp_path: Path) -> None:
    weight = torch.randn(8, 8)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a.weight": weight}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(open_checkpoint(tmp_path / "x.pt").matrices[0].load(), weight)
