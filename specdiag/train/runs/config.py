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
    """Content of the configuration file."""

    schema: int = SCHEMA
    source: str = ""
    """Checkpoint that the run started from; empty if it began with its recipe."""
    fresh_optimizer: bool = False
    """True if it started from there with a fresh optimizer."""
    model_config: str = ""
    """Source of the model's config.json, if another program's checkpoint had none."""
    layout: str = ""
    """Parameter order of that program's optimizer, if the request named it."""
    kept_apart: bool = False
    """True if the weights may have been trained on what is kept apart from the data now, so that it is not held out."""
    recipe: Recipe
    """Recipe with all defaults. With decay `plan`, the plan is plan.json in the same folder."""
    fingerprint: Fingerprint
    schedule: tuple[ScheduleSpan, ...]
    """The lr schedules so far, including those of the run that this one branched off."""

    @property
    def apart(self) -> str:
        """Word for the examples that the run is evaluated on: `held out` only where the weights never saw them."""
        return "kept apart" if self.kept_apart else "held out"


_convert = converter(RunConfig)


def save_config(run: Path, config: RunConfig) -> None:
    """Write the configuration of a run atomically into its folder."""
    write_atomically(run / CONFIG, msgspec.toml.encode(config))


def load_config(run: Path) -> RunConfig | None:
    """Load the configuration of a run; None if specdiag did not make the run.

    Raises:
        SourceError: the file is damaged or of another schema.
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
