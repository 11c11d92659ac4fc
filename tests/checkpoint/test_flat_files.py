"""Files of plain state dicts are listed without torch as they are with it, whole and damaged."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from specdiag.checkpoint.flat_file import list_flat_file
from specdiag.checkpoint.flat_pickle import read_flat
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_file import list_torch_file
from specdiag.errors import SourceError

TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def module() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Conv2d(2, 3, 2), nn.BatchNorm1d(3), nn.LayerNorm(3))


def tied() -> dict[str, torch.Tensor]:
    table = torch.randn(6, 4)
    return {"embed.weight": table, "head.weight": table, "again.weight": table.view(6, 4), "norm.weight": torch.ones(4)}


FLAT = {
    "module": lambda: module().state_dict(),
    "dictionary": lambda: dict(module().state_dict()),
    "types": lambda: {f"w.{t}": torch.randint(0, 2, (3, 2)).to(t) for t in TYPES},
    "tied": tied,
    "one": lambda: {"weight": torch.randn(3, 2)},
    "one of many": lambda: OrderedDict((f"layers.{i}.weight", torch.randn(2)) for i in range(1001)),
    "two batches": lambda: {f"layers.{i}.weight": torch.randn(1) for i in range(2000)},
    "axes": lambda: {str(n): torch.randn([2] * n) for n in range(9)},
    "long": lambda: {"a": torch.zeros(70_000), "b": torch.zeros(300, 300), "c": torch.zeros(1, 1)},
    "gradients": lambda: {"w": torch.randn(3, 3, requires_grad=True)},
}
OTHER = {
    "view": lambda: {"w": torch.randn(4, 3).T},
    "part": lambda: {"w": torch.randn(8)[2:6]},
    "rows": lambda: {"w": torch.randn(8, 2)[:4]},
    "empty": lambda: {"w": torch.zeros(0, 3), "v": torch.zeros(2)},
    "nothing": dict,
    "nested": lambda: {"model": {"w": torch.randn(2, 2)}, "step": 3},
    "number": lambda: {"w": torch.randn(2, 2), "step": 3},
    "parameter": lambda: {"w": nn.Parameter(torch.randn(2, 2))},
    "complex": lambda: {"w": torch.randn(2, 2, dtype=torch.complex64)},
    "codes": lambda: {"w": torch.randn(2, 2).to(torch.float8_e4m3fn)},
    "sparse": lambda: {"w": torch.eye(3).to_sparse()},
    "letters": lambda: {"w\u00e9": torch.randn(2, 2)},
    "key": lambda: {1: torch.randn(2, 2)},
    "tensor": lambda: torch.randn(2, 2),
    "list": lambda: [torch.randn(2, 2)],
}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def told(tensor: StoredTensor) -> tuple[object, ...]:
    return (tensor.name, tensor.shape, tensor.dtype, tensor.nbytes, tensor.file, tensor.reason, tensor.values)


def agree(path: Path) -> int | None:
    """Compare both readers, and return the number of tensors; None where the file is not flat."""
    flat = list_flat_file(path, "model.pt")
    if flat is None:
        return None
    other = list_torch_file(path, "model.pt")
    assert [told(tensor) for tensor in flat.tensors] == [told(tensor) for tensor in other.tensors]
    assert (flat.notes, flat.config) == (other.notes, other.config)
    for one, two in zip(flat.tensors, other.tensors, strict=True):
        np.testing.assert_array_equal(one.read(None), two.read(None))
        assert one.read(None).dtype == two.read(None).dtype
        if one.shape:
            np.testing.assert_array_equal(one.read(one.shape[0] - 1), two.read(one.shape[0] - 1))
    assert shared(flat.tensors) == shared(other.tensors)
    return len(flat.tensors)


def shared(tensors: list[StoredTensor]) -> list[int]:
    """Give each tensor the place of the first one with its values."""
    places = [tensor.storage for tensor in tensors]
    return [i if place is None else places.index(place) for i, place in enumerate(places)]


@pytest.mark.parametrize("name", FLAT)
def test_plain_state_dicts_are_listed_as_with_torch(name: str, tmp_path: Path) -> None:
    content = FLAT[name]()
    assert agree(saved(content, tmp_path / "model.pt")) == len(content)


@pytest.mark.parametrize("name", OTHER)
def test_everything_else_is_left_to_torch(name: str, tmp_path: Path) -> None:
    assert list_flat_file(saved(OTHER[name](), tmp_path / "model.pt"), "model.pt") is None


def test_the_legacy_format_is_left_to_torch(tmp_path: Path) -> None:
    torch.save(tied(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert list_flat_file(tmp_path / "model.pt", "model.pt") is None


def test_listing_a_plain_file_does_not_import_torch(tmp_path: Path) -> None:
    saved(tied(), tmp_path / "model.pt")
    code = (
        "import sys; from pathlib import Path; from specdiag.checkpoint.formats import list_file; "
        f"listing = list_file(Path({str(tmp_path / 'model.pt')!r}), 'model.pt'); "
        "print(len(listing.tensors), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["4", "False"]


def test_tensors_of_two_files_share_nothing(tmp_path: Path) -> None:
    one, two = (list_flat_file(saved(tied(), tmp_path / name), name) for name in ("a.pt", "b.pt"))
    assert one is not None
    assert two is not None
    assert shared(one.tensors + two.tensors) == [0, 0, 0, 3, 4, 4, 4, 7]


def test_an_optimizer_is_refused_by_its_names(tmp_path: Path) -> None:
    path = saved({"exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(2, 2)}, tmp_path / "model.pt")
    for read in (list_flat_file, list_torch_file):
        with pytest.raises(SourceError, match="an optimizer's state"):
            read(path, "model.pt")


def test_a_changed_value_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = saved({"w": torch.arange(600.0).view(2, 300)}, tmp_path / "model.pt")
    data = path.read_bytes()
    place = data.index(torch.arange(600.0).numpy().tobytes())
    path.write_bytes(data[: place + 8] + b"\x7f" + data[place + 9 :])
    listing = list_flat_file(path, "model.pt")
    assert listing is not None
    for index in (None, 1):
        with pytest.raises(SourceError, match="is damaged at 'w'"):
            listing.tensors[0].read(index)


def test_a_file_that_was_cut_meanwhile_is_named(tmp_path: Path) -> None:
    path = saved(tied(), tmp_path / "model.pt")
    listing = list_flat_file(path, "model.pt")
    assert listing is not None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="was cut short or replaced meanwhile"):
        listing.tensors[0].read(None)


def members(content: object) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, held: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


def test_values_of_another_byte_order_are_left_to_torch(tmp_path: Path) -> None:
    held = members(tied())
    assert agree(pack(tmp_path / "model.pt", held)) == 4
    assert list_flat_file(pack(tmp_path / "model.pt", held | {"archive/byteorder": b"big"}), "model.pt") is None
    del held["archive/byteorder"]
    assert agree(pack(tmp_path / "model.pt", held)) == 4


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_pickle_is_never_read_otherwise_than_by_the_careful_reader(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    held = members(module().state_dict() if seed % 2 else tied())
    plain, n_flat = held["archive/data.pkl"], 0
    opcodes = b"hjqrKMJX(t\x85\x86\x87RQ)\x89\x88N.}]usbae0210\x00\x01\x02\x03\x04"
    for _ in range(300):
        data = bytearray(plain)
        for _ in range(draw.randrange(1, 3)):
            at = draw.randrange(len(data))
            match draw.randrange(4):
                case 0:
                    data[at] = draw.choice(opcodes)
                case 1:
                    data.insert(at, draw.choice(opcodes))
                case 2:
                    del data[at]
                case _:
                    data[at] = (data[at] + draw.choice((-1, 1))) % 256
        if read_flat(bytes(data)) is not None:
            n_flat += agree(pack(tmp_path / "model.pt", held | {"archive/data.pkl": bytes(data)})) is not None
    assert n_flat, "no change was harmless: nothing was compared"


def test_a_number_for_a_giant_memory_is_left_alone() -> None:
    data = members({"w": torch.ones(2, 2)})["archive/data.pkl"]
    assert read_flat(data) is not None
    end = data.rindex(b"Rq")
    for number, is_read in ((b"\x00\x00\x3f\x00", True), (b"\xff\xff\xff\xff", False)):
        assert (read_flat(data[: end + 1] + b"r" + number + data[end + 3 :]) is not None) == is_read
