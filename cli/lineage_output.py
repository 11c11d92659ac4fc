"""Output of `specdiag lineage`: the verdicts with what decided, a table of distances, and data to print or save."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from . import answer_output, output, tables

if TYPE_CHECKING:
    from specdiag.kinship.records import LayerRelation, Lineage, Relation

_STYLES = {
    "same function": "bold", "derived": "bold", "undecided": "bold yellow", "no relation shown": "bold",
    "not comparable": "bold yellow",
}  # fmt: skip


def answer(found: Lineage, format: str, out: Path | None, *, all_rows: bool) -> None:
    """Save what is asked for, and print: the verdicts, or data for a pipeline."""
    from specdiag.kinship.records import COLUMNS
    from specdiag.views.export import export

    data = found.to_json() if format in ("table", "json") else export(found.to_records(), COLUMNS, format)
    output.deliver(data, out, partial(_print, found, all_rows=all_rows) if format == "table" else None)
    for side in found.sources:
        output.talk(f"{side.label}: {side.source}", "dim")
    if format == "table":
        _show_next(found)


def _show_next(found: Lineage) -> None:
    """Say what one would type next on the two models that are closest."""
    related = [r for r in found.relations if r.attention is not None]
    if not related:
        return
    closest = min(related, key=lambda r: r.attention or 0.0)
    names = {side.label: shlex.quote(str(side.source)) for side in found.sources}
    answer_output.show_next(
        {
            f"specdiag compare {names[closest.a]} {names[closest.b]}": "what changed, matrix by matrix",
            "specdiag explain attention": "what the distance means",
        }
    )


def _print(found: Lineage, *, all_rows: bool) -> None:
    from specdiag.kinship import wording

    console = output.console()
    is_pair = len(found.relations) == 1
    for relation in found.relations:
        console.print(wording.headline(relation), style=_STYLES[relation.verdict], soft_wrap=True)
    for mix in found.mixes:
        for i, line in enumerate(wording.mix(mix)):
            console.print(line, style="" if i else "bold", soft_wrap=True)
    console.print()
    if is_pair:
        if held := list(wording.facts(found.relations[0])):
            answer_output.show_facts(held, console)
    else:
        console.print(_matrix(found, console))
        console.print()
        _signs(found.relations, console)
    if all_rows:
        for relation in found.relations:
            if relation.layers:
                console.print(_layers(relation, console.width))
                console.print()
    for sentence in wording.sentences(found):
        console.print(sentence, soft_wrap=True)


def _signs(relations: Iterable[Relation], console: Console) -> None:
    rows = [(f"{r.a}, {r.b}", sign) for r in relations for sign in r.signs]
    if rows:
        answer_output.show_facts(rows, console)


def _matrix(found: Lineage, console: Console) -> object:
    """A table of the distances of all pairs, each source one row."""
    held = {frozenset((r.a, r.b)): r for r in found.relations}

    def cell(row: str, column: str) -> str:
        relation = held.get(frozenset((row, column)))
        return "" if relation is None else "-" if relation.attention is None else f"{relation.attention:.4f}"

    labels = [side.label for side in found.sources]
    names = {side.label: str(side.source) for side in found.sources}
    columns: list[tables.Column[str]] = [
        tables.Column("model", lambda label: f"{label} {names[label]}", right=False),
        *(tables.Column(other, lambda label, other=other: cell(label, other), drop=0) for other in labels),
    ]
    return tables.draw("Distances of attention", columns, labels, console.width)


def _layers(found: Relation, width: int) -> object:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    columns: list[tables.Column[LayerRelation]] = [
        tables.Column("layer", lambda r: _layer(r), right=False),
        tables.Column("attention", lambda r: number(r.attention, 4)),
        tables.Column("MLP", lambda r: number(r.mlp, 4)),
        tables.Column("of unequal", lambda r: number(r.ratio, 2)),
        tables.Column("cosine", lambda r: number(r.cosine, 3)),
        tables.Column("related", lambda r: "yes" if r.carries else "", right=False),
    ]
    return tables.draw(f"Layers of {found.a} and {found.b}", columns, found.layers, width)


def _layer(row: LayerRelation) -> str:
    same = row.layer_a == row.layer_b
    place = f"{row.layer_a}" if same else f"{row.layer_a} and {row.layer_b}"
    return f"{row.component} {place}" if row.component else place
