"""From a source to its report: what is asked for is listed, measured, and summarised."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from specdiag import checks
from specdiag.analysis.options import AnalysisArguments, AnalysisOptions, DType, Method, check
from specdiag.analysis.processes import Ranks
from specdiag.analysis.resume import finished_rows
from specdiag.analysis.run import Progress, measured
from specdiag.analysis.summary import summarise
from specdiag.checkpoint.fingerprint import fingerprint
from specdiag.checkpoint.opening import OPENING, PLACE, Opening, OpeningArguments, is_location
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.errors import SourceError, UsageError
from specdiag.records import ROLES, ModuleRecord, Provenance, Settings, Skipped, TailName
from specdiag.report import SpectralReport, is_report, spectrum_key
from specdiag.resources import blas_kernels, may_have_accelerator, peak_memory
from specdiag.spectra.measure import Eigenvalues
from specdiag.text.globs import check_globs, chosen

if TYPE_CHECKING:
    import torch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an analysis, or another process of it died. `report` holds what was done, marked incomplete."""

    def __init__(self, report: SpectralReport) -> None:
        super().__init__(f"interrupted after {len(report)} matrices")
        self.report = report


def analyze(
    source: str | os.PathLike[str] | torch.nn.Module | Mapping[str, torch.Tensor] | Checkpoint,
    *,
    revision: str | None = None,
    file: str | None = None,
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
    square: bool = True,
    randomize: bool = False,
    seed: int | None = None,
    jobs: int | None = None,
    memory: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    resume: Sequence[SpectralReport] = (),
    ranks: Ranks | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SpectralReport:
    """Spectra, exponents and metrics of every weight matrix of a checkpoint, one matrix at a time.

    An open `Checkpoint` keeps what it was opened with: revision, file, base, stream, role map, experts and seed.

    Args:
        source: a hub id (`org/name`, `org/name@revision`, a URL), a directory, a file, a model, a state dict, or an
            open `Checkpoint`. Nothing is instantiated and nothing is unpickled that could run code.
        revision: branch, tag or commit of a hub repository.
        file: which weight file of a repository or directory.
        base: the model that an adapter changes, as a path or hub id: its weights with the adapter applied are analysed.
            Without it the adapter's updates are, by themselves.
        stream: read a hub repository by ranges, one tensor at a time, and write nothing to disk.
        role_map: TOML file with roles for names that the rules do not know.
        include: globs on matrix names; only these.
        exclude: globs on matrix names; not these.
        roles: only these roles, such as `("q", "k")`.
        experts: how many experts to sample of each stack (seeded); None for all.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `auto` is float64, and guarded float32 where float64 is slow.
        method: `gram`, or `svd` (with float32 bit-compatible with the AlphaDecay reference).
        tail: which tail rule `alpha` follows; `pl_alpha`, the KS-optimal one, always stands beside it.
        tail_fraction: share of the eigenvalues in the tail, for the Hill rules.
        square: compute `alpha_square`.
        randomize: compute the spectrum of the entry-permuted matrix too.
        seed: of expert sampling and of the permutation; None for 0.
        jobs: worker threads; None for the processors that are available.
        memory: bytes that the workers may use together; None for half of the machine's.
        cache: a folder in which results are kept by the content of their tensors, and found there; None for none.
        resume: partial reports of the same analysis, interrupted: what they hold is not computed again.
        ranks: the processes that share the work, each of which makes this call; every one gets the whole report.
        progress: called after every matrix.

    Raises:
        UsageError: an option makes no sense, or a pattern matches nothing.
        SourceError: the source cannot be read, or holds nothing to analyse.
        Interrupted: Ctrl-C; carries the partial report.

    Example:
        >>> report = specdiag.analyze("org/name")
        >>> round(report["model.layers.0.self_attn.q_proj.weight"].alpha, 1)
        2.2
    """
    start = time.perf_counter()
    options = AnalysisOptions.of(locals())
    checkpoint = open_source(
        source, revision=revision, file=file, base=base, stream=stream, role_map=role_map, experts=experts, seed=seed
    )
    mark = fingerprint(checkpoint.source)
    settings = _settings(options, checkpoint.opening)
    selected, skipped = select(checkpoint, settings)
    selected, tied = drop_tied(selected)
    if ranks is not None and device in ("auto", "cuda"):
        settings = replace(settings, device=ranks.device(settings.device))
    finished = finished_rows(options.resume, checkpoint.source, settings, selected)
    left = [m for m in selected if m.key not in finished]
    share, workers, cause = measured(
        left, checkpoint.source, settings, options.jobs, options.memory, options.cache, ranks, progress
    )
    finished |= share.finished

    done = [finished[m.key] for m in selected if m.key in finished]
    skipped += tied
    skipped += [_skip(m, "not reached before the interruption") for m in selected if m.key not in finished]
    report = SpectralReport(
        source=checkpoint.source,
        settings=settings,
        records=tuple(record for record, _ in done),
        skipped=tuple(skipped),
        summary=summarise(
            [record for record, _ in done],
            skipped,
            n_tensors=checkpoint.n_tensors,
            n_parameters=checkpoint.n_parameters,
        ),
        provenance=_provenance(
            checkpoint,
            settings,
            jobs=workers,
            seconds=time.perf_counter() - start,
            processes=1 if ranks is None else ranks.size,
            device_difference=share.device_difference,
            fingerprint=mark,
            n_cached=share.n_cached,
        ),
        complete=cause is None,
        _spectra=_by_key(done),
    )
    if cause is not None:
        raise Interrupted(report) from cause
    return report


def open_source(
    source: str | os.PathLike[str] | torch.nn.Module | Mapping[str, torch.Tensor] | Checkpoint,
    **given: Unpack[OpeningArguments],
) -> Checkpoint:
    """List what a source holds without reading values. Arguments and errors as in `analyze`."""
    checks.names(given, OPENING)
    opening = Opening.of(given)
    if is_location(source):
        return _open_location(cast("str | os.PathLike[str]", source), opening)
    if opening.base is not None:
        raise UsageError("base goes with an adapter on disk or on the hub: a model in memory holds its own weights")
    if named := next((name for name in PLACE if given.get(name)), None):
        raise UsageError(f"{named} goes with a path or a model on the hub: this one is open or in memory already")
    if isinstance(source, Checkpoint):
        source.opening.require_same(given)
        return source
    return _open_memory(source, opening)


def _open_location(source: str | os.PathLike[str], opening: Opening) -> Checkpoint:
    if is_report(Path(source)):
        raise UsageError(f"{os.fspath(source)} is a saved report: read it with specdiag.load_report")
    from specdiag.checkpoint.reader import open_checkpoint

    return open_checkpoint(
        source, revision=opening.revision, file=opening.file, role_map=opening.role_path, experts=opening.experts,
        seed=opening.seed, base=opening.base, stream=opening.stream,
    )  # fmt: skip


def _open_memory(source: object, opening: Opening) -> Checkpoint:
    import torch

    from specdiag.checkpoint.memory import from_model, from_state_dict

    role_map, experts, seed = opening.role_path, opening.experts, opening.seed
    if isinstance(source, Mapping):
        state = cast("Mapping[str, torch.Tensor]", source)
        if torch.Tensor not in {t for value in state.values() for t in type(value).__mro__}:
            raise UsageError(f"a state dict maps names to torch tensors; this one of {len(state)} entries holds none")
        if strange := [name for name in state if not isinstance(name, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"a state dict maps names to torch tensors; {checks.shown(strange[0])} is no name")
        _require_whole(state)
        return from_state_dict(state, role_map=role_map, experts=experts, seed=seed)
    if not isinstance(source, torch.nn.Module):
        raise UsageError(f"cannot analyse a {type(source).__name__}: give a path, a hub id, a model or a state dict")
    _require_whole(dict(source.named_parameters()))
    return from_model(source, role_map=role_map, experts=experts, seed=seed)


def _require_whole(tensors: Mapping[str, object]) -> None:
    """Raise UsageError where this process holds only its part of a tensor, as after `fully_shard`."""
    if parts := [name for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")]:
        raise UsageError(
            f"{parts[0]} is shared out over several processes, with {len(parts) - 1} more of {len(tensors)} tensors: "
            "give the state dict of get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
            "cpu_offload=True)), or full_tensor() of each"
        )


def make_settings(**given: Unpack[AnalysisArguments]) -> Settings:
    """Settings with `auto` resolved and every choice checked. Arguments as of `analyze`.

    Raises:
        UsageError: naming the option, its value, and what is allowed.
    """
    check(given)
    return _settings(AnalysisOptions.of(given), Opening.of(given))


def _settings(options: AnalysisOptions, opening: Opening) -> Settings:
    device, dtype = options.device, options.dtype
    if options.method == "svd" and device not in ("auto", "cpu"):
        raise UsageError(f"method svd runs on the CPU; leave out --device {device}, or choose method gram")
    if device == "auto" and (options.method == "svd" or not may_have_accelerator()):
        device = "cpu"
    if device != "cpu":
        from specdiag.spectra.accelerator import resolve_device, resolve_dtype

        device = resolve_device(device)
        if (device, dtype) == ("mps", "float64"):
            raise UsageError("MPS has no float64; leave --dtype to auto, or choose --device cpu")
        dtype = resolve_dtype(device) if dtype == "auto" else dtype
    return Settings(
        device=device,
        dtype="float32" if dtype == "float32" else "float64",
        method=options.method,
        tail=options.tail,
        tail_fraction=options.tail_fraction,
        square=options.square,
        randomize=options.randomize,
        seed=opening.seed,
        experts=opening.experts,
        include=options.include,
        exclude=options.exclude,
        roles=tuple(role for role in ROLES if role in options.roles),
        role_map=opening.role_map,
    )


def select(checkpoint: Checkpoint, settings: Settings) -> tuple[list[WeightMatrix], list[Skipped]]:
    """The matrices that were asked for, and everything else with its reason.

    Raises:
        UsageError: if a pattern matches nothing, or a setting makes no sense for an update of low rank.
        SourceError: if nothing is left.
    """
    names = [(m.key, m.name) for m in checkpoint.matrices]
    check_globs("include", settings.include, names, "matrices")
    check_globs("exclude", settings.exclude, names, "matrices")

    def wanted(matrix: WeightMatrix) -> bool:
        return chosen((matrix.key, matrix.name), settings.include, settings.exclude) and (
            not settings.roles or matrix.module.role in settings.roles
        )

    selected = [m for m in checkpoint.matrices if wanted(m)]
    left = [_skip(m, "not selected") for m in checkpoint.matrices if not wanted(m)]
    if not selected:
        raise SourceError(_nothing(checkpoint, left))
    _refuse_for_low_rank(selected, settings)
    return selected, [*checkpoint.skipped, *left]


def _refuse_for_low_rank(selected: Sequence[WeightMatrix], settings: Settings) -> None:
    given = "--tail farms" if settings.tail == "farms" else "--randomize" if settings.randomize else None
    updates = sum(m.rank is not None for m in selected)
    if given and updates:
        raise UsageError(
            f"{given} looks at the entries of a matrix, and {updates} of {len(selected)} are updates of low rank, "
            "which are never formed: leave it out, or give --base for W + delta"
        )


def drop_tied(matrices: list[WeightMatrix]) -> tuple[list[WeightMatrix], list[Skipped]]:
    """Embeddings and heads that are stored twice with equal bytes are analysed once.

    A safetensors file cannot say that two names share their memory, so those of equal shape are compared by value:
    first by one row, for a slow connection reads them whole only where that may pay.
    """
    groups: dict[tuple[tuple[int, ...], str], list[WeightMatrix]] = defaultdict(list)
    for m in matrices:
        if m.module.family == "embedding" and m.module.part is None and m.rank is None:
            groups[m.tensor.shape, m.tensor.dtype].append(m)
    tied: dict[str, Skipped] = {}
    for group in groups.values():
        first: dict[bytes, str] = {}
        for m in _with_equal_rows(group):
            digest = _digest(m.tensor)
            if digest in first:
                tied[m.key] = _skip(m, f"tied to {first[digest]} (equal values)")
            else:
                first[digest] = m.name
    return [m for m in matrices if m.key not in tied], list(tied.values())


def _with_equal_rows(group: Sequence[WeightMatrix]) -> list[WeightMatrix]:
    """Those whose first row is that of another one too."""
    rows = [m.tensor.read(0).tobytes() for m in group] if len(group) > 1 else []
    return [m for m, row in zip(group, rows, strict=False) if rows.count(row) > 1]


def _digest(tensor: StoredTensor) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor.read(None)).data).digest()


def _skip(matrix: WeightMatrix, reason: str) -> Skipped:
    return Skipped(
        name=matrix.name,
        part=matrix.module.part,
        shape=matrix.tensor.shape if matrix.rank is None else matrix.shape,
        dtype=matrix.storage_dtype,
        reason=reason,
    )


def _nothing(checkpoint: Checkpoint, left: Sequence[Skipped]) -> str:
    if left:
        return f"{checkpoint.source}: none of the {len(left)} matrices has the asked-for role and name"
    reasons: dict[str, int] = defaultdict(int)
    for s in checkpoint.skipped:
        reasons[s.reason] += 1
    listed = "; ".join(f"{n} {reason}" for reason, n in sorted(reasons.items(), key=lambda r: -r[1])[:4])
    return f"{checkpoint.source}: nothing to analyse in {checkpoint.n_tensors} tensors ({listed or 'it is empty'})"


def _by_key(done: Iterable[tuple[ModuleRecord, Eigenvalues]]) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for record, eigenvalues in done:
        found[spectrum_key(record.key)] = eigenvalues.measured
        if eigenvalues.randomized is not None:
            found[spectrum_key(record.key, randomized=True)] = eigenvalues.randomized
    return found


def _provenance(checkpoint: Checkpoint, settings: Settings, **measured: Any) -> Provenance:
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("specdiag", "numpy", "scipy", "torch")},
        platform=platform.platform(),
        device=settings.device,
        device_name=_device_name(settings.device),
        kernels=blas_kernels(),
        peak_bytes=peak_memory(),
        notes=checkpoint.notes,
        architecture=checkpoint.architecture,
        **measured,
    )


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
