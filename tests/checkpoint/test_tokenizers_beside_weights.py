"""The tokens of a tokenizer.json or a GGUF file: every kind of vocabulary, names of reserved ones, and damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import EMBED, write_checkpoint

from specdiag.checkpoint.gguf.header import read_header
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tokenizer import read_tokenizer
from specdiag.errors import SourceError


def read(folder, content):
    write_checkpoint(folder, {EMBED: np.ones((4, 4), "f4")})
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "tokenizer.json").write_bytes(data)
    return read_tokenizer(open_checkpoint(folder))


def of(vocabulary, **more):
    return {"model": {"vocab": vocabulary}} | more


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (of({"a": 0, "b": 5}), {0: "a", 5: "b"}),
        (of([["a", -1.5], ["b", 0]]), {0: "a", 1: "b"}),
        (of({"a": 0}, added_tokens=[{"id": 9, "content": "<s>", "special": True}]), {0: "a", 9: "<s>"}),
        (of({"a": 0, "b": -1, "c": 1 << 40}), {0: "a"}),
        (of({}), {}),
    ],
)
def test_vocabularies(tmp_path, content, texts):
    assert read(tmp_path, content).texts == texts


@pytest.mark.parametrize(
    "text",
    ["[unused12]", "<unused3>", "<|reserved_special_token_7|>", "<reserved_2>", "<|extra_4|>", "madeupword0001",
     "<|placeholder1|>", "<|dummy_8|>", "<SPECIAL_20>", "<0xC0>", "<0xFF>"],
)  # fmt: skip
def test_reserved_names(tmp_path, text):
    assert read(tmp_path, of({"a": 0, text: 1})).reserved == {1}


@pytest.mark.parametrize(
    "text", ["unused", "reserved", "dummy", "placeholder", "<extra_id_0>", "<0x41>", "<s>", "[PAD]", "ÿ", "[", ""]
)
def test_ordinary_names(tmp_path, text):
    assert not read(tmp_path, of({text: 1})).reserved


def test_bytes_that_utf_8_lacks_in_the_alphabet_of_gpt2(tmp_path):
    vocabulary = {"a": 0, "ÿ": 1, "À": 2, "é": 3}
    assert read(tmp_path / "a", of(vocabulary, decoder={"type": "ByteLevel"})).reserved == {1, 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"model": {"vocab": 3}}', b'{"model": {"vocab": {"a": "b"}}}', b'{"model": null}',
     b'{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}', b'{"model": {"vocab": ' + b"[" * 100_000 + b"]" * 100_000
     + b"}}", b'{"model": {"vocab": {"\xff": 1}}}'],
    ids=["empty", "cut", "list", "null", "number", "text id", "no model", "added", "deep", "no UTF-8"],
)  # fmt: skip
def test_damage_is_a_reason(tmp_path, content):
    with pytest.raises(SourceError, match=r"tokenizer\.json is not understood: "):
        read(tmp_path, content)


def test_more_tokens_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr("specdiag.checkpoint.tokenizer._MOST_TOKENS", 100)
    with pytest.raises(SourceError, match="lists more than 100 tokens"):
        read(tmp_path, of({str(i): i for i in range(300)}))


def test_no_tokenizer(tmp_path):
    write_checkpoint(tmp_path, {EMBED: np.ones((4, 4), "f4")})
    with pytest.raises(SourceError, match=r"no tokenizer\.json lies beside the weights"):
        read_tokenizer(open_checkpoint(tmp_path))


def test_a_single_file_has_the_tokenizer_of_its_folder(tmp_path):
    read(tmp_path, of({"a": 0}))
    assert read_tokenizer(open_checkpoint(tmp_path / "model.safetensors")).texts == {0: "a"}


def test_the_tokens_of_a_gguf_file(asset):
    found = read_tokenizer(open_checkpoint(asset("smollm2-gguf")))
    assert len(found.texts) == 49152
    assert (found.texts[0], found.texts[3], found.texts[17]) == ("<|endoftext|>", "<repo_name>", "!")
    path = next(asset("smollm2-gguf").glob("*.gguf"))
    header = read_header(path, "a")
    assert header.lists == {}
    assert read_header(path, "a", keep=frozenset({"tokenizer.ggml.tokens"})).tensors == header.tensors
