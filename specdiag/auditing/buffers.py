"""Buffers by their names: what no training moves, and what libraries save in one version and not in the next."""

from __future__ import annotations

from specdiag.architecture.names import numbered
from specdiag.architecture.rules import find_skip


def is_buffer(name: str) -> bool:
    """Tell whether a tensor is a buffer by its name, such as `rotary_emb.inv_freq` or `position_ids`.

    Args:
        name: of the tensor.
    """
    return (find_skip(numbered(name)) or "").startswith("buffer")
