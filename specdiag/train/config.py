"""What a run of ours was started with, kept in its folder so that it can go on without being told again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from specdiag.errors import SourceError
from specdiag.records import Record
from specdiag.report import write_atomically
from specdiag.train.fingerprint import Fingerprint

CONFIG = "specdiag_train.toml"
PLAN = "plan.json"
SCHEMA = 1

Method = Literal["plan", "alphadecay", "uniform", "none"]


class RunConfig(Record, frozen=True, kw_only=True):
    """Content of the file."""

    schema: int = SCHEMA
    source: str
    """The checkpoint that the run started from."""
    fresh_optimizer: bool = False
    steps_total: int
    decay: Method
    """`plan` is the plan.json beside this file."""
    alphadecay: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    data: tuple[str, ...]
    settings: dict[str, Any]
    """Arguments of the Trainer."""
    fingerprint: Fingerprint


def save_config(run: Path, config: RunConfig) -> None:
    """Write it, whole or not at all."""
    write_atomically(run / CONFIG, msgspec.toml.encode(config))


def load_config(run: Path) -> RunConfig | None:
    """The configuration of a run; None for a run that is not ours.

    Raises:
        SourceError: its file is damaged or of a newer schema.
    """
    path = run / CONFIG
    if not path.is_file():
        return None
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=RunConfig)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read ({error}): continue one of its checkpoints with --out DIR") from error
    if config.schema > SCHEMA:
        raise SourceError(f"{path} is of schema {config.schema}, and this specdiag reads up to {SCHEMA}: upgrade it")
    return config
