"""Opens files of other programs without running code in them. An error names what a file wants to run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from specdiag.checkpoint.torch_load import INERT, ForeignPickleError, load_torch
from specdiag.errors import SourceError
from specdiag.train.checkpoints.zip_check import check_zip

SavedDict = Mapping[str, Any]
"""Content of a file of torch.save, by name."""
_scalar = cast("Any", np.float64(0)).__reduce__()[0]
_NUMPY = (
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "uint32", "uint64", "float32", "float64")},
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
)
"""Classes and functions in a pickle of a numpy number, such as a best loss, by new and old name. They run no code."""


def open_dictionary(path: Path) -> SavedDict:
    """Open the dictionary in a file of torch.save. Tensors stay on disk until they are used.

    Raises:
        SourceError: the content is no dictionary, or the file is damaged or wants to run something, which is named.
    """
    check_zip(path)
    try:
        content = load_torch(path, str(path), cast("Any", (*INERT, *_NUMPY)))
    except ForeignPickleError as error:
        disallowed = _disallowed_names(path)
        if not disallowed:
            raise
        raise SourceError(
            f"'{path}' wants to make or run {', '.join(disallowed)} when it is opened, which is not allowed: save the "
            "state_dict of model and optimizer in it, and numbers and text, not objects"
        ) from error
    if not isinstance(content, Mapping):
        raise SourceError(f"'{path}' holds a {type(content).__name__}, not a dictionary of model and optimizer")
    return {str(name): value for name, value in cast("Mapping[Any, Any]", content).items()}


def _disallowed_names(path: Path) -> list[str]:
    """List names in the pickle that are not allowed, without running it; empty for a file of the old format."""
    classes = (*INERT, *(kind for kind in _NUMPY if isinstance(kind, type)))
    allowed = {f"{kind.__module__}.{kind.__qualname__}" for kind in classes}
    allowed |= {kind[1] for kind in _NUMPY if isinstance(kind, tuple)}
    try:
        globals_found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, LookupError):
        return []
    return sorted(set(globals_found) - allowed)
