"""The tokenizer of a run: found beside weights, fetched, or none where bytes are tokens; and kept with the run."""

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
"""In a recipe: bytes are tokens."""
_OF_BYTES = (256, 257)
"""Sizes of a vocabulary that say so themselves."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PARTS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
KEPT = "tokenizer"
"""Folder in a run."""


def find_tokenizer(*folders: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the first folder that has one, else None: then bytes are tokens.

    Raises:
        SourceError: it cannot be opened.
    """
    folder = _folder_with(folders)
    return None if folder is None else _open(folder)


def tokenizer_to_go_on(
    named: str | None, folders: Sequence[Path], *, in_bytes: bool, vocabulary: int | None, in_text: bool
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a run that goes on; None for bytes, and where no text is to be read.

    Args:
        named: folder, file or hub id, or `bytes`.
        folders: where it may lie.
        in_bytes: whether the run is known to have been trained on bytes.
        vocabulary: of the model; None where it has none.
        in_text: whether there is text to be made into tokens.

    Raises:
        UsageError: there is none, and the vocabulary is not that of bytes.
        SourceError: it cannot be opened.
    """
    if named is not None:
        return open_tokenizer(named)
    found = None if in_bytes else find_tokenizer(*folders)
    if found is None and in_text and not in_bytes and vocabulary not in _OF_BYTES:
        raise UsageError(
            f"there is no tokenizer in {folders[0]}, and its vocabulary of {vocabulary} is not that of bytes (256, or "
            "257 with one special token): name its own as tokenizer=, a folder, a file, a hub id "
            "or bytes"
        )
    return found


def open_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder, file or hub id; None for bytes. What is here goes before the hub.

    Raises:
        SourceError: it cannot be opened.
    """
    return None if source in ("", NO_TOKENIZER) else _open(source)


def tokenizer_files(*folders: Path) -> list[Path]:
    """The files of that tokenizer, to be copied as they are: saving one anew may change it."""
    folder = _folder_with(folders)
    if folder is None:
        return []
    return sorted({path for pattern in _PARTS for path in folder.glob(pattern) if path.is_file()})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase | None, run: Path) -> list[Path]:
    """Keep a tokenizer in the folder of a run, where it is not there yet, and give its files."""
    folder = run / KEPT
    if not folder.exists():
        (byte_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return tokenizer_files(folder)


def copy_tokenizer(files: Sequence[Path], run: Path) -> list[Path]:
    """Keep a tokenizer's files in the folder of a run: a checkpoint that they lie in may be deleted on the way."""
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
    except Exception as error:  # the tokenizers library raises nothing more special
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(f"the tokenizer of {source} cannot be opened ({reason})") from error


def _folder_with(folders: Sequence[Path]) -> Path | None:
    return next((f for f in folders if any((f / name).is_file() for name in _FILES) or gguf_in(f)), None)
