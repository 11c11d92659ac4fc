"""The arguments of a Megatron run, which lie beside its weights, and what they say of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from specdiag.checkpoint.inert import Inert
from specdiag.files import Table

_CONFIG = {
    "num_attention_heads": "num_attention_heads",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
}
"""Arguments, and their names in a config.json."""
SHARED = (
    *_CONFIG,
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
    *("group_query_attention", "num_query_groups", "swiglu", "vocab_size", "padded_vocab_size"),
)
"""Arguments that all processes of a run have alike."""


def read_args(args: object) -> Table:
    """Read the arguments from an argparse.Namespace, which was not made, or from a dictionary.

    Args:
        args: as the file holds them.

    Returns:
        Names and values; empty where there are none.
    """
    state = args.state[0] if isinstance(args, Inert) and args.state else args
    entries = cast("Mapping[object, object]", state).items() if isinstance(state, Mapping) else ()
    return {key: value for key, value in entries if isinstance(key, str)}


def as_config(args: Table) -> Table:
    """Say in the words of a config.json what the arguments say of the model.

    Args:
        args: of the run.
    """
    config: Table = {ours: args[theirs] for theirs, ours in _CONFIG.items() if type(args.get(theirs)) is int}
    groups = (
        args.get("num_query_groups") if args.get("group_query_attention") is True else args.get("num_attention_heads")
    )
    return {**config, "num_key_value_heads": groups} if type(groups) is int else config


def padding_notes(rows: int | None, args: Table, world: int) -> list[str]:
    """Note rows of the vocabulary that no token has.

    Args:
        rows: of the embedding; None where there is none.
        args: of the run.
        world: number of tensor-parallel processes.
    """
    size = args.get("vocab_size")
    if rows is None or (type(size) is int and size == rows):
        return []
    if type(size) is int:
        return [f"Matrices of the vocabulary keep {rows - size} rows of padding: {rows} rows for {size} tokens."]
    return [f"Matrices of the vocabulary have {rows} rows, perhaps with padding to a multiple of {128 * world}."]
