"""A side of a comparison: a report, or a checkpoint that is still to be analysed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from specdiag.checkpoint.opening import is_location, is_on_hub
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError, UsageError
from specdiag.records import AnyRole, ModuleRecord, Role, Skipped, key, stored_role
from specdiag.report import SpectralReport, is_report, load_report
from specdiag.text.globs import check_globs, chosen

if TYPE_CHECKING:
    from specdiag.analysis.options import ComputedArguments
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource
    from specdiag.checkpoint.opening import OpeningArguments


class Entry(NamedTuple):
    """A tensor, or a part of one, as one side lists it."""

    name: str
    """Name of the tensor, without the part."""
    role: Role | None
    """None for what is no matrix."""
    shape: tuple[int, ...]
    reason: str | None
    """Why it is no row."""
    layer: int | None = None
    component: str | None = None
    cross_attention: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """A report, or a checkpoint without one.

    Attributes:
        report: the report, None where the checkpoint is still to be analysed.
        checkpoint: the weights, None where there is only the report.
    """

    report: SpectralReport | None
    checkpoint: Checkpoint | None

    def listing(self) -> dict[str, Entry]:
        """List everything that is stored, by key. Tensors that are no matrices have no role."""
        if self.report is not None:
            rows = {
                r.key: Entry(r.name, stored_role(r.role), shape(r), None, r.layer, r.component, r.cross_attention)
                for r in self.report
            }
            return _skipped(self.report.skipped) | rows
        assert self.checkpoint is not None
        rows = {
            m.key: Entry(
                m.name, stored_role((role := m.module).role), _of(m.shape, m.n_slices), None,
                role.layer, role.component, role.cross_attention,
            )
            for m in self.checkpoint.matrices
        }  # fmt: skip
        return _skipped(self.checkpoint.skipped) | rows

    def analyse(
        self, keys: Iterable[str], computing: ComputedArguments, progress: Callable[[Progress], None] | None
    ) -> SpectralReport:
        """Give the report, or analyse the checkpoint where there is none.

        Args:
            keys: the matrices to analyse; a report holds what it holds.
            computing: options of `analyze` that do not open a source.
            progress: as for `analyze`.

        Raises:
            Interrupted: Ctrl-C.
            AnalysisFailed: a failure after the first matrix, which is its cause.
        """
        if self.report is not None:
            return self.report
        from specdiag.analysis.analyze import analyze

        assert self.checkpoint is not None
        selected = set(keys)
        part = replace(self.checkpoint, matrices=tuple(m for m in self.checkpoint.matrices if m.key in selected))
        return analyze(part, progress=progress, **computing)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which matrices are compared, by globs on any of their names and by role."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def wants(self, names: Iterable[str], role: AnyRole | None) -> bool:
        """Tell whether a matrix is compared.

        Args:
            names: all names that it has on both sides.
            role: None for a tensor that is no matrix.
        """
        return chosen(names, self.include, self.exclude) and (not self.roles or role in self.roles)

    def check(self, names: Iterable[str]) -> None:
        """Check that every pattern selects something.

        Args:
            names: of both sides.

        Raises:
            UsageError: a pattern matches no name.
        """
        both = [(name,) for name in names]
        check_globs("include", self.include, both, "names of both sides")
        check_globs("exclude", self.exclude, both, "names of both sides")


def load_if_saved(source: AnalysisSource | SpectralReport) -> AnalysisSource | SpectralReport:
    """Read a saved report; give anything else back.

    Args:
        source: as the user gave it.

    Raises:
        UsageError: it is a text or path that no file can have.
        SourceError: the report is damaged, or of another schema.
    """
    return load_report(source) if is_location(source) and is_report(Path(source)) else source


def require_stream(opening: OpeningArguments, sources: Iterable[object]) -> None:
    """Check that there is something to stream where that is asked for.

    Args:
        opening: options that open a checkpoint.
        sources: both sides as the user gave them.

    Raises:
        UsageError: stream=True, and neither side is on the hub.
    """
    if opening.get("stream") and not any(is_on_hub(source) for source in sources):
        raise UsageError("stream goes with a model on the hub, and neither side is one")


def open_side(
    source: AnalysisSource | SpectralReport,
    base: str | os.PathLike[str] | None,
    opening: OpeningArguments,
    arguments: Mapping[str, object],
) -> Side:
    """Open a side as `analyze` would; of a run directory its newest checkpoint. A report stays as it is.

    Args:
        source: as the user gave it; reports already read.
        base: the model that a side which is an adapter is applied to, or None.
        opening: options for both sides, with those of the other side's report. Local files are not streamed.
        arguments: the options that the user gave. A checkpoint that is open already is checked against these alone.

    Returns:
        The side, with a report or an open checkpoint.

    Raises:
        UsageError: an option makes no sense for the source.
        SourceError: the source cannot be read.
    """
    if isinstance(source, SpectralReport):
        return Side(source, None)
    from specdiag.analysis.source import open_source

    own_opening: dict[str, object] = dict(opening)
    if isinstance(source, Checkpoint):
        own_opening = {name: value for name, value in own_opening.items() if name in arguments}
    if not is_on_hub(source):
        own_opening.pop("stream", None)
    opening = cast("OpeningArguments", own_opening)
    try:
        checkpoint = open_source(source, **opening)
    except SourceError:
        newest = _newest(source)
        if newest is None:
            raise
        source = newest
        checkpoint = open_source(source, **opening)
    if base is not None and is_location(source) and _is_adapter(checkpoint):
        opening["base"] = base
        checkpoint = open_source(source, **opening)
    return Side(None, checkpoint)


def shape(record: ModuleRecord) -> tuple[int, ...]:
    """Give the shape of a matrix: (rows, cols), with the number of slices before them where there are several.

    Args:
        record: its row.
    """
    return _of((record.rows, record.cols), record.n_slices)


def _newest(source: object) -> str | None:
    """Find the last checkpoint of a run directory; None where the source is no run."""
    if not is_location(source) or not Path(source).is_dir():
        return None
    from specdiag.trajectories.steps import find_steps

    try:
        return find_steps(source)[-1].location
    except SourceError:
        return None


def _is_adapter(checkpoint: Checkpoint) -> bool:
    return any(m.rank is not None for m in checkpoint.matrices)


def _of(sides: tuple[int, int], n_slices: int) -> tuple[int, ...]:
    return sides if n_slices == 1 else (n_slices, *sides)


def _skipped(skipped: Iterable[Skipped]) -> dict[str, Entry]:
    return {key(s.name, s.part): Entry(s.name, None, s.shape, s.reason) for s in skipped}
