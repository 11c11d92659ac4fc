"""Opens the tokenizer of a run, and keeps its files with the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import SourceError, UsageError
from specdiag.train.checkpoints.inspect import gguf_in
from specdiag.train.data.byte_tokenizer import byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKENIZER = "bytes"
"""Value of `tokenizer` in a recipe if bytes are tokens."""
_OF_BYTES = (256, 257)
"""Sizes of a vocabulary from which one can tell that bytes are tokens."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PARTS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
KEPT = "tokenizer"
"""Name of the folder in a run that keeps its tokenizer."""


def find_tokenizer(*folders: Path) -> PreTrainedTokenizerBase | None:
    """Open the tokenizer of the first folder that has one; return None if none has.

    Raises:
        SourceError: it cannot be opened.
    """
    folder = _folder_with(folders)
    return None if folder is None else _open(folder)


def resume_tokenizer(
    requested: str | None, folders: Sequence[Path], *, in_bytes: bool, vocabulary: int | None, in_text: bool
) -> PreTrainedTokenizerBase | None:
    """Open the tokenizer of a run that continues.

    Args:
        requested: tokenizer that was requested: folder, file, hub id or `bytes`; None for none.
        folders: folders in which it is looked for otherwise.
        in_bytes: True if the run is known to have been trained on bytes.
        vocabulary: size of the model's vocabulary; None if it has none.
        in_text: True if text must be made into tokens.

    Returns:
        None if bytes are tokens, or if there is no tokenizer and none is needed.

    Raises:
        UsageError: a tokenizer is needed and there is none.
        SourceError: it cannot be opened.
    """
    if requested is not None:
        return open_tokenizer(requested)
    tokenizer = None if in_bytes else find_tokenizer(*folders)
    if tokenizer is None and in_text and not in_bytes and vocabulary not in _OF_BYTES:
        raise UsageError(
            f"there is no tokenizer in {folders[0]}, and its vocabulary of {vocabulary} is not that of bytes (256, or "
            "257 with one special token): name its own as tokenizer=, a folder, a file, a hub id "
            "or bytes"
        )
    return tokenizer


def open_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """Open the tokenizer of a folder, file or hub id. A local path is preferred to the hub.

    Args:
        source: folder, file or hub id; empty or `bytes` for none.

    Returns:
        None if bytes are tokens.

    Raises:
        SourceError: it cannot be opened.
    """
    return None if source in ("", NO_TOKENIZER) else _open(source)


def tokenizer_files(*folders: Path) -> list[Path]:
    """List the tokenizer's files of the first folder that has them, to be copied: saving it anew may change it."""
    folder = _folder_with(folders)
    if folder is None:
        return []
    return sorted({path for pattern in _PARTS for path in folder.glob(pattern) if path.is_file()})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase | None, run: Path) -> list[Path]:
    """Save a tokenizer into the folder of a run, unless one is kept there already.

    Args:
        tokenizer: the tokenizer; None for bytes.
        run: folder of the run.

    Returns:
        The files that the run keeps.
    """
    folder = run / KEPT
    if not folder.exists():
        (byte_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return tokenizer_files(folder)


def copy_tokenizer(files: Sequence[Path], run: Path) -> list[Path]:
    """Copy a tokenizer's files into the folder of a run, because a checkpoint with them may be deleted in training.

    Args:
        files: files of the tokenizer.
        run: folder of the run; a tokenizer that is kept there already stays.

    Returns:
        The files that the run keeps.
    """
    folder = run / KEPT
    if not folder.exists():
        folder.mkdir()
        for path in files:
            shutil.copyfile(path, folder / path.name)
    return tokenizer_files(folder)


def _open(source: str | Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if Path(source).is_file() and Path(source).suffix != ".json":
        raise SourceError(f"{source} is no tokenizer.json: name the folder that it lies in")
    try:
        if Path(source).is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(source))
        name = gguf_in(Path(source))
        options: dict[str, str] = {} if name is None else {"gguf_file": name}
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(f"the tokenizer of {source} cannot be opened ({reason})") from error


def _folder_with(folders: Sequence[Path]) -> Path | None:
    return next((f for f in folders if any((f / name).is_file() for name in _FILES) or gguf_in(f)), None)
