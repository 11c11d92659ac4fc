"""The arguments of a Megatron run, which lie beside its weights, and what they say of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from specdiag.checkpoint.inert import Inert
from specdiag.errors import SourceError
from specdiag.files import Table

_CONFIG = {
    "num_attention_heads": "num_attention_heads",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
}
"""Arguments, and their names in a config.json."""
_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")
_WORLDS = (*_PARALLEL, "model_parallel_size")
GROUPED_SINCE = 2.0
"""The checkpoint_version from which on fused queries, keys and values lie group by group."""
_VERSION = "checkpoint_version"
_GATE = "attention_output_gate"
_HEADS = "num_attention_heads"
SHARED = (
    *_CONFIG,
    *_PARALLEL,
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


def describe_model(content: Mapping[object, object]) -> tuple[Table, list[str]]:
    """Say in the words of a config.json what the arguments of a run say of its model.

    Args:
        content: of a file with `args`.

    Returns:
        The configuration, without the number of heads where fused queries, keys and values do not lie group by group,
        for they would be split by it; a note where that is so.
    """
    args = read_args(content.get("args"))
    config: Table = {ours: args[theirs] for theirs, ours in _CONFIG.items() if type(args.get(theirs)) is int}
    odd = _GATE if args.get(_GATE) is True else None if is_grouped(content) else _VERSION
    if odd is not None and config.pop(_HEADS, None) is not None:
        value = content.get(_VERSION, 0) if odd == _VERSION else True
        return config, [f"Fused queries, keys and values stay whole: that of {odd} {value!r:.20} is no known order."]
    grouped = args.get("group_query_attention") is True
    groups = args.get("num_query_groups" if grouped else _HEADS)
    return ({**config, "num_key_value_heads": groups} if type(groups) is int else config), []


def is_grouped(content: Mapping[object, object]) -> bool:
    """Tell whether fused queries, keys and values lie group by group, as they do since a version.

    Args:
        content: of a file.
    """
    version = content.get(_VERSION, 0)
    return isinstance(version, (int, float)) and version >= GROUPED_SINCE


def describe_lone(content: Mapping[object, object], label: str) -> tuple[Table, list[str]]:
    """Say what a file of Megatron that is given without its folder says of its model, as `describe_model`.

    Args:
        content: of the file.
        label: its name in messages.

    Returns:
        The configuration and notes, empty for files of other programs.

    Raises:
        SourceError: it is one of several files of its model.
    """
    args = read_args(content.get("args"))
    if not any(name in args for name in _WORLDS):
        return {}, []
    for name in _WORLDS:
        world = args.get(name)
        if type(world) is int and world > 1:
            raise SourceError(
                f"'{label}' is one of several parts of a model, for {name} in its args is {world}: give the folder "
                "that holds all of its mp_rank folders"
            )
    return describe_model(content)


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
