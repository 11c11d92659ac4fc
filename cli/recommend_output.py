"""Output of `specdiag recommend`: tables, and data to print or save."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from specdiag.errors import SourceError, UsageError
from specdiag.records import FAMILIES, ROLES
from specdiag.system import interrupts
from specdiag.views.cells import number
from specdiag.views.columns import Column, basis_head, plan_columns

from . import answer_output, options, output, tables

if TYPE_CHECKING:
    from specdiag.decay.plan import DecayPlan, PlanEntry
    from specdiag.decay.power_lines import PowerLines

POWER_LINES = "Power Lines"


@dataclass(frozen=True)
class Base:
    """The decay that the ratios multiply, where it comes from, and what is known of the run to come."""

    weight_decay: float | None = None
    origin: str = ""
    lr: float | None = None
    steps_left: int | None = None
    said: list[str] = field(default_factory=list[str])


def base_decay(
    weight_decay: float | None,
    run: Path | None,
    planned: options.Arguments,
    *,
    lr: float | None,
    steps_left: int | None,
    beside: Path | None = None,
) -> Base:
    """The base decay: as given, by Power Lines, or from a run's own files; None where nothing says it.

    Args:
        weight_decay: as given.
        run: the folder of a run that was named.
        planned: what Power Lines need, besides the lr.
        lr: as given.
        steps_left: as given.
        beside: the folder of the checkpoint, which may hold its run's files or not.
    """
    named = [f"--{name.replace('_', '-')}" for name, value in planned.items() if value is not None]
    if named and weight_decay is not None:
        raise UsageError(f"--weight-decay {weight_decay} and {named[0]} both give a base decay: leave one out")
    if named and run is not None:
        raise UsageError(f"--run {run} and {named[0]} both give a base decay: leave one out")
    if named:
        return _by_power_lines(planned, lr, steps_left)
    found = None
    if run is not None or beside is not None:
        from specdiag.train.run_files import read_run

        found = read_run(run or beside or Path())
    if found is None and run is not None:
        from specdiag.train.checkpoints.unread_optimizer import find_unread

        if (place := find_unread(run)) is not None:
            raise SourceError(
                f"--run {run} keeps its optimizer in {place}, whose settings are not read: give --weight-decay, "
                "and --lr and --steps-left for a verdict"
            )
        raise SourceError(f"--run {run} holds no optimizer or trainer state: name the folder that has optimizer.pt")
    if found is None:
        return Base(weight_decay, "given", lr, steps_left)
    lr = lr if lr is not None else found.lr
    steps_left = steps_left if steps_left is not None else found.steps_left
    coupled = []
    if found.decoupled is False:
        steps_left = None
        coupled = ["Its decay is coupled (Adam with L2), for which norms cannot be predicted: there is no verdict."]
    if weight_decay is not None:
        return Base(weight_decay, "given", lr, steps_left, coupled)
    by_file: dict[str, list[str]] = defaultdict(list)
    for what, file in found.origin.items():
        by_file[file].append(what.replace("_", " "))
    read = "; ".join(f"{file}: {', '.join(held)}" for file, held in by_file.items())
    said = [f"Read of the run: {read}.", *found.notes, *coupled]
    return Base(found.weight_decay, found.origin.get("weight_decay", ""), lr, steps_left, said)


def answer(
    plan: DecayPlan, base: Base, export: str | None, out: Path | None, top: int | None, again: str | None
) -> None:
    """Print the plan with at most so many Parameters, or what another tool reads; save it where asked.

    Args:
        plan: to show.
        base: decay that its ratios multiply.
        export: format of another tool.
        out: file to save it in.
        top: most Parameters to print.
        again: the command that makes it, if no options but those of a plan are needed.
    """
    from specdiag.views.plan_export import export_plan
    from specdiag.views.plan_sentences import has_square_plan

    if export is not None:
        output.deliver(export_plan(plan, export), out)
        return
    if out is not None:
        with interrupts.delay_signals():
            plan.save(out)
    _print(plan, base, top)
    commands = {"specdiag explain ratio": "what a column means"}
    if out is not None:
        output.talk(f"plan: {out}", "green")
        commands = {f"specdiag plot decay {shlex.quote(str(out))}": "the plan as a picture"} | commands
    if again is not None and has_square_plan(plan):
        commands = {f"{again} --basis square": "a plan without the shapes"} | commands
    answer_output.show_next(commands)


def base_alone(planned: options.Arguments, lr: float | None, export: str | None, out: Path | None) -> None:
    """Print the base decay of a run that has not begun, or save it."""
    from msgspec import json

    from specdiag.decay.power_lines import facts

    lines = _power_lines(planned, lr)

    def show() -> None:
        console = output.console()
        console.print(
            f"Base weight decay {lines.weight_decay:.3g} for AdamW at a peak lr of {lines.lr:g} (Power Lines).",
            style="bold",
        )
        console.print()
        answer_output.show_facts(facts(lines), console)
        course = f"--lr-shape linear --warmup {0.1 * lines.steps:.0f}"  # as the fits were made
        command = (
            f"simulate --lr {lines.lr:g} --weight-decay {lines.weight_decay:.3g} --steps {lines.steps:.0f} {course}"
        )
        answer_output.show_next({f"specdiag {command}": "what it does to the norms"})

    output.deliver(json.format(json.encode(lines), indent=1), out, None if export else show)


def _by_power_lines(planned: options.Arguments, lr: float | None, steps_left: int | None) -> Base:
    from specdiag.decay.power_lines import facts

    lines = _power_lines(planned, lr)
    said = [f"{subject}: {fact}." for subject, fact in facts(lines)]
    return Base(lines.weight_decay, POWER_LINES, lr, steps_left, said)


def _power_lines(planned: options.Arguments, lr: float | None) -> PowerLines:
    from specdiag.decay.power_lines import power_lines

    wanted: dict[str, Any] = {**planned, "lr": lr}
    absent = [f"--{name.replace('_', '-')}" for name, value in wanted.items() if value is None]
    if absent:
        raise UsageError(
            f"Power Lines need all of --tokens --params --batch-tokens --context-length --lr: add {' '.join(absent)}"
        )
    return power_lines(**wanted)


def _print(plan: DecayPlan, base: Base, top: int | None) -> None:
    from specdiag.views import plan_sentences

    console = output.console()
    console.print(plan.headline, style="bold", soft_wrap=True)
    console.print()
    if facts := plan_sentences.instead(plan):
        answer_output.show_facts(facts, console)
    console.print(_role_table(plan, console.width))
    console.print()
    shown = list(plan.entries)
    title = f"{len(shown)} Parameters"
    if (most := tables.most_rows(len(shown), top)) < len(shown):
        shown = tables.ends(sorted(shown, key=lambda entry: entry.ratio), most)
        title = f"The {len(shown)} most extreme of {len(plan.entries)} Parameters (--all: every one)"
    console.print(tables.draw(title, plan_columns(plan), shown, console.width))
    console.print()
    said = (
        *plan_sentences.findings(plan), *_base(plan, base), *_schedule(plan), *plan_sentences.limits(plan),
        *_verdict(plan, base),
    )  # fmt: skip
    for sentence in said:
        console.print(sentence, soft_wrap=True)


def _role_table(plan: DecayPlan, width: int) -> Any:
    groups: dict[tuple[str, str], list[PlanEntry]] = defaultdict(list)
    for entry in plan.entries:
        groups[entry.family, entry.role or "fused"].append(entry)

    def mean(entries: Sequence[PlanEntry], name: str) -> float | None:
        values = [value for entry in entries if (value := getattr(entry, name)) is not None]
        return fmean(values) if values else None

    order = [(family, role) for family in FAMILIES for role in (*ROLES, "fused")]
    rows = [(*key, groups[key]) for key in sorted(groups, key=order.index)]
    columns: list[Column[tuple[str, str, list[PlanEntry]]]] = [
        Column("family", lambda row: row[0], right=False),
        Column("role", lambda row: row[1], right=False),
        Column("n", lambda row: str(len(row[2]))),
        Column(basis_head(plan), lambda row: number(mean(row[2], "value"), 3)),
        Column("ratio", lambda row: number(mean(row[2], "ratio"), 3)),
        Column("min-max", lambda row: f"{min(e.ratio for e in row[2]):.2f}-{max(e.ratio for e in row[2]):.2f}", 1),
        Column("if random", lambda row: number(mean(row[2], "random_ratio"), 3)),
    ]
    if plan.explained_by_shape and plan.has_square_ratios:
        columns.append(Column("by square", lambda row: number(mean(row[2], "square_ratio"), 3)))
    return tables.draw(
        "Roles (means; if random: what the rule gives random weights of these shapes)", columns, rows, width
    )


def _base(plan: DecayPlan, base: Base) -> list[str]:
    """Where the base comes from, and what others took where it is not the person's own."""
    if plan.base_weight_decay is None:
        from specdiag.decay.power_lines import customary

        return [
            "No base decay is known (--weight-decay, --run, or Power Lines from --tokens ...): these are ratios alone.",
            f"Customary: {customary()}.",
        ]
    return [f"Base decay {plan.base_weight_decay:.6g} ({plan.base_origin}).", *base.said]


def _schedule(plan: DecayPlan) -> list[str]:
    schedule, base = plan.schedule, plan.base_weight_decay
    if schedule is None:
        return []
    from specdiag.decay.schedule_record import TRAP

    name = {"adamc": "AdamC", "scionc": "ScionC"}[schedule.method]
    course = (
        f"{step:,}: {schedule.factor(step, base or 1.0):.3g}" + (f" (lr {schedule.lr(step):.3g})" if base else "")
        for step in schedule.milestones()
    )
    return [
        f"{name}: the decay of all but the output layer follows the lr; its factor at step {', '.join(course)}.",
        TRAP,
    ]


def _verdict(plan: DecayPlan, base: Base) -> list[str]:
    if plan.verdict is not None:
        return list(plan.verdict.reasons)
    wanted = {"--steps-left": base.steps_left, "--lr": base.lr, "--weight-decay": plan.base_weight_decay}
    absent = [option for option, value in wanted.items() if value is None]
    return [f"No verdict: it takes {', '.join(absent)} too."] if base.steps_left is not None and absent else []
