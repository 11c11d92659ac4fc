"""Names of tensors without what training wrappers put into them."""

from __future__ import annotations

import re

WRAPPERS = (
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",  # activation checkpointing
    "_forward_module",  # Lightning's Fabric
    "_module",  # Opacus
)
"""Segments of a name that stand for a wrapper, at every depth: no network calls a module so."""
_WRAPPER = re.compile("|".join(WRAPPERS))


def without_wrappers(name: str) -> str:
    """Take the segments of wrappers out of a name.

    Args:
        name: of a tensor, such as `_orig_mod.layers.0._fsdp_wrapped_module.mlp.up_proj.weight`.

    Example:
        >>> without_wrappers("_orig_mod.layers.0._fsdp_wrapped_module.mlp.up_proj.weight")
        'layers.0.mlp.up_proj.weight'
    """
    if _WRAPPER.search(name) is None:
        return name
    *path, last = name.split(".")
    return ".".join((*(segment for segment in path if segment not in WRAPPERS), last))
