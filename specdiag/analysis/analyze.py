"""The verb `analyze`: open a source, measure its weight matrices, and put its report together."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from specdiag.analysis.function import Balanced, needed, with_function, with_gauge_shift
from specdiag.analysis.options import AnalysisOptions, DType, Method
from specdiag.analysis.processes import RankLost, Ranks, Rows, agreement
from specdiag.analysis.provenance import record_provenance
from specdiag.analysis.resume import finished_rows
from specdiag.analysis.run import Progress, run
from specdiag.analysis.selection import EQUAL, drop_tied, select, skip
from specdiag.analysis.settings import resolved
from specdiag.analysis.source import is_divided, open_source
from specdiag.analysis.summary import summarise
from specdiag.checkpoint.fingerprint import fingerprint
from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.errors import ComputationError, UsageError
from specdiag.records import ModuleRecord, Provenance, Settings, Skipped, TailName
from specdiag.report import SpectralReport, spectrum_key
from specdiag.spectra.measure import Eigenvalues

if TYPE_CHECKING:
    from specdiag.analysis.source import AnalysisSource


class Interrupted(KeyboardInterrupt):
    """A signal that ended an analysis, or another process of it that died.

    Attributes:
        report: the rows that were measured, marked incomplete unless they are all.
    """

    def __init__(self, report: SpectralReport) -> None:
        super().__init__(f"interrupted after {len(report)} matrices")
        self.report = report


class AnalysisFailed(ComputationError):
    """A failure in the middle of an analysis, such as memory that ran out or a disk that was lost: its `__cause__`.

    Attributes:
        report: the rows that were measured, marked incomplete unless they are all.
    """

    def __init__(self, report: SpectralReport, cause: BaseException) -> None:
        super().__init__(f"{str(cause) or type(cause).__name__} (after {len(report)} matrices were measured)")
        self.report = report


def analyze(
    source: AnalysisSource,
    *,
    revision: str | None = None,
    file: str | None = None,
    part: str | None = None,
    base: str | os.PathLike[str] | None = None,
    stream: bool = False,
    role_map: str | os.PathLike[str] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    roles: str | Sequence[str] = (),
    experts: int | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    method: Method = "gram",
    tail: TailName = "hill",
    tail_fraction: float = 0.5,
    farms_rows: int | None = None,
    farms_aspect: float | None = None,
    farms_windows: int | None = None,
    randomize: bool = False,
    fit_test: bool = False,
    function: bool = False,
    seed: int | None = None,
    jobs: int | None = None,
    memory: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    partial_reports: Sequence[SpectralReport] = (),
    ranks: Ranks | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SpectralReport:
    """Compute spectra, exponents and metrics of every weight matrix of a checkpoint, one matrix at a time.

    An open `Checkpoint` keeps what it was opened with: revision, file, part, base, stream, role map, experts and seed.

    Args:
        source: a hub id (`org/name`, `org/name@revision`, a URL), a directory, a file, a model, a state dict of
            tensors or NumPy arrays, or an open `Checkpoint`. Nothing is instantiated, and nothing is unpickled that
            could run code.
        revision: branch, tag or commit of a hub repository.
        file: which weight file of a repository or directory; a glob, such as `model-*.safetensors`, takes several that
            make up one model.
        part: which of several models in it, such as `ema_model`, by the keys or the prefix that its tensors have.
        base: the model that an adapter changes, as a path or hub id: its weights with the adapter applied are analysed.
            Without it the adapter's updates are, by themselves.
        stream: read a hub repository by ranges, one tensor at a time, and write nothing to disk.
        role_map: TOML file with roles for names that the rules do not know, and with the wiring of architectures.
        include: globs on matrix names; only these.
        exclude: globs on matrix names; not these.
        roles: only these roles, such as `("q", "k")`.
        experts: how many experts to sample of each stack (seeded); None for all.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `auto` is float64, but float32 on the CPU for bfloat16 and coarser storage where that decides nothing,
            and guarded float32 on an accelerator where float64 is slow. A record's `compute_dtype` says which it was.
        method: `gram`, or `svd` (with float32 bit-compatible with the AlphaDecay reference).
        tail: which tail rule `alpha` follows; `pl_alpha`, the KS-optimal one, always stands beside it.
        tail_fraction: share of the eigenvalues in the tail, for the Hill rules.
        farms_rows: with tail='farms', rows of each window; None for 2000. The smaller side bounds them.
        farms_aspect: columns over rows of a window; None for 1.
        farms_windows: at most this many windows a dimension; None for 10.
        randomize: compute the spectrum of the entry-permuted matrix too.
        fit_test: say which of several laws each tail follows (`specdiag.fit_test`).
        function: measure what the weights compute too, in whatever form they are stored: QK and OV of each head, DU of
            gated MLPs (`report.function`), and how much square_alpha of each stored matrix owes to its form
            (`gauge_shift`). Architectures of unknown wiring are left out, with a note.
        seed: of expert sampling and of the permutation; None for 0.
        jobs: worker threads; None for the processors that are available.
        memory: bytes that the workers may use together; None for half of the machine's.
        cache: a folder in which results are kept by the content of their tensors, and found there; None for none.
        partial_reports: of the same analysis, interrupted: what they hold is not computed again.
        ranks: the processes that share the work, each of which makes this call; every one gets the whole report. For
            a model that is divided among processes (FSDP2, tensor parallelism) these are those of torch.distributed.
        progress: called after every matrix.

    Raises:
        UsageError: an option makes no sense, or a pattern matches nothing.
        SourceError: the source cannot be read, or holds nothing to analyse.
        RankFailed: another process could not begin its part.
        Interrupted: Ctrl-C; carries the partial report.
        AnalysisFailed: another failure after the first matrix; carries the partial report. The failure is its cause.

    Example:
        >>> report = specdiag.analyze("org/name")
        >>> round(report["model.layers.0.self_attn.q_proj.weight"].alpha, 1)
        2.2
    """
    start = time.perf_counter()
    divided = Ranks.of_training() if is_divided(source) else None
    with agreement(divided):
        options = AnalysisOptions.of(locals())
    with agreement(divided):
        checkpoint = open_source(
            source, revision=revision, file=file, part=part, base=base, stream=stream, role_map=role_map,
            experts=experts, seed=seed,
        )  # fmt: skip
    mark = fingerprint(checkpoint.source)
    if any(matrix.tensor.owner is not None for matrix in checkpoint.matrices):
        ranks = Ranks.of_training()
        options = dataclasses.replace(options, ranks=ranks)
        if options.function:
            raise UsageError(
                "function=True multiplies matrices that lie at several processes: analyse a saved checkpoint, or give "
                "a full state dict"
            )
    with agreement(ranks):
        settings = resolved(options, checkpoint.opening)
    if ranks is not None and device in ("auto", "cuda"):
        settings = replace(settings, device=ranks.device(settings.device))
    checkpoint, balanced = with_function(checkpoint, settings)
    selected, skipped = select(checkpoint, settings)
    selected, tied = drop_tied(selected)
    with agreement(ranks):
        finished = finished_rows(options.partial_reports, checkpoint.source, settings, selected)
    left = [m for m in selected if m.key not in finished] + needed(balanced, selected)
    outcome = run(left, checkpoint.source, settings, options)
    finished |= outcome.result.finished

    def assembled() -> SpectralReport:
        seconds = time.perf_counter() - start
        provenance = replace(
            record_provenance(checkpoint, settings, jobs=outcome.workers, seconds=seconds),
            processes=1 if ranks is None else ranks.size,
            device_difference=outcome.result.device_difference,
            fingerprint=mark,
            n_cached=outcome.result.n_cached,
        )
        return _report(checkpoint, settings, selected, [*skipped, *tied], finished, balanced, provenance)

    cause = outcome.cause
    try:
        report = assembled()
    except KeyboardInterrupt as late:  # a signal after the last matrix; what was measured is put together once more
        cause, report = late, assembled()
    if cause is None:
        return report
    if isinstance(cause, KeyboardInterrupt | RankLost):
        raise Interrupted(report) from cause
    if not outcome.result.finished:
        raise cause
    raise AnalysisFailed(report, cause) from cause


def report_without_matrices(checkpoint: Checkpoint, options: AnalysisOptions) -> SpectralReport:
    """Put the report of a checkpoint together that holds no matrices; `analyze` refuses such a one.

    Args:
        checkpoint: without matrices.
        options: of the analysis.
    """
    settings = resolved(options, checkpoint.opening)
    provenance = record_provenance(checkpoint, settings, jobs=0, seconds=0.0)
    return _report(checkpoint, settings, (), checkpoint.skipped, {}, {}, provenance)


def _report(
    checkpoint: Checkpoint,
    settings: Settings,
    selected: Sequence[WeightMatrix],
    skipped: Sequence[Skipped],
    finished: Rows,
    balanced: Balanced,
    provenance: Provenance,
) -> SpectralReport:
    """Put the report together; selected matrices without a row are listed with those that were left out."""
    copies = sum(prod(s.shape) for s in skipped if s.reason.endswith(EQUAL))
    done = [finished[m.key] for m in selected if m.key in finished]
    missing = [skip(m, "not reached before the interruption") for m in selected if m.key not in finished]
    left_out = (*skipped, *missing)
    records = with_gauge_shift([r for r, _ in done if r.form == "stored"], balanced, finished)
    function = tuple(r for r, _ in done if r.form == "function")
    report = SpectralReport(
        source=checkpoint.source,
        settings=settings,
        records=records,
        function=function,
        skipped=left_out,
        summary=summarise(
            records,
            left_out,
            function,
            n_tensors=checkpoint.n_tensors,
            n_parameters=checkpoint.n_parameters - copies,
        ),
        provenance=provenance,
        complete=not missing,
        _spectra=_by_key(done),
    )
    if not settings.fit_test:
        return report
    from specdiag.analysis.fit_test import fit_test

    return fit_test(report)


def _by_key(done: Iterable[tuple[ModuleRecord, Eigenvalues]]) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for record, eigenvalues in done:
        found[spectrum_key(record.key)] = eigenvalues.measured
        if eigenvalues.randomized is not None:
            found[spectrum_key(record.key, randomized=True)] = eigenvalues.randomized
    return found
