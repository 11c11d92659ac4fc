"""Small files are read whole where that ends, and decoded with one kind of error."""

import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from helpers import PATIENCE

from specdiag.files import (
    check_writable,
    decode_toml,
    json_decoder,
    msgpack_decoder,
    read_start,
    read_whole,
    toml_decoder,
    write_atomically,
)


class Thing(msgspec.Struct):
    """Files that the decoders are tried on."""

    n: int


def test_a_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"some bytes")
    assert read_whole(tmp_path / "a") == b"some bytes"
    assert read_start(tmp_path / "a", 4) == b"some"
    with pytest.raises(OSError, match="at most 0 MiB are read"):
        read_whole(tmp_path / "a", 9)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "missing", "nul", "surrogate"])
def test_what_is_no_regular_file(tmp_path, kind):
    path = {"device": "/dev/zero", "nul": "a\0b", "surrogate": "\ud800"}.get(kind, tmp_path / kind)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"file|directory") as caught:
        read_whole(path)
    assert caught.value.strerror
    assert read_start(path, 4) == b""
    assert len(os.listdir("/proc/self/fd")) == before


BAD_JSON = [b"", b"[", b"[]", b'{"n":"x"}', b'{"n":1e300}', b"\xff", b'{"a":' * 100_000, b'{"n":' + b"9" * 5000 + b"}"]
BAD_TOML = [
    b"n", b"n='x'", b"\xff", b"n=" + b"[" * 5000 + b"]" * 5000, b"n=" + b"9" * 5000, b"a." * 50_000 + b"n=1",
    b"n=1979-05-27T07:32:00Z", b"n=nan",
]  # fmt: skip
BAD_MSGPACK = [b"", b"\xc1", b"\x81\xa1n", b"\x81\xa1\xff\x01", b"\x81\xa1n\xa1x", b"\x81\xa1a" * 100_000]


@pytest.mark.parametrize(
    ("maker", "data"),
    [(maker, data) for maker, many in ((json_decoder, BAD_JSON), (toml_decoder, BAD_TOML), (msgpack_decoder, BAD_MSGPACK))
     for data in many],
    ids=lambda value: None if callable(value) else repr(value[:12]),
)  # fmt: skip
def test_bad_data_is_one_kind_of_error(maker, data):
    with pytest.raises(msgspec.DecodeError):
        maker(Thing)(data)


def test_good_data():
    assert json_decoder(Thing)(b'{"n":3}') == toml_decoder(Thing)(b"n=3") == msgpack_decoder(Thing)(b"\x81\xa1n\x03")
    assert decode_toml(b"a.b = [1.5, 2.5]\n" * 1) == {"a": {"b": [1.5, 2.5]}}


def test_a_pipe_is_written_into_and_a_link_stays_a_link(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.json", tmp_path / "elsewhere" / "target.json"
    os.mkfifo(pipe)
    target.parent.mkdir()
    link.symlink_to(target)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    for path in (pipe, link):
        check_writable(path)
        write_atomically(path, b"data")
    reader.join(PATIENCE)
    assert read == [b"data"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert target.read_bytes() == b"data"


def test_an_open_descriptor_is_written_into(tmp_path):
    with (tmp_path / "out").open("wb+", buffering=0) as file:
        path = Path(f"/dev/fd/{file.fileno()}")
        file.write(b"before ")
        write_atomically(path, b"data")
        file.write(b" after")
    assert (tmp_path / "out").read_bytes() == b"before data after"
