"""Bytes as a tokenizer."""


def byte_tokenizer():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()
