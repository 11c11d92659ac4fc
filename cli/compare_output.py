"""Output of `specdiag compare`: tables, and data to print or save."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdiag.text.counts import counted
from specdiag.text.names import listed
from specdiag.views.columns import field

from . import answer_output, output, tables

if TYPE_CHECKING:
    from specdiag.comparison.limits import Excess
    from specdiag.comparison.records import Comparison, Delta, FunctionChange, ModuleChange, RoleChange, Unmatched
    from specdiag.records import ModuleRecord
    from specdiag.reference.ranges import ReferenceRanges

_MOST = 20
_FEW = 8


def answer(found: Comparison, format: str, out: Path | None, most: int | None, reference: ReferenceRanges) -> None:
    """Save what is asked for, and print: the tables with at most so many matrices, or data for a pipeline."""
    from specdiag.comparison.records import COLUMNS, SHORT
    from specdiag.text import markdown
    from specdiag.views.export import export

    if format in ("table", "json"):
        data = found.to_json()
    else:
        data = export(found.to_records(), SHORT if format == "md" else COLUMNS, format)
    if format == "md":
        data = _markdown(found, reference) + data
        unread = (
            f"{side}: {source.unread}"
            for side, source in (("BEFORE", found.before), ("AFTER", found.after))
            if source.unread
        )
        data += "".join(f"\n{markdown.text(line)}\n" for line in unread).encode()
    output.deliver(data, out, partial(_print, found, most, reference) if format == "table" else None)
    for side, source in (("BEFORE", found.before), ("AFTER", found.after)):
        output.talk(f"{side}: {source}" + (f", read {', '.join(source.files[:3])}" if source.files else ""), "dim")


def show_next(before: str, after: str, *, reopens: bool) -> None:
    """Say what one would type next.

    Args:
        before: the first source, as it was typed.
        after: the second.
        reopens: True where another command opens both without further options.
    """
    audit = f"specdiag audit {shlex.quote(after)} --baseline {shlex.quote(before)}"
    commands = {audit: "faults, with the checks of what changed"} if reopens else {}
    answer_output.show_next(commands | {"specdiag explain 'relative change'": "what a column means"})


def excess(found: Sequence[Excess]) -> None:
    """Which limits are exceeded, and by which matrices."""
    for e in found[:_MOST]:
        value = "has no value after" if e.value is None else f"{e.value:.6g}"
        output.fault(f"{e.metric} {value}, above {e.limit:g}: {e.module}")
    if len(found) > _MOST:
        output.fault(f"and {len(found) - _MOST} more")


def failed(rows: Sequence[ModuleRecord]) -> None:
    """Which matrices have no numbers."""
    names = listed(f"{r.key} ({r.status})" for r in rows)
    output.fault(f"{counted(len(rows), 'matrix', 'matrices')} could not be compared: {names}")


def _facts(found: Comparison, reference: ReferenceRanges) -> list[tuple[str, str]]:
    """Give subject and sentence of what one asks first."""
    from specdiag.comparison.answer import facts
    from specdiag.reference.peers import Peers

    after = [m.after for m in found.modules]
    peers = Peers.beside(after, found.architecture_after, found.settings_after, reference)
    return [*facts(found), *([("Reference", peers.standing(after))] if after else [])]


def _markdown(found: Comparison, reference: ReferenceRanges) -> bytes:
    """Write the answer that stands before the table of matrices."""
    from specdiag.comparison.answer import headline
    from specdiag.text import markdown

    lines = [f"## specdiag compare: {markdown.text(headline(found))}", ""]
    lines += [f"- **{subject}**: {markdown.text(sentence)}" for subject, sentence in _facts(found, reference)]
    return "\n".join([*lines, "", ""]).encode()


def _print(found: Comparison, most: int | None, reference: ReferenceRanges) -> None:
    from specdiag.comparison import wording
    from specdiag.comparison.answer import headline

    console = output.console()
    console.print(headline(found), style="bold", soft_wrap=True)
    console.print()
    answer_output.show_facts(_facts(found, reference), console)
    has_weights = any(m.delta is not None for m in found.modules)
    if found.modules:
        console.print(_roles(found.roles, console.width, has_weights=has_weights))
        console.print()
    shown = list(found.modules)
    title = counted(len(shown), "matrix", "matrices")
    all_rows = most is None
    if most is not None and len(shown) > most:
        shown = wording.most_changed(found, most)
        changed = "changed most" if len(shown) == most else "changed"
        title = f"The {len(shown)} of {len(found.modules)} matrices that {changed} (--all: every one)"
    if shown:
        console.print(_modules(shown, title, console.width, has_weights=has_weights))
        console.print()
    if found.function_roles:
        console.print(_function(found.function_roles, console.width))
        console.print()
    if found.reshaped:
        listed = found.reshaped if all_rows else found.reshaped[:_FEW]
        rows = [(r.name, r.role or "·", _shape(r.shape_before), _shape(r.shape_after)) for r in listed]
        title = f"{len(found.reshaped)} of other shape, not compared{_more(found.reshaped, listed)}"
        console.print(_plain(title, ("tensor", "role", "before", "after"), rows, console.width))
        console.print()
    for side, alone in (("before", found.only_before), ("after", found.only_after)):
        if alone:
            console.print(_alone(side, alone, console.width, all_rows=all_rows))
            console.print()
    for sentence in wording.sentences(found):
        console.print(sentence, soft_wrap=True)


def _roles(roles: Sequence[RoleChange], width: int, *, has_weights: bool) -> Any:
    columns: list[tables.Column[RoleChange]] = [
        tables.Column("family", lambda r: r.family, right=False),
        tables.Column("role", lambda r: r.role, right=False),
        tables.Column("n", lambda r: str(r.n)),
        tables.Column("equal", lambda r: str(r.n_unchanged), 6),
        field("|d alpha|", "abs_alpha", 3),
        field("noise sd", "alpha_sd", 3, drop=4),
        tables.Column("d square_alpha", lambda r: _signed(r.square_alpha)),
        tables.Column("d stable rank", lambda r: _signed(r.stable_rank, 2), 5),
        tables.Column("norm", lambda r: _percent(r.frobenius_norm, "+"), 3),
    ]
    if has_weights:
        changes: list[tables.Column[RoleChange]] = [
            tables.Column("relative change", lambda r: _percent(r.relative_change)),
            field("cosine", "cosine", 4),
            field("stable rank of change", "delta_stable_rank", 1, drop=2),
            tables.Column("in rank 8", lambda r: _percent(r.energy_8), 2),
            tables.Column("angles", lambda r: _angles(r.left_angle, r.right_angle), 1),
        ]
        columns += changes
    about = {"noise sd": "noise sd: of alpha, between random matrices"}
    return tables.draw("Roles (means of after - before)", columns, roles, width, about=about)


def _function(roles: Sequence[FunctionChange], width: int) -> Any:
    columns: list[tables.Column[FunctionChange]] = [
        tables.Column("family", lambda r: r.family, 2, right=False),
        tables.Column("role", lambda r: r.role, right=False),
        tables.Column("n", lambda r: str(r.n)),
        tables.Column("d alpha", lambda r: _signed(r.alpha)),
        tables.Column("d rho", lambda r: _signed(r.rho)),
        tables.Column("d stable rank", lambda r: _signed(r.stable_rank, 2), 1),
        tables.Column("sigma_max", lambda r: _log(r.sigma)),
        tables.Column("sorted", lambda r: _log(r.sigma_sorted)),
    ]
    title = "Function (means of after - before; sigma_max: median change, heads by index, and sorted in each layer)"
    return tables.draw(title, columns, roles, width)


def _log(value: float | None) -> str:
    return "·" if value is None else f"{100 * value:.2g} %"


def _modules(modules: Sequence[ModuleChange], title: str, width: int, *, has_weights: bool) -> Any:
    columns: list[tables.Column[ModuleChange]] = [
        tables.Column("matrix", lambda m: m.name, right=False),
        tables.Column("role", lambda m: m.role, 5, right=False),
        tables.Column("alpha", lambda m: _both(m, "alpha")),
        tables.Column("d alpha", lambda m: _signed(m.change.get("alpha"))),
        tables.Column("d square_alpha", lambda m: _signed(m.change.get("square_alpha")), 1),
        tables.Column("d stable rank", lambda m: _signed(m.change.get("stable_rank"), 2), 4),
    ]
    if has_weights:
        columns += [
            tables.Column("relative change", _of(lambda d: _percent(d.relative_change))),
            tables.Column("cosine", _of(lambda d: tables.number(d.cosine, 4))),
            tables.Column("stable rank of change", _of(lambda d: tables.number(d.stable_rank, 1)), 2),
            tables.Column("in rank 8", _of(lambda d: _percent(d.energy(8))), 6),
            tables.Column(
                "angles",
                _of(lambda d: "·" if d.subspaces is None else _angles(d.subspaces.left_angle, d.subspaces.right_angle)),
                3,
            ),
        ]
    return tables.draw(title, columns, modules, width)


def _alone(side: str, alone: Sequence[Unmatched], width: int, *, all_rows: bool) -> Any:
    ordered = sorted(alone, key=lambda u: u.role is None)
    listed = ordered if all_rows else ordered[:_FEW]
    rows = [(u.name, u.role or "·", _shape(u.shape), u.reason) for u in listed]
    title = f"{len(alone)} only {side}{_more(alone, listed)}"
    return _plain(title, ("tensor", "role", "shape", "why"), rows, width)


def _plain(title: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> Any:
    columns: list[tables.Column[tuple[str, ...]]] = [
        tables.Column(head, lambda row, i=i: row[i], right=False, drop=head == "role", wraps=head == "why")
        for i, head in enumerate(heads)
    ]
    return tables.draw(title, columns, rows, width)


def _more(found: Sequence[Any], listed: Sequence[Any]) -> str:
    return f", the first {len(listed)} (--all)" if len(listed) < len(found) else ""


def _of(cell: Callable[[Delta], str]) -> Callable[[ModuleChange], str]:
    return lambda m: "·" if m.delta is None else cell(m.delta)


def _both(m: ModuleChange, metric: str) -> str:
    cells = (tables.number(getattr(r, metric), 3) if r.status == "ok" else r.status for r in (m.before, m.after))
    return " → ".join(cells)


def _angles(left: float | None, right: float | None) -> str:
    return "·" if left is None or right is None else f"{left:.0f}/{right:.0f}°"


def _signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "·"
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def _percent(value: float | None, sign: str = "") -> str:
    return "·" if value is None else f"{100 * value:{sign}.1f} %"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
