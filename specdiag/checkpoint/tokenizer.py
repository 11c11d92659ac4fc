"""The texts of tokens, from the tokenizer.json beside a model or the metadata of a GGUF file. No code of it is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from specdiag.checkpoint.folder import Folder, reopened
from specdiag.checkpoint.formats import GGUF
from specdiag.checkpoint.gguf.header import read_header
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError
from specdiag.files import json_decoder
from specdiag.records import Source

NAME = "tokenizer.json"
_MOST_TOKENS = 1_000_000
"""The largest vocabulary in use, XLM-V's, has 902,000."""
_TOKENS, _KINDS, _MODEL = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.model"
_UNUSED = 5
"""GGUF's type of a token that is not used."""
_RESERVED = re.compile(
    r"[\[<{]\W?_*(un_?used|not_used|reserved|placeholder|dummy|extra_(?!id)|special_(?=\d))\w*\W{1,2}|madeupword\d+",
    re.IGNORECASE,
)
"""Names of tokens that are kept for later, in brackets. T5's `<extra_id_0>` is none: its training uses it."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NEVER = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that UTF-8 has no use for."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokens of a tokenizer.

    Attributes:
        texts: the text of each token by its id, as the tokenizer stores it.
        reserved: ids that no text gives by the names of their tokens: kept for later, or bytes that UTF-8 lacks.
        name: where it was read.
    """

    texts: Mapping[int, str]
    reserved: frozenset[int]
    name: str


class _Added(Struct):
    id: int
    content: str


class _Model(Struct):
    vocab: msgspec.Raw


class _File(Struct):
    model: _Model
    added_tokens: msgspec.Raw = msgspec.Raw(b"[]")
    decoder: msgspec.Raw = msgspec.Raw(b"null")


_decode = json_decoder(_File)
_decode_added = json_decoder(list[_Added])
_decode_ids = json_decoder(dict[str, int])
_decode_scores = json_decoder(list[tuple[str, float]])


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the tokenizer of a model: that in its GGUF file, or tokenizer.json beside its weights or above them.

    Args:
        checkpoint: as it was opened. Of a hub repository tokenizer.json is downloaded, or read where it is streamed.

    Returns:
        The tokens.

    Raises:
        SourceError: there is none, or it is damaged; the message begins with its name or that of the source.
    """
    source = checkpoint.source
    if (folder := reopened(checkpoint)) is None:
        what = "a model in memory" if source.kind == "memory" else "a pipeline of several models"
        raise SourceError(f"{what} has no tokenizer beside it")
    file = source.files[0]
    if file.endswith(GGUF.suffixes):
        return _of_gguf(folder.files.path(file), folder.label(file))
    return _of_json(folder, file, source)


def _of_json(folder: Folder, file: str, source: Source) -> Tokenizer:
    beside = f"{file.rpartition('/')[0]}/{NAME}".lstrip("/")
    name = next((name for name in (beside, NAME) if folder.has(name)), None)
    if name is None:
        raise SourceError(f"no {NAME} lies beside the weights of {brief(source.location)}")
    folder.files.fetch([name])
    data = folder.files.read(name, folder.label(name))
    try:
        content = _decode(data)
        texts = _vocabulary(bytes(content.model.vocab))
        texts |= {token.id: token.content for token in _decode_added(_bounded(bytes(content.added_tokens), 4))}
    except msgspec.DecodeError as error:
        raise SourceError(f"{name} is not understood: {error}") from error
    texts = {id: text for id, text in texts.items() if 0 <= id < 1 << 31}
    return _sorted_out(texts, name, has_bytes=b'"ByteLevel"' in bytes(content.decoder))


def _vocabulary(data: bytes) -> dict[int, str]:
    """Decode the vocabulary: ids by text (BPE, WordPiece, WordLevel), or texts with scores in order (Unigram)."""
    if _bounded(data, 2).lstrip()[:1] == b"[":
        return dict(enumerate(text for text, _ in _decode_scores(data)))
    return {id: text for text, id in _decode_ids(data).items()}


def _bounded(data: bytes, quotes: int) -> bytes:
    """Refuse a list of more tokens than any model has, before it is decoded: each has so many quotes at least."""
    if data.count(b'"') > quotes * _MOST_TOKENS:
        raise msgspec.DecodeError(f"it lists more than {_MOST_TOKENS} tokens")
    return data


def _of_gguf(path: Path, label: str) -> Tokenizer:
    header = read_header(path, label, keep=frozenset({_TOKENS, _KINDS}))
    texts = header.lists.get(_TOKENS)
    if not texts:
        raise SourceError(f"{brief(label)} holds no tokens")
    kinds = header.lists.get(_KINDS, ())
    unused = {id for id, kind in enumerate(kinds) if kind == _UNUSED}
    found = _sorted_out(dict(enumerate(map(str, texts))), path.name, has_bytes=header.metadata.get(_MODEL) == "gpt2")
    return Tokenizer(found.texts, found.reserved | (unused & found.texts.keys()), found.name)


def _sorted_out(texts: dict[int, str], name: str, *, has_bytes: bool) -> Tokenizer:
    """Find the reserved tokens. In GPT-2's alphabet the bytes that UTF-8 lacks are the letters of the same code."""
    never = {chr(byte) for byte in _NEVER} if has_bytes else set[str]()
    reserved = {id for id, text in texts.items() if text in never or _RESERVED.fullmatch(text) or _is_never(text)}
    return Tokenizer(texts, frozenset(reserved), name)


def _is_never(text: str) -> bool:
    match = _BYTE.fullmatch(text)
    return match is not None and int(match[1], 16) in _NEVER
