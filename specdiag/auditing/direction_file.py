"""Saving the directions that were found to be removed, for `save_directions=`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.auditing.records import Finding
from specdiag.errors import UsageError
from specdiag.files import check_writable, read_start, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTENT = b"removed directions of specdiag audit"
_HEADER = 1 << 20
DIRECTION_CHECKS = (
    "removed_direction", "removed_direction_layers", "removed_direction_model", "shared_direction",
)  # fmt: skip
"""Checks whose findings have a direction."""


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written, or that holds something else than directions.

    Args:
        path: the file.

    Raises:
        UsageError: it is refused.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} is no name for directions: name a .safetensors file")
    if path.exists() and _CONTENT not in read_start(path, _HEADER):
        raise UsageError(f"{path} exists and holds no directions, and would be lost: name another file")
    check_writable(path)


def write_directions(
    path: Path, findings: Iterable[Finding], directions: Mapping[str, NDArray[np.float64]], source: str
) -> None:
    """Write the directions of findings as safetensors, each k unit rows [k, d]; nothing where there are none.

    Args:
        path: the file.
        findings: of the audit.
        directions: the lowest directions, [d, k] by the key of a matrix or the name of a range of layers.
        source: of the weights, which the file names in its metadata.

    Raises:
        UsageError: the file cannot be written.
    """
    names = dict.fromkeys(f.module for f in findings if f.check in DIRECTION_CHECKS and f.module in directions)
    if not names:
        return
    import numpy as np
    from safetensors.numpy import save

    rows = {str(name): np.ascontiguousarray(directions[str(name)].T) for name in names}
    try:
        write_atomically(path, save(rows, {"source": source, "content": _CONTENT.decode()}))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another file") from error
