"""A model of a lineage, opened: its blocks, the matrices of its function, and what stands in its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specdiag.architecture import config as settings
from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.function.blocks import find_blocks
from specdiag.function.matrices import function_of
from specdiag.function.parts import Block
from specdiag.kinship.fingerprint import Place, place
from specdiag.kinship.records import LineageSource
from specdiag.kinship.signs import weights_of


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose blocks were found.

    Attributes:
        record: its place in the answer.
        checkpoint: open.
        blocks: those with attention, by component and index.
        rows: matrices of the function.
        left_out: sentences on parts of which nothing is known.
    """

    record: LineageSource
    checkpoint: Checkpoint
    blocks: Mapping[Place, Block]
    rows: tuple[WeightMatrix, ...]
    left_out: tuple[str, ...] = ()

    @property
    def scaled(self) -> bool:
        """True where the scale of the residual stream shows in no output."""
        wirings = [block.wiring for block in self.blocks.values()]
        return all(w.stream == "pre" and w.attn_out is None and w.mlp_out is None for w in wirings)


def open_models(checkpoints: Sequence[Checkpoint], device: str = "cpu") -> list[Model]:
    """Find the blocks of models. One whose config names no model_type takes the wiring of the others.

    Args:
        checkpoints: open ones; no values are read.
        device: on which the matrices of their function are computed when they are read.
    """
    lent = {kind for c in checkpoints if (kind := _model_type(c)) is not None}
    found: list[Model] = []
    for i, checkpoint in enumerate(checkpoints):
        label = label_of(i)
        model = _open(label, checkpoint, device)
        if model.record.problem is not None and len(lent) == 1 and _names_nothing(checkpoint):
            (kind,) = lent
            borrowed = _open(label, replace(checkpoint, config={**checkpoint.config, "model_type": kind}), device)
            if borrowed.record.problem is None:
                note = f"config.json names no model_type: the wiring of {kind} was taken, as of the other models."
                record = _replaced(borrowed.record, notes=(*borrowed.record.notes, note))
                model = replace(borrowed, record=record)
        found.append(model)
    return found


def label_of(i: int) -> str:
    """Label a source: A to Z, then A1, B1, ..."""
    letter, rest = chr(ord("A") + i % 26), i // 26
    return f"{letter}{rest}" if rest else letter


def _open(label: str, checkpoint: Checkpoint, device: str) -> Model:
    problem = None
    if any(matrix.rank is not None for matrix in checkpoint.matrices):
        problem = "an adapter without its base model, which base= names"
    blocks, notes = find_blocks(checkpoint)
    heads = [(b, a) for b in blocks if (a := b.attention) is not None]
    if problem is None and not heads:
        problem = notes[0].partition(": QK, OV")[0].rstrip(".") if notes else "no attention was found"
        problem = problem[0].lower() + problem[1:]
    sizes = {(a.q.shape[1], a.head_dim) for _, a in heads}
    if problem is None and len(sizes) > 1:
        shown = ", ".join(f"{d} with heads of {h}" for d, h in sorted(sizes))
        problem = f"its layers have several widths ({shown}), which are not compared yet"
    width, head_dim = next(iter(sizes)) if sizes else (None, None)
    rows = function_of(checkpoint, device).rows if problem is None else ()
    record = LineageSource(
        source=checkpoint.source,
        label=label,
        architecture=checkpoint.architecture,
        n_layers=len(heads),
        width=width,
        head_dim=head_dim,
        heads=heads[0][1].heads if heads else None,
        storage=tuple(sorted({w.matrix.storage_dtype for b, _ in heads for w in weights_of(b)})),
        problem=problem,
        notes=tuple(n for n in notes if problem is None),
    )
    by_place = {place(b.component, b.layer): b for b, _ in heads}
    return Model(record, checkpoint, by_place, rows, tuple(notes))


def _model_type(checkpoint: Checkpoint) -> str | None:
    kinds = settings.model_types(settings.sections(checkpoint.config, None))
    return kinds[0] if kinds else None


def _names_nothing(checkpoint: Checkpoint) -> bool:
    return _model_type(checkpoint) is None


def _replaced(record: LineageSource, **fields: object) -> LineageSource:
    from msgspec.structs import replace as replace_record

    return replace_record(record, **fields)
