"""Bytes as a tokenizer: what a run on bytes needs to be opened by other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdiag.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the bytes of UTF-8, each its own number; no special tokens, nothing is merged.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer
        from tokenizers.decoders import ByteLevel as Decoder
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingExtraError("a tokenizer of bytes needs transformers: pip install transformers") from error

    # GPT-2's characters for bytes: its own where that can be printed, the others follow from 256 on.
    alphabet = ByteLevel.alphabet()
    others = iter(sorted(character for character in alphabet if ord(character) > 0xFF))
    names = [chr(byte) if chr(byte) in alphabet else next(others) for byte in range(256)]
    held = Tokenizer(BPE(vocab={name: byte for byte, name in enumerate(names)}, merges=[]))
    held.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    held.decoder = Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=held, clean_up_tokenization_spaces=False)
