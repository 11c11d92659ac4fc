"""Headers that specdiag takes and refuses are those that the safetensors library takes and refuses."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.safetensors_file import list_safetensors
from specdiag.checkpoint.safetensors_header import FIRST_READ
from specdiag.errors import SourceError

DTYPES = [
    "BOOL",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
]
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | {d: 8 for d in DTYPES if d in ("BOOL", "U8", "I8") or d.startswith("F8")}
BITS |= {d: int(d.lstrip("BIUFC")) for d in DTYPES if d not in BITS}
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, -1, 2**32, 2**62, 2**64, 1.0, 1.5, True, "1", None])
NUMBERS = st.integers(0, 24) | SIZES
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "shape": st.lists(st.integers(0, 4) | SIZES, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3) | st.tuples(NUMBERS, NUMBERS),
    },
    optional={"more": st.none()},
)
METADATA = (
    st.dictionaries(st.text(max_size=2), st.text(max_size=2) | st.integers(), max_size=2) | st.none() | st.just(1)
)
HEADERS = st.dictionaries(st.text(max_size=2), ENTRIES | st.none(), max_size=3) | st.just([])


def file(header: object, n_data: int, more: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) + more) + text + b"\0" * n_data


@given(HEADERS, st.none() | METADATA, st.integers(0, 64), st.sampled_from([0, 0, 0, 1, -1, 2**40]))
@example({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, None, 1, 0)
@example({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, None, 3, 0)
@example({"a": {"dtype": "C64", "shape": [], "data_offsets": [0, 8]}}, {"x": "y"}, 8, 0)
@example({"b": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "\ud800": None}, None, 0, 0)
@example({"b": {"dtype": "U8", "shape": [0, 2**62, 4], "data_offsets": [0, 0]}}, None, 0, 0)
@example({"b": {"dtype": "U8", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}}, None, 0, 0)
def test_the_library_agrees(
    tmp_path_factory: pytest.TempPathFactory, header: Any, metadata: Any, n_data: int, more: int
) -> None:
    if metadata is not None and isinstance(header, dict):
        header = header | {"__metadata__": metadata}
    agree(tmp_path_factory.getbasetemp() / "model.safetensors", file(header, n_data, more))


def agree(path: Path, content: bytes) -> bool:
    """True if both readers take the file; fails where only one does."""
    path.write_bytes(content)
    try:
        with safe_open(path, framework="numpy") as opened:
            names = set(opened.keys())
    except SafetensorError:
        with pytest.raises(SourceError, match="is not a readable safetensors file"):
            list_safetensors(path, "x")
        return False
    assert {tensor.name for tensor in list_safetensors(path, "x").tensors} == names
    return True


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.sampled_from([0, 1, 4, 8]), max_size=3)), max_size=4),
    st.data(),
)
def test_the_library_agrees_on_layouts(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, list[int]]], data: st.DataObject
) -> None:
    """As they should be, and with one number beside."""
    header, at = dict[str, Any](), 0
    for number, (dtype, shape) in enumerate(tensors):
        size = int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
        header[str(number)] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    as_it_should_be = agree(path, file(header, at))
    assert as_it_should_be or any(BITS[dtype] < 8 for dtype, _ in tensors)
    if header:
        entry = header[data.draw(st.sampled_from(sorted(header)))]
        which, by = data.draw(st.sampled_from([0, 1])), data.draw(st.sampled_from([-1, 1, 4]))
        entry["data_offsets"][which] += by
        assert not agree(path, file(header, at))
    assert not agree(path, file(header, at + 1))


@given(st.binary(max_size=40), st.integers(0, 40))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, text: bytes, n_data: int) -> None:
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * n_data)
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):
        pass
    with pytest.raises(SourceError):
        list_safetensors(path, "x")


def test_a_type_that_the_library_does_not_know_is_left_out_by_name(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 8), np.float32).tobytes()
    header = {
        "a.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]},
        "b.weight": {"dtype": "P16", "shape": [4, 8], "data_offsets": [128, 131]},
        "c.weight": {"dtype": "F9_E5M3", "shape": [4, 8], "data_offsets": [131, 160]},
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(header, 0) + weights + b"\1" * 32)
    checkpoint = open_checkpoint(path)
    assert [matrix.name for matrix in checkpoint.matrices] == ["a.weight"]
    assert {s.name: s.reason.partition(":")[0] for s in checkpoint.skipped} == {
        "b.weight": "unsupported dtype P16",
        "c.weight": "unsupported dtype F9_E5M3",
    }
    header["c.weight"]["data_offsets"] = [130, 160]
    path.write_bytes(file(header, 0) + weights + b"\1" * 32)
    with pytest.raises(SourceError, match=r"'c\.weight' lie at 130 to 160, those before end at 131"):
        open_checkpoint(path)


ENTRY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
HIDDEN = ENTRY.replace("data_", "data\\u005f")


@pytest.mark.parametrize(
    ("header", "twice"),
    [
        (f'{{"a":{ENTRY},"b":{ENTRY},"a":{ENTRY}}}', "a"),
        (f'{{"a":{ENTRY},"\\u0061":{ENTRY}}}', "a"),
        ('{"a":{"dtype":"F32","shape":[9],"shape":[0],"data_offsets":[0,0]}}', "shape"),
        ('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"sh\\u0061pe":[0]}}', "shape"),
        (f'{{"a":{ENTRY},"a":{HIDDEN}}}', "a"),
        (f'{{"a":{ENTRY},"__metadata__":{{"x":"1","x":"2","dtype":"3"}}}}', "x"),
        (f'{{"{"b" * 9999}":{ENTRY},"{"b" * 9999}":{ENTRY}}}', f"{'b' * 100}... (9999 characters)"),
    ],
)
def test_a_key_given_twice_is_named(tmp_path: Path, header: str, twice: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(SourceError, match=f"its header names '{re.escape(twice)}' twice"):
        list_safetensors(path, "x")


def test_many_names_of_which_one_is_given_twice_take_no_time(tmp_path: Path) -> None:
    header = "{" + ",".join(f'"t{number}":{ENTRY}' for number in [*range(60_000), 59_999]) + "}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    begin = time.process_time()
    with pytest.raises(SourceError, match="names 't59999' twice"):
        list_safetensors(path, "x")
    assert time.process_time() - begin < 10  # comparing each with each takes a minute


@pytest.mark.parametrize("shape", ["[" + "2," * 99_999 + "2]", f"[{'9' * 4000}, 0]", f"[{2**63}, 0]"])
def test_shapes_that_no_tensor_has(tmp_path: Path, shape: str) -> None:
    header = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(SourceError, match="is not a readable safetensors file"):
        list_safetensors(path, "x")


def test_a_long_header(tmp_path: Path) -> None:
    tensors = {f"a{i}": np.full(1, i, np.float32) for i in range(9)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tensors, metadata={"long": "x" * 2 * FIRST_READ}))
    listed = list_safetensors(path, "x").tensors
    assert {tensor.name: tensor.read(None).item() for tensor in listed} == {f"a{i}": i for i in range(9)}
