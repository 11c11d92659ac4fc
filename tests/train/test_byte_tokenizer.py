"""Bytes as a tokenizer: ids are the bytes, before and after it was saved, whatever model lies beside it."""

import json

import pytest
from command import python
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from specdiag.train.data.byte_tokenizer import byte_tokenizer

TEXTS = [
    "", " ", "\n", "\r\n\t\n\n", "a .\n b 's n't , !  ", "é😀👩‍👩‍👧\x00\x7f\u2028\ufeff", "<s></s><|endoftext|><unk>[CLS]",
    "<0x41> ▁ Ġ Ċ Ā", "".join(map(chr, range(0x3000))),
]  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def opened(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def check(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text


@given(st.text() | st.sampled_from(TEXTS))
def test_ids_are_bytes_and_decode_to_the_text(made, opened, text):
    check(made, text)
    check(opened, text)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "bert"])
def test_beside_a_model_of_any_kind_it_stays_what_it_is(tmp_path, model_type):
    """transformers knows tokenizers by the type of the model, with special tokens and prefixes of their own."""
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        check(opened, text)
    assert (len(opened), opened.vocab_size, opened.all_special_tokens) == (256, 256, [])
    assert opened.decode([0xFF, 0x41]) == "\ufffdA"


def test_without_transformers_the_extra_is_named():
    code = """
import sys
sys.modules["transformers"] = None
import specdiag
from specdiag.train.data.byte_tokenizer import byte_tokenizer
try:
    byte_tokenizer()
except specdiag.MissingExtraError as error:
    assert "pip install transformers" in str(error), error
else:
    raise SystemExit("no error")
"""
    python(code)
