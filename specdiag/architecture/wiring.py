"""The wiring of an architecture: what stands around the matrices of its blocks. The entries are data/wiring.toml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal, cast

from msgspec import Struct

from specdiag.architecture import config as settings
from specdiag.files import shortened, toml_decoder

Rope = Literal["half", "interleaved"]

_OLDER = {"partial_rotary_factor": ("rotary_pct",)}
"""Names that a config key had before."""


class UnknownWiring(Exception):
    """Nothing tells what stands around some matrices; the message is the reason, for a note."""


class Wiring(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of data/wiring.toml, where each field is explained."""

    norm: Literal["rms", "layer"]
    model_type: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    gain: Literal["g", "1+g"] = "g"
    stream: Literal["pre", "post"] = "pre"
    attn_in: str | None = None
    attn_out: str | None = None
    cross_in: str | None = None
    mlp_in: str | None = None
    mlp_out: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    rope: Rope | None = None
    rotary: str | None = None
    router: Literal["softmax"] | None = None

    @property
    def norms(self) -> frozenset[str]:
        """Paths of all norms of a block, but for those of queries and keys."""
        named = (self.attn_in, self.attn_out, self.cross_in, self.mlp_in, self.mlp_out)
        return frozenset(path for path in named if path is not None)


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """data/wiring.toml."""

    wiring: tuple[Wiring, ...]


WIRINGS = toml_decoder(_File)((files("specdiag.architecture") / "data" / "wiring.toml").read_bytes()).wiring


def find_wiring(config: Mapping[str, object], component: str | None) -> Wiring:
    """Look up the wiring of one piece of a model.

    Args:
        config: config.json, or what a GGUF file says in its words.
        component: the piece, None in a model of one.

    Raises:
        UnknownWiring: no entry is that of its architecture.

    Example:
        >>> find_wiring({"model_type": "llama"}, None).mlp_in
        'post_attention_layernorm'
    """
    piece = (component or "text").partition(".")[0]
    chain = settings.sections(config, piece)
    types = settings.model_types(chain)
    if types:
        if piece in ("vision", "audio") and chain[0] is config:
            raise UnknownWiring(f"wiring of the {piece} part of model_type {shortened(types[0])} is unknown")
        found = next((entry for entry in WIRINGS if types[0] in entry.model_type), None)
        if found is None:
            raise UnknownWiring(f"wiring of model_type {shortened(types[0])} is unknown")
        return found
    names = config.get("architectures")
    first = cast("list[object]", names)[0] if isinstance(names, list) and names else None
    found = next((entry for entry in WIRINGS if first in entry.gguf), None)
    if found is None and isinstance(first, str):
        raise UnknownWiring(f"wiring of architecture {shortened(first)} is unknown without a model_type")
    if found is None:
        raise UnknownWiring("the wiring is unknown without a config.json that names a model_type")
    return found


def rotated_rows(wiring: Wiring, chain: Sequence[Mapping[str, object]], head_dim: int) -> int:
    """Count the rows of a head that rotary positions turn.

    Args:
        wiring: the entry.
        chain: sections of config.json, the most specific first.
        head_dim: rows of a head.

    Raises:
        UnknownWiring: the config says what no head of this size can have.
    """
    if wiring.rope is None:
        return 0
    value = _rotary(wiring.rotary, chain)
    share = head_dim if value is None else value if value > 1 else head_dim * value
    if not 0 < share <= head_dim or int(share) % 2:
        stated = "" if value is None else f" with {wiring.rotary} {value:g}"
        raise UnknownWiring(f"heads of {head_dim} rows{stated} cannot be cut into rotary planes")
    return int(share)


def _rotary(key: str | None, chain: Sequence[Mapping[str, object]]) -> float | None:
    """Find the share or the number of rows, in the sections or in their table of rope parameters."""
    if key is None:
        return None
    for part in chain:
        inner = part.get("rope_parameters")
        tables = (part, cast("Mapping[str, object]", inner)) if isinstance(inner, Mapping) else (part,)
        for table in tables:
            for name in (key, *_OLDER.get(key, ())):
                value = table.get(name)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return float(value)
    return None
