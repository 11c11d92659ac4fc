"""A tokenizer of bytes, so that other programs can open a run on bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdiag.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are the bytes of UTF-8, by their value, without special tokens or merges.

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

    # GPT-2's characters for bytes: a printable byte is its own character, the others follow from 256 on.
    alphabet = ByteLevel.alphabet()
    others = iter(sorted(character for character in alphabet if ord(character) > 0xFF))
    names = [chr(byte) if chr(byte) in alphabet else next(others) for byte in range(256)]
    tokenizer = Tokenizer(BPE(vocab={name: byte for byte, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
