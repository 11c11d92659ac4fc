"""Names too long to be read: cut before any rule looks at them, and the tensors left out by that reason."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from specdiag.checkpoint.tensors import StoredTensor

LONGEST = 512
"""Characters. The longest names in use, of wrapped and nested modules, have about 200."""
_SHOWN = 100


def brief(text: str, most: int = _SHOWN) -> str:
    """Shorten a text for a message.

    Args:
        text: any text.
        most: number of characters that are kept.

    Returns:
        `text`, or its beginning and its length where it is longer than `most` characters.

    Example:
        >>> brief("layers." + "9" * 6000, 12)
        'layers.99999... (6007 characters)'
    """
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def leave_out_long(tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Mark tensors with names of more than `LONGEST` characters as left out, and shorten their names.

    Args:
        tensors: all tensors of a checkpoint, in order.

    Returns:
        The tensors in the same order. A shortened name ends in its place in the list, which makes it unique.
    """
    return [tensor if len(tensor.name) <= LONGEST else _cut(tensor, place) for place, tensor in enumerate(tensors)]


def _cut(tensor: StoredTensor, place: int) -> StoredTensor:
    reason = f"its name has {len(tensor.name)} characters, and at most {LONGEST} are read"
    return replace(tensor, name=f"{tensor.name[:_SHOWN]}... (tensor {place})", reason=reason)
