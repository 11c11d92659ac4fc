"""`specdiag analyze`: spectra and exponents of every weight matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.errors import UsageError

from . import options, output

if TYPE_CHECKING:
    from specdiag.report import SpectralReport

_NEEDS_WEIGHTS = (
    "revision", "file", "base", "stream", "role_map", "include", "exclude", "role", "experts", "device", "dtype",
    "method", "tail", "tail_fraction", "square", "randomize", "seed", "jobs", "memory", "cache", "resume", "dry_run",
)  # fmt: skip


@output.guarded
def analyze(
    ctx: typer.Context,
    source: options.SourceArgument,
    revision: options.RevisionOption = None,
    file: options.FileOption = None,
    base: options.BaseOption = None,
    stream: options.StreamOption = False,
    role_map: options.RoleMapOption = None,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    role: options.RoleOption = None,
    experts: options.ExpertsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    method: Annotated[
        options.Method, typer.Option("--method", help="gram: fast. svd: by singular values.")
    ] = options.Method.gram,
    tail: options.TailOption = options.Tail.hill,
    tail_fraction: options.TailFractionOption = 0.5,
    square: options.SquareOption = True,
    randomize: Annotated[
        bool,
        typer.Option("--randomize", help="Also the spectrum of the entries permuted (correlation traps)."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of expert sampling and permutation.")] = 0,
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
    cache: options.CacheOption = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the partial report of an interrupted analysis.")
    ] = False,
    format: options.FormatOption = "table",
    out: options.OutOption = None,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Save the eigenvalues too.")] = True,
    all_rows: Annotated[bool, typer.Option("--all", help="Every matrix in the table.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List matrices, bytes, roles and work; read no values.")
    ] = False,
) -> None:
    """Spectra, heavy-tailed exponents with their errors, nulls and shape-free twins, of every weight matrix.

    Exit codes: 0 done, 2 usage, 3 source, 4 a matrix has no numbers, 130 interrupted
    by Ctrl-C, else 128 and the signal's number.
    """
    from specdiag import analyze as run
    from specdiag.analysis.analyze import Interrupted, open_source
    from specdiag.report import is_report, load_report

    from . import analyze_output as show
    from . import partial, processes
    from .progress import analysis_bar

    target = show.Target.of(format, out, spectra=spectra, all_rows=all_rows)
    if is_report(Path(source)):
        options.require_checkpoint(source, options.given(ctx, _NEEDS_WEIGHTS), "shown")
        report = load_report(source)
        show.answer(report, target)
        show.verdict(report)
        return
    ranks = None if dry_run else processes.join()
    checkpoint = open_source(
        source, revision=revision, file=file, base=base, stream=stream, role_map=role_map, experts=experts, seed=seed
    )
    show.provenance(checkpoint)
    choices: dict[str, Any] = {
        "include": include or [], "exclude": exclude or [], "roles": role or [], "device": device,
        "dtype": dtype.value, "method": method.value, "tail": tail.value, "tail_fraction": tail_fraction,
        "square": square, "randomize": randomize, "seed": seed, "experts": experts, "role_map": role_map,
    }  # fmt: skip
    if dry_run:
        if resume:
            raise UsageError("--dry-run computes nothing: leave out --resume")
        show.listing(checkpoint, choices, target)
        return
    target = target.saving(checkpoint.source, selected=bool(include or exclude or role or experts))
    held: dict[Path, SpectralReport] = {}
    if resume:
        if target.out is None or not target.is_report:
            raise UsageError("--resume goes on from a saved report: choose -f table, or -f json with -o")
        held = partial.find(target.out)
    try:
        with analysis_bar() as bar:
            report = run(
                checkpoint, **choices, jobs=jobs, memory=memory, cache=options.cache_folder(wanted=cache),
                resume=list(held.values()), ranks=ranks, progress=bar,
            )  # fmt: skip
    except Interrupted as interrupted:
        show.interrupted(interrupted, target, ranks)
        output.leave()
    if ranks is None or ranks.rank == 0:
        show.answer(report, target)
        if target.out is not None:
            partial.clear(held, target.out)
    if ranks is not None:
        ranks.wait_for_all()
    show.verdict(report)
