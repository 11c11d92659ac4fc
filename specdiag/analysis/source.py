"""The source of an analysis: whatever holds weights is opened and listed, without reading values."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

from specdiag.checkpoint.opening import OPENING, PLACE, Opening, OpeningArguments, is_location
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError, UsageError
from specdiag.report import is_report
from specdiag.storage.kinds import REPORT, kind_of_file
from specdiag.text import checks

if TYPE_CHECKING:
    import torch

    from specdiag.spectra.float_types import RawArray

    AnalysisSource = (
        str | os.PathLike[str] | torch.nn.Module | Mapping[str, torch.Tensor] | Mapping[str, RawArray] | Checkpoint
    )
    """Whatever holds weights."""


def is_divided(source: object) -> bool:
    """Tell whether a live model or a state dict has tensors that lie on several processes (DTensor)."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    parameters = getattr(source, "parameters", None)
    tensors = source.values() if isinstance(source, Mapping) else parameters() if callable(parameters) else ()
    return any(hasattr(tensor, "full_tensor") for tensor in cast("Iterable[object]", tensors))


def open_source(
    source: AnalysisSource,
    **given: Unpack[OpeningArguments],
) -> Checkpoint:
    """List what a source holds without reading values.

    Args:
        source: whatever `analyze` takes.
        given: revision, file, part, base, stream, role_map, experts and seed, as of `analyze`.

    Raises:
        UsageError: an option makes no sense, or not for this source.
        SourceError: the source cannot be read, or is an adapter of another rank than its settings state.
    """
    checkpoint = list_source(source, **given)
    other = next((defect for defect in checkpoint.defects if defect.kind == "rank"), None)
    if other is not None and checkpoint is not source:
        raise SourceError(
            f"{checkpoint.source.location} contradicts itself: '{other.name}' has {other.reason}; fetch or save the "
            "adapter again with its own adapter_config.json"
        )
    return checkpoint


def list_source(source: AnalysisSource, **given: Unpack[OpeningArguments]) -> Checkpoint:
    """List what a source holds as `open_source` does, but an adapter that contradicts its settings too.

    Args:
        source: whatever `analyze` takes.
        given: as for `open_source`.

    Raises:
        UsageError: an option makes no sense, or not for this source.
        SourceError: the source cannot be read.
    """
    checks.names(given, OPENING)
    opening = Opening.of(given)
    if is_location(source):
        return _open_location(source, opening)
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
        kind = kind_of_file(Path(source)) or REPORT
        way = (
            "give the checkpoint" if kind is not REPORT else "give the checkpoint, or read it with specdiag.load_report"
        )
        raise UsageError(f"{os.fspath(source)} is a saved {kind.name.removeprefix('specdiag ')}, not weights: {way}")
    from specdiag.checkpoint.reader import open_checkpoint

    return open_checkpoint(
        source, revision=opening.revision, file=opening.file, part=opening.part, role_map=opening.role_path,
        experts=opening.experts, seed=opening.seed, base=opening.base, stream=opening.stream,
    )  # fmt: skip


def _open_memory(source: object, opening: Opening) -> Checkpoint:
    import torch

    from specdiag.checkpoint.arrays import with_tensors
    from specdiag.checkpoint.memory import from_model, from_state_dict

    role_map, experts, seed = opening.role_path, opening.experts, opening.seed
    if isinstance(source, Mapping):
        state = with_tensors(cast("Mapping[str, object]", source))
        if torch.Tensor not in {t for value in state.values() for t in type(value).__mro__}:
            raise UsageError(
                f"a state dict maps names to torch tensors or NumPy arrays; this one of {len(state)} entries holds none"
            )
        if strange := [name for name in state if not isinstance(name, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"a state dict maps names to tensors; {checks.shown(strange[0])} is no name")
        return from_state_dict(cast("Mapping[str, torch.Tensor]", state), role_map=role_map, experts=experts, seed=seed)
    if not isinstance(source, torch.nn.Module):
        raise UsageError(f"cannot analyse a {type(source).__name__}: give a path, a hub id, a model or a state dict")
    return from_model(source, role_map=role_map, experts=experts, seed=seed)
