"""The updates of an adapter as matrices of their own: rows of rank r, without the weights that they change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from specdiag.architecture.split import whole
from specdiag.checkpoint.adapters.adapter import Adapter, remarks_on_updates
from specdiag.checkpoint.adapters.names import dotted
from specdiag.checkpoint.adapters.update import Applied, Update, can_cut
from specdiag.checkpoint.inventory import Sorting, sort_tensors
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.files import Table, shortened
from specdiag.records import Skipped, Source


def update_rows(adapter: Adapter, source: Source, config: Table, options: Sorting, notes: Iterable[str]) -> Checkpoint:
    """Make a checkpoint of an adapter's updates, and of the full weights that lie beside them.

    Every update stands under the name and in the shape of its parameter. Where the parameter lies in the same file, the
    update is a part `delta` beside it. `n_parameters` counts the values of the products, not those of the factors.

    Args:
        adapter: updates and full weights.
        source: where they come from.
        config: config.json, or empty.
        options: how the user wants the tensors sorted.
        notes: remarks so far.

    Returns:
        The checkpoint.

    Raises:
        UsageError: the role map or the number of experts is wrong.
        SourceError: a tensor has the same name as a part of another tensor.
    """
    shapes = {weight.name: weight.shape for weight in adapter.weights}
    alone = [update for update in adapter.updates if update.name not in shapes]
    names = _readable([update.name for update in alone])
    stand_ins = [msgspec.structs.replace(_stand_in(u), name=names[u.name]) for u in _first_of_each(alone)]
    tensors = [*adapter.weights, *stand_ins, *adapter.left_out]
    checkpoint = sort_tensors(tensors, source, config, options, [*notes, *_remarks(adapter)])
    shown = {readable: name for name, readable in names.items()}
    by_name: dict[str, list[Update]] = defaultdict(list)
    for update in adapter.updates:
        fitted = update.fitted_to(shapes.get(update.name, update.shape))
        by_name[update.name] += [] if fitted is None else [fitted]
    matrices: list[WeightMatrix] = []
    for matrix in checkpoint.matrices:
        name = shown.get(matrix.name, matrix.name)
        is_weight = matrix.name in shapes
        if is_weight:
            matrices.append(matrix)
        matrices += _rows(msgspec.structs.replace(matrix, name=name), by_name[name], is_weight=is_weight)
    skipped = [msgspec.structs.replace(s, name=shown.get(s.name, s.name)) for s in checkpoint.skipped]
    reached = {m.name for m in matrices if m.rank is not None} | {s.name for s in skipped if s.name not in shapes}
    return replace(
        checkpoint,
        matrices=tuple(matrices),
        skipped=(*skipped, *(_not_reached(u) for u in adapter.updates if u.name not in reached)),
        n_tensors=adapter.n_tensors,
        stored=(*adapter.weights, *adapter.left_out),
        adapter=dict(adapter.config.settings),
        updates=tuple(Applied(update.name, update) for update in adapter.updates),
    )


def _remarks(adapter: Adapter) -> list[str]:
    config, updates = adapter.config, adapter.updates
    notes = remarks_on_updates(adapter)
    whole = {weight.name for weight in adapter.weights if len(weight.shape) > 1}
    changed = sum(update.name in whole for update in updates)
    if not adapter.holds_base and changed < len(updates):
        made_for = _made_for(config.base)
        rows = f"{len(updates)} of the rows" if whole else "The rows"
        notes.insert(0, f"{rows} are an adapter's updates s B A, not weights; {made_for} for W + s B A.")
    elif not adapter.holds_base and changed:
        notes.insert(0, f"{changed} of the rows are updates s B A of weights that lie in the same file.")
    if any(update.magnitude is not None for update in updates):
        notes.append("DoRA's update depends on W: these rows are of s B A alone, without its magnitudes.")
    if config.moved is not None:
        notes.append(
            f"Initialised by {config.moved}, which moves a part of W into the factors: s B A is not the change alone."
        )
    return notes


def _made_for(base: str | None) -> str:
    """Say which base to give; a name too long to be shown whole is no path and no hub id."""
    shown = shortened(base or "")
    return "give base=" if not base else f"made for {shown}: give base={shown if shown == base else ''}"


def _first_of_each(updates: Sequence[Update]) -> list[Update]:
    return list({update.name: update for update in reversed(updates)}.values())[::-1]


def _readable(names: Sequence[str]) -> dict[str, str]:
    """Map the shown names to names that show a role: flattened ones are taken apart, where that is unique."""
    guesses = {name: f"{dotted(name.removesuffix('.weight'))}.weight" for name in names}
    counts = Counter([*guesses.values(), *guesses])
    return {name: guess if guess == name or counts[guess] == 1 else name for name, guess in guesses.items()}


def _stand_in(update: Update) -> StoredTensor:
    """Make a tensor of the parameter's name and shape, for the rules that sort tensors. It reads the update's core."""

    def read(_: int | None) -> NDArray[np.float64]:
        return update.core()[0]

    return StoredTensor(
        name=update.name,
        shape=update.shape,
        dtype=update.up.dtype,
        nbytes=update.nbytes,
        file=update.up.file,
        read=read,
        values="F64",
    )


def _rows(matrix: WeightMatrix, updates: Sequence[Update], *, is_weight: bool) -> list[WeightMatrix]:
    """Make a matrix for each update of the parameter that `matrix` is cut from.

    `is_weight` says that the matrix is the parameter itself, so that its updates need a part of their own.
    """
    return [
        _row(matrix, update, _label(update, len(updates)) if is_weight or len(updates) > 1 else None)
        for update in updates
    ]


def _label(update: Update, n: int) -> str:
    return "delta" if n == 1 else f"delta={update.adapter}"


def _row(matrix: WeightMatrix, update: Update, label: str | None) -> WeightMatrix:
    slicer = matrix.slicer if len(update.shape) == 2 and can_cut(matrix.slicer) else None
    rows, cols = matrix.shape if slicer is not None else (update.shape[0], prod(update.shape[1:]))
    sides = min(rows, update.rank), min(cols, update.rank)
    part = ".".join(p for p in (matrix.module.part, label) if p) or None

    def read(_: int | None) -> NDArray[np.float64]:
        return update.core(slicer)[0]

    return WeightMatrix(
        name=matrix.name,
        module=msgspec.structs.replace(matrix.module, part=part),
        shape=(rows, cols),
        n_slices=1,
        tensor=StoredTensor(
            name=matrix.name,
            shape=sides,
            dtype=update.up.dtype,
            nbytes=update.nbytes * rows * cols // max(1, prod(update.shape)),
            file=update.up.file,
            read=read,
            values="F64",
        ),
        slicer=whole(sides),
        rank=min(*sides),
    )


def _not_reached(update: Update) -> Skipped:
    return Skipped(
        name=update.name,
        part="delta",
        shape=update.shape,
        dtype=update.up.dtype,
        reason="update of a weight that is left out itself, or has another shape",
    )
