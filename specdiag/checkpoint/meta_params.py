"""Meta's params.json, which says the sizes of a model that has no config.json."""

from __future__ import annotations

import logging

from specdiag.checkpoint.folder import reopened
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError
from specdiag.files import Table

_log = logging.getLogger("specdiag")
_PARAMS = "params.json"
_WORDS = {
    "dim": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers", "head_dim": "head_dim",
}  # fmt: skip
"""Its keys, and those of config.json."""


def stated_sizes(checkpoint: Checkpoint) -> Table:
    """Read the params.json beside a checkpoint, in the words of a config.json.

    Args:
        checkpoint: as it was opened.

    Returns:
        Positive whole numbers alone; empty without such a file, or where it cannot be read.
    """
    try:
        folder = reopened(checkpoint)
        if folder is None or not folder.has(_PARAMS):
            return {}
        params = folder.json(_PARAMS, folder.label(_PARAMS))
    except SourceError as error:
        _log.warning("went on without %s: %s", _PARAMS, error)
        return {}
    sizes = {word: params.get(key) for key, word in _WORDS.items()}
    return {word: size for word, size in sizes.items() if type(size) is int and size > 0}
