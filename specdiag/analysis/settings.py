"""The settings of an analysis: its options with `auto` resolved for this machine."""

from __future__ import annotations

from typing import TypeVar, Unpack

from specdiag.analysis.options import AnalysisArguments, AnalysisOptions, check
from specdiag.checkpoint.opening import Opening
from specdiag.errors import UsageError
from specdiag.records import FUNCTION_ROLES, ROLES, Settings
from specdiag.resources import may_have_accelerator
from specdiag.spectra import farms

N = TypeVar("N", int, float)


def make_settings(**given: Unpack[AnalysisArguments]) -> Settings:
    """Check every choice and resolve `auto` for this machine.

    Args:
        given: arguments of `analyze`, but for source and progress.

    Raises:
        UsageError: naming the option, its value, and what is allowed.
    """
    check(given)
    return resolved(AnalysisOptions.of(given), Opening.of(given))


def resolved(options: AnalysisOptions, opening: Opening) -> Settings:
    """Resolve `auto` for this machine.

    Args:
        options: checked options; the means of an analysis, such as jobs and cache, are no settings.
        opening: seed, experts and role map.

    Raises:
        UsageError: if the device is not there, or cannot compute what was asked for.
    """
    device, dtype = options.device, options.dtype
    if options.method == "svd" and device not in ("auto", "cpu"):
        raise UsageError(f"method=svd runs on the CPU: leave out device={device}, or choose method=gram")
    if device == "auto" and (options.method == "svd" or not may_have_accelerator()):
        device = "cpu"
    if device != "cpu":
        from specdiag.spectra.accelerator import resolve_device, resolve_dtype

        device = resolve_device(device)
        if (device, dtype) == ("mps", "float64"):
            raise UsageError("MPS has no float64: leave out dtype=float64, or choose device=cpu")
        dtype = resolve_dtype(device) if dtype == "auto" else dtype
    return Settings(
        device=device,
        dtype=dtype,
        method=options.method,
        tail=options.tail,
        tail_fraction=options.tail_fraction,
        farms_rows=_of_farms(options, options.farms_rows, farms.ROWS),
        farms_aspect=_of_farms(options, options.farms_aspect, farms.ASPECT),
        farms_windows=_of_farms(options, options.farms_windows, farms.WINDOWS),
        randomize=options.randomize,
        fit_test=options.fit_test,
        function=options.function,
        seed=opening.seed,
        experts=opening.experts,
        include=options.include,
        exclude=options.exclude,
        roles=tuple(role for role in (*ROLES, *FUNCTION_ROLES) if role in options.roles),
        role_map=opening.role_map,
    )


def _of_farms(options: AnalysisOptions, given: N | None, default: N) -> N | None:
    """A setting of the rule `farms`, which no other rule has."""
    return None if options.tail != "farms" else default if given is None else given
