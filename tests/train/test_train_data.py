"""Text and tokens as blocks: what is in them, which are held out, and what makes a fingerprint differ."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from specdiag import SourceError, UsageError
from specdiag.train.data.blocks import split
from specdiag.train.data.fingerprint import Fingerprint, data_fingerprint
from specdiag.train.data.hub import HubData
from specdiag.train.data.tokenizers import find_tokenizer
from specdiag.train.data.tokens import data_files, load_data

TEXT = "Ein Satz, dann noch einer: ä.\n" * 40


def load(path, cache, *, tokenizer=None, vocabulary=256, block_size=16, seed=0, max_tokens=None):
    return load_data(
        [path], tokenizer=tokenizer, vocabulary=vocabulary, block_size=block_size, seed=seed, cache=cache,
        max_tokens=max_tokens,
    )  # fmt: skip


def everything(data):
    """All tokens in stored order."""
    blocks = {int(i): part[k]["input_ids"] for part in (data.train, data.held_out) for k, i in enumerate(part.indices)}
    return torch.cat([blocks[i] for i in sorted(blocks)]).tolist()


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_without_a_tokenizer_bytes_are_tokens(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    if suffix == "txt":
        path.write_text(TEXT)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "url": "x"}) + "\n" for t in TEXT.splitlines(keepends=True)))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXT.splitlines(keepends=True)}), path)
    data = load(path, tmp_path)
    expected = list(TEXT.encode())
    assert everything(data) == expected[: len(expected) // 16 * 16]
    assert data.fingerprint.tokens == "bytes"
    assert load(path, tmp_path).fingerprint == data.fingerprint


def test_tokens_come_as_they_are(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(500, dtype=np.uint16).tofile(path)
    assert everything(load(path, tmp_path, vocabulary=500)) == list(range(496))
    with pytest.raises(SourceError, match="token 499 and the model a vocabulary of 400"):
        load(path, tmp_path, vocabulary=400)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(SourceError, match="998 bytes, which are no uint32"):
        load(path, tmp_path, vocabulary=1 << 20)


def test_the_tokenizer_of_the_checkpoint_is_used_with_its_end_of_text(tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<end>": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path / "model")
    assert find_tokenizer(tmp_path) is None
    tokenizer = find_tokenizer(tmp_path, tmp_path / "model")
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a b"}\n{"text": "b b z"}\n' * 3)
    data = load(path, tmp_path, tokenizer=tokenizer, vocabulary=4, block_size=7)
    assert everything(data) == [0, 1, 2, 1, 1, 3, 2] * 3


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet", "bin"])
def test_documents_in_their_order_until_there_are_enough(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    if suffix == "txt":
        path.write_text(TEXT)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXT.splitlines(keepends=True)))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXT.splitlines(keepends=True)}), path)
    else:
        np.frombuffer(TEXT.encode(), np.uint8).astype(np.uint16).tofile(path)
    few, all_of_it = load(path, tmp_path, max_tokens=333), load(path, tmp_path)
    assert everything(few) == list(TEXT.encode()[:320])
    assert load(path, tmp_path, max_tokens=1 << 20).n_tokens == all_of_it.n_tokens
    assert few.fingerprint.differences(all_of_it.fingerprint) == ["max tokens 333 became 0"]
    assert few.fingerprint.digest != all_of_it.fingerprint.digest
    with pytest.raises(UsageError, match="max_tokens=0 leaves nothing"):
        load(path, tmp_path, max_tokens=0)
    with pytest.raises(SourceError, match="holds 20 tokens, fewer than two blocks of 16"):
        load(path, tmp_path, max_tokens=20)


def test_a_fingerprint_is_kept_with_what_it_holds(tmp_path):
    """In the TOML of a run, which has no null; an older one has no field for what is new."""
    path = tmp_path / "data.txt"
    path.write_text(TEXT)
    for found in (load(path, tmp_path).fingerprint, load(path, tmp_path, max_tokens=100).fingerprint):
        written = msgspec.toml.encode(found)
        assert msgspec.toml.decode(written, type=Fingerprint) == found
        assert b"commit" not in written
    of_hub = [replace(HubData("org/name", config="en"), revision=commit * 40) for commit in "ab"]
    before, now = (data_fingerprint([source, path], "bytes", 16, 0) for source in of_hub)
    assert before.differences(now) == ["org/name:en is at commit bbbbbbbb and was at aaaaaaaa"]
    assert before.differences(data_fingerprint([path, of_hub[0]], "bytes", 16, 0)) == [
        "the files come in another order"
    ]


def test_the_split_is_fixed_and_disjoint():
    tokens = np.arange(64_000, dtype=np.uint16)
    train, held_out = split(tokens, 10, "x")
    assert (len(train), len(held_out)) == (6300, 100)
    assert not set(train.indices) & set(held_out.indices)
    assert (split(tokens, 10, "x")[1].indices == held_out.indices).all()
    tenths = np.bincount(held_out.indices // 640, minlength=10)
    assert tenths.min() >= 3  # spread over the whole text
    with pytest.raises(SourceError, match="fewer than two blocks of 40000"):
        split(tokens, 40_000, "x")


def test_what_differs_between_fingerprints_is_said(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text(TEXT)
    before = load(path, tmp_path).fingerprint
    path.write_text(TEXT.replace("Satz", "Wort"))
    assert before.differences(load(path, tmp_path).fingerprint) == ["data.txt has other content"]
    path.write_text(TEXT)
    assert before.differences(load(path, tmp_path, block_size=8, seed=1).fingerprint) == [
        "block size 16 became 8", "seed 0 became 1",
    ]  # fmt: skip
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert before.differences(load(path.rename(moved / "data.txt"), tmp_path).fingerprint) == []


def test_a_folder_stands_for_its_files_in_order(tmp_path):
    for name in ("b.txt", "a.md", "ignored.png"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in data_files([tmp_path])] == ["a.md", "b.txt"]


def test_what_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 8)
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for paths, error, words in (
        ([], UsageError, "data=PATH"),
        (["nowhere"], SourceError, "there is no"),
        (["a.png"], UsageError, "is none of"),
        (["a.bin", "a.txt"], UsageError, "not together with text"),
        (["a.bin", "a.bin"], UsageError, "one .bin file"),
        (["empty"], SourceError, "holds no .txt"),
    ):
        with pytest.raises(error, match=words):
            data_files([tmp_path / path for path in paths])
    with pytest.raises(UsageError, match="no room for the 256 bytes"):
        load(tmp_path / "a.txt", tmp_path, vocabulary=100)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"one": "a", "two": "b"}\n')
    with pytest.raises(SourceError, match=r"no column 'text' with text, but one, two"):
        load(bad, tmp_path)
    assert not list(tmp_path.glob("tokens-*"))
    bad.write_text("{broken\n")
    with pytest.raises(SourceError, match="cannot be read as json"):
        load(bad, tmp_path)
