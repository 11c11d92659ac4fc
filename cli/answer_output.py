"""The first lines of `specdiag analyze`: the verdict, what stands out, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from . import door, output
from .streams import legible
from .wrapping import wrapped

if TYPE_CHECKING:
    from specdiag.report import SpectralReport
    from specdiag.views.answer import Answer

_MARKS = {"fail": ("x", "bold red", "a failure"), "warn": ("!", "yellow", "a warning"), "info": ("-", "", "a fact")}
"""A sign, a style and a word for each severity: colour is never the only sign."""


def show(answer: Answer, console: Console) -> None:
    """Print the answer of a report.

    Args:
        answer: of the report.
        console: of stdout.
    """
    console.print(Text(legible(answer.title), style="bold"), soft_wrap=True)
    console.print()
    _print(answer.verdict, console)
    for point in answer.points:
        mark, style, _ = _MARKS[point.severity]
        where = legible((point.module or "the checkpoint") + point.more)
        _print(Text.assemble((mark, style), f"  {where}"), console, 3)
        _print(f"   {point.finding}; {point.advice}", console, 3)
    if answer.n_more:
        console.print(f"and {answer.n_more} more, which specdiag audit lists")
    if answer.points:
        shown = {point.severity for point in answer.points}
        legend = (f"{mark} {word}" for severity, (mark, _, word) in _MARKS.items() if severity in shown)
        console.print(f"({', '.join(legend)})", style="dim")
    console.print()
    show_facts(answer.facts, console)


def show_facts(facts: Sequence[tuple[str, str]], console: Console) -> None:
    """Print subjects and sentences in two columns.

    Args:
        facts: subject and sentence of each.
        console: of stdout.
    """
    width = max((len(subject) for subject, _ in facts), default=0) + 2
    for subject, fact in facts:
        _print(f"{subject.ljust(width)}{door.translated(fact)}", console, width)
    console.print()


def _print(text: str | Text, console: Console, indent: int = 0) -> None:
    """Wrap at words, with further lines indented. Nothing is padded, for the reader may be a file."""
    text = Text(legible(text)) if isinstance(text, str) else text
    for line in wrapped(text, console.width, indent).split("\n"):
        console.print(line, soft_wrap=True)


def show_next(commands: Mapping[str, str]) -> None:
    """Say what one would type next.

    Args:
        commands: each with what it gives, the first first.
    """
    width = max(map(len, commands), default=0)
    to = output.console(stderr=True)
    longest = max((len(f"next: {'':{width}}  {purpose}") for purpose in commands.values()), default=0)
    beside = not to.has_width or longest <= to.width
    for command, purpose in commands.items():
        if beside:
            output.talk(f"next: {command.ljust(width)}  {purpose}", breaks=False)
        else:  # the command whole, for it is copied; its purpose below
            output.talk(f"next: {command}", breaks=False)
            output.talk(f"      {purpose}")


def next_commands(report: SpectralReport, saved: Path, reopening: str = "") -> dict[str, str]:
    """Map the commands that one would type next to what they give.

    Args:
        report: of a model.
        saved: its file.
        reopening: the options that the source was opened with.
    """
    from specdiag.decay.targets import DEFAULT_ROLES

    file, source = shlex.quote(str(saved)), shlex.quote(str(report.source))
    commands = {f"specdiag audit {source}{reopening}": "all checks"}
    if report.records:
        commands = {f"specdiag report {file}": "everything, as a page"} | commands
    elif report.function:
        commands = {
            f"specdiag analyze {source}{reopening} --function": "products beside the stored matrices"
        } | commands
    if any(role.role in DEFAULT_ROLES and role.alpha is not None for role in report.summary.roles):
        commands[f"specdiag recommend {file}"] = "a weight decay for each module"
    number = "square_alpha" if report.records else "qk" if report.function else ""
    commands |= {f"specdiag explain {number}": "what a number means"} if number else {}
    return commands
