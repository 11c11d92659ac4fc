"""`specdiag simulate --check`: a prediction laid over the norms that a run logged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import UsageError
from specdiag.text.counts import percent

from . import options, output, tables

if TYPE_CHECKING:
    from specdiag.dynamics.norm_log import NormLog
    from specdiag.dynamics.run_check import ModuleCheck, RunCheck

_NEEDED = ("lr", "weight_decay", "steps")
_OF_A_TRAJECTORY = (
    "optimizer", *_NEEDED, "lr_shape", "warmup", "final_lr", "corrected", "momentum", "betas",
)  # fmt: skip
_COLUMNS = ("step", "module", "metric", "predicted", "logged", "relative")


def run(source: str, given: options.Arguments, format: str, out: Path | None) -> None:
    """Check a run, and print and save what came out.

    Args:
        source: the run.
        given: settings from the command line.
        format: table, json or csv.
        out: for the data, or None.

    Raises:
        UsageError: settings are missing, or would be ignored.
        SourceError: the run has no norms.
    """
    from specdiag.dynamics.run_check import check_run

    if out is not None and out.suffix.lower() in (".png", ".svg", ".pdf"):
        raise UsageError(f"--check saves data: the figure is 'specdiag plot norms {source} -o {out}'")
    found = check_run(_norms(source, given))
    data = _data(found, format)
    output.deliver(data, out, partial(_print, found) if format == "table" else None)


def _norms(source: str, given: options.Arguments) -> NormLog:
    from specdiag.dynamics.norm_log import has_norm_log, load_norm_log

    if has_norm_log(source):
        if given:
            listed = ", ".join(_option(name) for name in given)
            raise UsageError(f"{source} has its own lr, decay and optimizer in its log: leave out {listed}")
        return load_norm_log(source)
    from specdiag.dynamics.reported_settings import with_settings
    from specdiag.trajectories.load import load_trajectory

    found = load_trajectory(source)
    strange = [_option(name) for name in given if name not in _OF_A_TRAJECTORY]
    if strange:
        raise UsageError(f"--check takes the norms from the run: leave out {', '.join(strange)}")
    absent = [_option(name) for name in _NEEDED if name not in given]
    if absent:
        raise UsageError(f"the checkpoints of {source} do not say how they were trained: add {', '.join(absent)}")
    several = [_option(name) for name in ("optimizer", "weight_decay") if len(given.get(name, ())) > 1]
    if several:
        raise UsageError(f"--check lays one prediction over a run: give {several[0]} once")
    one = {name: value[0] if name in ("optimizer", "weight_decay") else value for name, value in given.items()}
    return with_settings(found, **one)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _data(found: RunCheck, format: str) -> bytes:
    if format != "csv":
        return found.to_json()
    import msgspec

    from specdiag.views.export import export

    return export([msgspec.structs.asdict(e) for e in found.errors], _COLUMNS, "csv")


def _print(found: RunCheck) -> None:
    from specdiag.dynamics.run_check import sentences

    console = output.console()
    columns: tuple[tables.Column[ModuleCheck], ...] = (
        tables.Column("module", lambda m: m.module, right=False),
        tables.Column("role", lambda m: m.role, 6, right=False),
        tables.Column("first", lambda m: f"{m.first:.4g}", 3),
        tables.Column("logged", lambda m: f"{m.logged:.4g}"),
        tables.Column("predicted", lambda m: f"{m.predicted:.4g}"),
        tables.Column("error", lambda m: percent(m.error, 1, "+")),
        tables.Column("at worst", lambda m: percent(m.worst_error, 1, "+"), 2),
        tables.Column("balance", lambda m: _short(m.balance), 4),
        tables.Column("steps to it", lambda m: _count(m.steps_to_balance), 5),
        tables.Column("cosine", _cosine),
        tables.Column("momentum's", _of_momentum, 1),
        tables.Column("", lambda m: "along W" if m.alignment is not None and m.alignment.flagged else ""),
    )
    answer, *rest = sentences(found)
    console.print(answer, style="bold", soft_wrap=True)
    console.print()
    title = f"Frobenius norms of {found.run}, predicted and logged"
    console.print(tables.draw(title, columns, found.modules, console.width))
    console.print()
    for sentence in (*rest, "", *found.assumptions):
        console.print(sentence, soft_wrap=True)


def _cosine(m: ModuleCheck) -> str:
    return tables.number(None) if m.alignment is None else f"{m.alignment.cosine:+.3f}"


def _of_momentum(m: ModuleCheck) -> str:
    return tables.number(None) if m.alignment is None else f"{m.alignment.cosine_of_momentum:+.3f}"


def _short(value: float | None) -> str:
    return tables.number(None) if value is None else f"{value:.4g}"


def _count(value: int | None) -> str:
    return tables.number(None) if value is None else f"{value:,}"
