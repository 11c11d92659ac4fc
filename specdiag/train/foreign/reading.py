"""Telling whose checkpoint it is, and reading it."""

from __future__ import annotations

import re
from pathlib import Path

from specdiag.checkpoint.formats import TORCH_SUFFIXES
from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.train.checkpoints.inspect import STATE, checkpoints_of, has_weights

try:
    from specdiag.train.foreign.alphadecay import is_alphadecay, read_alphadecay
    from specdiag.train.foreign.foreign import Foreign
    from specdiag.train.foreign.nanogpt import is_nanogpt, read_nanogpt
    from specdiag.train.foreign.opening import open_dictionary
    from specdiag.train.foreign.torch_dict import read_torch_dict
except ImportError as error:
    raise MissingExtraError(
        "training needs transformers and accelerate: pip install transformers accelerate"
    ) from error

_SINGLE = (*TORCH_SUFFIXES, ".tar")
_NANOGPT = "ckpt.pt"
_LAST = "last.ckpt"
_UPDATES = re.compile(r"model_(\d+)")
"""Folders of AlphaDecay's code."""


def is_foreign(source: Path) -> bool:
    """True if, by its file names, this may be a checkpoint of another program than a Trainer."""
    if source.is_file():
        return source.suffix in _SINGLE
    if not source.is_dir() or (source / STATE).exists() or checkpoints_of(source):
        return False
    try:
        return _found(source) is not None
    except UsageError:  # several files: which one is asked for when they are read
        return True


def read_foreign(source: Path, *, config: str | Path | None = None, layout: str | None = None) -> Foreign:
    """Read a checkpoint of another program. Nothing that it carries is run.

    Args:
        source: nanoGPT's ckpt.pt or its folder, a folder of AlphaDecay's code, Lightning's .ckpt, a file of torch.save
            with model and optimizer.
        config: a folder, config.json or hub id that says which model it is, where the checkpoint does not.
        layout: how its optimizer orders parameters, where several orders fit: `flat`, `trainer`, `nanogpt`,
            `alphadecay`.

    Raises:
        UsageError: an argument is missing, or the optimizer cannot be continued.
        SourceError: it is missing or damaged, its parts do not fit together, or it wants to run something.
    """
    found = source if source.is_file() else _found(source)
    if found is None:
        raise SourceError(f"'{source}' holds no checkpoint of a known program")
    if found.is_dir():
        return read_alphadecay(found, config, layout)
    content = open_dictionary(found)
    if is_nanogpt(content):
        return read_nanogpt(found, content, layout)
    return read_torch_dict(found, content, config, layout)


def _found(folder: Path) -> Path | None:
    """The file, or the folder of AlphaDecay's code."""
    if is_alphadecay(folder):
        return folder
    updates = [(int(m[1]), p) for p in folder.iterdir() if (m := _UPDATES.fullmatch(p.name)) and is_alphadecay(p)]
    if updates:
        return max(updates)[1]
    for name in (_NANOGPT, _LAST):
        if (folder / name).is_file():
            return folder / name
    if has_weights(folder):
        return None
    files = [path for path in folder.iterdir() if path.suffix in _SINGLE and path.is_file()]
    if len(files) > 1:
        listed = ", ".join(sorted(path.name for path in files)[:4])
        raise UsageError(f"'{folder}' holds several checkpoints ({listed}): name one")
    return files[0] if files else None
