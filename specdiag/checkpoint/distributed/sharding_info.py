"""Offsets of slices in safetensors files, as torch.distributed.checkpoint writes them among their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError
from specdiag.files import json_decoder

_KEY = "DCP_SHARDING_INFO"
_Offset = Annotated[int, msgspec.Meta(ge=0, le=(1 << 60) - 1)]


class _Saved(msgspec.Struct, frozen=True):
    """The entry of one tensor."""

    saved_offsets: Annotated[tuple[_Offset, ...], msgspec.Meta(max_length=64)]


_decode = json_decoder(dict[str, _Saved])


def saved_offsets(metadata: Mapping[str, str], label: str) -> dict[str, tuple[int, ...]] | None:
    """Read where the tensors of a safetensors file begin in the tensors that they are slices of.

    Args:
        metadata: of the file's header.
        label: the file's name in messages.

    Returns:
        The offsets by name; None where the file says nothing of slices.

    Raises:
        SourceError: they are damaged.
    """
    text = metadata.get(_KEY)
    if text is None:
        return None
    try:
        return {name: saved.saved_offsets for name, saved in _decode(text.encode()).items()}
    except msgspec.DecodeError as error:
        raise SourceError(f"'{label}' has a damaged {_KEY} ({brief(str(error), 300)}): fetch it again") from error
