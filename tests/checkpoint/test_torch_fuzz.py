"""Damaged and made-up torch files, seeded, read in a child process: a sentence or tensors, and never the process's end.

A few seconds by default; SPECDIAG_FUZZ_SECONDS in the environment says how long to go on.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SpecdiagError

QUERY = "layers.0.self_attn.q_proj.weight"
SECONDS = float(os.environ.get("SPECDIAG_FUZZ_SECONDS", "4"))
BATCH = 150


def written(zipped: bool) -> bytes:
    out = io.BytesIO()
    base = torch.arange(64.0).reshape(8, 8)
    content = {
        "model": {QUERY: base, "turned.weight": base.T, "norm.weight": base[0], "half.weight": base.half()},
        "optimizer": {"state": {0: {"exp_avg": base.clone()}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "sparse": base.to_sparse(),
        "epoch": 3,
    }
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


WHOLE = {zipped: written(zipped) for zipped in (True, False)}


def damaged(chance: random.Random) -> bytes:
    """A real file with some of its bytes changed, cut, doubled or exchanged."""
    content = bytearray(WHOLE[chance.random() < 0.5])
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        content[chance.randrange(len(content))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    if chance.random() < 0.3:
        begin = chance.randrange(len(content))
        del content[begin : begin + chance.randrange(1, 200)]
    if chance.random() < 0.2:
        begin = chance.randrange(len(content))
        content[begin:begin] = content[begin // 2 : begin // 2 + 64]
    return bytes(content[: chance.randrange(1, len(content))] if chance.random() < 0.2 else content)


def number(chance: random.Random) -> bytes:
    value = chance.choice(
        (0, 1, 2, 3, 4, 8, 16, 63, 64, -1, -8, 2**31 - 1, 2**31, 2**33, 2**62, 2**63 - 1, 2**64, 2**4000)
    )
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    odd = chance.choice((b"N", b"\x88", b"]", b")", b"G" + struct.pack(">d", 1.5)))
    return odd if chance.random() < 0.03 else b"\x8b" + struct.pack("<i", len(data)) + data


def text(chance: random.Random) -> bytes:
    word = chance.choice(
        ("w", "1", "model", "state_dict", "ema", "optimizer", QUERY, "exp_avg", "a.b", "", "\u00e9", "x" * 3000)
    )
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def storage(chance: random.Random) -> bytes:
    kind = chance.choice(("Float", "Half", "Byte", "Double", "QInt8", "ComplexFloat", "Untyped", "None"))
    home = "torch.storage" if kind == "Untyped" else "torch"
    key = chance.choice((b"0", b"0", b"0", b"1", b"../0", b""))
    size = b"K@" if chance.random() < 0.7 else number(chance)
    spelt = b"X" + struct.pack("<I", len(key)) + key
    return b"(X\x07\0\0\0storagec" + f"{home}\n{kind}Storage\n".encode() + spelt + b"X\x03\0\0\0cpu" + size + b"tQ"


def numbers(chance: random.Random, length: int) -> bytes:
    return b"(" + b"".join(number(chance) for _ in range(length)) + b"t"


def tensor(chance: random.Random) -> bytes:
    dims = chance.choice((0, 1, 2, 2, 2, 3, 70))
    sizes = numbers(chance, dims)
    steps = numbers(chance, dims if chance.random() < 0.9 else dims + 1)
    if chance.random() < 0.5:
        sizes, steps = b"K\x08K\x08\x86", chance.choice((b"K\x08K\x01\x86", b"K\x01K\x08\x86", b"K\0K\0\x86", steps))
    offset = b"K\0" if chance.random() < 0.6 else number(chance)
    name, tail = chance.choice((
        ("_rebuild_tensor", b""),
        ("_rebuild_tensor_v2", b"\x89}"),
        ("_rebuild_tensor_v3", b"\x89}ctorch\n" + chance.choice((b"float32", b"uint16", b"float8_e5m2", b"qint8")) + b"\n"),
        ("_rebuild_qtensor", b"Nn\x89}"[1:]),
        ("_rebuild_parameter", b""),
        ("_rebuild_nested_tensor", b""),
        ("_rebuild_sparse_tensor", b""),
        ("_rebuild_meta_tensor_no_storage", b"\x89"),
        ("_rebuild_unknown", b"\x89"),
    ))  # fmt: skip
    return b"ctorch._utils\n" + name.encode() + b"\n(" + storage(chance) + offset + sizes + steps + tail + b"tR"


def thing(chance: random.Random, depth: int = 0) -> bytes:
    """Opcodes that put one object on the stack."""
    kind = chance.randrange(14 if depth < 6 else 5)
    inner = lambda: thing(chance, depth + 1)  # noqa: E731
    if kind < 2:
        return tensor(chance)
    if kind < 4:
        return text(chance)
    if kind == 4:
        return number(chance)
    if kind < 9:
        pairs = b"".join(
            (text(chance) if chance.random() < 0.8 else inner()) + inner() for _ in range(chance.randrange(4))
        )
        return chance.choice((b"}(", b"ccollections\nOrderedDict\n)R(", b"ca\nb\n)\x81(")) + pairs + b"u"
    if kind == 9:
        return b"](" + b"".join(inner() for _ in range(chance.randrange(4))) + b"e"
    if kind == 10:  # something that was made before, perhaps what it lies in
        return b"h" + bytes([chance.randrange(4)])
    if kind == 11:
        return b"}q" + bytes([chance.randrange(4)]) + text(chance) + inner() + b"s"
    if kind == 12:
        return (
            b"c"
            + chance.choice((b"os\nsystem", b"builtins\neval", b"torch\nSize", b"builtins\nset"))
            + b"\n"
            + inner()
            + b"\x85R"
        )
    return inner() + chance.choice(
        (b"\x85", b"\x85R", b"}b", b"0N", b"2\x86", b"t", b"s", b"a", b"u", b"\x90", b"\x81")
    )


def made_up(chance: random.Random) -> bytes:
    """A zip file around a pickle that was put together at random."""
    pickled = b"\x80\x02Nq\0q\1q\2q\x030" + thing(chance) + b"."
    if chance.random() < 0.6:
        pickled = b"\x80\x02}q\0q\1q\2q\x03(" + b"".join(text(chance) + thing(chance) for _ in range(3)) + b"u."
    if chance.random() < 0.1:
        pickled = pickle.dumps({"a": [1, {2: 3}], "b": b"\xff"}, protocol=chance.randrange(6))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(256))
        archive.writestr("x/byteorder", chance.choice(("little", "little", "big", "odd")))
    return out.getvalue()


def files(seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(BATCH):
        yield damaged(chance) if chance.random() < 0.4 else made_up(chance)


def read_all(seed: int, folder: Path) -> tuple[int, int]:
    """How many files of a seed were opened, and how many refused."""
    opened = refused = 0
    for place, content in enumerate(files(seed)):
        path = folder / f"{place}.pt"
        path.write_bytes(content)
        sys.stdout.write(f"{place}\n")
        sys.stdout.flush()  # the last line says at which file the process ended
        try:
            checkpoint = open_checkpoint(path)
            for matrix in checkpoint.matrices:
                matrix.tensor.read(None)
            opened += 1
        except SpecdiagError:
            refused += 1
        path.unlink()
    return opened, refused


def test_torch_files_at_random(tmp_path: Path) -> None:
    end, seed, opened = time.monotonic() + SECONDS, 0, 0
    while seed == 0 or time.monotonic() < end:
        command = [sys.executable, __file__, str(seed), str(tmp_path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, (
            f"seed {seed}, file {done.stdout.split()[-1:]}: {done.returncode} {done.stderr[-2000:]}"
        )
        opened += int(done.stdout.split()[-2])
        seed += 1
    assert opened > 0


@pytest.mark.parametrize("seed", [1])
def test_fuzzing_reaches_both_ends(seed: int, tmp_path: Path) -> None:
    opened, refused = read_all(seed, tmp_path)
    assert opened > BATCH // 20
    assert refused > BATCH // 20


if __name__ == "__main__":
    sys.stdout.write("{} {}\n".format(*read_all(int(sys.argv[1]), Path(sys.argv[2]))))
