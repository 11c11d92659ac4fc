"""W + delta: the tensors of a base model with an adapter applied, as PEFT's merge_and_unload would leave them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from specdiag.checkpoint.adapters.adapter import HALF, NO_RANK, OTHER_RANK, Adapter, Tokens
from specdiag.checkpoint.adapters.match import Names
from specdiag.checkpoint.adapters.update import Applied, Update
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FLOAT_TYPES, RawArray


def merge(adapter: Adapter, base: Sequence[StoredTensor], where: str, onto: str) -> list[StoredTensor]:
    """Apply an adapter to its base model.

    Args:
        adapter: updates and full weights.
        base: the tensors of the base model, weights in the place of their codes.
        where: the adapter, for messages.
        onto: the base model, for messages.

    Returns:
        The base model's tensors in their order, changed or replaced where the adapter says so; then what it adds.

    Raises:
        SourceError: a module has no counterpart in the base model, or one of another shape; the adapter cannot be
            applied to the model that it was trained on.
    """
    if adapter.config.moved is not None:
        raise SourceError(
            f"{where} was initialised by {adapter.config.moved}, which changes W too: W + delta would count that part "
            "twice; convert the adapter (PEFT: path_initial_model_for_weight_conversion), or merge it into its model"
        )
    if adapter.config.settings.get("layer_replication"):
        raise SourceError(
            f"{where} was trained on a model whose layers are repeated (layer_replication), not supported: merge it "
            "into its model (PEFT: merge_and_unload)"
        )
    without = [update.module for update in adapter.updates if update.magnitude is None]
    if without and adapter.config.has_magnitudes:
        raise SourceError(
            f"{where} lacks DoRA's magnitudes of {_counted(without[0], len(without))}, and adapter_config.json says "
            "use_dora: fetch or save the adapter again"
        )
    if adapter.not_understood:
        first = next(tensor for tensor in adapter.left_out if tensor.name in adapter.not_understood)
        raise SourceError(
            f"{where} cannot be applied whole, for {_counted(first.name, len(adapter.not_understood))} "
            f"({first.reason}): {_remedy(first.reason)}"
        )
    tensors = _with_weights(adapter, base)
    names = Names(tensors)
    done: dict[str, str] = {}
    for update in adapter.updates:
        name = parameter(update, names, where, onto)
        if name in done:
            raise SourceError(
                f"{where} changes '{name}' twice, by '{done[name]}' and '{update.module}': give one adapter"
            )
        done[name] = update.module
        tensors[name] = _merged(update, tensors[name], where, onto)
    for tokens in adapter.tokens:
        name = names.find(f"{tokens.module}.weight")
        n_rows = 0 if name is None else tensors[name].shape[0]
        if name is None or not all(0 <= row < n_rows for row in tokens.rows):
            raise SourceError(f"{where} trains tokens of '{tokens.module}', which {onto} does not hold")
        tensors[name] = _with_rows(tensors[name], tokens)
    return [*tensors.values(), *(tensor for tensor in adapter.left_out if tensor.name not in tensors)]


def applied(adapter: Adapter, base: Sequence[StoredTensor], where: str, onto: str) -> tuple[Applied, ...]:
    """Put every update beside the weight of the base model that it changes.

    Args:
        adapter: one that `merge` applies.
        base: as for `merge`.
        where: the adapter, for messages.
        onto: the base model, for messages.
    """
    tensors = _with_weights(adapter, base)
    names = Names(tensors)
    pairs = ((update, parameter(update, names, where, onto)) for update in adapter.updates)
    fitted = ((name, update.fitted_to(tensors[name].shape)) for update, name in pairs)
    return tuple(Applied(name, update, tensors[name]) for name, update in fitted if update is not None)


def _with_weights(adapter: Adapter, base: Sequence[StoredTensor]) -> dict[str, StoredTensor]:
    """Replace the weights of the base model that the adapter holds whole."""
    tensors = {tensor.name: tensor for tensor in base}
    names = Names(tensors)
    for weight in adapter.weights:
        name = names.find(weight.name) or weight.name
        tensors[name] = replace(weight, name=name)
    return tensors


def parameter(update: Update, names: Names, where: str, onto: str) -> str:
    """Find the parameter of the base model that an update changes.

    Args:
        update: of one module.
        names: those of the base model.
        where: the adapter, for messages.
        onto: the base model, for messages.

    Raises:
        SourceError: the base model has no such module, or several names fit.
    """
    for leaf in ("weight", "in_proj_weight"):
        name = names.find(f"{update.module}.{leaf}")
        if name is not None:
            return name
    if update.module.rpartition(".")[2] in ("lm_head", "embed_out"):
        raise SourceError(
            f"{where} adapts '{update.module}', and {onto} holds no such tensor: where the head is tied to the token "
            "embedding, save the adapter with that tensor (PEFT: save_embedding_layers=True)"
        )
    raise SourceError(
        f"{where} adapts '{update.module}' ({_times(update.shape)}), which {onto} does not hold: "
        "it was made for another model, or by a version of transformers that gives its modules other names"
    )


def _merged(update: Update, weight: StoredTensor, where: str, onto: str) -> StoredTensor:
    if weight.values_dtype not in FLOAT_TYPES or weight.reason is not None:
        raise SourceError(f"{where} adapts '{weight.name}', which {onto} stores as {weight.dtype}: {weight.reason}")
    fitted = update.fitted_to(weight.shape)
    if fitted is None:
        raise SourceError(
            f"{where} changes '{update.module}' by a matrix {_times(update.shape)}, and '{weight.name}' in {onto} is "
            f"{_times(weight.shape)}: it was made for another model"
        )
    kind = FLOAT_TYPES[weight.values_dtype]

    def read(index: int | None) -> RawArray:
        merged = fitted.added_to(weight.read(None), kind)
        return merged if index is None else merged[index]

    values = "F64" if kind.name == "F64" else "F32"
    return replace(weight, read=read, values=values, nbytes=weight.nbytes + update.nbytes)


def _with_rows(table: StoredTensor, tokens: Tokens) -> StoredTensor:
    """Replace the rows of trained tokens in a table, which becomes float32 or stays float64."""
    kinds = FLOAT_TYPES[table.values_dtype], FLOAT_TYPES[tokens.values.values_dtype]
    wide = np.dtype(np.float64 if kinds[0].name == "F64" else np.float32)

    def read(index: int | None) -> RawArray:
        values = np.array(kinds[0].widen(table.read(None), wide))
        values[list(tokens.rows)] = kinds[1].widen(tokens.values.read(None), wide)
        return values if index is None else values[index]

    return replace(table, read=read, values="F64" if kinds[0].name == "F64" else "F32")


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _counted(name: str, n: int) -> str:
    return name if n == 1 else f"{name} and {n - 1} more"


def _remedy(reason: str | None) -> str:
    is_lost = reason in (HALF, NO_RANK) or OTHER_RANK.fullmatch(reason or "") is not None
    return "fetch or save the adapter again" if is_lost else "merge it into its model (PEFT: merge_and_unload)"
