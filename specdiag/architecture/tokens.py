"""The words in a module's name that say query, key or value, whatever stands around them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from specdiag.architecture.names import Name, snake

Word = Literal["q", "k", "v", "kv", "qkv"]

_SPELLINGS: dict[Word, tuple[str, ...]] = {
    "q": ("q", "qs", "wq", "query", "queries", "querys", "qry", "toqueries"),
    "k": ("k", "ks", "wk", "key", "keys", "tokeys"),
    "v": ("v", "vs", "wv", "value", "values", "val", "vals", "tovalues"),
    "kv": ("kv", "wkv"),
    "qkv": ("qkv", "wqkv"),
}
_WORDS: dict[str, Word] = {spelling: word for word, spellings in _SPELLINGS.items() for spelling in spellings}
_NO_PROJECTIONS = frozenset(("bias", "residual", "res", "mem", "memory", "null", "persistent", "cache", "bank"))
"""Words beside which query, key or value speaks of no projection of the input."""
_DIGITS = re.compile(r"\d+$")
_PLAIN = frozenset(("proj", "projection", "linear", "lin", "dense", "fc", "layer", "weight", "w"))
"""Names of a module that say no more than the one that holds it: query.dense."""


def qkv_word(name: Name) -> Word | None:
    """Find what a module is for in attention, by the words of its own name; None where they say nothing, or two things.

    Args:
        name: of its weight, taken apart.
    """
    return _word(name.path)


def is_plain(segment: str) -> bool:
    """Tell whether a segment says no more than the module that holds it.

    Args:
        segment: of a name.
    """
    return snake(segment) in _PLAIN


@lru_cache(maxsize=65536)
def _word(path: str) -> Word | None:
    segments = [segment for segment in path.split(".") if segment != "#"]
    if len(segments) > 1 and is_plain(segments[-1]):
        segments.pop()
    words = [_DIGITS.sub("", word) for word in snake(segments[-1]).split("_")] if segments else []
    found: set[Word] = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 and _NO_PROJECTIONS.isdisjoint(words) else None
