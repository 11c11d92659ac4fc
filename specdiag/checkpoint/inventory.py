"""Sorting of stored tensors: each gives matrices to analyse, or is left out with a reason."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from msgspec import structs

from specdiag.architecture.parametrised import parametrised_shapes
from specdiag.architecture.roles import Part, modules
from specdiag.checkpoint.buffers import find_buffers
from specdiag.checkpoint.experts import sample_experts
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.opening import Opening
from specdiag.checkpoint.parameter_count import count_parameters
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError
from specdiag.files import Table
from specdiag.records import Skipped, Source
from specdiag.system.paused_collection import paused_collection
from specdiag.text.numeric_order import in_numeric_order


@dataclass(frozen=True, slots=True)
class Sorting:
    """How the user wants the tensors sorted.

    Attributes:
        role_map: TOML file with roles for further names.
        experts: how many experts of each layer to analyse; None for all.
        seed: of the draw of experts.
    """

    role_map: Path | None
    experts: int | None
    seed: int


@paused_collection()
def sort_tensors(
    tensors: Sequence[StoredTensor], source: Source, config: Table, options: Sorting, notes: Iterable[str]
) -> Checkpoint:
    """Sort stored tensors into a checkpoint.

    Args:
        tensors: all that is stored, in order, under their final names, weights in the place of their codes.
        source: where they come from.
        config: config.json, or empty.
        options: how the user wants them sorted.
        notes: remarks so far; those of the sorting follow them.

    Returns:
        The checkpoint: its matrices, and every other tensor with the reason why it is left out.

    Raises:
        UsageError: the role map or the number of experts is wrong.
        SourceError: a tensor has the same name as a part of another tensor.
    """
    tied = _tied(tensors)
    buffers = find_buffers(tensors)
    settled = {t.name: t.reason for t in tensors if t.reason is not None} | buffers.reasons
    shapes = {t.name: t.shape for t in tensors if t.name not in settled}
    by_rules = modules(shapes, config, options.role_map, trained=buffers.trained, unread=_unread(tensors))
    reasons = {**by_rules.skipped, **settled, **tied}
    tables = {t.name for t in tensors if t.is_embedding}
    parts = {
        name: tuple(map(_as_embedding, pieces)) if name in tables else pieces
        for name, pieces in by_rules.parts.items()
        if name not in reasons
    }
    all_notes = [*notes, *by_rules.notes]
    if options.experts is not None:
        parts, sampled, remarks = sample_experts(parts, options.experts, options.seed)
        reasons.update(sampled)
        all_notes += remarks
    in_order = in_numeric_order((t for t in tensors if t.name in parts), key=lambda t: t.name)
    matrices = tuple(_matrix(t, part) for t in in_order for part in parts[t.name])
    _require_distinct(matrices, source)
    return Checkpoint(
        source=source,
        architecture=architecture(config),
        config=config,
        matrices=matrices,
        skipped=tuple(
            Skipped(name=t.name, shape=t.shape, dtype=t.dtype, reason=reasons[t.name])
            for t in tensors
            if t.name in reasons
        ),
        notes=tuple(all_notes),
        n_tensors=len(tensors),
        n_parameters=count_parameters(tensors, reasons),
        stored=tuple(tensors),
        opening=Opening.of({"role_map": options.role_map, "experts": options.experts, "seed": options.seed}),
    )


def _require_distinct(matrices: Sequence[WeightMatrix], source: Source) -> None:
    twice = duplicate(matrix.key for matrix in matrices)
    if twice is not None:
        raise SourceError(
            f"{source.location} holds a tensor of the name '{brief(twice)}', which a part of another tensor is given: "
            "rename it"
        )


def architecture(config: Table) -> str | None:
    """Read `architectures[0]` or `model_type` of a config.json; None where it has neither."""
    entry = config.get("architectures")
    names = cast("list[object]", entry) if isinstance(entry, list) else []
    return next((name for name in (*names, config.get("model_type")) if isinstance(name, str)), None)


def _unread(tensors: Sequence[StoredTensor]) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of weights whose values are not understood; integers are buffers."""
    left_out = [tensor for tensor in tensors if tensor.reason is not None]
    floats = {t.name: t.shape for t in left_out if t.dtype.startswith("F") and str(t.reason).startswith("unsupported")}
    return parametrised_shapes({tensor.name: tensor.shape for tensor in left_out}) | floats


def _tied(tensors: Sequence[StoredTensor]) -> dict[str, str]:
    first: dict[Hashable, str] = {}
    reasons: dict[str, str] = {}
    for tensor in tensors:
        if tensor.storage is not None:
            owner = first.setdefault(tensor.storage, tensor.name)
            if owner != tensor.name:
                reasons[tensor.name] = f"tied to {owner}"
    return reasons


def _as_embedding(part: Part) -> Part:
    """Take the word of a module's class where no rule knows the name."""
    if part.module.recognised:
        return part
    return structs.replace(part, module=structs.replace(part.module, role="embed", family="embedding", recognised=True))


def _matrix(tensor: StoredTensor, part: Part) -> WeightMatrix:
    n_slices, rows, cols = part.slicer.shape
    return WeightMatrix(
        name=tensor.name,
        module=part.module,
        shape=(rows, cols),
        n_slices=n_slices,
        tensor=tensor,
        slicer=part.slicer,
    )
