"""The tokenizer of a run: found beside weights, fetched, or none where bytes are tokens; and kept with the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdiag.errors import SourceError
from specdiag.train.byte_tokenizer import byte_tokenizer
from specdiag.train.checkpoints import gguf_in

NO_TOKENIZER = "bytes"
"""In a recipe: bytes are tokens."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PARTS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
_FOLDER = "tokenizer"


def find_tokenizer(*folders: Path) -> Any:
    """The tokenizer of the first folder that has one, else None: then bytes are tokens.

    Raises:
        SourceError: it cannot be opened.
    """
    folder = _folder_with(folders)
    return None if folder is None else _open(folder)


def open_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id; None for bytes.

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


def save_tokenizer(tokenizer: Any, run: Path) -> list[Path]:
    """Keep a tokenizer in the folder of a run, where it is not there yet, and give its files."""
    folder = run / _FOLDER
    if not folder.exists():
        (byte_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return tokenizer_files(folder)


def copy_tokenizer(files: Sequence[Path], run: Path) -> list[Path]:
    """Keep a tokenizer's files in the folder of a run: a checkpoint that they lie in may be deleted on the way."""
    folder = run / _FOLDER
    if not folder.exists():
        folder.mkdir()
        for path in files:
            shutil.copyfile(path, folder / path.name)
    return tokenizer_files(folder)


def _open(source: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        name = gguf_in(Path(source))
        held: dict[str, str] = {} if name is None else {"gguf_file": name}
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **held)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(f"the tokenizer of {source} cannot be opened ({reason})") from error


def _folder_with(folders: Sequence[Path]) -> Path | None:
    return next((f for f in folders if any((f / name).is_file() for name in _FILES) or gguf_in(f)), None)
