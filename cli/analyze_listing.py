"""`specdiag analyze --dry-run`: what would be analysed and what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdiag.errors import UsageError

from . import options, output, tables

if TYPE_CHECKING:
    from specdiag.checkpoint.tensors import Checkpoint

    from .analyze_target import Target


def listing(checkpoint: Checkpoint, choices: options.Arguments, target: Target) -> None:
    """`--dry-run`: what would be analysed and what it would cost; no values are read."""
    from specdiag.analysis.cost import flops, seconds
    from specdiag.analysis.selection import select
    from specdiag.analysis.settings import make_settings
    from specdiag.analysis.summary import count_reasons
    from specdiag.files import write_atomically
    from specdiag.resources import available_cpus
    from specdiag.views.export import export

    if target.format == "table" and target.out is not None:
        raise UsageError("--dry-run makes no report; with -o choose -f json, csv or md")
    if choices.get("function"):
        raise UsageError("--dry-run knows no cost of --function: leave out one")
    settings = make_settings(**choices)
    selected, skipped = select(checkpoint, settings)
    rows: list[dict[str, Any]] = [
        {
            "name": m.key, "role": m.module.role, "family": m.module.family, "layer": m.module.layer,
            "component": m.module.component, "shape": "x".join(str(d) for d in m.shape), "dtype": m.storage_dtype,
            "bytes": m.stored_bytes,
            "gflop": flops(m, settings) / 1e9, "core_seconds": seconds(m, settings),
        }
        for m in selected
    ]  # fmt: skip
    if target.format != "table":
        data = export(rows, list(rows[0]), target.format)
        if target.out is None:
            output.write(data)
        else:
            write_atomically(target.out, data)
        return
    total = sum(row["gflop"] for row in rows)
    console = output.console()
    console.print(tables.rows_table(rows, f"{len(rows)} matrices would be analysed", console.width))
    if target.all_rows:
        left = [{"tensor": s.name, "shape": "x".join(map(str, s.shape)), "reason": s.reason} for s in skipped]
        console.print(tables.rows_table(left, f"{len(left)} left out", console.width))
    elif skipped:
        reasons = count_reasons(s.reason for s in skipped).items()
        console.print(
            f"Left out (--all lists them): {'; '.join(f'{n} {reason}' for reason, n in reasons)}", soft_wrap=True
        )
    megabytes = sum(row["bytes"] for row in rows) / 2**20
    wanted = sum(row["core_seconds"] for row in rows) / available_cpus()
    estimate = (
        f"about {wanted:.1f} s on {available_cpus()} processors, if they are like that of docs/scale.md"
        if settings.device == "cpu"
        else f"no estimate of the time on {settings.device}, which was not measured"
    )
    console.print(f"{megabytes:.0f} MiB to read, {total:.1f} GFLOP: {estimate}", soft_wrap=True)
