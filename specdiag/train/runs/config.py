"""Configuration of a run, kept in its folder so that the run can be continued."""

from __future__ import annotations

from pathlib import Path

import msgspec

from specdiag.errors import SourceError
from specdiag.files import converter, decode_toml, read_whole, write_atomically
from specdiag.records import Record
from specdiag.train.data.fingerprint import Fingerprint
from specdiag.train.recipe import Recipe
from specdiag.train.runs.schedule import ScheduleSpan

CONFIG = "specdiag_train.toml"
PLAN = "plan.json"
SCHEMA = 3
_WAY_ON = "or move it away and start from the weights of a checkpoint with fresh_optimizer=True"
_AGAIN = f"copy the run again, {_WAY_ON}"


class RunConfig(Record, frozen=True, kw_only=True):
    """Content of the file."""

    schema: int = SCHEMA
    source: str = ""
    """The checkpoint that the run started from; empty for one that began with its recipe."""
    fresh_optimizer: bool = False
    model_config: str = ""
    """Where the model of another program's checkpoint was described, if not in it."""
    layout: str = ""
    """How that program's optimizer orders parameters, if the request named the order."""
    recipe: Recipe
    """As it was resolved; with decay `plan` the plan is the plan.json beside this file."""
    fingerprint: Fingerprint
    schedule: tuple[ScheduleSpan, ...]
    """The lr schedules so far, those of the run that this one branched off included."""


_convert = converter(RunConfig)


def save_config(run: Path, config: RunConfig) -> None:
    """Write it, whole or not at all."""
    write_atomically(run / CONFIG, msgspec.toml.encode(config))


def load_config(run: Path) -> RunConfig | None:
    """The configuration of a run; None for a run that is not ours.

    Raises:
        SourceError: its file is damaged or of another schema.
    """
    path = run / CONFIG
    if not path.exists():
        return None
    try:
        content = decode_toml(read_whole(path))
        schema = content.get("schema")
        if schema != SCHEMA:
            raise SourceError(
                f"{path} is of schema {schema!s:.40}, and this specdiag reads {SCHEMA}: use the one that made it, "
                f"{_WAY_ON}"
            )
        return _convert(content)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}; {_AGAIN}") from error
    except msgspec.DecodeError as error:
        raise SourceError(f"{path} cannot be read ({error!s:.400}): {_AGAIN}") from error
