"""Adapters of low rank: which updates a file holds, of which modules, with which scale."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from msgspec import structs

from specdiag.architecture.names import one_of_each
from specdiag.checkpoint.adapters.config import AdapterConfig
from specdiag.checkpoint.adapters.names import Kind, Piece, may_adapt, take_apart
from specdiag.checkpoint.adapters.update import Update
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FLOAT_TYPES

HALF = "half of an update: its other factor is not there"
"""Reason for a factor that stands alone."""
_STACKED = "update of stacked experts, not supported"
_BELOW = ".base_layer.out_proj."
NO_RANK = "factors of rank 0: nothing of this update is there"
"""Reason for factors without values, which only AdaLoRA's pruning leaves."""
OTHER_RANK = re.compile(r"factors of rank [0-9]+, and adapter_config\.json says [0-9]+")
"""Reason for factors of another rank than the settings state."""
TOKEN_ROWS = "trainable tokens: rows of a table, no matrix"
_PRUNED = "update of rank 0"
_REPLACED = "replaced by modules_to_save"
_VECTOR = "1-D: bias, norm or vector"
_SINGLE = "0-D: a single value"
_HARMLESS = frozenset(
    {_PRUNED, _REPLACED, _VECTOR, _SINGLE, "bias of an update", "rank counter of AdaLoRA", "buffer of trainable tokens"}
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """New rows of a table.

    Attributes:
        module: the embedding.
        rows: the tokens.
        values: their vectors, in the same order.
    """

    module: str
    rows: tuple[int, ...]
    values: StoredTensor = field(repr=False)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The content of an adapter, or of a model with an adapter in it.

    Attributes:
        updates: low-rank updates, in stored order.
        weights: full weights under their names in the base model; also the base model itself where it lies in the file.
        tokens: rows of embeddings.
        left_out: every other tensor, and the tokens, with the reason why it is no matrix.
        not_understood: the names among these whose effect on the weights is not known.
        config: the settings of the first adapter.
        n_tensors: number of stored tensors.
        holds_base: whether the weights that the updates change lie in the same file.
    """

    updates: tuple[Update, ...]
    weights: tuple[StoredTensor, ...]
    tokens: tuple[Tokens, ...]
    left_out: tuple[StoredTensor, ...]
    not_understood: tuple[str, ...]
    config: AdapterConfig
    n_tensors: int
    holds_base: bool


@dataclass(slots=True)
class _Module:
    """The pieces of one module's update, by kind."""

    pieces: dict[Kind, StoredTensor] = field(default_factory=dict[Kind, StoredTensor])


def read_adapter(
    tensors: Sequence[StoredTensor],
    configs: Mapping[str | None, AdapterConfig],
    where: str,
    *,
    is_declared: bool = False,
) -> Adapter | None:
    """Find the low-rank updates among the tensors of a checkpoint.

    Args:
        tensors: all that is stored, under final names.
        configs: the settings of each adapter by its name in the file; those of None hold for any.
        where: the checkpoint, for messages.
        is_declared: take it for an adapter even without updates, as its settings and its file name say.

    Returns:
        The adapter; None where the checkpoint is none and holds none.

    Raises:
        SourceError: it holds an adapter that is no product of two factors, or its parts contradict each other.
    """
    if not is_declared and not any(map(may_adapt, one_of_each(tensor.name for tensor in tensors))):
        return None
    pieces = {tensor.name: take_apart(tensor.name) for tensor in tensors}
    kinds = {piece.kind for piece in pieces.values()}
    config = next(iter(configs.values()), AdapterConfig({}))
    if not is_declared and not kinds & {"down", "up", "method"}:
        return None
    method = config.not_understood or next((p.what for p in pieces.values() if p.kind == "method"), None)
    if method is not None and (config.not_understood or not kinds & {"down", "up"}):
        raise SourceError(
            f"{where} holds an adapter ({method}) that is no product of two factors, not supported: "
            "merge it into its model (PEFT: merge_and_unload)"
        )
    modules: dict[tuple[str, str | None], _Module] = defaultdict(_Module)
    for tensor in tensors:
        piece = pieces[tensor.name]
        if piece.kind in ("down", "up", "middle", "magnitude"):
            modules[piece.module, piece.adapter].pieces[piece.kind] = tensor
    alphas = {piece.module: name for name, piece in pieces.items() if piece.kind == "alpha"}
    stored = {tensor.name: tensor for tensor in tensors}
    for (name, _), module in modules.items():
        if name in alphas:
            module.pieces["alpha"] = stored[alphas[name]]
    # PEFT names the update of nn.MultiheadAttention's fused projection after the module itself.
    attention = {piece.module.removesuffix(".out_proj") for n, piece in pieces.items() if _BELOW in n}
    updates: list[Update] = []
    reasons: dict[str, str] = {}
    for (name, adapter), module in modules.items():
        settings = configs.get(adapter, configs.get(None, AdapterConfig({})))
        reason = _why_not(name, module, settings) or _other_rank(name, adapter, module, settings)
        if reason is None:
            update = _update(name, adapter, module, settings, where)
            updates.append(replace(update, leaf="in_proj_weight") if name in attention else update)
        else:
            reasons.update({tensor.name: reason for tensor in module.pieces.values()})
    weights, rest = _others(tensors, pieces, {t.name for m in modules.values() for t in m.pieces.values()})
    reasons.update(rest)
    tokens = [_tokens(tensor, pieces[tensor.name], configs) for tensor in tensors]
    known_tokens = tuple(entry for entry in tokens if entry is not None)
    applied = {entry.values.name for entry in known_tokens}
    names = {weight.name for weight in weights}
    return Adapter(
        updates=tuple(updates),
        weights=tuple(weights),
        tokens=known_tokens,
        left_out=tuple(structs.replace(stored[name], reason=reason) for name, reason in reasons.items()),
        not_understood=tuple(n for n, why in reasons.items() if why not in _HARMLESS and n not in applied),
        config=config,
        n_tensors=len(tensors),
        holds_base=sum(u.name in names and u.adapter is not None for u in updates) * 2 > len(updates),
    )


def remarks_on_updates(adapter: Adapter) -> list[str]:
    """Note where a scale is stored nowhere, and where the updates do not hold for every token.

    Args:
        adapter: as `read_adapter` found it.

    Returns:
        Sentences for the report.
    """
    notes: list[str] = []
    unscaled = sum(not update.has_scale for update in adapter.updates)
    if unscaled:
        of_modules = "" if unscaled == len(adapter.updates) else f" for {unscaled} of {len(adapter.updates)} modules"
        notes.append(f"No scale (alpha) is stored{of_modules}: the products B A are taken as they are.")
    if adapter.config.settings.get("alora_invocation_tokens"):
        notes.append("An activated LoRA: its updates hold only after its invocation tokens.")
    return notes


def _why_not(name: str, module: _Module, config: AdapterConfig) -> str | None:
    """Say why the pieces of a module are no update that can be analysed; None where they are one."""
    down, up = module.pieces.get("down"), module.pieces.get("up")
    if down is None or up is None:
        return HALF
    if down.shape[:1] == (0,) and up.shape[1:] == (0,):
        return _PRUNED if config.prunes or "middle" in module.pieces else NO_RANK
    if any(0 in tensor.shape for tensor in (down, up)):
        return "empty: a factor that was saved in parts and not gathered"
    for kind, tensor in module.pieces.items():
        may_be_integer = kind == "alpha" and tensor.dtype.startswith(("I", "U"))
        if not may_be_integer and (tensor.reason is not None or tensor.values_dtype not in FLOAT_TYPES):
            return tensor.reason or f"unsupported dtype {tensor.dtype}"
    if name.endswith((".base_layer", ".experts")) or config.targets_parameter(name):
        return _STACKED
    is_product = len(down.shape) == len(up.shape) and len(down.shape) in (2, 4) and prod(up.shape[2:]) == 1
    in_groups = len(down.shape) == 4 and up.shape[1:2] != down.shape[:1]
    if not is_product or in_groups:
        return f"factors of shapes {_times(up.shape)} and {_times(down.shape)}, no product of two matrices"
    return None


def _other_rank(name: str, adapter: str | None, module: _Module, config: AdapterConfig) -> str | None:
    rank, stated = module.pieces["down"].shape[0], config.rank(name) if adapter is None else None
    if stated in (None, rank) or module.pieces["up"].shape[1] != rank:  # a live AdaLoRA keeps masked ranks
        return None
    return f"factors of rank {rank}, and adapter_config.json says {stated}"


def _update(name: str, adapter: str | None, module: _Module, config: AdapterConfig, where: str) -> Update:
    down, up = module.pieces["down"], module.pieces["up"]
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise SourceError(
            f"{where} is damaged: the factors of '{name}' have the shapes {_times(up.shape)} and "
            f"{_times(down.shape)}, which do not multiply"
        )
    sizes: dict[Kind, int] = {"middle": rank, "magnitude": up.shape[0], "alpha": 1}
    for kind, size in sizes.items():
        part = module.pieces.get(kind)
        if part is not None and prod(part.shape) != size:
            raise SourceError(f"{where} is damaged: '{part.name}' has {prod(part.shape)} values and not {size}")
    return Update(
        module=name,
        adapter=adapter,
        down=down,
        up=up,
        middle=module.pieces.get("middle"),
        magnitude=module.pieces.get("magnitude"),
        alpha=module.pieces.get("alpha"),
        known_scale=config.scale(name, rank),
        transposed=config.transposed or take_apart(down.name).is_embedding,
    )


def _tokens(tensor: StoredTensor, piece: Piece, configs: Mapping[str | None, AdapterConfig]) -> Tokens | None:
    if piece.kind != "tokens" or tensor.values_dtype not in FLOAT_TYPES:
        return None
    rows = configs.get(piece.adapter, configs.get(None, AdapterConfig({}))).tokens(piece.module)
    return Tokens(piece.module, rows, tensor) if rows is not None and (len(rows),) == tensor.shape[:1] else None


def _others(
    tensors: Sequence[StoredTensor], pieces: Mapping[str, Piece], used: set[str]
) -> tuple[list[StoredTensor], dict[str, str]]:
    """Collect full weights under their names in the base model, and the reason to leave out each of the rest."""
    saved = {piece.module for piece in pieces.values() if piece.kind == "weight"}
    weights: dict[str, StoredTensor] = {}
    reasons: dict[str, str] = {}
    for tensor in tensors:
        piece = pieces[tensor.name]
        if tensor.name in used:
            continue
        if piece.kind == "frozen" and piece.module in saved:
            reasons[tensor.name] = _REPLACED
        elif piece.kind in ("weight", "frozen", "alpha"):
            name = tensor.name if piece.kind == "alpha" else piece.module  # an alpha of no update is a parameter
            if name in weights:
                second = f"a second weight for {name}"
                reasons[tensor.name] = (_SINGLE, _VECTOR, second)[min(len(tensor.shape), 2)]
            weights.setdefault(name, structs.replace(tensor, name=name))
        elif piece.kind == "tokens":
            reasons[tensor.name] = TOKEN_ROWS
        else:
            reasons[tensor.name] = tensor.reason or piece.what + ("" if piece.what in _HARMLESS else ", not supported")
    return list(weights.values()), reasons


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
