"""The options of an analysis: how a checkpoint is opened, and what is computed of it. Checked here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, cast, get_args

from specdiag.checkpoint.opening import OPENING, Opening, OpeningArguments, PlainArguments, SortingArguments, names_of
from specdiag.errors import UsageError
from specdiag.records import FUNCTION_ROLES, ROLES, TAIL_NAMES, AnyRole, Settings, TailName
from specdiag.report import SpectralReport
from specdiag.text import checks

if TYPE_CHECKING:
    from specdiag.analysis.processes import Ranks
    from specdiag.analysis.run import Progress

DType = Literal["auto", "float32", "float64"]
Method = Literal["gram", "svd"]
C = TypeVar("C", bound=str)


class ComputingArguments(TypedDict, total=False):
    """Arguments of `analyze` that choose the numbers, and the means of computing them."""

    device: str
    dtype: DType
    method: Method
    tail: TailName
    tail_fraction: float
    farms_rows: int | None
    farms_aspect: float | None
    farms_windows: int | None
    randomize: bool
    fit_test: bool
    function: bool
    jobs: int | None
    memory: int | None
    cache: str | os.PathLike[str] | None
    partial_reports: Sequence[SpectralReport]
    ranks: Ranks | None


class SelectionArguments(TypedDict, total=False):
    """Arguments of `analyze` that choose the matrices."""

    include: str | Sequence[str]
    exclude: str | Sequence[str]
    roles: str | Sequence[str]


class ComputedArguments(ComputingArguments, SelectionArguments, total=False):
    """Arguments of `analyze` for a checkpoint that is open, beside progress."""


class AnalysisArguments(OpeningArguments, ComputedArguments, total=False):
    """Arguments of `analyze` beside source and progress."""


class UnselectedArguments(OpeningArguments, ComputingArguments, total=False):
    """Arguments of `analyze` that `recommend` passes on."""


class ComparedArguments(PlainArguments, ComputingArguments, total=False):
    """Arguments of `analyze` that `compare` passes on."""


class RunArguments(SortingArguments, ComputingArguments, SelectionArguments, total=False):
    """Arguments of `analyze` that are the same for every checkpoint of a run."""

    base: str | os.PathLike[str] | None
    part: str | None


COMPARED: tuple[str, ...] = names_of(ComparedArguments)
UNSELECTED: tuple[str, ...] = names_of(UnselectedArguments)
RUN: tuple[str, ...] = names_of(RunArguments)
ANALYSIS: tuple[str, ...] = names_of(AnalysisArguments)
_ROLES: tuple[AnyRole, ...] = (*ROLES, *FUNCTION_ROLES)
FARMS = ("farms_rows", "farms_aspect", "farms_windows")
"""Arguments, and settings, that describe the windows of tail=farms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisOptions:
    """Checked options of an analysis, under the names of the arguments of `analyze`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    roles: tuple[AnyRole, ...] = ()
    device: str = "auto"
    dtype: DType = "auto"
    method: Method = "gram"
    tail: TailName = "hill"
    tail_fraction: float = 0.5
    farms_rows: int | None = None
    farms_aspect: float | None = None
    farms_windows: int | None = None
    randomize: bool = False
    fit_test: bool = False
    function: bool = False
    jobs: int | None = None
    memory: int | None = None
    cache: Path | None = None
    partial_reports: tuple[SpectralReport, ...] = ()
    ranks: Ranks | None = None
    progress: Callable[[Progress], None] | None = None

    @classmethod
    def of(cls, given: Mapping[str, object]) -> AnalysisOptions:
        """Check the options among arguments; those that open a checkpoint are passed over.

        Args:
            given: values by the arguments' names.

        Raises:
            UsageError: a value makes no sense, with what is allowed.
        """
        checks.function("progress", given.get("progress"))
        tail: TailName = _choice("tail", given.get("tail", "hill"), TAIL_NAMES)
        jobs, memory, cache = (given.get(name) for name in ("jobs", "memory", "cache"))
        rows, aspect, windows = (given.get(name) for name in FARMS)
        if tail != "farms" and (idle := [name for name in FARMS if given.get(name) is not None]):
            raise UsageError(
                f"{', '.join(f'{name}=' for name in idle)} describes the windows of tail=farms, not {tail}"
            )
        function = checks.flag("function", given.get("function", False))
        roles: tuple[AnyRole, ...] = checks.each_of("roles", given.get("roles", ()), _ROLES)
        _check_function(roles, tail, function=function, randomize=given.get("randomize") is True)
        return cls(
            include=checks.texts("include", given.get("include", ())),
            exclude=checks.texts("exclude", given.get("exclude", ())),
            roles=roles,
            device=checks.text("device", given.get("device", "auto")),
            dtype=_choice("dtype", given.get("dtype", "auto"), get_args(DType)),
            method=_choice("method", given.get("method", "gram"), get_args(Method)),
            tail=tail,
            tail_fraction=_fraction(given.get("tail_fraction", 0.5)),
            farms_rows=None if rows is None else checks.whole("farms_rows", rows, least=1),
            farms_aspect=None if aspect is None else checks.number("farms_aspect", aspect, above=0),
            farms_windows=None if windows is None else checks.whole("farms_windows", windows, least=1, most=1000),
            randomize=checks.flag("randomize", given.get("randomize", False)),
            fit_test=_fit_test(given.get("fit_test", False), tail),
            function=function,
            jobs=None if jobs is None else checks.whole("jobs", jobs, least=1),
            memory=None if memory is None else checks.whole("memory", memory, least=1, hint="in bytes: 8 << 30 for 8G"),
            cache=None if cache is None else checks.path("cache", cache),
            partial_reports=_reports(given.get("partial_reports", ())),
            ranks=_ranks(given.get("ranks")),
            progress=cast("Callable[[Progress], None] | None", given.get("progress")),
        )


def check(given: Mapping[str, object], allowed: Sequence[str] = ANALYSIS) -> None:
    """Check arguments of `analyze`.

    Args:
        given: values by the arguments' names.
        allowed: names that are taken.

    Raises:
        UsageError: a name does not exist, or a value makes no sense.
    """
    checks.names(given, allowed)
    Opening.of(given)
    AnalysisOptions.of(given)


def like(settings: Settings, names: Iterable[str], given: Mapping[str, object]) -> dict[str, object]:
    """Take arguments of `analyze` from the settings of a report, so that its numbers can be compared.

    Args:
        settings: of the report.
        names: settings to take; with the tail rule go its own settings.
        given: arguments that count more.
    """
    taken = {name: getattr(settings, name) for name in names} | dict(given)
    own = {name: getattr(settings, name) for name in FARMS} if taken.get("tail") == settings.tail else {}
    return own | taken


def split(given: Mapping[str, object]) -> tuple[OpeningArguments, ComputedArguments]:
    """Split arguments of `analyze` into those that open a checkpoint, and those that compute.

    Args:
        given: values by the arguments' names; `analyze` checks them.
    """
    opening = {name: value for name, value in given.items() if name in OPENING}
    computing = {name: value for name, value in given.items() if name not in OPENING}
    return cast("OpeningArguments", opening), cast("ComputedArguments", computing)


def _choice(name: str, value: object, allowed: tuple[C, ...]) -> C:
    checks.one_of(name, value, cast("tuple[str, ...]", allowed))
    return cast("C", value)


def _fraction(value: object) -> float:
    try:
        return checks.number("tail_fraction", value, above=0, below=1)
    except UsageError:
        raise UsageError(f"tail_fraction={checks.shown(value)} is not between 0 and 1; the default is 0.5") from None


def _fit_test(value: object, tail: TailName) -> bool:
    if checks.flag("fit_test", value) and tail == "farms":
        raise UsageError(
            "fit_test=True takes the eigenvalues of whole matrices, and tail=farms fits those of windows: leave out one"
        )
    return value is True


def _check_function(roles: Sequence[AnyRole], tail: TailName, *, function: bool, randomize: bool) -> None:
    """Check what goes with function=True, and that roles which it alone has do not stand without it."""
    products = [role for role in roles if role in FUNCTION_ROLES]
    if not function and products:
        raise UsageError(
            f"roles={products[0]!r} is a product of two matrices, which analyze measures with function=True"
        )
    entries = f"tail={tail}" if tail == "farms" else "randomize=True" if randomize else None
    if function and entries:
        raise UsageError(
            f"{entries} looks at the entries of a matrix, and the products of function=True have none of their own: "
            "leave out one"
        )


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
