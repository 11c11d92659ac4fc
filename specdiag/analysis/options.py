"""The options of an analysis: how a checkpoint is opened, and what is computed of it. Checked here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

from specdiag import checks
from specdiag.checkpoint.opening import OPENING, Opening, OpeningArguments, PlainArguments, SortingArguments, names_of
from specdiag.errors import UsageError
from specdiag.records import Role, TailName
from specdiag.report import SpectralReport

if TYPE_CHECKING:
    from specdiag.analysis.processes import Ranks
    from specdiag.analysis.run import Progress

DType = Literal["auto", "float32", "float64"]
Method = Literal["gram", "svd"]


class ComputingArguments(TypedDict, total=False):
    """What is computed of a checkpoint and how, but for the choice of its matrices, as arguments of `analyze`."""

    device: str
    dtype: DType
    method: Method
    tail: TailName
    tail_fraction: float
    randomize: bool
    jobs: int | None
    memory: int | None
    cache: str | os.PathLike[str] | None
    partial_reports: Sequence[SpectralReport]
    ranks: Ranks | None


class SelectionArguments(TypedDict, total=False):
    """Which matrices are analysed, as arguments of `analyze`."""

    include: str | Sequence[str]
    exclude: str | Sequence[str]
    roles: str | Sequence[str]


class AnalysisArguments(OpeningArguments, ComputingArguments, SelectionArguments, total=False):
    """Arguments of `analyze` beside source and progress."""


class UnselectedArguments(OpeningArguments, ComputingArguments, total=False):
    """Those that `recommend` has not among its own."""


class ComparedArguments(PlainArguments, ComputingArguments, total=False):
    """Those that `compare` has not among its own."""


class RunArguments(SortingArguments, ComputingArguments, SelectionArguments, total=False):
    """Those that are the same for every checkpoint of a run."""

    base: str | os.PathLike[str] | None


COMPARED: tuple[str, ...] = names_of(ComparedArguments)
UNSELECTED: tuple[str, ...] = names_of(UnselectedArguments)
RUN: tuple[str, ...] = names_of(RunArguments)
ANALYSIS: tuple[str, ...] = names_of(AnalysisArguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisOptions:
    """What is computed, of which matrices, and with which means. Arguments as of `analyze`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    device: str = "auto"
    dtype: DType = "auto"
    method: Method = "gram"
    tail: TailName = "hill"
    tail_fraction: float = 0.5
    randomize: bool = False
    jobs: int | None = None
    memory: int | None = None
    cache: Path | None = None
    partial_reports: tuple[SpectralReport, ...] = ()
    ranks: Ranks | None = None
    progress: Callable[[Progress], None] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> AnalysisOptions:
        """The checked options among the arguments `given`; those of opening are left alone.

        Raises:
            UsageError: a value makes no sense, with what is allowed.
        """
        for name, kind, default in (("dtype", DType, "auto"), ("method", Method, "gram"), ("tail", TailName, "hill")):
            checks.one_of(name, given.get(name, default), get_args(kind))
        checks.function("progress", given.get("progress"))
        jobs, memory, cache = (given.get(name) for name in ("jobs", "memory", "cache"))
        return cls(
            include=checks.texts("include", given.get("include", ())),
            exclude=checks.texts("exclude", given.get("exclude", ())),
            roles=checks.roles(given.get("roles", ())),
            device=checks.text("device", given.get("device", "auto")),
            dtype=given.get("dtype", "auto"),
            method=given.get("method", "gram"),
            tail=given.get("tail", "hill"),
            tail_fraction=_fraction(given.get("tail_fraction", 0.5)),
            randomize=checks.flag("randomize", given.get("randomize", False)),
            jobs=None if jobs is None else checks.whole("jobs", jobs, least=1),
            memory=None if memory is None else checks.whole("memory", memory, least=1, hint="in bytes: 8 << 30 for 8G"),
            cache=None if cache is None else checks.path("cache", cache),
            partial_reports=_reports(given.get("partial_reports", ())),
            ranks=_ranks(given.get("ranks")),
            progress=given.get("progress"),
        )


def check(given: Mapping[str, Any], allowed: Sequence[str] = ANALYSIS) -> None:
    """Raise UsageError where an argument for `analyze` does not exist, or its value makes no sense."""
    checks.names(given, allowed)
    Opening.of(given)
    AnalysisOptions.of(given)


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that open a checkpoint, and those that compute."""
    opening = {name: value for name, value in given.items() if name in OPENING}
    return opening, {name: value for name, value in given.items() if name not in OPENING}


def _fraction(value: object) -> float:
    try:
        return checks.number("tail_fraction", value, above=0, below=1)
    except UsageError:
        raise UsageError(f"tail_fraction={checks.shown(value)} is not between 0 and 1; the default is 0.5") from None


def _reports(value: object) -> tuple[SpectralReport, ...]:
    found = tuple(cast("Iterable[object]", value)) if isinstance(value, (list, tuple)) else (value,)
    for item in found:
        checks.instance("partial_reports", item, SpectralReport, "or several, as interrupted analyses leave them")
    return cast("tuple[SpectralReport, ...]", found)


def _ranks(value: object) -> Ranks | None:
    if value is None:
        return None
    from specdiag.analysis.processes import Ranks

    checks.instance("ranks", value, Ranks, "such as Ranks.of_torchrun() gives")
    return cast("Ranks", value)
