"""The kinds of `specdiag plot`, and which options and sources each of them takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from specdiag.errors import UsageError

from . import options


class Kind(StrEnum):
    """Kinds of figures."""

    esd = "esd"
    alpha = "alpha"
    balance = "balance"
    heatmap = "heatmap"
    heads = "heads"
    decay = "decay"
    scree = "scree"
    paper = "paper"
    trajectory = "trajectory"
    norms = "norms"


class Style(StrEnum):
    """Colours for light or for dark pages."""

    light = "light"
    dark = "dark"


class Basis(StrEnum):
    """Exponents that can be drawn."""

    alpha = "alpha"
    square = "square"


CHOICE = ("include", "layer", "role")
DRAWING = ("include", "role")
"""Shared options that choose among the rows of a report."""
_TAKES: dict[Kind, tuple[str, ...]] = {
    Kind.esd: (*CHOICE, "all_rows"),
    Kind.alpha: (*CHOICE, "basis"),
    Kind.balance: ("basis",),
    Kind.heatmap: (*CHOICE, "metric"),
    Kind.heads: ("metric",),
    Kind.decay: ("basis", "plan"),
    Kind.scree: CHOICE,
    Kind.paper: ("plan",),
    Kind.trajectory: ("role", "metric"),
    Kind.norms: ("role", "lr", "weight_decay"),
}
_SOURCES = {Kind.esd: 6, Kind.balance: 2, Kind.paper: 2}
ARGUMENTS = {"layer": "layers", "role": "roles", "all_rows": "every"}


def check(kind: Kind, sources: Sequence[str], given: Collection[str]) -> None:
    """Raise UsageError for what this kind would ignore."""
    if strange := options.listed(name for name in given if name not in _TAKES[kind]):
        raise UsageError(f"{kind} knows no {strange}; it takes {options.listed(_TAKES[kind])}")
    most = _SOURCES.get(kind, 1)
    if len(sources) > most:
        raise UsageError(f"{kind} takes {most} SOURCE{'S' if most > 1 else ''} at most, not {len(sources)}")
