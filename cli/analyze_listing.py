"""`specdiag analyze --dry-run`: what would be analysed and what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdiag.errors import UsageError
from specdiag.text.counts import counted

from . import options, output, tables

if TYPE_CHECKING:
    from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
    from specdiag.records import Settings

    from .analyze_target import Target


_MOST = 500
"""Rows of a table without --all. A model of 100,000 matrices would take minutes to draw."""


def listing(checkpoint: Checkpoint, choices: options.Arguments, target: Target) -> None:
    """`--dry-run`: what would be analysed and what it would cost; no values are read."""
    from specdiag.analysis.cost import flops, seconds
    from specdiag.analysis.function import needed, with_function
    from specdiag.analysis.selection import select
    from specdiag.analysis.settings import make_settings
    from specdiag.analysis.summary import count_reasons
    from specdiag.files import write_atomically
    from specdiag.resources import available_cpus
    from specdiag.views.export import export

    from . import analyze_output as show

    if target.format == "table" and target.out is not None:
        raise UsageError("--dry-run makes no report; with -o choose -f json, csv or md")
    settings = make_settings(**choices)
    known = len(checkpoint.notes)
    checkpoint, balanced = with_function(checkpoint, settings)
    show.notes(checkpoint.notes[known:])
    selected, skipped = select(checkpoint, settings)
    forms = needed(balanced, selected)
    if target.format != "table":
        rows = [_row(m, settings) for m in selected]
        data = export(rows, list(rows[0]), target.format)
        if target.out is None:
            output.write(data)
        else:
            write_atomically(target.out, data)
        return
    stored = [m for m in selected if m.module.form == "stored"]
    made = [m for m in selected if m.module.form == "function"]
    total = sum(flops(m, settings) / 1e9 for m in selected) + sum(flops(m, settings) for m in forms) / 1e9
    console = output.console()
    most = len(selected) if target.all_rows else _MOST
    one = "matrix" if len(stored) == 1 else "matrices"
    for kind, title in ((stored, f"{one} would be analysed"), (made, "of the function would be made of them")):
        if kind or kind is stored:
            more = f", the first {most} of them (--all: every one)" if len(kind) > most else ""
            rows = [_row(m, settings) for m in kind[:most]]
            console.print(tables.rows_table(rows, f"{len(kind)} {title}{more}", console.width))
    if target.all_rows:
        left = [{"tensor": s.name, "shape": "x".join(map(str, s.shape)), "reason": s.reason} for s in skipped]
        console.print(tables.rows_table(left, f"{len(left)} left out", console.width))
    elif skipped:
        reasons = count_reasons(s.reason for s in skipped).items()
        console.print(
            f"Left out (--all lists them): {', '.join(f'{n} ({reason})' for reason, n in reasons)}", soft_wrap=True
        )
    if forms:
        console.print(
            f"{counted(len(forms), 'matrix', 'matrices')} would be measured in balance too, for the shift by form",
            soft_wrap=True,
        )
    megabytes = sum(m.stored_bytes for m in stored or made) / 2**20
    wanted = (sum(seconds(m, settings) for m in selected) + sum(seconds(m, settings) for m in forms)) / available_cpus()
    estimate = (
        f"about {wanted:.1f} s on {available_cpus()} processors, if they are like that of docs/scale.md"
        if settings.device == "cpu"
        else f"no estimate of the time on {settings.device}, which was not measured"
    )
    console.print(f"{megabytes:.0f} MiB to read, {total:.1f} GFLOP: {estimate}", soft_wrap=True)


def _row(m: WeightMatrix, settings: Settings) -> dict[str, Any]:
    from specdiag.analysis.cost import flops, seconds

    return {
        "name": m.key, "role": m.module.role, "family": m.module.family, "layer": m.module.layer,
        "component": m.module.component, "shape": "x".join(str(d) for d in m.shape), "dtype": m.storage_dtype,
        "bytes": m.stored_bytes,
        "gflop": flops(m, settings) / 1e9, "core_seconds": seconds(m, settings),
    }  # fmt: skip
