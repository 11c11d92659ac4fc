"""Output of `specdiag simulate`: tables, data and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdiag.errors import UsageError

from . import output, tables, targets

if TYPE_CHECKING:
    from specdiag.dynamics.records import Point, Simulation

_FIGURES = (".png", ".svg", ".pdf")
_MILESTONES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
"""Shares of the run that the table shows."""
_COLUMNS = (
    "setting", "step", "lr", "weight_decay", "rms", "frobenius_norm", "steady_rms", "simulated_rms",
)  # fmt: skip


def check_target(out: Path | None, format: str, *, several: bool = False) -> None:
    """Raise UsageError now if nothing could be written there later, or the file cannot hold what is asked for.

    Args:
        out: the file, if any.
        format: of the data.
        several: there will be several predictions; a JSON file is one, as `load_simulation` reads it.
    """
    figure = out is not None and out.suffix.lower() in _FIGURES
    targets.check_file(out, "figure" if figure else format, "" if format == "csv" else "draw a .png, .svg or .pdf")
    if several and out is not None and not figure and format != "csv":
        raise UsageError(f"{out} would hold several predictions: give one optimizer and one decay, or --format csv")


def answer(found: Sequence[Simulation], format: str, out: Path | None) -> None:
    """Save or draw what is asked for, and print the table or the data."""
    from specdiag.files import write_atomically

    data = None if out is None or out.suffix.lower() in _FIGURES else _data(found, format)
    if out is not None and data is None:
        from specdiag.plot import save
        from specdiag.views.figures.norms_predicted import norms_predicted

        save(norms_predicted(*found), out)
    elif out is not None and data is not None:
        write_atomically(out, data)
    if format == "table":
        _print(found)
    elif data is None:
        output.write(_data(found, format))
    if out is not None:
        output.talk(f"written: {out}", "green")


def _data(found: Sequence[Simulation], format: str) -> bytes:
    import msgspec

    from specdiag.dynamics.wording import labels
    from specdiag.views.export import export

    if format != "csv":
        return found[0].to_json() if len(found) == 1 else msgspec.json.encode(list(found))
    rows = [
        {"setting": name, **msgspec.structs.asdict(point)}
        for s, name in zip(found, labels(found), strict=True)
        for point in s.course
    ]
    return export(rows, _COLUMNS, "csv")


def _print(found: Sequence[Simulation]) -> None:
    from specdiag.dynamics.wording import findings, headline, labels

    console = output.console()
    names = labels(found)
    console.print(headline(found), style="bold", soft_wrap=True)
    console.print()
    console.print(_balance(found, names, console.width))
    console.print()
    console.print(_course(found, names, console.width))
    console.print()
    several = len(found) > 1
    for s, name in zip(found, names, strict=True):
        for sentence in findings(s):
            if several or sentence != headline(found):
                console.print(f"{name}: {sentence}" if several else sentence, soft_wrap=True)
    said: set[str] = set()
    for s, name in zip(found, names, strict=True):
        for sentence in s.assumptions:
            shared = all(sentence in other.assumptions for other in found)
            if sentence not in said:
                console.print(sentence if shared else f"{name}: {sentence}", soft_wrap=True)
            said.add(sentence)


def _balance(found: Sequence[Simulation], names: Sequence[str], width: int) -> Any:
    rows = list(zip(found, names, strict=True))
    columns: tuple[tables.Column[tuple[Simulation, str]], ...] = (
        tables.Column("setting", lambda r: r[1], right=False),
        tables.Column("RMS", lambda r: _short(r[0].balance.rms)),
        tables.Column("Frobenius", lambda r: _short(r[0].balance.frobenius_norm), 3),
        tables.Column("steps to 1 %", lambda r: _count(r[0].balance.steps_to_steady)),
        tables.Column("1/(2 eta)", lambda r: _count(r[0].balance.norm_time), 4),
        tables.Column("timescale", lambda r: _count(r[0].balance.timescale)),
        tables.Column("in tokens", lambda r: _short(r[0].balance.timescale_tokens, 3), 5),
        tables.Column("R", lambda r: _short(r[0].balance.inflation), 2),
        tables.Column("TUC", lambda r: _short(r[0].balance.tuc), 1),
        tables.Column("rotation", lambda r: _short(r[0].balance.rotation)),
        tables.Column("by Kosson", lambda r: _short(r[0].balance.rotation_kosson), 6),
    )
    return tables.draw("Balance at the peak lr (rotation: radians a step)", columns, rows, width)


def _course(found: Sequence[Simulation], names: Sequence[str], width: int) -> Any:
    first = found[0].course
    shown = sorted({round(share * (len(first) - 1)) for share in _MILESTONES})
    columns: list[tables.Column[int]] = [
        tables.Column("step", lambda i: f"{first[i].step:,}"),
        tables.Column("lr", lambda i: _short(first[i].lr), 1),
    ]
    if len(found) == 1:
        course: list[tables.Column[int]] = [
            tables.Column("decay", lambda i: _short(first[i].weight_decay), 2),
            tables.Column("RMS", lambda i: _short(first[i].rms)),
            tables.Column("simulated", lambda i: _short(first[i].simulated_rms)),
            tables.Column("Frobenius", lambda i: _short(first[i].frobenius_norm)),
            tables.Column("balance here", lambda i: _short(first[i].steady_rms), 3),
        ]
        return tables.draw("Course (RMS of a weight)", [*columns, *course], shown, width)
    for s, name in zip(found, names, strict=True):
        columns.append(tables.Column(name, lambda i, s=s: _both(s.course[i])))
    walk = "; in brackets simulated" if found[0].simulated_shape else ""
    return tables.draw(f"Course (RMS of a weight{walk})", columns, shown, width)


def _both(point: Point) -> str:
    simulated = point.simulated_rms
    return _short(point.rms) + ("" if simulated is None else f" ({_short(simulated)})")


def _short(value: float | None, digits: int = 4) -> str:
    return tables.number(None) if value is None else f"{value:.{digits}g}"


def _count(value: float | None) -> str:
    return tables.number(None) if value is None else f"{value:,.0f}"
