"""A pickle of torch may name anything, and makes only tensors and plain containers."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import os
import pickle
import struct
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import python

from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.nested import count_tensors
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.torch_archive import open_torch
from specdiag.errors import SourceError

QUERY = "layers.0.self_attn.q_proj.weight"
BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Called:
    """Pickled as a call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Colour(enum.Enum):
    RED = 1


class Options:
    def __init__(self) -> None:
        self.rate = 1e-3


class Attributes(dict[str, torch.Tensor]):
    """A dictionary with a class of its own, as configuration libraries have them."""


def saved(path: Path, content: object, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def handmade(path: Path, pickled: bytes) -> Path:
    """A zip file as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", np.ones(16, np.float32).tobytes())
    return path


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ"


def view(offset: bytes, size: bytes, stride: bytes) -> bytes:
    """A dictionary with one tensor over sixteen values."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + size + stride + b"\x89}tR"
    return b"\x80\x02}X\x01\0\0\0w" + call + b"s."


BESIDE = {
    "numpy scalar": lambda: np.float64(3.0),
    "numpy array": lambda: np.arange(5.0),
    "numpy random state": lambda: np.random.RandomState(0).get_state(),
    "default dictionary": lambda: collections.defaultdict(list, {"a": [1]}),
    "counter": lambda: collections.Counter("aab"),
    "date": lambda: datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "uuid": lambda: uuid.UUID(int=1),
    "enumeration": lambda: Colour.RED,
    "settings": Options,
    "namespace": lambda: argparse.Namespace(lr=1e-3),
    "path": lambda: Path("runs"),
    "set": lambda: {1, "a", (2, 3)},
    "frozen set": lambda: frozenset((1, 2)),
    "bytes": lambda: [b"\xff\0", bytearray(b"ab")],
    "numbers": lambda: [2**5000, 1 + 2j, float("nan"), None, True, -(2**33)],
    "function": lambda: os.path.join,
    "device": lambda: torch.device("cpu"),
    "dtype": lambda: [torch.float32, torch.Size([2, 3])],
    "optimizer": lambda: torch.optim.AdamW([torch.nn.Parameter(torch.zeros(4, 4))]),
    "module": lambda: torch.nn.Linear(4, 4),
}


@BOTH
@pytest.mark.parametrize("kind", BESIDE)
def test_objects_beside_the_weights(tmp_path: Path, kind: str, zipped: bool) -> None:
    weights = torch.arange(16.0).reshape(4, 4)
    content = {"state_dict": {QUERY: weights}, "beside": BESIDE[kind]()}
    checkpoint = open_checkpoint(saved(tmp_path / "x.pt", content, zipped))
    (matrix,) = checkpoint.matrices
    assert torch.equal(matrix.load(), weights)
    assert "left out 2 tensors under 'beside'" if kind == "module" else "left out beside" in checkpoint.notes[0]


class Holder:
    """An object that is no module."""

    tensors: list[torch.Tensor]


def test_tensors_within_an_object_are_counted(tmp_path: Path) -> None:
    held = Holder()
    held.tensors = [torch.ones(4, 4), torch.ones(2)]
    content = {"state_dict": {QUERY: torch.ones(4, 4)}, "net": held}
    notes = open_checkpoint(saved(tmp_path / "x.pt", content)).notes
    assert "net (an object of test_torch_pickles.Holder with 2 tensors)" in notes[0]
    with pytest.raises(SourceError, match=r"an object of test_torch_pickles\.Holder with 2 tensors, not a dictionary"):
        open_checkpoint(saved(tmp_path / "y.pt", held))


@BOTH
def test_dictionary_of_another_class(tmp_path: Path, zipped: bool) -> None:
    held = Attributes({QUERY: torch.ones(4, 4)})
    for content in (held, {"model": held}):
        assert [m.name for m in open_checkpoint(saved(tmp_path / "x.pt", content, zipped)).matrices] == [QUERY]


ATTACKS = {
    "spawn": lambda ran: Called(os.posix_spawn, "/bin/mkdir", ["mkdir", str(ran)], {}),
    "mkdir": lambda ran: Called(os.mkdir, str(ran)),
    "eval": lambda ran: Called(eval, f"__import__('os').mkdir({str(ran)!r})"),
    "exec": lambda ran: Called(exec, f"import os; os.mkdir({str(ran)!r})"),
    "getattr": lambda ran: Called(getattr, Called(__import__, "os"), "mkdir"),
    "import": lambda _: Called(__import__, "antigravity"),
    "popen": lambda ran: Called(subprocess.Popen, ["touch", str(ran)]),
    "nested load": lambda ran: Called(torch.load, str(ran)),
    "nested bytes": lambda ran: Called(pickle.loads, pickle.dumps(Called(os.mkdir, str(ran)))),
    "tensor": lambda _: Called(torch.empty, 10**14),
    "from a file": lambda ran: Called(torch.from_file, str(ran), True, 10),
    "bytes": lambda _: Called(bytearray, 10**14),
    "script": lambda ran: Called(torch.jit.load, str(ran)),
    "open": lambda ran: Called(open, str(ran), "w"),
}


@BOTH
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_called(tmp_path: Path, attack: str, zipped: bool) -> None:
    ran = tmp_path / "ran"
    before = set(sys.modules)
    content = {QUERY: torch.ones(4, 4), "attack": ATTACKS[attack](ran)}
    checkpoint = open_checkpoint(saved(tmp_path / "x.pt", content, zipped))
    assert [matrix.name for matrix in checkpoint.matrices] == [QUERY]
    assert "were not made, and nothing was run" in checkpoint.notes[-1]
    assert not ran.exists()
    assert not {name for name in set(sys.modules) - before if name == "antigravity"}


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "torch\nload",
        "torch._dynamo\nrun",
        "specdiag.checkpoint.inert_unpickler\nInertUnpickler",
        "a.b\nc.d.e",
    ],
)
@pytest.mark.parametrize("call", [b"(tR", b")\x81", b"(t}\x92", b"(tR}b", b"(tR(K\x01K\x02u", b"(tRK\x01a"])
def test_names_are_never_looked_up(tmp_path: Path, name: str, call: bytes) -> None:
    """Each way in which a pickle makes an object, of modules that are not there and some that are."""
    path = handmade(tmp_path / "x.pt", b"\x80\x02c" + name.encode() + b"\n" + call + b".")
    before = set(sys.modules)
    opened = open_torch(path, "x")
    assert isinstance(opened.content, Inert)
    assert opened.foreign == (name.replace("\n", "."),)
    assert {module for module in set(sys.modules) - before if not module.startswith("encodings.")} == set()


@pytest.mark.parametrize(
    "pickled",
    [
        b"(ios\nsystem\n.",  # INST
        b"(cos\nsystem\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.",  # STACK_GLOBAL
    ],
)
def test_old_and_new_ways_to_make_objects(tmp_path: Path, pickled: bytes) -> None:
    assert open_torch(handmade(tmp_path / "x.pt", pickled), "x").foreign == ("os.system",)


REFUSED = {
    "a registered class": b"\x80\x02\x82\x01.",
    "a call of a number": b"\x80\x02K\x01(tR.",
    "a call of a type": b"\x80\x02ctorch\nfloat32\n(tR.",
    "a call of a storage's class": b"\x80\x02ctorch\nFloatStorage\nK\x0a\x85R.",
    "arguments that are a number": b"\x80\x02ctorch\nSize\nK\x01R.",
    "a state for a known function": b"\x80\x02ctorch\nSize\n}X\x04\0\0\0nameK\x01sb.",
    "a state for a tensor": view(b"K\0", b"K\x04\x85", b"K\x01\x85")[:-2] + b"}bs.",
    "an item for a tensor": view(b"K\0", b"K\x04\x85", b"K\x01\x85")[:-2] + b"K\0K\x01ss.",
    "a storage that is none": b"\x80\x02(X\x06\0\0\0moduleK\x01K\x01K\x01K\x01tQ.",
    "a storage by text": b"Pname\n.",
    "a storage outside": STORAGE.replace(b"X\x01\0\0\x000", b"X\x05\0\0\x00../.."),
    "a storage that is longer": STORAGE.replace(b"K\x10", b"K\x11") + b".",
    "a storage of a negative size": STORAGE.replace(b"K\x10", b"J\xff\xff\xff\xff") + b".",
    "an encoding that runs": b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86R.",
    "elements for a number": b"\x80\x02K\x01K\x02a.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02R.",
    "a memory that was not filled": b"\x80\x02h\x07.",
    "a length beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"ab.",
    "bytes to change of any length": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"ab.",
    "a frame of any length": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N",
    "a negative offset": view(b"J\xff\xff\xff\xff", b"K\x04\x85", b"K\x01\x85"),
    "an offset beyond the storage": view(b"K\x0d", b"K\x04\x85", b"K\x01\x85"),
    "an offset beyond memory": view(b"\x8a\x08" + struct.pack("<q", 2**62), b"K\x04\x85", b"K\x01\x85"),
    "a stride beyond the storage": view(b"K\0", b"K\x02K\x02\x86", b"M\0\x10K\x01\x86"),
    "a negative stride": view(b"K\x0f", b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
    "sizes that overflow": view(b"K\0", b"(" + (b"\x8a\x05" + struct.pack("<q", 2**33)[:5]) * 2 + b"t", b"K\0K\0\x86"),
    "more sizes than strides": view(b"K\0", b"K\x02K\x02\x86", b"K\x01\x85"),
    "a size that is no number": view(b"K\0", b"N\x85", b"K\x01\x85"),
    "a size that is truth": view(b"K\0", b"\x88\x85", b"K\x01\x85"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pickles_that_are_refused(tmp_path: Path, case: str) -> None:
    path = handmade(tmp_path / "x.pt", REFUSED[case])
    with pytest.raises(SourceError, match=r"x.pt' is not a readable torch checkpoint \(.*\): fetch it again"):
        open_checkpoint(path)


def test_views_that_fit_are_read(tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.pt", view(b"K\x01", b"K\x02K\x04\x86", b"K\x04K\x01\x86"))
    assert open_checkpoint(path).matrices[0].shape == (2, 4)


def test_repeated_values_over_nothing(tmp_path: Path) -> None:
    """A small file claims 2**58 values."""
    big = b"\x8a\x05" + struct.pack("<q", 2**29)[:5]
    path = handmade(tmp_path / "x.pt", view(b"K\0", b"(" + big + big + b"t", b"K\0K\0\x86"))
    (skipped,) = open_checkpoint(path).skipped
    assert skipped.reason == "a view that repeats 64 stored bytes to 1152921504606846976"


def test_tuples_nested_as_keys(tmp_path: Path) -> None:
    """Hashing a tuple nested so deeply would end the process."""
    for pickled in (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", b"\x80\x04()" + b"\x85" * 200_000 + b"\x91."):
        code = "import sys; from pathlib import Path; from specdiag.checkpoint.torch_archive import open_torch\n"
        code += "try: open_torch(Path(sys.argv[1]), 'x')\nexcept Exception as error: print(type(error).__name__, error)"
        path = handmade(tmp_path / "x.pt", pickled)
        done = python(code, path)
        assert done.stdout.startswith("SourceError")
        assert "a key of the type tuple" in done.stdout


def test_calls_within_calls(tmp_path: Path) -> None:
    """Each is the argument of the next, 200,000 deep."""
    deep = b"\x80\x02ca\nb\nq\0)R" + b"\x85q\x01" + b"0h\0h\x01R\x85q\x01" * 200_000 + b"0h\0h\x01R."
    opened = open_torch(handmade(tmp_path / "x.pt", deep), "x")
    assert isinstance(opened.content, Inert)
    assert count_tensors(opened.content) == 0


def test_lines_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02I" + b"1" * (3 << 20))
    with pytest.raises(SourceError, match=r"x\.pt' is not a readable torch checkpoint"):
        open_checkpoint(path)


@BOTH
def test_values_of_every_type(tmp_path: Path, zipped: bool) -> None:
    state = {
        str(kind): torch.arange(12).to(kind).reshape(3, 4)
        for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint16, torch.int64, torch.bool)
    }
    state |= {
        "complex": torch.ones(2, 2, dtype=torch.complex64).conj(),
        "fp8": torch.ones(4, 4).to(torch.float8_e4m3fn),
    }
    base = torch.arange(24.0).reshape(4, 6)
    state |= {"turned": base.T, "part": base[1:, 2:4], "step": base[:, ::2], "parameter": torch.nn.Parameter(base)}
    marked = torch.nn.Parameter(base.clone())
    marked.mark = 3  # pyright: ignore[reportAttributeAccessIssue]
    state |= {"marked": marked, "imaginary": torch.complex(base, base).conj().imag}
    content: Any = open_torch(saved(tmp_path / "x.pt", state, zipped), "x").content
    assert list(content) == list(state)
    for name, tensor in state.items():
        assert torch.equal(content[name], tensor), name
        assert content[name].dtype == tensor.dtype
        assert content[name].is_neg() == tensor.is_neg()


def test_storages_that_are_shared_stay_shared(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    saved(tmp_path / "x.pt", {"embed.weight": base, "head.weight": base})
    assert [s.reason for s in open_checkpoint(tmp_path / "x.pt").skipped] == ["tied to embed.weight"]


@BOTH
def test_opening_copies_nothing_back(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "x.pt", {QUERY: torch.ones(4, 4)}, zipped)
    before = path.read_bytes()
    content: Any = open_torch(path, "x").content
    content[QUERY].fill_(7)
    assert path.read_bytes() == before


def test_bytes_in_the_order_of_another_processor(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    source = zipfile.ZipFile(saved(tmp_path / "little.pt", {QUERY: torch.arange(16.0).reshape(4, 4)}))
    with source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            if name.endswith("data/0"):
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            target.writestr(name, data)
    assert torch.equal(open_checkpoint(path).matrices[0].load(), torch.arange(16.0).reshape(4, 4))


def test_damaged_pickle_in_a_whole_archive(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {QUERY: torch.ones(4, 4)})
    content = bytearray(path.read_bytes())
    content[content.find(QUERY.encode())] ^= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"the checksum of .*data\.pkl' is another one"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_comes_twice(tmp_path: Path) -> None:
    path = handmade(tmp_path / "x.pt", view(b"K\0", b"K\x02K\x04\x86", b"K\x04K\x01\x86"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
    with pytest.raises(SourceError, match=r"a damaged zip archive \(two members 'x/data\.pkl'\)"):
        open_checkpoint(path)


def test_files_of_python_2(tmp_path: Path) -> None:
    """Text was bytes then."""
    storage = (
        STORAGE.replace(b"X\x07\0\0\0", b"U\x07").replace(b"X\x01\0\0\x00", b"U\x01").replace(b"X\x03\0\0\0", b"U\x03")
    )
    pickled = (
        view(b"K\0", b"K\x02K\x04\x86", b"K\x04K\x01\x86").replace(STORAGE, storage).replace(b"X\x01\0\0\0w", b"U\x01w")
    )
    assert [m.name for m in open_checkpoint(handmade(tmp_path / "x.pt", pickled)).matrices] == ["w"]


@pytest.mark.parametrize("nested", [True, False])
def test_arrays_of_numpy_are_named(tmp_path: Path, nested: bool) -> None:
    arrays = {QUERY: np.ones((4, 4), "f4"), "norm.weight": np.ones(4, "f4")}
    content = {"model": arrays, "step": 3} if nested else arrays
    sentence = r"holds 2 arrays of numpy and no tensors: save them with numpy.savez, whose .npz is read"
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path / "x.pt")
    (tmp_path / "y.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path / "y.pkl")
