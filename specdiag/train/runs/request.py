"""Request to continue a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of a run that continues; None or empty if not given."""

    source: Path
    """Run, checkpoint or folder of weights to continue."""
    data: Sequence[str | Path] = ()
    """Files, folders or datasets of the hub; empty for those of the run."""
    eval_data: Sequence[str | Path] = ()
    """Held-out data; empty for that of the run, or blocks of `data`."""
    out: Path | None = None
    """Folder of the new run; None for the run's own, or NAME-continued."""
    decay: str | None = None
    """`plan:FILE`, or a rule."""
    alphadecay: Mapping[str, object] | None = None
    """Options of the decay rule. `s1`, `s2` and `basis` are also options of a new plan."""
    steps_total: int | None = None
    """Steps of the whole run."""
    extend: int | None = None
    """Steps to add to the planned ones."""
    eval_every: int | None = None
    """Steps between two evaluations; None for those of the run."""
    block_size: int | None = None
    """Tokens of a block."""
    max_tokens: int | None = None
    """Tokens to take from the data."""
    task: str | None = None
    """Task by its name in a recipe."""
    columns: Sequence[str] = ()
    """Columns of a classification data set: one or two with text, then the label."""
    layout: str | None = None
    """Parameter order of another program's optimizer, if several fit."""
    config: str | None = None
    """config.json, folder or hub id of the model, where another program's checkpoint has none."""
    tokenizer: str | None = None
    """Folder, file, hub id or `bytes`; None for the tokenizer next to the weights."""
    settings: Mapping[str, object] | None = None
    """Arguments of the Trainer."""
    fresh_optimizer: bool = False
    """True to take only the weights and start at step 0."""
    allow_data_shift: bool = False
    """True to continue although data, batch size or number of processes changed."""
    scratch: Path | None = None
    """Folder for what a dry run writes, which stays out of the run's; None to write the run."""
    continues_text: bool = False
    """True if the model continues a text at the end."""
