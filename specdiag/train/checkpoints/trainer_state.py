"""Reads trainer_state.json, and checks it before transformers makes objects of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import msgspec
from msgspec import Meta

from specdiag.errors import SourceError
from specdiag.files import Table, converter, read_whole
from specdiag.train.checkpoints.finite import check_plain

Count = Annotated[int, Meta(ge=0, lt=1 << 53)]


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that transformers and specdiag read; the file may have more."""

    global_step: Count
    max_steps: Count
    epoch: float | None = None
    train_batch_size: Count | None = None
    num_train_epochs: Count = 0
    num_input_tokens_seen: Count = 0
    total_flos: float = 0.0
    log_history: list[Table] | None = None
    stateful_callbacks: dict[str, Table | list[Table]] | None = None


_convert = converter(_State)


def read_trainer_state(path: Path) -> Table:
    """Read and check a trainer_state.json.

    Raises:
        SourceError: the file is missing or damaged, or has a field or value that no Trainer writes.
    """
    try:
        content = json.loads(read_whole(path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}; name another checkpoint") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read ({error}): name another checkpoint") from error
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        raise SourceError(f"{path} names no global_step: name another checkpoint")
    try:
        state = _convert(content)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SourceError(f"{path} is damaged ({error}): name another checkpoint") from error
    _check(path, content, state)
    return cast("Table", content)


def _check(path: Path, content: Table, state: _State) -> None:
    from transformers import TrainerState

    known = TrainerState.__dataclass_fields__
    unknown = next((name for name in content if name not in known), None)
    if unknown is not None:
        raise SourceError(f"{path} has a field that this transformers does not know, {unknown:.80}: it is of another "
                          "version, or damaged; name another checkpoint")  # fmt: skip
    check_plain({name: content[name] for name in ("epoch", "total_flos") if name in content}, str(path))
    check_plain(state.stateful_callbacks, str(path))
