"""The wiring of an architecture: what stands around the matrices of its blocks. The entries are data/wiring.toml."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Literal, cast

from msgspec import Meta, Struct

from specdiag.architecture import config as settings
from specdiag.files import shortened, toml_decoder

Rope = Literal["half", "interleaved"]

_OLDER = {"partial_rotary_factor": ("rotary_pct",)}
"""Names that a config key had before."""


class UnknownWiring(Exception):
    """Nothing tells what stands around some matrices; the message is the reason, for a note."""


Path = Annotated[str, Meta(pattern=r"\A\w[\w.-]{0,199}\Z")]
"""Path of a module, in names of tensors."""
Count = Annotated[int, Meta(ge=1, le=1 << 20)]


class Wiring(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of data/wiring.toml or of a role map; each field is explained in the former."""

    norm: Literal["rms", "layer"]
    model_type: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    holds: tuple[Path, ...] = ()
    when: dict[str, bool | str | int] = {}
    gain: Literal["g", "1+g"] = "g"
    stream: Literal["pre", "post"] = "pre"
    attn_in: Path | None = None
    attn_out: Path | None = None
    cross_in: Path | None = None
    memory: Path | None = None
    mlp_in: Path | None = None
    mlp_out: Path | None = None
    post_attn: Path | None = None
    post_mlp: Path | None = None
    post_embed: Path | None = None
    q_norm: Path | None = None
    k_norm: Path | None = None
    rope: Rope | None = None
    rotary: Path | Annotated[float, Meta(gt=0, le=1 << 20)] | None = None
    router: Literal["softmax"] | None = None
    activation: Path | None = None
    heads: Count | None = None

    def __post_init__(self) -> None:
        behind = [name for name in ("attn_in", "attn_out", "mlp_in", "mlp_out") if getattr(self, name) is not None]
        if self.stream == "post" and behind:
            raise ValueError(f"stream = 'post' has its norms behind the residual sum: leave out {behind[0]}")
        if (self.q_norm is None) != (self.k_norm is None):
            raise ValueError("q_norm and k_norm belong together: name both")
        if self.rotary is not None and self.rope is None:
            raise ValueError("rotary needs rope: name the layout of rotary planes, 'half' or 'interleaved'")

    @property
    def norms(self) -> frozenset[str]:
        """Paths of all norms of a block, but for those of queries and keys."""
        named = (self.attn_in, self.attn_out, self.cross_in, self.mlp_in, self.mlp_out)
        return frozenset(path for path in named if path is not None)


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """data/wiring.toml."""

    wiring: tuple[Wiring, ...]


WIRINGS = toml_decoder(_File)((files("specdiag.architecture") / "data" / "wiring.toml").read_bytes()).wiring


def find_wiring(
    config: Mapping[str, object],
    component: str | None,
    *,
    own: Sequence[Wiring] = (),
    modules: Collection[str] = (),
) -> Wiring:
    """Look up the wiring of one piece of a model.

    Entries of the user come first where they list its `model_type`; without one they hold where no other entry does.

    Args:
        config: config.json, or what a GGUF file says in its words.
        component: the piece, None in a model of one.
        own: entries of the user's role map.
        modules: paths in the block, by which names without a config are known.

    Raises:
        UnknownWiring: no entry is that of its architecture.

    Example:
        >>> find_wiring({"model_type": "llama"}, None).mlp_in
        'post_attention_layernorm'
    """
    try:
        return _listed(config, component, own, modules)
    except UnknownWiring:
        found = next((entry for entry in own if not (entry.model_type or entry.gguf or entry.holds)), None)
        if found is None:
            raise
        return found


def _listed(
    config: Mapping[str, object], component: str | None, own: Sequence[Wiring], modules: Collection[str]
) -> Wiring:
    piece = (component or "text").partition(".")[0]
    chain = settings.sections(config, piece)
    types = settings.model_types(chain)

    def fits(entry: Wiring) -> bool:
        said = {key: part[key] for part in reversed(chain) for key in entry.when if key in part}
        return set(entry.holds) <= set(modules) and said.items() <= entry.when.items()

    if types:
        found = next((entry for entry in own if types[0] in entry.model_type and fits(entry)), None)
        if found is None and piece in ("vision", "audio") and chain[0] is config:
            raise UnknownWiring(f"wiring of the {piece} part of model_type {shortened(types[0])} is unknown")
        found = found or next((entry for entry in WIRINGS if types[0] in entry.model_type and fits(entry)), None)
        if found is None:
            raise UnknownWiring(f"wiring of model_type {shortened(types[0])} is unknown")
        return found
    entries = (*own, *WIRINGS)
    names = config.get("architectures")
    first = cast("list[object]", names)[0] if isinstance(names, list) and names else None
    found = next((entry for entry in entries if first in entry.gguf and fits(entry)), None)
    if found is None and isinstance(first, str):
        raise UnknownWiring(f"wiring of architecture {shortened(first)} is unknown without a model_type")
    found = found or next((e for e in entries if e.holds and not (e.model_type or e.gguf) and fits(e)), None)
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
    stated = wiring.rotary
    value = _rotary(stated, chain) if stated is None or isinstance(stated, str) else float(stated)
    share = head_dim if value is None else value if value > 1 else head_dim * value
    if not 0 < share <= head_dim or int(share) % 2:
        name = stated if isinstance(stated, str) else "rotary"
        extra = "" if value is None else f" with {name} {value:g}"
        raise UnknownWiring(f"heads of {head_dim} rows{extra} cannot be cut into rotary planes")
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
