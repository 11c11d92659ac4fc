"""Bytes as a tokenizer."""


def byte_tokenizer():
    raise NotImplementedError
