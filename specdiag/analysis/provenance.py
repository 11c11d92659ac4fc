"""How the numbers of a report came about: versions, machine, notes of the reader."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import UTC, datetime

from specdiag.architecture.other_config import other_type
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.records import Provenance, Settings
from specdiag.resources import peak_memory
from specdiag.spectra.solvers import kernels
from specdiag.system.distributions import version


def record_provenance(checkpoint: Checkpoint, settings: Settings, *, jobs: int, seconds: float) -> Provenance:
    """Record the machine and the versions of an analysis.

    Args:
        checkpoint: what was analysed.
        settings: of the analysis.
        jobs: workers that shared it.
        seconds: that it took.
    """
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("specdiag", "numpy", "scipy", "torch")},
        platform=platform.platform(),
        device=settings.device,
        device_name=_device_name(settings.device),
        kernels=kernels(),
        peak_bytes=peak_memory(),
        notes=tuple(_notes(checkpoint)),
        architecture=checkpoint.architecture,
        jobs=jobs,
        seconds=seconds,
    )


def _notes(checkpoint: Checkpoint) -> Iterator[str]:
    yield from checkpoint.notes
    if unread := checkpoint.source.unread:
        yield unread
    if checkpoint.config and checkpoint.stored is not None:
        told = other_type(checkpoint.config, (tensor.name for tensor in checkpoint.stored))
        if told is not None:
            yield told


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
