"""`specdiag recommend --what lr`: learning rates for each module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from msgspec import structs

from specdiag.errors import UsageError
from specdiag.system import interrupts
from specdiag.text.counts import percent
from specdiag.views.cells import number
from specdiag.views.columns import Column

from . import door, opening, options, output, recommend_checks, tables, targets
from .sharing import Given

if TYPE_CHECKING:
    from specdiag.rates.plan import RateEntry, RatePlan

_OPTIONS = ("s1", "s2", "per", "embeddings", "basis", "preserve_mean", "lr")
"""Options of `recommend` that a plan of learning rates has."""
_OWN = (*_OPTIONS, "what", "source", "given", "export", "out", "all_rows", "top")
_DRAWING = ("include", "exclude", "role")
_EXPORTS = ("json", "csv", "md")


def recommend_rates(ctx: typer.Context, source: str | None, given: Given, export: str | None, out: Path | None) -> None:
    """Print a plan of learning rates, or what another tool reads; save it where asked.

    Args:
        ctx: of the command.
        source: as typed; None for the newest report of this directory.
        given: options that commands share.
        export: format that was asked for.
        out: file to write.

    Raises:
        UsageError: an option is of decays alone.
    """
    from specdiag.rates.recommend_rates import recommend_rates as rates_for
    from specdiag.report import is_report

    others = [name for name in ctx.params if name not in (*_OWN, *given.names)]
    if idle := options.given(ctx, others):
        raise UsageError(f"{options.listed(idle)} is of weight decay: leave it out with --what lr")
    if export not in (None, *_EXPORTS):
        raise UsageError(
            f"--export {export} is of weight decay; choose from {', '.join(_EXPORTS)}, or apply the plan in Python: "
            "specdiag.load_rates('plan.json').param_groups(model, lr=...)"
        )
    options.check_rows(all_rows=ctx.params["all_rows"], top=ctx.params["top"], format=export or "table")
    source = recommend_checks.newest_report() if source is None else source
    targets.check_apart(out, source)
    chosen = options.given(ctx, _OPTIONS)
    drawing = given.arguments()
    chosen |= {name: drawing[name] for name in ("include", "exclude", "roles") if name in drawing}
    if is_report(Path(source)):
        given.require_checkpoint(source, without=_DRAWING)
        plan = rates_for(source, **chosen)
    else:
        from specdiag.analysis.options import split

        from .progress import analysis_bar

        opened = opening.checkpoint_of(source, split(given.arguments())[0])
        with analysis_bar() as bar:
            plan = rates_for(opened, **chosen, **given.analysis(without=_DRAWING), progress=bar)
    _deliver(plan, export, out, len(plan.entries) if ctx.params["all_rows"] else ctx.params["top"])


def _deliver(plan: RatePlan, export: str | None, out: Path | None, top: int | None) -> None:
    from specdiag.rates.plan import RATE_COLUMNS
    from specdiag.views.export import export as exported

    if export is not None:
        rows = [structs.asdict(entry) | {"headline": plan.headline} for entry in plan.entries]
        output.deliver(plan.to_json() if export == "json" else exported(rows, (*RATE_COLUMNS, "headline"), export), out)
        return
    if out is not None:
        with interrupts.delay_signals():
            plan.save(out)
    _print(plan, top)
    if out is not None:
        output.talk(f"plan: {out}", "green")


def _print(plan: RatePlan, top: int | None) -> None:
    console = output.console()
    console.print(door.translated(plan.headline), style="bold", soft_wrap=True)
    console.print()
    shown = list(plan.entries)
    title = f"{len(shown)} Parameters"
    if (most := tables.most_rows(len(shown), top)) < len(shown):
        shown = tables.ends(sorted(shown, key=lambda entry: entry.ratio), most)
        title = f"The {len(shown)} most extreme of {len(plan.entries)} Parameters (--all: every one)"
    columns: list[Column[RateEntry]] = [
        Column("Parameter", lambda e: e.name, right=False),
        Column("role", lambda e: e.role or "fused", right=False),
        Column("square_alpha" if plan.basis == "square" else "alpha", lambda e: number(e.value, 3)),
        Column("ratio", lambda e: number(e.ratio, 3)),
        Column("if random", lambda e: number(e.random_ratio, 3)),
    ]
    if plan.base_lr is not None:
        columns.append(Column("lr", lambda e: f"{e.lr:.3g}"))
    console.print(tables.draw(title, columns, shown, console.width))
    console.print()
    if plan.shape_share is not None:
        explained = percent(plan.shape_share)
        console.print(f"The shapes of the matrices explain {explained} of the differences.", soft_wrap=True)
    for sentence in plan.notes:
        console.print(sentence, soft_wrap=True)
