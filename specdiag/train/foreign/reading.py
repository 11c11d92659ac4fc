"""Recognises and reads checkpoints of other programs."""

from __future__ import annotations

import re
from pathlib import Path

from specdiag.checkpoint.formats import TORCH_SUFFIXES
from specdiag.checkpoint.parts import METADATA
from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.train.checkpoints.inspect import STATE, checkpoints_of, has_weights

try:
    from specdiag.train.foreign.alphadecay import is_alphadecay, read_alphadecay
    from specdiag.train.foreign.distributed import metadata_of, read_distributed
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
"""Names of the checkpoint folders of AlphaDecay's code."""


def is_foreign(source: Path) -> bool:
    """True if a path, by its file names, may be a checkpoint of another program than a Trainer."""
    if source.is_file():
        return source.suffix in _SINGLE or source.name == METADATA
    if not source.is_dir():
        return False
    if (source / STATE).exists() or checkpoints_of(source):
        return metadata_of(source) is not None
    try:
        return _find(source) is not None
    except UsageError:  # several files: reading them asks for one
        return True


def single_file(source: Path) -> Path | None:
    """Return the one file that is read of a checkpoint of another program; None for one of several files.

    Args:
        source: its file or folder.
    """
    path = source if source.is_file() else _find(source)
    return path if path is not None and path.is_file() and path.name != METADATA else None


def read_foreign(source: Path, *, config: str | Path | None = None, layout: str | None = None) -> Foreign:
    """Read a checkpoint of another program. No code in it is run.

    Args:
        source: nanoGPT's ckpt.pt or its folder, a folder of AlphaDecay's code, Lightning's .ckpt, or a file of
            torch.save with model and optimizer; a distributed checkpoint, also as a Trainer saves it under FSDP.
        config: folder, config.json or hub id of the model, for a checkpoint that does not contain it.
        layout: order of the optimizer's parameters, if several fit: `flat`, `trainer`, `nanogpt` or `alphadecay`.

    Raises:
        UsageError: an argument is missing, or the optimizer cannot be continued.
        SourceError: the checkpoint is missing or damaged, its parts do not fit together, or it wants to run something.
    """
    metadata = metadata_of(source)
    if metadata is not None:
        return read_distributed(metadata, config, source)
    path = source if source.is_file() else _find(source)
    if path is None:
        raise SourceError(f"'{source}' holds no checkpoint of a known program")
    if path.is_dir():
        return read_alphadecay(path, config, layout)
    content = open_dictionary(path)
    if is_nanogpt(content):
        return read_nanogpt(path, content, layout)
    return read_torch_dict(path, content, config, layout)


def _find(folder: Path) -> Path | None:
    """Find the checkpoint in a folder: a file, or a folder of AlphaDecay's code; None if there is none."""
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
    metadata = metadata_of(folder)
    if metadata is not None:
        return metadata
    files = [path for path in folder.iterdir() if path.suffix in _SINGLE and path.is_file()]
    if len(files) > 1:
        listed = ", ".join(sorted(path.name for path in files)[:4])
        raise UsageError(f"'{folder}' holds several checkpoints ({listed}): name one")
    return files[0] if files else None
