"""Checks of the weight files of a repository that its model was not read from: their values, and twins beside it.

One tensor is read at a time, of twins one pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from specdiag.auditing.buffers import is_buffer
from specdiag.auditing.others import others
from specdiag.auditing.same_values import can_compare, difference
from specdiag.auditing.thresholds import Check, Observation
from specdiag.checkpoint.folder import Folder
from specdiag.checkpoint.other_files import OtherFiles, find_other_files, holds_adapter, is_pointer, open_files
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
from specdiag.comparison.matching import match
from specdiag.errors import SourceError, SpecdiagError
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.scan import scan

_HALF = 0.5
"""Share of its names that a file has to have in common with the model to be compared with it tensor by tensor."""


def read_other_files(
    checkpoint: Checkpoint, checks: Mapping[str, Check]
) -> tuple[tuple[Observation, ...], dict[str, str], tuple[str, ...] | None]:
    """Look into every weight file of a repository that its checkpoint was not read from.

    Args:
        checkpoint: as it was opened.
        checks: every check by id; twins and variants are compared where their check is on.

    Returns:
        Observations in the order of the files; what was done with each file; and the names of all files of the
        repository, None where one of them was picked.

    Raises:
        SourceError: the repository cannot be listed any more.
    """
    observations: list[Observation] = []
    done: dict[str, str] = {}
    folder, found = find_other_files(checkpoint.source, checkpoint.opening)
    if folder is None:
        return (), {}, None
    for files in found:
        how, more = _looked_into(files, folder, checkpoint, checks)
        observations += more
        done |= dict.fromkeys(files.names, how)
    shown = (_in_unicode(o) for o in observations)
    names = folder.names if checkpoint.opening.file is None else None
    return tuple(shown), {_unicode(name): _unicode(how) for name, how in done.items()}, names


def _in_unicode(observation: Observation) -> Observation:
    """Escape what is no Unicode: a file of any name may lie in the folder."""
    module, value = observation.module, observation.value
    return observation._replace(
        module=None if module is None else _unicode(module), value=_unicode(value) if isinstance(value, str) else value
    )


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _looked_into(
    files: OtherFiles, folder: Folder, checkpoint: Checkpoint, checks: Mapping[str, Check]
) -> tuple[str, list[Observation]]:
    """Check one file or one set of shards; an observation on a tensor names the file before it."""
    if files.unread is not None:
        return f"not audited: {files.unread}", [Observation("not_audited", files.name, files.unread)]
    try:
        held = open_files(folder, files.names, checkpoint.config)
        observations = list(_values(files, held))
        if files.kind == "other" or not checks[files.kind].enabled:
            return "values", observations
        observations += _compared(files, held, _again(folder, files, checkpoint))
    except (SpecdiagError, OSError) as error:
        damaged = files.expected and isinstance(error, SourceError) and not is_pointer(error)
        check = "damaged_file" if damaged else "not_audited"
        return f"not audited: {error}", [Observation(check, files.name, str(error))]
    return "values, compared with the model", observations


def _again(folder: Folder, files: OtherFiles, checkpoint: Checkpoint) -> Checkpoint:
    """List the model's own files in the folder of a twin once more: a pipeline has one model in each."""
    place = files.name.rpartition("/")[0]
    own = [name for name in checkpoint.source.files if name.rpartition("/")[0] == place]
    return open_files(folder, own, checkpoint.config)


def _values(files: OtherFiles, held: Checkpoint) -> Iterator[Observation]:
    """Find bad values, and in files that are no copies of the model matrices of zeros."""
    matrices = {matrix.name for matrix in held.matrices}
    small = {tensor.name for tensor in others(held) or ()}
    look_for_zeros = files.kind == "other" and not holds_adapter(files)
    for tensor in held.stored or ():
        if tensor.name not in matrices | small:
            continue
        stored = np.ascontiguousarray(tensor.read(None))
        values = scan(stored.reshape(1, 1, -1), FLOAT_TYPES[tensor.values_dtype])
        where = f"{tensor.file.removeprefix(f'{held.source.location}/')}: {tensor.name}"
        if values.n_nonfinite:
            yield Observation("nonfinite", where, values.n_nonfinite)
        if values.n_saturated:
            yield Observation("saturated", where, values.n_saturated)
        if look_for_zeros and tensor.name in matrices and values.largest == 0 and not values.n_nonfinite:
            yield Observation("zero", where, "all zero")


def _compared(files: OtherFiles, held: Checkpoint, model: Checkpoint) -> Iterator[Observation]:
    """Compare a twin with the model by name and value."""
    ours, theirs = ({t.name: t for t in side.stored or ()} for side in (model, held))
    pairs = {name: other for name, other, _ in match(ours, theirs).pairs}
    if len(pairs) < _HALF * min(len(ours), len(theirs)):
        share = f"{len(pairs)} of {len(theirs)} names are those of the model"
        yield Observation(files.kind, files.name, f"another model: {share}")
        return
    for name, other in pairs.items():
        fault = _fault(ours[name], theirs[other])
        if fault is not None:
            yield Observation(files.kind, f"{files.name}: {other}", fault)
    taken = set(pairs.values())
    for side, names, value in (
        (model, [name for name in ours if name not in pairs], "not there"),
        (held, [name for name in theirs if name not in taken], "not in the model"),
    ):
        for name in names:
            if _matters(side, name):
                yield Observation(files.kind, f"{files.name}: {name}", value)


def _fault(ours: StoredTensor, theirs: StoredTensor) -> str | None:
    """Say how two tensors of one name differ; None where they are equal, or cannot be compared."""
    if ours.shape != theirs.shape:
        return f"shape {'x'.join(map(str, theirs.shape))}, in the model {'x'.join(map(str, ours.shape))}"
    found = difference(ours, theirs) if can_compare(ours, theirs) else None
    return None if found is None else str(found)


def _matters(side: Checkpoint, name: str) -> bool:
    """Tell whether a tensor of one side alone is a part of the model, no buffer and no copy of embedding or head."""
    stored = {tensor.name: tensor for tensor in side.stored or ()}
    reason = next((s.reason for s in side.skipped if s.name == name), "")
    tensor = stored[name]
    if is_buffer(name) or reason.startswith(("tied to", "buffer")):
        return False
    if tensor.values_dtype not in FLOAT_TYPES or tensor.reason is not None:
        return False
    tables = {m.name for m in side.matrices if m.module.family == "embedding" and m.tensor.shape == tensor.shape}
    copies = (stored[other] for other in tables - {name} if name in tables)
    return not any(can_compare(tensor, copy) and difference(tensor, copy) is None for copy in copies)
