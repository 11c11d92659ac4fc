"""GGUF headers that lie, and files that are damaged."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from fuzzing import opens_or_says_why
from gguf_writer import ARRAY, QUERY, STRING, U64, entry, floats, header, model, quantised, text, value, write
from hypothesis import given, settings
from hypothesis import strategies as st

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

GOOD = model(
    {QUERY: quantised(4, 32), "blk.0.attn_norm.weight": floats(8), "blk.0.attn_k.weight": floats(8, 4)},
    {"general.architecture": "llama", "llama.attention.head_count": [2, 2], "tokenizer.ggml.tokens": ["a", "b", "c"]},
)


def one(shape: tuple[int, ...] = (2,), kind: int = 0, offset: int = 0, data: int = 64) -> bytes:
    return header({}, [entry("a", shape, kind, offset)]) + bytes(data)


def array(inner: int, length: int, data: bytes = b"") -> bytes:
    return header({"a": struct.pack("<IIQ", ARRAY, inner, length) + data}, []) + bytes(64)


BROKEN = {
    "mark alone": (b"GGUF", "the version would reach beyond byte 4"),
    "truncated header": (GOOD[:120], "would reach beyond byte 120"),
    "truncated data": (GOOD[: -(8 * 4 * 4) - 1], "begins beyond the end|takes 128 bytes where"),
    "truncated last tensor": (GOOD[:-1], "takes 128 bytes where 127 are left"),
    "lying number of tensors": (b"GGUF" + struct.pack("<IQQ", 3, 50_000, 0), "50000 tensors and 0 values"),
    "huge number of tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors and 0 values"),
    "huge number of values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "0 tensors and"),
    "key longer than the file": (header({}, [])[:16] + struct.pack("<QQ", 1, 2**62) + bytes(64), "a key of the"),
    "name that is not UTF-8": (header({}, [text(b"\xff") + struct.pack("<IIQ", 0, 0, 0)]) + bytes(9), "not UTF-8"),
    "string longer than the file": (header({"a": struct.pack("<IQ", STRING, 2**40)}, []), "the value of 'a'"),
    "unknown type of value": (header({"a": struct.pack("<IQ", 13, 0)}, []), "of the unknown type 13"),
    "array longer than the file": (array(U64, 2**61), "the value of 'a' would reach beyond"),
    "array of more strings than the file holds": (array(STRING, 2**61), "the value of 'a' would reach beyond"),
    "array of a string that is too long": (array(STRING, 1, struct.pack("<Q", 2**61)), "the value of 'a' would"),
    "string whose length is cut": (
        header({"a": struct.pack("<IIQQ", ARRAY, STRING, 2, 8) + bytes(12)}, [], alignment=1),
        "the value of 'a' would reach beyond",
    ),
    "array of arrays": (array(ARRAY, 1), "'a' is an array of arrays"),
    "array of an unknown type": (array(77, 1), "'a' is an array of the unknown type 77"),
    "key that comes twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("a") + value(1)),
        "names 'a' twice",
    ),
    "name that comes twice": (header({}, 2 * [entry("a", (2,), 0, 0)]) + bytes(64), "names 'a' twice"),
    "too many axes": (one((1, 1, 1, 1, 1)), "'a' has 5 axes"),
    "axes that the file cannot hold": (header({}, [text("a") + struct.pack("<IQQ", 2**31, 0, 0)]), "axes"),
    "huge product": (one((2**62, 2**62)), "takes .* bytes where 64 are left"),
    "product that overflows to 4": (one((2**62, 4, 1)), "takes .* bytes where 64 are left"),
    "offset beyond the file": (one(offset=2**40), "'a' begins beyond the end of the file"),
    "offset that overflows": (one(offset=2**64 - 32), "'a' begins beyond the end of the file"),
    "unaligned offset": (one(offset=4), "'a' begins at 4, no multiple of 32"),
    "overlap": (
        header({}, [entry("a", (16,), 0, 0), entry("b", (4,), 0, 32)]) + bytes(64),
        "'a' takes 64 bytes where 32 are left",
    ),
    "rows that end within a block": (one((2, 16), 2), "rows of 16 values, which Q4_0 cannot hold"),
    "alignment of 0": (header({"general.alignment": value(0)}, []), "an alignment of 0"),
    "alignment of 48": (header({"general.alignment": value(48)}, []), "an alignment of 48"),
    "alignment that is a word": (header({"general.alignment": value("a")}, []), "an alignment of 'a'"),
    "huge alignment": (
        header({"general.alignment": struct.pack("<IQ", U64, 2**63)}, [entry("a", (2,), 0, 0)]) + bytes(64),
        "takes 8 bytes where 0 are left",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    content, problem = BROKEN[case]
    path = write(tmp_path / "model.gguf", content)
    with pytest.raises(SourceError, match=rf"model\.gguf' is not a readable GGUF file \(.*({problem})") as raised:
        open_checkpoint(path)
    assert str(raised.value).endswith("): truncated or damaged, fetch it again")


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", GOOD)
    matrices = open_checkpoint(path).matrices
    os.truncate(path, len(GOOD) - 300)
    for matrix in matrices:
        with pytest.raises(SourceError, match=r"ends before byte .* cut short or replaced meanwhile"):
            matrix.tensor.read(None)


def survives(content: bytes) -> None:
    opens_or_says_why(content, ".gguf", memory=5_000_000)


sizes = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
small = st.integers(0, 50)
names = st.one_of(
    st.sampled_from(["general.architecture", "general.alignment", "a", QUERY, ""]).map(text),
    st.tuples(sizes, st.binary(max_size=8)).map(lambda pair: struct.pack("<Q", pair[0]) + pair[1]),
)
values = st.one_of(
    st.sampled_from([1, 8, 32, 2.5, True, "llama", [1, 2], ["a", "b"], []]).map(value),
    st.tuples(small, st.binary(max_size=24)).map(lambda pair: struct.pack("<I", pair[0]) + pair[1]),
    st.tuples(small, sizes, st.binary(max_size=24)).map(lambda it: struct.pack("<IIQ", ARRAY, *it[:2]) + it[2]),
)
entries = st.tuples(names, st.lists(sizes, max_size=5), small, sizes).map(
    lambda it: it[0] + struct.pack(f"<I{len(it[1])}QIQ", len(it[1]), *it[1], *it[2:])
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(names, values), max_size=3), st.lists(entries, max_size=3), st.binary(max_size=400), st.data()
)
def test_made_up_headers(
    pairs: list[tuple[bytes, bytes]], infos: list[bytes], tail: bytes, data: st.DataObject
) -> None:
    counts = data.draw(st.one_of(st.just((len(infos), len(pairs))), st.tuples(sizes, sizes)))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(key + content for key, content in pairs)
    survives(head + b"".join(infos) + tail)


@settings(max_examples=300)
@given(st.data())
def test_flipped_bytes(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))]))
